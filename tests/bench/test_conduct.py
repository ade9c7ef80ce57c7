"""What the bench says of stalled readers, of stops and of goals: that it is right, and that it can be bad."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from tests.bench.cancel import measure_cancel
from tests.bench.compare.contenders import Contender, Proxied
from tests.bench.compare.goals import GOALS, Goal, goals_table
from tests.bench.compare.page import conduct_table, stops_cell, streams_table
from tests.bench.compare.results import Line, Results, least_ratio
from tests.bench.compare.shapes import STREAMS, Sample, Shape, sample
from tests.bench.compare.variants import VariantType
from tests.bench.phase import Figures, Mark, Spread, Work
from tests.bench.process import Child
from tests.bench.stack import clean_environ, ready_url
from tests.bench.stall import measure_stall

# A relay with two faults to choose from: it reads on whether its client does or not, or when its client has left.
RELAY = """
import asyncio, sys

port, fault = int(sys.argv[1]), sys.argv[2]

async def relay(reader, writer):
    upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)

    async def pass_requests():
        while data := await reader.read(65536):
            upstream.write(data)
        if fault != "deaf":
            upstream.close()

    passing = asyncio.create_task(pass_requests())
    try:
        while data := await upstream_reader.read(65536):
            if not writer.is_closing():
                writer.write(data)
                if fault != "leaky":
                    await writer.drain()
    except ConnectionError:
        if fault == "deaf":
            while await upstream_reader.read(65536):
                pass
    finally:
        upstream.close()
        writer.close()

async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print("ready http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
STALL = Work(streams=1, rate_per_s=10_000, events_per_turn=None, seconds=1.2)
MISSED = "**missed**"
STOPS = Work(streams=8, rate_per_s=20, events_per_turn=None, seconds=1.0, starts_per_s=50)


@asynccontextmanager
async def relaying(fault: str, directory: Path) -> AsyncIterator[Proxied]:
    source_command = [sys.executable, "-m", "tests.bench.source", "--rate", "20"]
    async with Child("source", source_command, directory / "source.log", clean_environ()) as source:
        source_url = await ready_url(source)
        command = [sys.executable, "-c", RELAY, str(urlsplit(source_url).port), fault]
        async with Child("relay", command, directory / "relay.log", clean_environ()) as relay:
            yield Proxied(directory, await ready_url(relay), source_url, source, relay)


@pytest.mark.parametrize(("fault", "leaks"), [("none", False), ("leaky", True)])
async def test_stall_shows_what_a_relay_holds_for_readers_that_stopped(fault: str, leaks: bool, tmp_path: Path) -> None:
    """A relay that waits for its readers stays flat, one that does not grows by megabytes, and both lose nothing."""
    async with relaying(fault, tmp_path) as rig:
        memory, seen = await measure_stall(rig, "relay", STALL)
    grown_mib = (memory.waiting_kib - memory.idle_kib) / 1024 / STALL.streams
    assert (grown_mib > 2) is leaks
    assert (seen["lost"], seen["duplicated"], seen["faults"]) == (0, 0, {})
    assert seen["turns"] == STALL.streams


@pytest.mark.slow  # it takes all cores
@pytest.mark.parametrize(
    ("fault", "early", "resets"), [("none", True, True), ("none", False, True), ("deaf", False, False)]
)
async def test_cancel_shows_whether_upstream_streams_end_with_their_clients(
    fault: str, early: bool, resets: bool, tmp_path: Path
) -> None:
    """Each stream that the source saw end has its time; those of a relay that reads on to the end have none."""
    async with relaying(fault, tmp_path) as rig:
        found = await measure_cancel(rig, "relay", STOPS, early=early)
    assert len(found) == STOPS.streams
    if resets:
        assert all(ms is not None and 0 <= ms < 5000 for ms in found)
    else:
        assert found == [None] * STOPS.streams


async def test_busiest_process_is_that_of_the_group_which_used_most(tmp_path: Path) -> None:
    """Two workers of which one does all the work are as busy as that one."""
    spin = "input()\nimport time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    async with contextlib.AsyncExitStack() as stack:
        pair = [Child(str(n), [sys.executable, "-c", spin], tmp_path / f"{n}.log") for n in range(2)]
        pids = {"workers": [(await stack.enter_async_context(child)).pid for child in pair]}
        begin = Mark(pids)
        pair[0].tell("go")
        await pair[0].line(within_s=30)
        end = Mark(pids)
    assert 0.2 < end.busiest_s("workers", begin) <= end.cpu_s["workers"] - begin.cpu_s["workers"] < 2


async def test_shape_with_more_streams_than_open_files_is_not_measured(tmp_path: Path) -> None:
    """A run says that its limit is too low, instead of counting refused connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shape = Shape("streams:many", "", Work(streams=soft, rate_per_s=1, events_per_turn=None, seconds=1.0))
    async with relaying("none", tmp_path) as rig:
        told = await sample(Contender("relay", "", "relay", rig, (), "source"), shape, 0)
    assert "open files" in told.failure
    assert told.figures is None


def line(name: str) -> Line:
    parts = ("gateway", "valkey") if name.startswith("gateway") else ("proxy",)
    return Line(name=name, title=name, version="", parts=parts, upstream="source")


def streamed(contender: str, shape: str, cpu_us: dict[str, float], *, busiest_us: float = 0.0, lost: int = 0) -> Sample:
    spread = Spread(1.0, 2.0, 100)
    figures = Figures(
        route="sse",
        seconds=1.0,
        events=100,
        turns=10,
        lost=lost,
        duplicated=0,
        faults={},
        cpu_us_per_event=cpu_us,
        busiest_us_per_event={"gateway": busiest_us},
        cores=dict.fromkeys(cpu_us, 0.1),
        others_cores=0.0,
        load_average=0.0,
        first_token_ms=spread,
        delay_ms=spread,
        resident_kib={},
        redis_round_trips_per_event=0.003,
    )
    return Sample(round=0, shape=shape, contender=contender, figures=figures, streams=10)


def results(*samples: Sample) -> Results:
    names = dict.fromkeys(one.contender for one in samples)
    return Results(rounds=1, lines=[line(name) for name in names], samples=[*samples])


@pytest.mark.parametrize(
    ("found", "floor", "verdict"),
    [
        (0.5, False, "aim"),
        (0.9, False, "must"),
        (1.1, False, "**missed**"),
        (1.1, True, "must"),
        (0.9, True, "**missed**"),
    ],
)
def test_goal_is_kept_up_to_its_bound(found: float, floor: bool, verdict: str) -> None:
    """A figure above the most, or below the least, is missed."""
    goal = Goal("", lambda _: found, must=1.0, aim=None if floor else 0.7, floor=floor)
    assert goal.verdict(found) == verdict


def test_goals_are_read_from_what_was_measured_and_no_others() -> None:
    """A figure that was not measured is neither kept nor missed."""
    told = results(
        streamed("gateway", "flood", {"gateway": 50.0, "valkey": 10.0}, lost=2),
        streamed("relay", "flood", {"proxy": 30.0}),
    )
    table = goals_table(told)
    assert "| CPU of an event at 1,000 × 20/s, to the bare relay | ≤ 1 × | ≤ 0.7 × | 2.00 × | **missed** |" in table
    assert "| round trips to Redis for an event at 1,000 × 20/s | ≤ 0.02 | – | 0.0030 | must |" in table
    assert "| events lost, repeated or wrong | ≤ 0 | – | 2 | **missed** |" in table
    assert len(table.splitlines()) == 5
    assert len({goal.title for goal in GOALS}) == len(GOALS)


def test_two_workers_carry_what_the_busier_one_can() -> None:
    """At 30 µs an event for one worker and 20 µs for each event at the busier of two, they carry half as much again."""
    told = results(
        streamed("gateway", "delay", {"gateway": 30.0}, busiest_us=30.0),
        streamed("gateway-2", "flood", {"gateway": 35.0}, busiest_us=20.0),
    )
    assert told.two_workers_times() == [1.5]


def test_cost_against_streams_has_a_row_for_each_count_and_its_losses() -> None:
    """The growth is that of the most streams over the fewest, of gateway and store together."""
    told = results(
        *(
            streamed("gateway", f"streams:{count}", {"gateway": 0.01 * count, "valkey": 5.0}, lost=1)
            for count in STREAMS
        )
    )
    lines = streams_table(told).splitlines()
    assert len(lines) == 2 + len(STREAMS)
    assert lines[2].startswith("| 500 | 10.0 | 5.0 | 0.20 |")
    assert lines[2].endswith("| 1 + 0 + 0 |")
    assert "| CPU of an event at 5,000 streams, to 500 | ≤ 1 × | – | 5.50 × | **missed** |" in goals_table(told)


def test_stops_that_were_never_seen_upstream_are_told() -> None:
    """The slowest reset is that of a stream that was never reset."""
    asked = Sample(round=0, shape="stopped", contender="gateway", streams=4, reset_ms=[60.0, None, 10.0, 20.0])
    told = results(asked)
    assert told.reset_ms("stopped", "gateway") == [10.0, 20.0, 60.0, math.inf]
    assert "50 % in 50 ms, 75 % in 200 ms, some never" in conduct_table(told)
    assert "| never | **missed** |" in goals_table(told)
    assert stops_cell([5.0]) == "100 % in 50 ms, 100 % in 200 ms, slowest 5 ms"


def test_what_a_stall_lost_counts_as_lost() -> None:
    """A sample without figures has its own account of what went wrong."""
    lost = Sample(round=0, shape="stalled", contender="gateway", idle_kib=0, held_kib=8192, streams=4, lost=3)
    told = results(lost)
    assert told.wrong("gateway") == (3, 0, 0)
    assert "2.00 MiB | must |" in goals_table(told)


def test_bound_of_a_short_run_is_on_its_best_round() -> None:
    """What another process took from one round does not fail the run."""
    assert least_ratio([90.0, 20.0, None], [30.0, 10.0, 10.0]) == 2.0
    assert least_ratio([None], [1.0]) is None


def test_variant_names_a_python_and_variables() -> None:
    """Without a Python it is this one; a word that is neither is refused."""
    found = VariantType().convert("m=,PYTHONMALLOC=malloc,A=b=c", None, None)
    assert (found.name, found.runtime.python) == ("m", sys.executable)
    assert found.runtime.environ == {"PYTHONMALLOC": "malloc", "A": "b=c"}
    for wrong in ("m", "=x", "m=no-such-python", "m=,word"):
        with pytest.raises(click.BadParameter):
            VariantType().convert(wrong, None, None)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_gateway_is_measured_with_stalled_readers_and_stopped_turns(tmp_path: Path) -> None:
    """The gateway keeps what a stalled reader missed, holds little for it, and resets every stream that was stopped."""
    shapes = ["--shape", "stalled", "--shape", "stopped", "--shape", "stopped-early"]
    command = [
        "-m",
        "tests.bench",
        "compare",
        "--rounds",
        "1",
        *shapes,
        "--contender",
        "gateway",
        "--out",
        str(tmp_path),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    document = json.loads((tmp_path / "results.json").read_bytes())
    found = {one["shape"]: one for one in document["results"]["samples"] if one["contender"] == "gateway"}
    assert set(found) == {"stalled", "stopped", "stopped-early"}
    stalled = found["stalled"]
    assert (stalled["held_kib"] - stalled["idle_kib"]) / stalled["streams"] <= 2048
    for shape in ("stopped", "stopped-early"):
        assert len(found[shape]["reset_ms"]) == found[shape]["streams"]
        assert None not in found[shape]["reset_ms"]
