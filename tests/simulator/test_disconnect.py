"""What the simulator does when a client leaves, and what the bill says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hyperframe.frame import GoAwayFrame, RstStreamFrame

from gateway.simulator.answers import answer
from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start
from tests.simulator.frame_client import CANCEL, connect

SLOW = "hello #tokens=60 #rate=200"


async def eventually(met: Callable[[], bool]) -> None:
    """Waits for a condition on the simulator, which runs on the same loop."""
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0.005)


async def leave(simulator: Simulator, message: str, *, reset: bool, items: int) -> None:
    """Starts a chat and leaves it after some items."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), message)
        await client.until(lambda: len(client.streams[stream_id].frames) >= items)
        if reset:
            client.send(RstStreamFrame(stream_id, CANCEL))
            await client.ping()


def stored_text(simulator: Simulator) -> str | None:
    """The assistant's message as the vendor keeps it."""
    conversation = simulator.conversations.get(simulator.bill.runs[-1].conversation_id)
    assert conversation is not None
    last = conversation.messages[-1]
    return last.content if last.role == "assistant" else None


@pytest.mark.parametrize("reset", [True, False])
async def test_finish_completes_the_answer_unseen(start: Start, reset: bool) -> None:
    """With `finish` the answer is completed at its rate, stored and billed whole; the bill tells of the cancel."""
    simulator = await start(on_disconnect="finish")
    await leave(simulator, SLOW, reset=reset, items=5)
    (run,) = simulator.bill
    await eventually(lambda: run.cancelled)
    assert not run.stored
    await eventually(lambda: run.stored)
    assert stored_text(simulator) == answer(SLOW).text
    assert (run.completion_tokens, run.saw_cancel) == (60, reset)
    assert (run.reset_at_s is not None) is reset


@pytest.mark.parametrize("reset", [True, False])
async def test_drop_keeps_what_was_sent(start: Start, reset: bool) -> None:
    """With `drop` generation stops, and only what was sent is stored and billed."""
    simulator = await start(on_disconnect="drop")
    await leave(simulator, SLOW, reset=reset, items=5)
    (run,) = simulator.bill
    await eventually(lambda: run.cancelled)
    text = stored_text(simulator)
    assert text
    assert answer(SLOW).text.startswith(text)
    assert 0 < run.completion_tokens < 60
    assert simulator.state.items_sent == run.items_sent


async def test_reset_before_headers_is_seen(simulator: Simulator) -> None:
    """A cancel that comes before the first byte is counted and ends the run."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), "hello #fault=slow-headers:30")
        client.send(RstStreamFrame(stream_id, CANCEL))
        await client.ping()
        (run,) = simulator.bill
        assert run.saw_cancel
        assert (simulator.state.resets_received, simulator.state.open_streams) == (1, 0)


async def test_stalled_answer_is_finished_once_the_client_leaves(simulator: Simulator) -> None:
    """A stalled run stays open until its reader gives up; `finish` then stores the whole answer."""
    await leave(simulator, "hello #fault=stall:3", reset=True, items=3)
    (run,) = simulator.bill
    await eventually(lambda: run.stored)
    assert run.saw_cancel
    assert stored_text(simulator) == answer("hello").text


async def test_client_goaway_lets_its_streams_finish(simulator: Simulator) -> None:
    """A client that says GOAWAY still gets the answers it asked for, and then the connection closes."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), SLOW)
        client.send(GoAwayFrame(0, last_stream_id=0, error_code=0))
        received = await client.answer(stream_id)
        assert received.body.endswith(b"]")
        assert received.ended
        await client.until(lambda: client.closed)


async def test_server_goaway_and_drop_reach_all_connections(simulator: Simulator) -> None:
    """`goaway` closes idle connections politely, `drop_connections` cuts them."""
    async with connect(simulator) as one, connect(simulator) as two:
        await asyncio.gather(one.ping(), two.ping())
        simulator.goaway()
        await asyncio.gather(one.until(lambda: one.closed), two.until(lambda: two.closed))
        assert one.goaway_last_id == two.goaway_last_id == 0
    async with connect(simulator) as three:
        await three.ping()
        simulator.drop_connections()
        await three.until(lambda: three.closed)
        assert three.goaway_last_id is None
    await eventually(lambda: simulator.state.open_connections == 0)


async def test_aclose_with_open_streams_is_prompt(start: Start) -> None:
    """Closing the server cuts what is open, leaves nothing behind, and may be done twice."""
    simulator = await start()
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), "hello #fault=stall:1")
        await client.until(lambda: bool(client.streams[stream_id].frames))
        await simulator.aclose()
        await simulator.aclose()
        await client.until(lambda: client.closed)
    assert (simulator.state.open_connections, simulator.state.open_streams) == (0, 0)
