"""The AI SDK UI door by hand: what its client does not show, as status, headers, bytes, and what Hyperleap was told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.revocation import Revoked
from gateway.protocol.sse import SseDecoder
from gateway.simulator.answers import answer as truth
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, eventually, metric
from tests.transports.conftest import SignIn
from tests.transports.openai.loop import heard
from tests.transports.test_disconnect import tenant

CHAT = "/api/chat"


def said(text: str, role: str = "user", id: str = "") -> dict[str, Any]:
    return {"id": id or uuid.uuid4().hex, "role": role, "parts": [{"type": "text", "text": text}]}


class Page:
    """One stream of parts being read."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.parts: list[dict[str, Any]] = []
        self.done = False
        self.raw = b""
        self._decoder = SseDecoder()

    @property
    def text(self) -> str:
        return "".join(part["delta"] for part in self.parts if part["type"] == "text-delta")

    @property
    def turn_id(self) -> str:
        return str(self.response.headers["x-turn-id"])

    async def more(self) -> bool:
        """Read on; False when the stream has ended."""
        async with asyncio.timeout(5):
            data = await self.response.content.readany()
        self.raw += data
        for event in self._decoder.feed(data) if data else ():
            self.done = self.done or event.data == "[DONE]"
            if event.data != "[DONE]":
                self.parts.append(json.loads(event.data))
        return bool(data)

    async def begun(self) -> None:
        while len(self.text) < 10:
            assert await self.more(), self.parts

    async def rest(self) -> list[dict[str, Any]]:
        while await self.more():
            pass
        return self.parts


@contextlib.asynccontextmanager
async def stream(client: Client, method: str, path: str, body: Any = None, **headers: str) -> AsyncIterator[Page]:
    url = client.running.url + path
    async with client.running.http.request(method, url, json=body, headers={**client.headers, **headers}) as response:
        assert response.status == 200, await response.text()
        yield Page(response)


async def ask(client: Client, chat: str, *messages: dict[str, Any], **more: Any) -> Page:
    """Ask in a chat and read the whole answer."""
    async with stream(client, "POST", CHAT, {"id": chat, "messages": list(messages), **more}) as page:
        await page.rest()
        return page


async def test_stream_is_what_the_protocol_says(running: Running, client: Client) -> None:
    """Its header, its parts, its end, and nothing that tells a client to reconnect by itself."""
    page = await ask(client, "c1", said("Hi #tokens=12 #citations=1"))
    headers = page.response.headers
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert page.done
    assert b"retry:" not in page.raw
    assert b"\nid:" not in page.raw
    assert page.text == truth("Hi #tokens=12 #citations=1").text
    kinds = [part["type"] for part in page.parts if part["type"] != "text-delta"]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert "source-url" in kinds
    assert page.parts[0]["messageMetadata"]["conversationId"] == headers["x-conversation-id"]
    assert page.parts[-1]["messageMetadata"]["usage"]["totalTokens"] == truth("Hi #tokens=12 #citations=1").total_tokens


async def test_chat_stays_in_its_conversation_and_says_only_what_is_new(running: Running, client: Client) -> None:
    """The whole list comes with every message; Hyperleap keeps what was said and is told the last one."""
    first = await ask(client, "c1", said("One? #tokens=5"))
    history = [said("One? #tokens=5"), said(first.text, "assistant", first.turn_id)]
    await ask(client, "c1", *history, said("Two? #tokens=5"))
    await ask(client, "c2", said("Three? #tokens=5"))
    async with stream(client, "POST", CHAT, {"id": "c2", "message": said("Four? #tokens=5")}) as page:
        await page.rest()
    assert heard(running) == [["One? #tokens=5", "Two? #tokens=5"], ["Three? #tokens=5", "Four? #tokens=5"]]


async def test_chat_id_of_another_user_is_another_chat(running: Running, sign_in: SignIn) -> None:
    """The same id, two users: two conversations, and neither reads, follows or stops the other's."""
    ada, bob = await sign_in(running, "ada"), await sign_in(running, "bob")
    async with stream(ada, "POST", CHAT, {"id": "same", "messages": [said("Mine #tokens=200 #rate=50")]}) as page:
        await page.begun()
        assert (await bob.call("GET", f"{CHAT}/same/stream")).status == 204
        assert (await bob.call("POST", f"{CHAT}/same/stop")).body == {"turn_id": None, "state": "idle"}
        assert (await bob.call("GET", f"{CHAT}/same", Accept="application/json")).body["code"] == "not_found"
        other = await ask(bob, "same", said("Hers? #tokens=3"))
        assert other.response.headers["x-conversation-id"] != page.response.headers["x-conversation-id"]
        assert (await ada.call("POST", f"{CHAT}/same/stop")).body["turn_id"] == page.turn_id
        assert (await page.rest())[-1]["type"] == "abort"
    assert heard(running) == [["Mine #tokens=200 #rate=50"], ["Hers? #tokens=3"]]


async def test_simultaneous_first_messages_of_a_chat_open_one_conversation(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """On two workers at once: one begins, the others are told that an answer is being written."""
    first = await start_gateway()
    second = await start_gateway(tenant=first.tenant, simulator=first.simulator)
    clients = [await sign_in(running, "u1") for running in (first, second)]
    body = {"id": "c", "message": said("Hi #tokens=5 #delay=0.5")}
    answers = await asyncio.gather(*(clients[n % 2].call("POST", CHAT, body) for n in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7
    assert len(first.simulator.conversations) == 1
    assert {a.headers["x-error-code"] for a in answers if a.status == 409} == {"turn_active"}


async def test_resumed_stream_is_the_whole_answer_from_its_beginning(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Leaving is not stopping: whoever comes back, on any worker, is given all of the message, and then it goes on."""
    running = await start_gateway()
    elsewhere = await start_gateway(tenant=running.tenant, simulator=running.simulator)
    client, other = await sign_in(running), await sign_in(elsewhere)
    words = "Hi #tokens=120 #rate=60"
    async with stream(client, "POST", CHAT, {"id": "a/b é", "messages": [said(words)]}) as left:
        await left.begun()
    path = f"{CHAT}/a%2Fb%20%C3%A9/stream"
    async with stream(other, "GET", path) as far, stream(client, "GET", path) as near:
        pages = [far, near]
        await asyncio.gather(*(page.rest() for page in pages))
    for page in pages:
        assert page.parts[0] == left.parts[0]
        assert page.text == truth(words).text
        assert page.parts[-1]["type"] == "finish"
        assert page.done
    assert (await client.call("GET", path)).status == 204
    assert (await client.call("GET", f"{CHAT}/never/stream")).status == 204
    assert [len(turns) for turns in heard(running)] == [1]


async def test_leaving_stops_the_answer_where_the_tenant_says_so(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The tenant's rule for answers that nobody reads is this door's too."""
    running = await start_gateway(toml=tenant("ui-stop", 'policy = "stop"'))
    client = await sign_in(running)
    async with stream(client, "POST", CHAT, {"id": "c", "messages": [said("Hi #tokens=4000 #rate=40")]}) as page:
        await page.begun()
    (run,) = running.simulator.bill
    await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset", within_s=1.0)


async def test_answer_asked_for_again_is_given_in_a_conversation_of_its_own(running: Running, client: Client) -> None:
    """Hyperleap forgets nothing, so a chat that is to be another is stated in a new conversation, and stays there."""
    question, second = said("One? #tokens=5"), said("Two? #tokens=5")
    first = await ask(client, "c", question)
    history = [question, said(first.text, "assistant", first.turn_id)]
    old = await ask(client, "c", *history, second)
    again = await ask(client, "c", *history, second, trigger="regenerate-message", messageId=old.turn_id)
    whole = [*history, second, said(again.text, "assistant", again.turn_id)]
    await ask(client, "c", *whole, said("Three? #tokens=5"))
    stated = f"Conversation so far:\nUser: One? #tokens=5\n\nAssistant: {first.text}\n\nMessage:\nTwo? #tokens=5"
    assert heard(running) == [["One? #tokens=5", "Two? #tokens=5"], [stated, "Three? #tokens=5"]]
    read = (await client.call("GET", f"{CHAT}/c")).body
    texts = ["".join(part["text"] for part in one["parts"] if part["type"] == "text") for one in read["messages"]]
    assert texts[:4] == ["One? #tokens=5", first.text, "Two? #tokens=5", again.text]
    assert read["conversation_id"] == again.response.headers["x-conversation-id"]


async def test_retry_of_what_never_began_stays_in_the_conversation(running: Running, client: Client) -> None:
    """``regenerate()`` after a refusal asks for nothing again, so nothing is stated and nothing opened."""
    question = said("One? #tokens=5")
    first = await ask(client, "c", question)
    history = [question, said(first.text, "assistant", first.turn_id)]
    await ask(client, "c", *history, said("Two? #tokens=5"), trigger="regenerate-message")
    assert heard(running) == [["One? #tokens=5", "Two? #tokens=5"]]


async def test_chat_with_a_past_that_is_new_here_is_stated(running: Running, client: Client) -> None:
    """A page that kept its messages elsewhere loses nothing of them."""
    await ask(client, "moved", said("One?"), said("Yes.", "assistant"), said("Two? #tokens=3"))
    assert heard(running) == [["Conversation so far:\nUser: One?\n\nAssistant: Yes.\n\nMessage:\nTwo? #tokens=3"]]


async def test_past_that_was_lost_with_a_failure_is_stated_again(running: Running, client: Client) -> None:
    """Whether Hyperleap has kept what it failed to answer is not known, so it is told once more."""
    history = [said("One?"), said("Yes.", "assistant")]
    failed = await ask(client, "moved", *history, said("Two? #fault=500"))
    assert failed.parts[-1] == {"type": "error", "errorText": "Hyperleap answered with status 500."}
    await ask(client, "moved", *history, said("Three? #tokens=3"))
    assert heard(running)[-1] == ["Conversation so far:\nUser: One?\n\nAssistant: Yes.\n\nMessage:\nThree? #tokens=3"]


async def test_message_that_failed_is_told_with_the_next(running: Running, client: Client) -> None:
    """Nobody knows whether Hyperleap has kept it, so it is told once more; and only until there is an answer."""
    first, second = said("First #tokens=3"), said("Second? #tokens=3")
    running.simulator.set_faults("500")
    failed = await ask(client, "c", first)
    assert failed.parts[-1]["type"] == "error"
    running.simulator.set_faults()
    body = {"id": "c", "messages": [first, second]}
    answers = [await client.call("POST", CHAT, body, Idempotency_Key="k") for _ in range(2)]
    assert len({answer.headers["x-turn-id"] for answer in answers}) == 1
    read = (await client.call("GET", f"{CHAT}/c")).body
    await ask(client, "c", first, second, read["messages"][-1], said("Third? #tokens=3"))
    both = "Conversation so far:\nUser: First #tokens=3\n\nMessage:\nSecond? #tokens=3"
    assert heard(running) == [["First #tokens=3", both, "Third? #tokens=3"]]


async def test_message_that_was_refused_is_told_with_the_next(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A page keeps what the gateway's limits refused, and sends it again with what is said next."""
    toml = tenant("ui-refused", 'policy = "detach"').replace(
        "limits.user = { requests_per_min = 0", "limits.user = { requests_per_min = 1"
    )
    running = await start_gateway(toml=toml)
    client = await sign_in(running)
    one, two, three = (said(f"{word}? #tokens=2") for word in ("One", "Two", "Three"))
    page = await ask(client, "c", one)
    whole = [one, said(page.text, "assistant", page.turn_id), two]
    assert (await client.call("POST", CHAT, {"id": "c", "messages": whole})).status == 429
    free = await start_gateway(tenant=running.tenant, simulator=running.simulator)
    await ask(await sign_in(free), "c", *whole, three)
    both = "Conversation so far:\nUser: Two? #tokens=2\n\nMessage:\nThree? #tokens=2"
    assert heard(running) == [["One? #tokens=2", both]]


async def test_repeat_under_an_idempotency_key_is_the_same_turn(running: Running, client: Client) -> None:
    """However often it is sent, also as one that asks again, Hyperleap hears it once."""
    body = {"id": "c", "messages": [said("Hi #tokens=5")], "trigger": "regenerate-message"}
    answers = [await client.call("POST", CHAT, body, Idempotency_Key="k1") for _ in range(3)]
    assert len({answer.headers["x-turn-id"] for answer in answers}) == 1
    past = {"id": "moved", "messages": [said("One?"), said("Yes.", "assistant"), said("Two? #tokens=3")]}
    answers = [await client.call("POST", CHAT, past, Idempotency_Key="k2") for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert len({answer.headers["x-turn-id"] for answer in answers}) == 1
    assert [len(told) for told in heard(running)] == [1, 1]


async def test_conversation_that_hyperleap_has_deleted_is_opened_anew(running: Running, client: Client) -> None:
    """A chat outlives its conversation: what the page still has is stated in another."""
    first = await ask(client, "c", said("One? #tokens=3"))
    gone = first.response.headers["x-conversation-id"]
    del running.simulator.conversations._by_id[gone]
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{gone}")
    second = await ask(client, "c", said("One? #tokens=3"), said(first.text, "assistant"), said("Two? #tokens=3"))
    assert second.response.headers["x-conversation-id"] != gone
    assert second.parts[-1]["type"] == "finish"


async def test_persona_is_the_chats_from_its_first_message_on(running: Running, client: Client) -> None:
    """Named in the body or the tenant's default; a chat keeps its own."""
    await ask(client, "a", said("Hi #tokens=3"))
    await ask(client, "b", said("Hi #tokens=3"), persona="other", replacements={}, metadata={"from": "page"})
    await ask(client, "b", said("Hi #tokens=3"))
    listed = (await client.call("GET", "/v1/conversations")).body["data"]
    assert sorted(one["persona"] for one in listed) == ["default", "other"]
    for body, told in (
        ({"id": "b", "messages": [said("Hi")], "persona": "default"}, (422, "invalid_value")),
        ({"id": "c", "messages": [said("Hi")], "persona": "nobody"}, (422, "persona_unknown")),
        ({"id": "c", "messages": [said("Hi")], "replacements": {"secret": "x"}}, (422, "replacement_not_allowed")),
    ):
        answer = await client.call("POST", CHAT, body)
        assert (answer.status, answer.headers["x-error-code"]) == told


async def test_token_for_another_persona_reaches_no_chat_of_its_user(running: Running, sign_in: SignIn) -> None:
    """Nor does it take a chat over."""
    client, narrow = await sign_in(running), await sign_in(running, personas=["other"])
    page = await ask(client, "c", said("Hi #tokens=3"))
    assert (await narrow.call("POST", CHAT, {"id": "c", "message": said("Hi")})).status == 404
    assert (await narrow.call("GET", f"{CHAT}/c")).status == 404
    assert (await narrow.call("GET", f"{CHAT}/c/stream")).status == 204
    again = await ask(client, "c", said("Hi #tokens=3"))
    assert again.response.headers["x-conversation-id"] == page.response.headers["x-conversation-id"]


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"messages": [said(" ")]}, 422, "message_empty", "messages"),
    ({"messages": [said("x" * 32_001)]}, 413, "message_too_long", "messages"),
    (
        {"messages": [said("x" * 20_000), said("y" * 20_000, "assistant"), said("z")]},
        413,
        "message_too_long",
        "messages",
    ),
    ({"messages": [said("Hi")], "id": ""}, 422, "invalid_value", "id"),
    ({"messages": [said("Hi")], "id": "x" * 256}, 422, "invalid_value", "id"),
    ({"messages": [said("Hi")], "id": "a\nb"}, 422, "invalid_value", "id"),
    ({"messages": [said("Hi")], "id": 7}, 422, "wrong_type", "id"),
    ({"messages": [said("Hi")], "tools": [{}]}, 400, "unsupported_parameter", "tools"),
    (
        {"messages": [{"role": "user", "parts": [{"type": "file", "url": "data:,"}]}]},
        *(400, "unsupported_parameter", "messages[0].parts[0]"),
    ),
]


@pytest.mark.parametrize("row", BAD, ids=[f"{code}-{field}" for _, _, code, field in BAD])
async def test_refusal_is_the_text_that_the_page_shows(
    running: Running, client: Client, row: tuple[dict[str, Any], int, str, str]
) -> None:
    """A sentence that names the field, its status and code; a problem to whoever asks for JSON. Nothing is spent."""
    more, status, code, field = row
    body = {"id": "c", **more}
    shown = await client.call("POST", CHAT, body, Origin="https://app.example")
    assert (shown.status, shown.headers["x-error-code"]) == (status, code)
    assert shown.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert shown.raw.decode().startswith(f"{field}: ")
    assert shown.headers["Cache-Control"] == "no-store"
    assert "x-error-code" in shown.headers["Access-Control-Expose-Headers"]
    told = await client.call("POST", CHAT, body, Accept="application/json")
    assert told.headers["Content-Type"] == "application/problem+json"
    assert (told.status, told.body["code"], told.body["field"]) == (status, code, field)
    assert not len(running.simulator.conversations)


async def test_credentials_are_asked_for_as_at_every_door(running: Running, client: Client) -> None:
    """Without a token, with a wrong one, with a key that opens sessions only, from another origin."""
    body = {"id": "c", "messages": [said("Hi")]}
    for headers, status in (
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer hgt_x.y.z"}, 401),
        ({"Authorization": f"Bearer {running.secret_key}"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ):
        for method, path in (("POST", ""), ("GET", "/c/stream"), ("POST", "/c/stop"), ("GET", "/c")):
            answer = await client.call(method, CHAT + path, body if not path else None, **headers)
            assert answer.status in (status, 401), (headers, path, answer.raw)
            assert answer.status >= 400
    assert not len(running.simulator.conversations)


async def test_limits_hold_here_too(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A turn beyond the user's is refused with the time after which to come back, and told as text."""
    toml = tenant("ui-limits", 'policy = "detach"').replace(
        "limits.user = { requests_per_min = 0", "limits.user = { requests_per_min = 3"
    )
    running = await start_gateway(toml=toml)
    client = await sign_in(running)
    answers = [await client.call("POST", CHAT, {"id": "c", "message": said("Hi #tokens=1")}) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["x-error-code"] == "rate_limited"
    assert not refused.raw.startswith(b"{")


async def test_stream_that_loses_its_right_ends_with_an_error(running: Running, client: Client) -> None:
    """A revoked user is told in the protocol's part, and the stream is over."""
    async with stream(client, "POST", CHAT, {"id": "c", "messages": [said("Hi #tokens=4000 #rate=40")]}) as page:
        await page.begun()
        auth = running.gateway.auth
        user = auth.user_hash(TenantId(running.tenant), "u1")
        await auth.revocations.revoke(Revoked.USER, TenantId(running.tenant), user)
        parts = await page.rest()
    assert parts[-1]["type"] in ("error", "abort")
    assert page.done


async def test_draining_gateway_does_not_pass_half_an_answer_off_as_whole(running: Running, client: Client) -> None:
    """``useChat`` takes an end for the answer's, so its stream is not sent away in the middle."""
    async with stream(client, "POST", CHAT, {"id": "c", "messages": [said("Hi #tokens=40 #rate=60")]}) as page:
        await page.begun()
        for connection in tuple(running.gateway.edge.open):
            await connection.leave()
        parts = await page.rest()
    assert page.text == truth("Hi #tokens=40 #rate=60").text
    assert parts[-1]["type"] == "finish"


async def test_tabs_that_follow_one_answer_read_the_same_parts(running: Running, client: Client) -> None:
    """However many, from the same bytes; and none is left when it ends."""
    words = "Hi #tokens=60 #rate=100 #delay=0.3"
    async with contextlib.AsyncExitStack() as stack:
        body = {"id": "c", "messages": [said(words)]}
        asked = [("POST", CHAT, body), *([("GET", f"{CHAT}/c/stream", None)] * 4)]
        pages = [await stack.enter_async_context(stream(client, *one)) for one in asked]
        await asyncio.gather(*(page.rest() for page in pages))
    assert {page.text for page in pages} == {truth(words).text}
    assert len({page.raw.split(b'"text-start"')[1] for page in pages}) == 1
    assert await metric(running, "gateway_streams_opened_total", transport="sse") == 5
    assert await metric(running, "gateway_streams_open", transport="sse") == 0
