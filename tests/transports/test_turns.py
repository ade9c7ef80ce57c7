"""Turns: streamed, waited for, or left to be followed; each form tells the same story."""

from __future__ import annotations

import asyncio

import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, check_log, eventually, metric
from tests.transports.conftest import SignIn

ROUTE = "/v1/conversations/{conversation_id}/turns"


@pytest.mark.parametrize("h2c", [False, True], ids=["tls", "h2c"])
async def test_turn_streamed_tells_exactly_what_the_vendor_said(
    h2c: bool, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The stream has every event in order, the vendor's exact text, its ids and its reported usage."""
    running = await start_gateway(simulator={"h2c": h2c})
    client = await sign_in(running)
    conversation = await client.conversation()
    message = "Zoë asks: 你好? 👩‍👩‍👧‍👦 #tokens=40 #citations"
    truth = said(message)
    async with client.ask(conversation, message) as reader:
        assert reader.response.headers["Content-Type"].startswith("text/event-stream")
        assert reader.response.headers["x-turn-id"]
        events = await reader.rest()
    ending = check_log(events)
    assert ending.name == "turn.completed"
    assert ending.turn_id == reader.turn_id
    assert events[0].data == {"turn_id": reader.turn_id, "conversation_id": conversation, "ordinal": 1}
    assert events[1].name == "message.started"
    assert ending.data["text"] == truth.text
    assert ending.data["finish_reason"] == "stop"
    assert ending.data["usage"] == {
        "prompt_tokens": truth.prompt_tokens,
        "completion_tokens": 40,
        "total_tokens": truth.total_tokens,
        "source": "reported",
    }
    (run,) = running.simulator.bill.of(conversation)
    assert (ending.data["message_id"], ending.data["run_id"]) == (run.message_id, run.run_id)
    (citations,) = (event for event in events if event.name == "message.citations")
    assert citations.data["citations"] == list(truth.citations)


async def test_turn_streamed_over_http_1_0_ends_with_its_connection(running: Running, client: Client) -> None:
    """A reader of HTTP/1.0 gets the plain stream without chunks, and the connection's end is its end."""
    turn = await client.start(await client.conversation(), "Hi #tokens=3")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(f"GET /v1/turns/{turn}/events HTTP/1.0\r\nAuthorization: Bearer {client.token}\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.0 200")
    assert body.startswith(b"retry: ")
    assert body.endswith(b"}\n\n")
    assert b"event: turn.completed" in body


async def test_turn_waited_for_answers_the_ending_as_json(client: Client) -> None:
    """``Accept: application/json`` waits and answers what the last event would say."""
    conversation = await client.conversation()
    answer = await client.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=10"}, Accept="application/json"
    )
    assert answer.status == 200
    events = await client.replay(answer.body["turn_id"])
    assert answer.body == {
        "turn_id": events[-1].turn_id,
        "event": "turn.completed",
        **events[-1].data,
    }
    assert answer.body["text"] == said("Hi #tokens=10").text
    assert answer.headers["x-turn-id"] == events[-1].turn_id


async def test_turn_waited_for_that_fails_answers_problem_with_what_was_received(client: Client) -> None:
    """A failed turn is never a 200: it answers its error's status, with the text so far beside it."""
    conversation = await client.conversation()
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #fault=cut:4"})
    assert answer.status == 502
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["code"] == "upstream_truncated"
    assert answer.body["text"]
    assert said("Hi").text.startswith(answer.body["text"])
    assert answer.body["turn_id"]


async def test_turn_responded_async_answers_at_once_where_to_follow(client: Client) -> None:
    """``Prefer: respond-async`` answers 202 with the place of the events while the answer is still being made."""
    conversation = await client.conversation()
    answer = await client.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=8 #rate=30"}, Prefer="respond-async"
    )
    assert answer.status == 202
    turn = answer.body["turn_id"]
    assert answer.headers["Location"] == f"/v1/turns/{turn}/events"
    assert answer.headers["Preference-Applied"] == "respond-async"
    async with client.follow(turn) as reader:
        events = await reader.rest()
    assert check_log(events).data["text"] == said("Hi #tokens=8 #rate=30").text


async def test_turn_whose_reader_leaves_goes_on_to_its_end(running: Running, client: Client) -> None:
    """Leaving is not stopping: the answer is made to its end and waits in the log."""
    conversation = await client.conversation()
    message = "Hi #tokens=30 #rate=100"
    async with client.ask(conversation, message) as reader:
        await reader.until("message.delta", 3)
        reader.response.close()
    await eventually(lambda: running.gateway.turns.running == 0, "the turn to end")
    assert check_log(await client.replay(reader.turn_id)).data["text"] == said(message).text
    assert running.simulator.bill.of(conversation)[0].outcome == "finished"


async def test_turn_whose_reader_leaves_lets_the_stream_go(running: Running, client: Client) -> None:
    """A reader that left is noticed while nothing is being said; its stream no longer counts as open."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #delay=30") as reader:
        await reader.until("turn.started")
        assert len(running.gateway.edge.open) == 1
        reader.response.close()
    await eventually(lambda: not running.gateway.edge.open, "the stream to be let go")


async def test_turn_started_while_one_is_active_is_refused_with_its_id(client: Client) -> None:
    """A conversation has one active turn: the second start is 409 and names the first."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #delay=30")
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "again"})
    assert (answer.status, answer.body["code"], answer.body["turn_id"]) == (409, "turn_active", turn)
    assert answer.headers["Retry-After"] == "1"


async def test_turns_started_at_once_give_exactly_one(running: Running, client: Client) -> None:
    """Of twenty simultaneous starts in a conversation one wins, and the vendor hears one message."""
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    answers = await asyncio.gather(
        *(client.call("POST", path, {"message": "Hi #delay=2"}, Prefer="respond-async") for _ in range(20))
    )
    assert sorted(answer.status for answer in answers) == [202] + [409] * 19
    await eventually(lambda: len(running.simulator.bill.of(conversation)) == 1, "the vendor to hear the message")
    started = next(answer.body["turn_id"] for answer in answers if answer.status == 202)
    assert {answer.body["turn_id"] for answer in answers} == {started}


async def test_turns_of_a_conversation_are_numbered(client: Client) -> None:
    """Turns of a conversation count 1, 2, 3, whatever their endings were."""
    conversation = await client.conversation()
    messages = ("one #tokens=1", "two #fault=500", "three #tokens=1")
    assert [(await client.complete(conversation, message))[0].data["ordinal"] for message in messages] == [1, 2, 3]


async def test_turn_with_one_vanished_starter_is_not_cut_in_half(running: Running, client: Client) -> None:
    """A client that vanishes right after sending its message leaves a whole turn or none."""
    conversation = await client.conversation()
    port = int(running.url.rpartition(":")[2])
    body = b'{"message":"Hi #tokens=5"}'
    head = (
        f"POST /v1/conversations/{conversation}/turns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + body)
    await writer.drain()
    writer.close()

    async def over() -> bool:
        return await metric(running, "gateway_requests_total", method="POST", route=ROUTE) == 1

    await eventually(over, "the request to be over")
    await eventually(lambda: running.gateway.turns.running == 0, "the turn to end")
    after = await client.complete(conversation, "Hi again #tokens=1")
    runs = running.simulator.bill.of(conversation)
    assert after[0].data["ordinal"] == len(runs)
    assert all(run.outcome == "finished" for run in runs)


@pytest.mark.parametrize("rate", [0, 1000])
async def test_turn_at_full_speed_loses_and_repeats_nothing(rate: int, client: Client) -> None:
    """A long answer as fast as the vendor can send it arrives whole and once."""
    message = f"Hi #tokens=1000 #rate={rate}"
    events = await client.complete(await client.conversation(), message)
    assert check_log(events).data["text"] == said(message).text


async def test_turn_of_token_that_expires_meanwhile_is_told_to_its_end(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A stream that began with a good token goes on to the ending; the token is needed again to come back."""
    running = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1"})
    client = await sign_in(running, ttl_s=1)
    events = await client.complete(await client.conversation(), "Hi #tokens=2 #delay=1.2")
    assert check_log(events).name == "turn.completed"
