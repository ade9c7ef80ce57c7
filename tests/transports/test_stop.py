"""Stopping: its own request, heard by the vendor at once, told honestly, and safe to repeat."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, check_log, eventually, text_of
from tests.transports.conftest import SignIn

SOON_S = 0.2


async def test_stop_in_mid_answer_resets_the_upstream_stream_at_once(running: Running, client: Client) -> None:
    """Within 200 ms of the request the vendor sees RST_STREAM(CANCEL), and the log ends in ``turn.stopped``."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40") as reader:
        await reader.until("message.delta", 5)
        asked_s = time.time()
        answer = await client.stop(reader.turn_id)
        events = await reader.rest()
    assert (answer.status, answer.body) == (200, {"turn_id": reader.turn_id, "state": "stopping"})
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.reset_at_s is not None, "the vendor to see the reset")
    assert run.saw_cancel
    assert run.reset_at_s is not None
    assert run.reset_at_s - asked_s < SOON_S
    ending = check_log(events)
    assert ending.name == "turn.stopped"
    assert ending.data["reason"] == "user"
    assert said("Hi").text.startswith(ending.data["text"])
    assert ending.data["usage"]["source"] == "estimated"
    assert ending.data["usage"]["completion_tokens"] > 0


async def test_stop_keeps_the_connection_to_the_vendor(running: Running, client: Client) -> None:
    """Fifty stopped answers cost one connection: a stop resets its stream and nothing else."""
    for _ in range(50):
        turn = await client.start(await client.conversation(), "Hi #delay=30")
        await client.stop(turn)
    await eventually(lambda: running.simulator.state.open_streams == 0, "all streams to be reset")
    assert running.simulator.state.connections == 1
    events = await client.complete(await client.conversation(), "Hi #tokens=3")
    assert check_log(events).name == "turn.completed"


async def test_stop_before_the_first_token_resets_the_upstream_stream_at_once(running: Running, client: Client) -> None:
    """A stop before anything was said reaches the vendor too; the ending has an empty text."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #delay=30") as reader:
        await eventually(lambda: running.simulator.bill.of(conversation), "the vendor to hear the message")
        asked_s = time.time()
        await client.stop(reader.turn_id)
        events = await reader.rest()
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset")
    assert run.reset_at_s is not None
    assert run.reset_at_s - asked_s < SOON_S
    assert [event.name for event in events] == ["turn.started", "turn.stopped"]
    assert events[-1].data["text"] == ""


async def test_stop_before_the_response_headers_resets_the_upstream_stream_at_once(
    running: Running, client: Client
) -> None:
    """A vendor that has not even answered with headers sees the reset."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #fault=slow-headers:30")
    await eventually(lambda: running.simulator.bill.of(conversation), "the vendor to hear the message")
    await client.stop(turn)
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset", within_s=SOON_S)


async def test_stop_right_after_the_start_ends_the_turn(running: Running, client: Client) -> None:
    """A stop that overtakes the message leaves neither a running answer nor a locked conversation."""
    conversation = await client.conversation()
    for _ in range(10):
        turn = await client.start(conversation, "Hi #delay=30")
        await client.stop(turn)
        events = await client.replay(turn)
        assert events[-1].name == "turn.stopped"
    await eventually(lambda: running.simulator.state.open_streams == 0, "no stream to be left")
    assert all(run.outcome == "cancelled" for run in running.simulator.bill.of(conversation))


async def test_stop_while_waiting_for_an_upstream_stream_spends_no_call(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A turn that waits for a free stream can be stopped, and the vendor never hears of it."""
    running = await start_gateway(simulator={"max_concurrent_streams": 1}, environ={"HYPERLEAP_CONNECTIONS_MAX": "1"})
    client = await sign_in(running)
    first, second = await client.conversation(), await client.conversation()
    blocking = await client.start(first, "Hi #delay=30")
    await eventually(lambda: running.simulator.bill.of(first), "the first to take the stream")
    waiting = await client.start(second, "Hi")
    await client.stop(waiting)
    assert (await client.replay(waiting))[-1].name == "turn.stopped"
    await client.stop(blocking)
    await client.replay(blocking)
    assert running.simulator.bill.of(second) == []


async def test_stop_repeated_is_safe(client: Client) -> None:
    """A stop may be sent again, during and after: it answers how the turn stands and changes nothing."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40") as reader:
        await reader.until("message.delta", 2)
        answers = await asyncio.gather(*(client.stop(reader.turn_id) for _ in range(5)))
        events = await reader.rest()
    assert {answer.status for answer in answers} == {200}
    assert {answer.body["state"] for answer in answers} <= {"stopping", "stopped"}
    assert check_log(events).name == "turn.stopped"
    again = await client.stop(reader.turn_id)
    assert (again.status, again.body["state"]) == (200, "stopped")
    assert await client.replay(reader.turn_id, events[-2].id) == events[-1:]


@pytest.mark.parametrize(("message", "state"), [("Hi #tokens=2", "completed"), ("Hi #fault=cut", "failed")])
async def test_stop_of_ended_turn_tells_how_it_ended(message: str, state: str, client: Client) -> None:
    """Stopping what has ended is no error and no change."""
    ending = (await client.complete(await client.conversation(), message))[-1]
    answer = await client.stop(ending.turn_id)
    assert (answer.status, answer.body) == (200, {"turn_id": ending.turn_id, "state": state})


async def test_stop_of_what_was_shown_loses_nothing(client: Client) -> None:
    """The stopped answer's text is exactly what readers were shown, also in the transcript and on replay."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=200") as reader:
        await reader.until("message.delta", 10)
        await client.stop(reader.turn_id)
        events = await reader.rest()
    text = text_of(events)
    assert check_log(await client.replay(reader.turn_id)).data["text"] == text
    shown = (await client.call("GET", f"/v1/conversations/{conversation}")).body["messages"][-1]
    assert (shown["content"], shown["state"]) == (text, "stopped")


async def test_stop_frees_the_conversation(client: Client) -> None:
    """After the stop's ending the next turn may begin."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40") as reader:
        await reader.until("message.delta")
        await client.stop(reader.turn_id)
        await reader.rest()
    assert (await client.complete(conversation, "Hi #tokens=1"))[-1].name == "turn.completed"


async def test_stop_by_another_user_is_404_and_changes_nothing(
    running: Running, client: Client, sign_in: SignIn
) -> None:
    """Nobody stops somebody else's turn."""
    message = "Hi #tokens=10 #rate=50"
    turn = await client.start(await client.conversation(), message)
    answer = await (await sign_in(running, "u2")).stop(turn)
    assert (answer.status, answer.body["code"]) == (404, "not_found")
    assert check_log(await client.replay(turn)).name == "turn.completed"


async def test_stop_on_another_gateway_reaches_the_one_that_runs_the_turn(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A stop that arrives elsewhere is heard through the store."""
    owner = await start_gateway()
    client = await sign_in(owner)
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #tokens=500 #rate=40")
    other = Client(await start_gateway(simulator=owner.simulator, tenant=owner.tenant), client.headers)
    answer = await other.stop(turn)
    assert answer.body["state"] == "stopping"
    (run,) = owner.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset", within_s=2)
    ending = check_log(await other.replay(turn))
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "user")
