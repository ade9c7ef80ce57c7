"""The drop-in's answers: the vendor's three forms byte by byte, the status held back for them, and how they fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import httpx
import pytest
from aiohttp import ClientResponse

from gateway.core.conversation import ConversationId, Feedback
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Prompt
from gateway.core.operations import RunId
from gateway.core.revocation import Revoked
from gateway.core.turn import AnswerItem
from gateway.core.vendor_keys import DEFAULT_KEY
from gateway.options import UpstreamSettings
from gateway.protocol.hyperleap_items import STOPPED
from gateway.sections import Secret
from gateway.simulator.answers import answer as said
from gateway.upstream.client import HyperleapClient
from gateway.upstream.key_files import KeyFiles
from gateway.upstream.keyring import KeyRing
from gateway.upstream.operations import HyperleapOperations
from gateway.upstream.pool import PoolSettings
from gateway.upstream.rules import UpstreamRules
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, eventually, metric
from tests.transports.conftest import SignIn
from tests.transports.dropin import PROMPT_ID, App, error_of, sse_items, start, text_of, toml
from tests.transports.h2_front import h2_front
from tests.transports.test_faults import VENDOR_WORDS

STREAMED: Final = {"array": ("chat-http2", "continue"), "sse": ("chat-sse", "continue-sse")}
WHOLE: Final = ("chat", "continue-sync")
FORMS: Final = ("chat-http2", "chat-sse", "chat")
LONG: Final = "Hi #rate=40 #tokens=400"


async def opened(running: Running, client: Client, message: str, form: str = "continue") -> tuple[str, ClientResponse]:
    """Send a message from an app of the user's and return its conversation and the answer, of which nothing is read."""
    async with App(running, client.token) as app:
        conversation = await app.create()
    response = await running.http.patch(
        f"{running.url}/hyperleap/conversations/{conversation}/{form}",
        json={"message": message},
        headers={"x-hl-api-key": client.token},
    )
    return conversation, response


async def read_into(body: bytearray, response: httpx.Response) -> None:
    async for data in response.aiter_raw():
        body += data


async def test_every_form_says_what_the_vendor_said(running: Running, client: Client) -> None:
    """Text, citations, finish reason, usage and ids are the vendor's, in an array, as events and whole."""
    message = "Hi #tokens=40 #citations=2"
    async with App(running, client.token) as app:
        conversation = await app.create()
        array = (await app.chat(conversation, message, "chat-http2")).json()
        events = sse_items((await app.chat(conversation, message, "chat-sse")).text)
        whole = (await app.chat(conversation, message, "chat")).json()
    for items in (array, events):
        run = running.simulator.bill.of(conversation)[0 if items is array else 1]
        assert text_of(items) == said(message).text
        assert {(item["messageId"], item["runId"]) for item in items} == {(run.message_id, run.run_id)}
        assert [item["citations"] for item in items if item["citations"]] == [list(said(message).citations)]
        usage = {"prompt_tokens": run.prompt_tokens, "completion_tokens": 40}
        assert items[-1]["usage"] == {**usage, "total_tokens": run.prompt_tokens + 40}
        assert [item["choice"]["finish_reason"] for item in items if item["choice"]["finish_reason"]] == ["stop"]
        assert items[-1]["citations"]  # as at the vendor, where they come with the end
    assert whole["choices"][0]["message"]["content"] == said(message).text
    assert (whole["citations"], whole["usage"]["completion_tokens"]) == (list(said(message).citations), 40)
    assert whole["messageId"] == running.simulator.bill.of(conversation)[2].message_id


@pytest.mark.parametrize(
    ("fault", "index", "role", "content"),
    [("extra-role", 0, "tool", '{"found":3}'), ("extra-role", 1, "assistant", "another choice")],
)
async def test_what_is_not_the_answers_text_is_passed_on(
    running: Running, client: Client, fault: str, index: int, role: str, content: str
) -> None:
    """An item of a tool, or of another choice, is an item of its own with what the vendor said of it."""
    async with App(running, client.token) as app:
        items = (await app.chat(await app.create(), f"Hi #tokens=20 #fault={fault}")).json()
        whole = (await app.chat(await app.create(), f"Hi #tokens=20 #fault={fault}", "chat")).json()
    others = [item["choice"] for item in items] + whole["choices"]
    found = [one for one in others if one["message"]["content"] == content]
    assert [(one["index"], one["message"]["role"]) for one in found] == [(index, role)] * 2


async def test_moderation_is_told_and_its_reason(running: Running, client: Client) -> None:
    """A withheld answer ends with ``content_filter`` and says what was filtered, in each form."""
    async with App(running, client.token) as app:
        conversation = await app.create()
        for form in FORMS:
            answer = await app.chat(conversation, "Hi #fault=moderated", form)
            choices: list[Any] = answer.json()["choices"] if form == "chat" else []
            if form != "chat":
                items = answer.json() if form == "chat-http2" else sse_items(answer.text)
                choices = [item["choice"] for item in items]
            assert choices[-1]["finish_reason"] == "content_filter"
            results = [one["moderation_results"]["categoryResults"] for one in choices if one["moderation_results"]]
            assert any(category["filtered"] for category in results[-1])


async def test_usage_that_the_vendor_did_not_tell_is_not_made_up(running: Running, client: Client) -> None:
    """An estimate stays inside: apps are told what the vendor told, a reported zero too."""
    async with App(running, client.token) as app:
        conversation = await app.create()
        silent = (await app.chat(conversation, "Hi #fault=no-usage")).json()[-1]["usage"]
        zero = (await app.chat(conversation, "Hi #fault=zero-usage", "chat")).json()["usage"]
    assert silent is None
    assert zero == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("form", STREAMED["array"])
async def test_array_is_written_one_item_a_write(running: Running, client: Client, form: str) -> None:
    """Each chunk begins with ``[`` or ``,`` and holds one whole item; the last one has the bracket."""
    _, response = await opened(running, client, "Hi #tokens=60 #rate=400 #citations=1 #fault=batch:3", form)
    pieces: list[bytes] = []
    piece = b""
    async for data, ends in response.content.iter_chunks():
        piece += data
        if ends:
            pieces.append(piece)
            piece = b""
    assert (pieces[0][:1], pieces[-1][-1:], {one[:1] for one in pieces[1:]}) == (b"[", b"]", {b","})
    assert len(pieces) > 10
    items = [json.loads(one[1:].removesuffix(b"]") if one is pieces[-1] else one[1:]) for one in pieces]
    assert text_of(items) == said("Hi #tokens=60 #rate=400 #citations=1 #fault=batch:3").text


async def test_events_are_written_with_comments_while_nothing_is_said(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A quiet stream of events is kept alive by comments; an array is not, where even a blank would be read."""
    running = await start(start_gateway, environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.1"})
    client = await sign_in(running)
    bodies = {}
    for form in ("chat-sse", "chat-http2"):
        _, response = await opened(running, client, "Hi #rate=3 #tokens=4", form)
        bodies[form] = await response.text()
    assert ": keep-alive\n\n" in bodies["chat-sse"]
    items = sse_items(bodies["chat-sse"].replace(": keep-alive\n\n", ""))
    assert text_of(items) == text_of(json.loads(bodies["chat-http2"])) == said("Hi #rate=3 #tokens=4").text


@pytest.mark.parametrize("form", FORMS)
async def test_status_is_held_back_until_the_vendors_first_item(running: Running, client: Client, form: str) -> None:
    """The vendor's own status comes long before; nothing is told before there is an answer."""
    asked = asyncio.create_task(opened(running, client, "Hi #tokens=3 #fault=slow-first-token:0.7", form))
    await eventually(lambda: any(run.outcome == "running" for run in running.simulator.bill), "the vendor to begin")
    done, _ = await asyncio.wait({asked}, timeout=0.3)
    assert not done
    _, response = await asked
    assert (response.status, len(response.headers["x-turn-id"])) == (200, 36)
    assert await response.text()


# What the vendor does before it says anything, and the status and code that an app is told.
REFUSALS: Final = {
    "#fault=429:7": (429, "too_many_requests"),
    "#fault=500": (500, "internal_server_error"),
    "#fault=empty-body-error:502": (502, "bad_gateway"),
    "#fault=empty-body-error:503": (503, "service_unavailable"),
    "#fault=empty-body-error:404": (404, "not_found"),
    "#fault=empty-body-error:409": (409, "conflict"),
    "#fault=empty-body-error:410": (410, "invite_expired"),
    "#fault=empty-body-error:422": (422, "unprocessable_entity"),
    "#fault=empty-body-error:418": (418, "bad_request"),
    "#fault=empty-body-error:403": (502, "bad_gateway"),  # the gateway's key, not the app's
    "#tokens=none": (400, "bad_request"),  # in the vendor's other shape, an array
    "#fault=cut:0": (502, "bad_gateway"),
    "#fault=garbage:0": (502, "bad_gateway"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("message", REFUSALS)
async def test_refusal_before_the_first_item_is_a_status(
    running: Running, client: Client, form: str, message: str
) -> None:
    """A vendor's 429 is a 429 with its Retry-After; every shape of its errors comes in the documented one."""
    async with App(running, client.token) as app:
        answer = await app.chat(await app.create(), message, form)
    status, code = REFUSALS[message]
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert not [word for word in VENDOR_WORDS if word in answer.content.replace(code.encode(), b"")]


async def test_refusal_of_a_call_is_in_the_documented_shape(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Calls that are no turns, too: the plan limit of the vendor is told with its time."""
    running = await start(start_gateway, simulator={"limit_per_minute": 1, "limit_period_s": 3600.0})
    async with App(running, (await sign_in(running)).token) as app:
        await app.create()
        answer = await app.call("POST", "/conversations/persona", {"personaId": PERSONA_ID})
    assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_requests")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse"])
@pytest.mark.parametrize("fault", ["cut:6", "reset:6", "garbage:6", "drop:6"])
async def test_answer_that_breaks_is_cut_off(running: Running, client: Client, form: str, fault: str) -> None:
    """What was said arrives, without the end of the body: no client takes it for whole. Whole it is an error."""
    message = f"Hi #tokens=40 #fault={fault}"
    body = bytearray()
    async with App(running, client.token) as app:
        conversation = await app.create()
        path = f"/conversations/{conversation}/{form}"
        async with app.http.stream("PATCH", path, json={"message": message}) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                await read_into(body, response)
        whole = await app.chat(conversation, message, "chat")
    items = json.loads(body + b"]") if form == "chat-http2" else sse_items(body.decode())
    assert text_of(items)
    assert said(message).text.startswith(text_of(items))
    assert (whole.status_code, error_of(whole)["code"]) == (502, "bad_gateway")


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse", "chat"])
async def test_stop_ends_the_answer_and_says_that_it_was_stopped(running: Running, client: Client, form: str) -> None:
    """A turn of the drop-in is a turn: the native stop reaches it, and its end is told as no end of the vendor's."""
    asked = asyncio.create_task(opened(running, client, LONG, form))
    await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill), "the vendor to begin")
    (turn,) = running.gateway.turns._roster.all()
    assert (await client.stop(turn.turn_id)).status == 200
    _, response = await asked
    body = await response.text()
    if form == "chat":
        choice = json.loads(body)["choices"][0]
    else:
        choice = (json.loads(body) if form == "chat-http2" else sse_items(body))[-1]["choice"]
    assert choice["finish_reason"] == STOPPED
    await eventually(lambda: next(iter(running.simulator.bill)).saw_cancel, "the vendor to see the reset")


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse"])
async def test_stop_before_the_first_item_is_an_answer_without_text(
    running: Running, client: Client, form: str
) -> None:
    """An answer that ends before it begins is one item, and nothing of its stream stays open or is kept alive."""
    asked = asyncio.create_task(opened(running, client, "Hi #delay=30", form))
    await eventually(lambda: any(run.outcome == "running" for run in running.simulator.bill), "the vendor to begin")
    (turn,) = running.gateway.turns._roster.all()
    assert (await client.stop(turn.turn_id)).status == 200
    _, response = await asked
    body = await response.text()
    (item,) = json.loads(body) if form == "chat-http2" else sse_items(body)
    assert (response.status, item["choice"]["finish_reason"]) == (200, STOPPED)
    assert not item["choice"]["message"]["content"]
    transport = "json" if form == "chat-http2" else "sse"
    assert await metric(running, "gateway_streams_open", transport=transport) == 0


@pytest.mark.parametrize("message", [LONG, "Hi #delay=30"])
@pytest.mark.parametrize("form", [*STREAMED["array"], *STREAMED["sse"], *WHOLE])
async def test_leaving_stops_the_turn_and_frees_the_conversation(
    running: Running, client: Client, form: str, message: str
) -> None:
    """An app that leaves, before the status or after, ends Hyperleap's work, and its next message is answered."""
    asked = asyncio.create_task(opened(running, client, message, form))
    await eventually(lambda: any(run.outcome == "running" for run in running.simulator.bill), "the vendor to begin")
    (run,) = running.simulator.bill
    if message == LONG and form not in WHOLE:
        _, response = await asked
        response.close()
    else:
        asked.cancel()
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset", within_s=1.0)
    await eventually(lambda: not running.gateway.turns.running, "the turn to end")
    assert await metric(running, "gateway_turns_total", reason="disconnect") == 1
    async with App(running, client.token) as app:
        (left,) = (await app.call("GET", "/conversations")).json()["data"]
        answer = await app.chat(left["conversationId"], "Ho #tokens=5", form)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "stream"), [("async", None), ("run-sse", None), ("run-sync", None), ("run", True), ("run", None)]
)
async def test_leaving_stops_a_prompt_run(
    start_gateway: StartGateway, sign_in: SignIn, path: str, stream: bool | None
) -> None:
    """Nothing leads back to a run that was left, so it ends with its app, in whichever form it was asked for."""
    running = await start(start_gateway)
    async with App(running, (await sign_in(running)).token) as app:
        asked = asyncio.create_task(app.run(LONG, path, stream=stream))
        await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill), "the vendor to begin")
        (run,) = running.simulator.bill
        asked.cancel()
        await eventually(lambda: run.saw_cancel, "the vendor to see the reset", within_s=1.0)


@pytest.mark.parametrize("rule", ["detach", "drain"])
async def test_answer_that_is_left_is_kept_where_the_tenant_says_so(
    start_gateway: StartGateway, sign_in: SignIn, rule: str
) -> None:
    """It goes on whatever the rule of the other doors is, has its conversation until then, and is in it afterwards."""
    running = await start(start_gateway, lines=f'disconnect = {{ policy = "stop", hyperleap = "{rule}" }}')
    client = await sign_in(running)
    message = "Hi #rate=100 #tokens=90"
    conversation, response = await opened(running, client, message)
    response.close()
    await eventually(lambda: not running.gateway.edge.open, "the app to be gone")
    async with App(running, client.token) as app:
        busy = await app.chat(conversation, "Ho")
        assert (busy.status_code, error_of(busy)["details"][0]["issue"]) == (409, "turn_active")
        await eventually(lambda: not running.gateway.turns.running, "the turn to end")
        entry = (await app.call("GET", f"/conversations/{conversation}")).json()
    assert entry["chatMessages"][-1]["content"] == said(message).text
    assert not next(iter(running.simulator.bill)).saw_cancel


async def test_repeat_under_a_key_is_the_same_turn(running: Running, client: Client) -> None:
    """A message that is sent again reaches the vendor once, and is answered whole in whatever form."""
    async with App(running, client.token) as app:
        conversation = await app.create()
        first = await app.chat(conversation, "Hi #tokens=9", Idempotency_Key="k")
        again = await app.chat(conversation, "Hi #tokens=9", "chat-sse", Idempotency_Key="k")
        other = await app.chat(conversation, "Ho", Idempotency_Key="k")
        one = [await app.call("POST", "/prompts", {"promptId": PROMPT_ID}, Idempotency_Key="k") for _ in range(2)]
    assert first.headers["x-turn-id"] == again.headers["x-turn-id"]
    assert text_of(first.json()) == text_of(sse_items(again.text))
    assert (other.status_code, len(running.simulator.bill.of(conversation))) == (422, 1)
    assert {answer.status_code for answer in one} == {422}  # the tenant of this gateway lists no prompt


async def test_repeat_on_another_worker_joins_the_answer_from_its_beginning(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """An app that lost its connection gets the same answer, wherever its request lands."""
    settings = toml()
    one = await start_gateway(toml=settings)
    other = await start_gateway(toml=settings, simulator=one.simulator)
    token = (await sign_in(one)).token
    message = "Hi #rate=60 #tokens=60"
    async with App(one, token) as here, App(other, token) as there:
        conversation = await here.create()
        first = asyncio.create_task(here.chat(conversation, message, "chat-sse", Idempotency_Key="k"))
        await eventually(lambda: any(run.items_sent > 9 for run in one.simulator.bill), "the answer to begin")
        again = await there.chat(conversation, message, Idempotency_Key="k")
        answers = [text_of(sse_items((await first).text)), text_of(again.json())]
    assert answers == [said(message).text] * 2
    assert len(one.simulator.bill) == 1


async def test_draining_worker_lets_the_answer_end_and_refuses_the_next(running: Running, client: Client) -> None:
    """A client of this dialect cannot come back for the rest: it is not sent away in the middle of it."""
    message = "Hi #rate=60 #tokens=40"
    _, response = await opened(running, client, message)
    async with App(running, client.token) as app:
        conversation = await app.create()
        running.gateway.turns.drain()
        for connection in tuple(running.gateway.edge.open):
            await connection.leave()
        refused = await app.chat(conversation, "Ho")
    assert text_of(json.loads(await response.text())) == said(message).text
    assert (refused.status_code, error_of(refused)["code"]) == (503, "service_unavailable")
    assert refused.headers["retry-after"] == "1"


async def test_busy_conversation_is_a_conflict(running: Running, client: Client) -> None:
    """A second message while an answer runs is refused, and nothing of it reaches the vendor."""
    conversation, response = await opened(running, client, LONG)
    async with App(running, client.token) as app:
        answer = await app.chat(conversation, "Ho")
    response.close()
    assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")
    assert error_of(answer)["details"] == [{"field": "conversationId", "issue": "turn_active"}]
    assert len(running.simulator.bill) == 1


async def test_revoked_user_is_cut_off(running: Running, client: Client) -> None:
    """Access that is taken back ends what streams, and what waits for its status is told 401."""
    _, streaming = await opened(running, client, LONG)
    waiting = asyncio.create_task(opened(running, client, "Hi #delay=30"))
    await eventually(lambda: len(running.simulator.bill) == 2, "both to be asked")
    user = running.gateway.auth.user_hash(next(iter(running.gateway.auth.tenants)), "u1")
    owned = [turn for turn in running.gateway.turns._roster.all() if turn.heading.owner == user]
    assert len(owned) == 2
    await running.gateway.auth.revocations.revoke(Revoked.USER, owned[0].tenant.id, user)
    _, refused = await waiting
    assert refused.status == 401
    assert "unauthorized" in await refused.text()
    await eventually(lambda: not running.gateway.edge.open, "the connections to end")
    streaming.close()


async def test_reader_of_a_dialect_is_counted_while_it_reads(running: Running, client: Client) -> None:
    """Streams of the drop-in are in the gauge of open streams, and leave it."""
    _, response = await opened(running, client, LONG)
    assert await metric(running, "gateway_streams_open", transport="json") == 1
    response.close()
    await eventually(lambda: not running.gateway.edge.open, "the stream to end")
    assert await metric(running, "gateway_streams_open", transport="json") == 0


class Answer:
    """A turn as the vendor's client sees it."""

    def __init__(self) -> None:
        self.items: list[AnswerItem] = []
        self.ended: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()

    def chat_items(self, items: Sequence[AnswerItem], /) -> None:
        self.items += items

    def chat_ended(self, error: GatewayError | None, /) -> None:
        self.ended.set_result(error)


async def test_gateways_own_client_speaks_to_a_gateway_over_http2(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Behind a proxy that speaks HTTP/2 the gateway is to its own vendor client what the vendor is."""
    running = await start(start_gateway)
    token = (await sign_in(running)).token
    async with h2_front(running.url) as url:
        keys = KeyRing(KeyFiles(UpstreamSettings(api_key=Secret(token))))
        client = HyperleapClient(UpstreamRules(base_url=f"{url}/hyperleap"), keys, PoolSettings())
        operations = HyperleapOperations(client)
        try:
            created, other = [
                await client.create_conversation(
                    persona_id=PERSONA_ID,
                    persona_version_id=None,
                    replacements={"name": "Ada"},
                    metadata={"a": 1},
                    external_user_id="somebody else",
                    key=DEFAULT_KEY,
                )
                for _ in range(2)
            ]
            answer = Answer()
            await client.open_chat(created.id, "Hi #tokens=50 #citations=1", answer, key=DEFAULT_KEY)
            assert await answer.ended is None
            assert "".join(item.text or "" for item in answer.items) == said("Hi #tokens=50 #citations=1").text
            assert (answer.items[-1].finish_reason, bool(answer.items[-1].usage)) == ("stop", True)
            message_id = answer.items[-1].message_id or ""
            await client.score_message(created.id, message_id, Feedback("f", 5), key=DEFAULT_KEY)
            read = await client.read_conversation(created.id, key=DEFAULT_KEY)
            assert read is not None
            assert (read.metadata, [one.role for one in read.messages]) == ({"a": 1}, ["user", "assistant"])
            assert [one.score for one in read.messages[1].feedback or ()] == [5]
            assert await client.read_conversation(ConversationId(PROMPT_ID), key=DEFAULT_KEY) is None
            run = Answer()
            prompt = Prompt(alias="summary", prompt_id=PROMPT_ID)
            await operations.open_prompt_run(prompt, {"topic": "Hi #tokens=9"}, run, key=DEFAULT_KEY)
            assert await run.ended is None
            assert "".join(item.text or "" for item in run.items) == said("Hi #tokens=9").text
            run_id = RunId(run.items[-1].run_id or "")
            await operations.score_prompt_run(run_id, Feedback("f", 2), key=DEFAULT_KEY)
            assert (await operations.moderate("Hi", key=DEFAULT_KEY))["results"][0]["flagged"] is False
            broken = Answer()
            await client.open_chat(created.id, "Hi #tokens=40 #fault=cut:6", broken, key=DEFAULT_KEY)
            failure = await broken.ended
            assert failure is not None
            assert failure.code is Code.UPSTREAM_RESET
            stopped = Answer()
            chat = await client.open_chat(created.id, LONG, stopped, key=DEFAULT_KEY)
            await eventually(lambda: stopped.items, "the answer to begin")
            chat.cancel()
            await eventually(lambda: not running.gateway.edge.open, "the gateway to learn of it")
            limited = Answer()
            await client.open_chat(other.id, "Hi #fault=429:7", limited, key=DEFAULT_KEY)
            failure = await limited.ended
            assert failure is not None
            assert (failure.code, failure.retry_after_s) == (Code.UPSTREAM_RATE_LIMITED, 7)
        finally:
            await client.aclose()
