"""The benchmark runs and checks what it streams; how fast that was is not tested."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.dialects import NativeFrames, NativeSse, VendorItems
from tests.bench.ledger import Reading, Tally

TURN = "3d2f0c52-6a0e-4a53-9d3f-7f6f0f2a9b11"


def event(position: int, name: str, data: dict[str, Any]) -> bytes:
    return f"id: {TURN}.{position}\nevent: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def answer(*texts: str, whole: str | None = None) -> list[bytes]:
    """A turn whose answer came in these deltas."""
    events, position = [event(1, "turn.started", {})], 1
    for text in texts:
        position += len(text)
        events.append(event(position, "message.delta", {"text": text}))
    events.append(event(position + 1, "turn.completed", {"text": "".join(texts) if whole is None else whole}))
    return events


def read(events: list[bytes], *, expected: int = 3) -> Tally:
    tally = Tally()
    tally.recording = True
    reader = NativeSse(Reading(tally, expected))
    for data in events:
        reader.feed(data)
    reader.close()
    return tally


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_sse_in_pieces_counts_every_event_once(size: int) -> None:
    """Wherever the stream is cut, each delta is counted and none is missed."""
    stream = b"".join(answer("0@5 ", "1@6 ", "2@7 "))
    tally = read([stream[at : at + size] for at in range(0, len(stream), size)])
    assert (tally.events, tally.lost, tally.duplicated, tally.turns) == (3, 0, 0, 1)
    assert not tally.faults


def test_merged_deltas_count_as_what_the_simulator_sent() -> None:
    """Two deltas joined into one event are two events."""
    assert read(answer("0@5 1@6 ", "2@7 ")).events == 3


@pytest.mark.parametrize(
    ("texts", "lost", "duplicated"),
    [(("0@5 ", "2@7 "), 1, 0), (("0@5 ", "1@6 "), 1, 0), (("0@5 ", "1@6 ", "1@6 ", "2@7 "), 0, 1), ((), 3, 0)],
)
def test_missing_or_repeated_delta_is_told(texts: tuple[str, ...], lost: int, duplicated: int) -> None:
    """A gap in the middle or at the end is a loss, a number seen before a duplicate."""
    tally = read(answer(*texts))
    assert (tally.lost, tally.duplicated) == (lost, duplicated)


def test_wrong_text_position_or_ending_is_a_fault() -> None:
    """The ending's text must be the deltas', positions must increase, and there is exactly one ending, at the end."""
    good = answer("0@5 ", "1@6 ", "2@7 ")
    assert read(answer("0@5 ", "1@6 ", "2@7 ", whole="")).faults == {"text differs from the deltas": 1}
    assert read([*good[:2], event(1, "message.citations", {}), *good[2:]]).faults == {"position not increasing": 1}
    assert read(good[:-1]).faults == {"0 endings": 1}
    assert read([*good, event(99, "turn.completed", {"text": "0@5 1@6 2@7 "})]).faults == {
        "event after the ending": 1,
        "2 endings": 1,
    }


def test_frame_and_vendor_item_carry_the_same_deltas() -> None:
    """The other two dialects are read into the same ledger."""
    tally = Tally()
    frames = NativeFrames(Reading(tally, 1))
    place = f'"turn_id":"{TURN}","conversation_id":"{TURN}"'
    assert not frames.take(f'{{"id":"{TURN}.5","event":"message.delta",{place},"data":{{"text":"0@5 "}}}}'.encode(), 9)
    assert frames.take(f'{{"id":"{TURN}.6","event":"turn.completed",{place},"data":{{"text":"0@5 "}}}}'.encode(), 9)
    frames.close()
    items = VendorItems(Reading(tally, 2))
    for data in (b'[{"choice":{"message":{"content":"0@5 "}}}', b',{"choice":{"message":{"con', b'tent":"1@6 "}}}]'):
        items.feed(data)
    items.close()
    assert (tally.turns, tally.lost, tally.duplicated, tally.faults) == (2, 0, 0, {})


@pytest.mark.slow
@pytest.mark.parametrize(("options", "route"), [([], "sse"), (["--door", "hyperleap"], "hyperleap")])
async def test_turn_benchmark_prints_its_table_and_loses_nothing(
    tmp_path: Path, options: list[str], route: str
) -> None:
    """A small run ends by itself, and table and JSON agree that nothing was lost or came twice."""
    path = tmp_path / "figures.json"
    command = ["-m", "tests.bench", "turn", "--streams", "5", "--rate", "50", "--seconds", "2", *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "--rounds",
        "1",
        "--h2c",
        "--json",
        str(path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, output
    for name in ("CPU µs/event", "first token ms", "delay ms", "KiB/stream", "Redis round trips/event", "events lost"):
        assert name in output
    document = json.loads(path.read_bytes())
    assert [phase["route"] for phase in document["phases"]] == ["direct", route]
    assert all(phase["events"] > 0 and phase["turns"] == 5 for phase in document["phases"])
    assert (document["summary"]["lost"], document["summary"]["duplicated"], document["summary"]["faults"]) == (0, 0, 0)


@pytest.mark.slow
async def test_admit_benchmark_prints_its_table(tmp_path: Path) -> None:
    """A small run ends by itself and tells a decision's cost beside a plain handler's."""
    path = tmp_path / "figures.json"
    options = ["--concurrency", "10", "--seconds", "0.2", "--rounds", "1", "--json", str(path)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "admit", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, output
    for name in ("gateway µs", "Valkey µs", "decisions/s a core", "A plain aiohttp handler"):
        assert name in output
    document = json.loads(path.read_bytes())
    plans = ["default", "usual", "everything", "gate, no limit", "gate"]
    assert [one["plan"] for one in document["rounds"]] == plans
    assert all(one["decisions"] > 10 and one["client_us"] > 0 for one in document["rounds"])
