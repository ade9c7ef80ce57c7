"""The layouts that are compared keep the same promises, or the comparison would say nothing; and the benchmark runs."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.events import (
    Appended,
    Entry,
    Fenced,
    LogBehind,
    LogLost,
    MessageCitations,
    TextDelta,
    TurnCompleted,
    after,
    merged,
)
from gateway.core.identity import WorkerId
from gateway.core.turn import StopReason, TurnId, Usage
from gateway.store.redis import Redis
from tests.bench.log_forms import KEYS
from tests.bench.log_layouts import LAYOUTS, LIVE_TTL_S, Due, Layout

CITED = MessageCitations([{"id": "c1"}])
COMPLETED = TurnCompleted("m", "r", "stop", "Grüße, 世界 🌍!", Usage(1, 2, 3, "reported"))
ANSWER = [
    Entry(7, TextDelta("Grüße,")),
    Entry(11, TextDelta(" 世界 ")),
    Entry(12, CITED),
    Entry(14, TextDelta("🌍!")),
    Entry(15, COMPLETED),
]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Redis]:
    client = Redis(store_url, timeout_s=2.0, connections=4)
    yield client
    await client.aclose()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, store: Redis) -> Layout:
    return LAYOUTS[request.param](store)


@pytest.fixture
async def turn(layout: Layout) -> TurnId:
    turn_id = TurnId(str(uuid.uuid4()))
    await layout.open(turn_id)
    return turn_id


async def test_read_from_any_cursor_gives_the_exact_rest(layout: Layout, turn: TurnId) -> None:
    """A cursor cuts at the exact character, whatever the script of the text."""
    for entry in ANSWER:
        await layout.append(turn, [entry])
    for position in range(1, 15):
        assert merged(await layout.read(turn, position)) == merged(after(ANSWER, position))
    assert await layout.read(turn, 15) == []


async def test_append_resent_stores_once(layout: Layout, turn: TurnId) -> None:
    """A batch whose answer was lost may be sent again, with more behind it."""
    await layout.append(turn, ANSWER[:3])
    before = await layout.read(turn, 0)
    await layout.append(turn, ANSWER[:3])
    assert await layout.read(turn, 0) == before
    await layout.append(turn, ANSWER)
    assert merged(await layout.read(turn, 1)) == merged(ANSWER)


async def test_append_resent_with_its_delta_grown_is_read_once(layout: Layout, turn: TurnId) -> None:
    """A delta of which the store had the beginning is given once."""
    await layout.append(turn, [Entry(3, TextDelta("Gr"))])
    await layout.append(turn, [Entry(9, TextDelta("Grüße, 世"))])
    assert merged(await layout.read(turn, 1)) == [Entry(9, TextDelta("Grüße, 世"))]


async def test_append_of_no_owner_is_refused(layout: Layout, turn: TurnId) -> None:
    """An old epoch is fenced, a turn that the store has lost is told as such; neither writes anything."""
    with pytest.raises(Fenced):
        await layout.append(turn, ANSWER, epoch=2)
    with pytest.raises(LogLost):
        await layout.append(TurnId(str(uuid.uuid4())), ANSWER)
    assert await layout.read(turn, 1) == []


async def test_append_beyond_the_logs_end_is_refused(layout: Layout, turn: TurnId) -> None:
    """A log never gets a gap: whoever appends behind one is told where the log ends, and nothing is written."""
    await layout.append(turn, ANSWER[:1])
    with pytest.raises(LogBehind) as behind:
        await layout.append(turn, ANSWER[2:])
    assert behind.value.position == 7
    (told,) = await layout.append_due([Due(turn, ANSWER[2:])])
    assert isinstance(told, LogBehind)
    assert await layout.read(turn, 1) == ANSWER[:1]


async def test_append_tells_of_stop_and_followers(layout: Layout, turn: TurnId, store: Redis) -> None:
    """The owner learns from its append what was asked for elsewhere."""
    assert await layout.append(turn, ANSWER[:1]) == Appended(None, ())
    await store.call("HSET", KEYS.turn(turn), "stop", StopReason.USER)
    await store.call("ZADD", KEYS.followers(turn), "inf", "reader")
    assert await layout.append(turn, []) == Appended(StopReason.USER, [WorkerId("reader")])


async def test_append_due_tells_each_turn_its_own(layout: Layout, turn: TurnId) -> None:
    """What is wrong with one turn on a beat does not touch the others."""
    lost = TurnId(str(uuid.uuid4()))
    told = await layout.append_due([Due(lost, ANSWER), Due(turn, ANSWER), Due(turn, [])])
    assert isinstance(told[0], LogLost)
    assert list(told[1:]) == [Appended(None, ()), Appended(None, ())]
    assert merged(await layout.read(turn, 1)) == merged(ANSWER)


async def test_every_key_of_a_turn_expires(layout: Layout, turn: TurnId, store: Redis) -> None:
    """Nothing of a turn stays in the store for ever."""
    await layout.append(turn, ANSWER)
    for key in layout.keys(turn):
        assert 0 < await store.call("TTL", key) <= LIVE_TTL_S


async def test_layouts_benchmark_ends_by_itself_with_its_figures(tmp_path: Path) -> None:
    """A tiny run appends, publishes and replays in every layout, and loses no message."""
    path = tmp_path / "figures.json"
    command = ["-m", "tests.bench", "layouts", "--turns", "4", "--seconds", "0.2", "--rounds", "1", "--json", str(path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, output
    for name in ("CPU µs/append", "CPU µs/event", "round trips/event", "replay from the middle", "events/message"):
        assert name in output
    document = json.loads(path.read_bytes())
    phases = document["phases"]
    assert [phase["layout"] for phase in phases] == [*LAYOUTS, "append an event"]
    assert all(phase["appends"]["events"] > 0 for phase in phases)
    assert [phase["layout"] for phase in phases if phase["kept"]] == ["stream", "lean stream", "list", "text"]
    assert [one["lost"] for one in document["publishes"]] == [0, 0]
