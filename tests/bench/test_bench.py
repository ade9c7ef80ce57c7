"""The benchmark runs and checks what it streams; how fast that was is not tested."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.dialects import NativeFrames, NativeSse, VendorItems
from tests.bench.door_dialects import DIALECTS
from tests.bench.doors import DoorsReport
from tests.bench.ledger import Reading, Tally
from tests.bench.phase import Figures, Spread, Work
from tests.bench.plan import DOORS, Route

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


def said(route: Route, *texts: str, well: bool = True) -> bytes:
    """An answer as a door tells it; ``well`` or broken off by an error."""
    end: dict[str, Any]
    told: list[Any]
    match route:
        case "completions":
            told = [{"choices": [{"delta": {"content": one}, "finish_reason": None}]} for one in texts]
            end = {"choices": [{"delta": {}, "finish_reason": "stop"}]} if well else {"error": {"code": "broken"}}
            return stream([*told, end, *([None] if well else [])])
        case "responses":
            head = b"event: response.output_text.delta\n"
            deltas = [
                head + stream([{"type": "response.output_text.delta", "delta": one, "sequence_number": 4 * number}])
                for number, one in enumerate(texts, 1)
            ]
            content = [{"text": "".join(texts)}]
            end = {"type": "response.completed", "response": {"output": [{"content": content}]}}
            end = (end if well else {"type": "response.failed"}) | {"sequence_number": 4 * len(texts) + 4}
            return b"".join(deltas) + stream([end])
        case "ai-sdk":
            told = [{"type": "text-delta", "id": "text", "delta": one} for one in texts]
            return stream([{"type": "start"}, *told, {"type": "finish" if well else "error"}, None])
        case _:
            told = [{"type": "TEXT_MESSAGE_CONTENT", "messageId": TURN, "delta": one} for one in texts]
            end = {"type": "RUN_FINISHED", "result": {"finish_reason": "stop"}}
            return stream([*told, end if well else {"type": "RUN_ERROR", "code": "broken"}])


def stream(told: list[Any]) -> bytes:
    lines = ["[DONE]" if one is None else json.dumps(one, separators=(",", ":")) for one in told]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


FAULTS: dict[Route, str] = {
    "completions": "error broken",
    "responses": "response.failed",
    "ai-sdk": "error before [DONE]",
    "ag-ui": "RUN_ERROR broken",
}


def read_door(route: Route, data: bytes, *, size: int = 10_000) -> Tally:
    tally = Tally()
    tally.recording = True
    dialect = DIALECTS[route](Reading(tally, 3))
    for at in range(0, len(data), size):
        dialect.feed(data[at : at + size])
    dialect.close()
    return tally


@pytest.mark.parametrize("route", list(FAULTS))
def test_doors_dialect_counts_events_losses_repeats_and_faults(route: Route) -> None:
    """Wherever its stream is cut; and a failure, a missing ending or words after it are told as what they are."""
    whole = said(route, "0@5 ", "1@6 2@7 ")
    for size in (1, 7, 64, 10_000):
        tally = read_door(route, whole, size=size)
        assert (tally.events, tally.lost, tally.duplicated, tally.turns, tally.faults) == (3, 0, 0, 1, {})
    tally = read_door(route, said(route, "0@5 ", "2@7 ", "2@8 "))
    assert (tally.lost, tally.duplicated, tally.faults) == (1, 1, {})
    assert read_door(route, said(route, "0@5 ", well=False)).faults == {FAULTS[route]: 1}
    assert read_door(route, whole[: whole.rindex(b"data: ")]).faults == {"0 endings": 1}
    assert read_door(route, whole * 2).faults["event after the ending"] > 0


def test_doors_ratio_is_to_the_native_phases_around_it() -> None:
    """A machine that grows slower during a run makes no door look dearer."""

    def phase(route: Route, gateway_us: float) -> Figures:
        return Figures(
            route=route,
            seconds=1.0,
            events=1,
            turns=1,
            lost=0,
            duplicated=0,
            faults={},
            cpu_us_per_event={"gateway": gateway_us, "valkey": 10.0},
            busiest_us_per_event={},
            cores={},
            others_cores=0.0,
            load_average=0.0,
            first_token_ms=Spread(0, 0, 0),
            delay_ms=Spread(0, 0, 0),
            resident_kib={},
            redis_round_trips_per_event=None,
            redis_commands_per_event=None,
        )

    doors: tuple[tuple[Route, float], ...] = (
        ("hyperleap", 20.0),
        ("completions", 40.0),
        ("responses", 40.0),
        ("ai-sdk", 55.0),
        ("ag-ui", 40.0),
    )
    phases = [phase("sse", 10.0), phase(*doors[0])]
    for door in doors[1:]:
        phases += [phase("sse", 30.0), phase(*door)]
    work = Work(streams=1, rate_per_s=1.0, events_per_turn=None, seconds=1.0)
    report = DoorsReport(work=work, phases=[*phases, phase("sse", 50.0)])
    assert report.ratios("hyperleap") == [1.0]
    assert report.ratios("ag-ui") == [1.0]
    assert report.over == ["ai-sdk"]
    assert "past 1.25 ×: ai-sdk" in report.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "route"),
    [([], "sse"), *((["--door", door], route) for door, route in DOORS.items() if door != "native")],
)
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
async def test_doors_benchmark_alternates_with_native_and_loses_nothing(tmp_path: Path) -> None:
    """A small run of short turns ends by itself; each door has a native phase before and after it."""
    path = tmp_path / "figures.json"
    options = ["--streams", "3", "--rate", "50", "--events-per-turn", "10", "--seconds", "0.5", "--h2c"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "doors", *options, "--json", str(path)),
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
    assert all(door in output for door in DOORS)
    document = json.loads(path.read_bytes())
    others = [route for door, route in DOORS.items() if door != "native"]
    routes = [phase["route"] for phase in document["phases"]]
    assert (routes[::2], routes[1::2]) == (["sse"] * 6, others)
    assert all(phase["events"] > 0 and phase["turns"] >= 6 for phase in document["phases"])
    assert list(document["ratios"]) == [door for door in DOORS if door != "native"]


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
