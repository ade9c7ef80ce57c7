"""The AG-UI door by hand: what its client does not show, as status, headers, bytes, and what Hyperleap was told."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.revocation import Revoked
from gateway.protocol.sse import SseDecoder
from gateway.simulator.answers import answer as truth
from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client, eventually
from tests.transports.conftest import SignIn
from tests.transports.openai.loop import heard
from tests.transports.test_disconnect import tenant

RUN = "/v1/ag-ui"


def said(text: str, role: str = "user", id: str = "") -> dict[str, Any]:
    return {"id": id or uuid.uuid4().hex, "role": role, "content": text}


def asked(thread: str, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"threadId": thread, "runId": uuid.uuid4().hex, "messages": list(messages), **more}


def events_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.raw
    return [json.loads(event.data) for event in SseDecoder().feed(answer.raw)]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


async def test_run_is_what_the_protocol_says(running: Running, client: Client) -> None:
    """Its headers, its events by their names, the client's own ids, and nothing that is not one of its events."""
    body = asked("t", said("Hi #tokens=12 #citations=1"))
    answer = await client.call("POST", RUN, body)
    events = events_of(answer)
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert b"retry:" not in answer.raw
    assert b"[DONE]" not in answer.raw
    assert events[0] == {"type": "RUN_STARTED", "threadId": "t", "runId": body["runId"]}
    assert text_of(events) == truth("Hi #tokens=12 #citations=1").text
    assert (events[-1]["type"], events[-1]["threadId"], events[-1]["runId"]) == ("RUN_FINISHED", "t", body["runId"])
    assert events[-1]["result"]["turn_id"] == answer.headers["x-turn-id"]
    names = [event["name"] for event in events if event["type"] == "CUSTOM"]
    assert names[:2] == ["turn.started", "message.started"]
    assert "message.citations" in names


async def test_client_of_an_older_protocol_is_told_no_outcome(running: Running, client: Client) -> None:
    """It would take one that it does not know for an error."""
    old = events_of(await client.call("POST", RUN, asked("t", said("Hi #tokens=2"))))
    new = events_of(await client.call("POST", RUN, asked("u", said("Hi #tokens=2"), protocolVersion="1.0")))
    assert "outcome" not in old[-1]
    assert new[-1]["outcome"] == {"type": "success"}


async def test_thread_goes_on_where_its_last_answer_is_the_conversations(running: Running, client: Client) -> None:
    """By the answer's id or by its words; one that is another thread by now is stated in a new conversation."""
    question = said("One? #tokens=5")
    events = events_of(await client.call("POST", RUN, asked("t", question)))
    by_id = said("(shortened by the page)", "assistant", events[-1]["result"]["turn_id"])
    events = events_of(await client.call("POST", RUN, asked("t", question, by_id, said("Two? #tokens=5"))))
    by_words = said(f" {text_of(events)}\n", "assistant")
    await client.call("POST", RUN, asked("t", by_words, said("Three? #tokens=5")))
    await client.call("POST", RUN, asked("t", question, by_id, said("Four? #tokens=5")))
    stated = (
        "Conversation so far:\nUser: One? #tokens=5\n\nAssistant: (shortened by the page)\n\nMessage:\nFour? #tokens=5"
    )
    assert heard(running) == [["One? #tokens=5", "Two? #tokens=5", "Three? #tokens=5"], [stated]]


async def test_thread_says_all_that_is_new_since_its_answer(running: Running, client: Client) -> None:
    """Two messages in a row are both told, in one; the thread stays in its conversation then, and after it."""
    one, two = said("One? #tokens=5"), said("Two? #tokens=5")
    first = text_of(events_of(await client.call("POST", RUN, asked("t", one))))
    whole = [one, said(first, "assistant"), said("My budget is 5 euro."), two]
    body = asked("t", *whole)
    answers = [await client.call("POST", RUN, body, Idempotency_Key="k") for _ in range(2)]
    assert len({answer.headers["x-turn-id"] for answer in answers}) == 1
    whole.append(said(text_of(events_of(answers[0])), "assistant"))
    await client.call("POST", RUN, asked("t", *whole, said("Three? #tokens=5")))
    both = "Conversation so far:\nUser: My budget is 5 euro.\n\nMessage:\nTwo? #tokens=5"
    assert heard(running) == [["One? #tokens=5", both, "Three? #tokens=5"]]


async def test_thread_with_a_changed_message_is_stated_anew(running: Running, client: Client) -> None:
    """Also where the answers are all the same: an edit of any message, or of an answer before the last, is heard."""
    one, two, three = said("One? #tokens=5"), said("Two? #tokens=6"), said("Three? #tokens=7")

    async def answered(*messages: dict[str, Any]) -> dict[str, Any]:
        return said(text_of(events_of(await client.call("POST", RUN, asked("t", *messages)))), "assistant")

    first = await answered(one)
    edited, other = said("Edited? #tokens=5"), said("Another answer.", "assistant")
    second = await answered(edited, first, two)
    third = await answered(edited, first, two, second, three)
    await answered(edited, other, two, second, three, third, said("Four? #tokens=5"))
    told = heard(running)
    anew = f"Conversation so far:\nUser: Edited? #tokens=5\n\nAssistant: {first['content']}\n\nMessage:\nTwo? #tokens=6"
    assert told[:2] == [["One? #tokens=5"], [anew, "Three? #tokens=7"]]
    assert [len(one) for one in told] == [1, 2, 1]
    assert "Assistant: Another answer." in told[2][0]


async def test_doors_do_not_share_their_ids(running: Running, client: Client) -> None:
    """A thread and a chat of one id are two conversations."""
    await client.call("POST", RUN, asked("same", said("One? #tokens=3")))
    message = {"role": "user", "parts": [{"type": "text", "text": "Two? #tokens=3"}]}
    await client.call("POST", "/api/chat", {"id": "same", "message": message})
    assert heard(running) == [["One? #tokens=3"], ["Two? #tokens=3"]]


async def test_persona_is_forwarded(running: Running, client: Client) -> None:
    """By ``forwardedProps``, with what else opens a conversation."""
    props = {"persona": "other", "metadata": {"from": "page"}}
    await client.call("POST", RUN, asked("t", said("Hi #tokens=3"), forwardedProps=props))
    (listed,) = (await client.call("GET", "/v1/conversations")).body["data"]
    one = (await client.call("GET", f"/v1/conversations/{listed['id']}")).body
    assert (one["persona"], one["metadata"]) == ("other", {"from": "page"})


@pytest.mark.parametrize("stop", [False, True])
async def test_leaving_a_run_goes_by_the_tenants_rule(start_gateway: StartGateway, sign_in: SignIn, stop: bool) -> None:
    """``detach`` unless the tenant says ``stop``: a client that comes back reads it by the native door."""
    running = await start_gateway(toml=tenant(f"ag-{stop}".lower(), f'policy = "{"stop" if stop else "detach"}"'))
    client = await sign_in(running)
    words = "Hi #tokens=60 #rate=60"
    async with running.http.post(running.url + RUN, json=asked("t", said(words)), headers=client.headers) as response:
        turn = response.headers["x-turn-id"]
        await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
    (run,) = running.simulator.bill
    if stop:
        await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset", within_s=1.0)
        return
    assert (await client.replay(turn))[-1].data["text"] == truth(words).text
    assert not run.saw_cancel


async def left(client: Client, thread: str, words: str, **more: Any) -> str:
    """Leave a run in mid-answer and return its turn's id."""
    body = asked(thread, said(words), **more)
    async with client.running.http.post(client.running.url + RUN, json=body, headers=client.headers) as response:
        await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
        return str(response.headers["x-turn-id"])


async def test_run_that_was_left_is_rejoined_from_its_beginning(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """On any worker, by several at once: the whole run, by the names that each gives it. Then there is none."""
    running = await start_gateway()
    elsewhere = await start_gateway(tenant=running.tenant, simulator=running.simulator)
    client, other = await sign_in(running), await sign_in(elsewhere)
    words = "Hi #tokens=120 #rate=60 #citations=1"
    turn = await left(client, "a/b é", words)
    path = f"{RUN}/a%2Fb%20%C3%A9/stream"
    near, far = await asyncio.gather(client.call("GET", path), other.call("GET", f"{path}?runId=r&protocolVersion=1.0"))
    for answer, run_id, outcome in ((near, turn, None), (far, "r", {"type": "success"})):
        assert answer.headers["x-turn-id"] == turn
        events = events_of(answer)
        assert events[0] == {"type": "RUN_STARTED", "threadId": "a/b é", "runId": run_id}
        assert text_of(events) == truth(words).text
        kinds = [event["type"] for event in events if event["type"] not in ("TEXT_MESSAGE_CONTENT", "CUSTOM")]
        assert kinds == ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END", "RUN_FINISHED"]
        last = events[-1]
        assert (last["threadId"], last["runId"], last["result"]["turn_id"]) == ("a/b é", run_id, turn)
        assert last.get("outcome") == outcome
        (started,) = [event["value"] for event in events if event.get("name") == "turn.started"]
        assert started["conversation_id"] == answer.headers["x-conversation-id"]
    for idle in (path, f"{RUN}/never/stream"):
        answer = await client.call("GET", idle)
        assert (answer.status, answer.raw) == (204, b"")
    assert heard(running) == [[words]]


async def test_run_is_rejoined_by_nobody_else(running: Running, sign_in: SignIn) -> None:
    """To another user, to a token for another persona and at the other door it is no run; without a token 401."""
    ada, bob = await sign_in(running, "ada"), await sign_in(running, "bob")
    narrow = await sign_in(running, "ada", personas=["other"])
    turn = await left(ada, "same", "Mine #tokens=4000 #rate=40")
    path = f"{RUN}/same/stream"
    for client, asked_for in ((bob, path), (narrow, path), (ada, "/api/chat/same/stream")):
        assert (await client.call("GET", asked_for)).status == 204
    assert (await bob.call("GET", path, Authorization="Bearer nonsense")).status == 401
    stopped = await ada.call("POST", f"{RUN}/same/stop")
    assert stopped.body["turn_id"] == turn


async def test_run_that_is_stopped_is_told_so_to_who_rejoined(running: Running, client: Client) -> None:
    """As cancelled, where the protocol that is named has that outcome; leaving a second time stops nothing."""
    turn = await left(client, "t", "Hi #tokens=4000 #rate=40")
    url = f"{running.url}{RUN}/t/stream?protocolVersion=1.0"
    async with running.http.get(url, headers=client.headers) as response:
        await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
    async with running.http.get(url, headers=client.headers) as response:
        data = await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
        assert (await client.call("POST", f"{RUN}/t/stop")).body == {"turn_id": turn, "state": "stopping"}
        data += await response.content.read()
    last = json.loads(SseDecoder().feed(data)[-1].data)
    assert (last["outcome"], last["result"]["reason"]) == ({"type": "cancelled"}, "user")


async def test_run_that_loses_its_right_ends_with_an_error(running: Running, client: Client) -> None:
    """A revoked user is told in the protocol's event, and the run is over."""
    async with running.http.post(
        running.url + RUN, json=asked("t", said("Hi #tokens=4000 #rate=40")), headers=client.headers
    ) as response:
        head = await response.content.readuntil(b"TEXT_MESSAGE_CONTENT")
        auth = running.gateway.auth
        user = auth.user_hash(TenantId(running.tenant), "u1")
        await auth.revocations.revoke(Revoked.USER, TenantId(running.tenant), user)
        rest = await response.content.read()
    last = json.loads(SseDecoder().feed(head + rest)[-1].data)
    assert last["type"] in ("RUN_ERROR", "RUN_FINISHED")
    assert last.get("code") == "revoked" or last["result"]["reason"] == "revoked"


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"threadId": ""}, 422, "invalid_value", "threadId"),
    ({"threadId": 7}, 422, "wrong_type", "threadId"),
    ({"messages": [said(" ")]}, 422, "message_empty", "messages"),
    ({"messages": [said("x" * 32_001)]}, 413, "message_too_long", "messages"),
    ({"tools": [{"name": "f"}]}, 400, "unsupported_parameter", "tools"),
    ({"forwardedProps": {"persona": "nobody"}}, 422, "persona_unknown", "forwardedProps.persona"),
    ({"forwardedProps": {"enchant": 1}}, 422, "unknown_field", "forwardedProps.enchant"),
]


async def test_refusal_is_a_problem_that_the_client_reads(running: Running, client: Client) -> None:
    """As JSON by its declared type, with status, code and field. Nothing is spent."""
    for more, status, code, field in BAD:
        answer = await client.call("POST", RUN, asked("t", said("Hi")) | more)
        assert answer.headers["Content-Type"] == "application/json"
        assert (answer.status, answer.body["code"], answer.body["field"]) == (status, code, field)
    missing = await client.call("POST", RUN, {"threadId": "t", "messages": []})
    assert (missing.status, missing.body["code"], missing.body["field"]) == (422, "missing_field", "runId")
    bare = await client.call("POST", RUN, asked("t", said("Hi")), Authorization="Bearer nonsense")
    assert bare.status == 401
    assert not len(running.simulator.conversations)
