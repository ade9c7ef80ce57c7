"""The comparison's arithmetic, table and plot; and it runs, with a relay that keeps its promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import aiohttp
import pytest

from tests.bench.compare import proxies
from tests.bench.compare.goals import MOST_PER_EVENT, past_bounds
from tests.bench.compare.plot import decades, plot
from tests.bench.compare.results import Line, Middle, Results, middle, ratio
from tests.bench.compare.run import Comparison
from tests.bench.compare.shapes import NAMES, Sample, of_round, shapes
from tests.bench.compare.table import cell, table
from tests.bench.phase import Figures, Spread
from tests.bench.process import Child, cpu_of_all_s, resident_bytes, tree
from tests.bench.stack import ready_url

GATEWAY = Line(name="gateway", title="gateway, SSE", version="", parts=("gateway", "valkey"), upstream="direct")
RELAY = Line(name="relay", title="bare aiohttp relay, SSE", version="1", parts=("proxy",), upstream="source")
DIRECT = Line(name="direct", title="nothing", version="", parts=(), upstream="direct")


def figures(cpu_us: dict[str, float], *, delay_ms: float = 1.0, lost: int = 0, kib: float = 0.0) -> Figures:
    spread = Spread(delay_ms, delay_ms * 10, 100)
    return Figures(
        route="sse",
        seconds=1.0,
        events=1000,
        turns=100,
        lost=lost,
        duplicated=0,
        faults={},
        cpu_us_per_event=cpu_us,
        cores={"simulator": 0.25, "clients": 0.5} | {part: used / 1000 for part, used in cpu_us.items()},
        others_cores=0.0,
        load_average=0.0,
        first_token_ms=spread,
        delay_ms=spread,
        resident_kib={"gateway": kib, "valkey": 1_000_000.0},
    )


def results(*samples: Sample, rounds: int = 2) -> Results:
    return Results(rounds=rounds, lines=[DIRECT, GATEWAY, RELAY], samples=[*samples])


def streamed(number: int, contender: str, shape: str, cpu_us: dict[str, float], **more: float) -> Sample:
    made = figures(cpu_us, **more)  # type: ignore[arg-type]  # counts and figures alike
    return Sample(round=number, shape=shape, contender=contender, figures=made, streams=10)


def test_cost_of_a_contender_is_that_of_its_whole_tree() -> None:
    """The gateway's figure has its store in it, and the clients' and the simulator's time is in neither's."""
    cpu_us = {"gateway": 70.0, "valkey": 20.0, "simulator": 500.0, "clients": 500.0}
    told = results(streamed(0, "gateway", "paced", cpu_us), streamed(0, "gateway", "turns", cpu_us))
    assert told.cpu_us("paced", "gateway") == [90.0, None]
    assert told.cpu_us("paced", "gateway", "valkey") == [20.0, None]
    assert told.turn_us("gateway") == [900.0, None]


def test_ratio_is_taken_within_a_round() -> None:
    """A machine that is slower in one round slows both, and their ratio stays."""
    told = results(
        streamed(0, "gateway", "paced", {"gateway": 60.0}),
        streamed(0, "relay", "paced", {"proxy": 30.0}),
        streamed(1, "gateway", "paced", {"gateway": 600.0}),
        streamed(1, "relay", "paced", {"proxy": 300.0}),
    )
    assert ratio(told.cpu_us("paced", "gateway"), told.cpu_us("paced", "relay")) == 2.0
    assert ratio([60.0, None], [None, 30.0]) is None


def test_median_and_spread_are_over_what_was_measured() -> None:
    """A round without a figure counts neither as zero nor as anything else."""
    assert middle([3.0, None, 1.0, math.nan, 2.0]) == Middle(2.0, 1.0, 3.0)
    assert middle([None, math.nan]) is None
    assert cell(Middle(1234.5, 1200.0, 1300.0)) == "1,234 (1,200–1,300)"
    assert cell(Middle(1.234, 1.234, 1.234), 2) == "1.23"


def test_second_reader_costs_what_two_cost_above_one() -> None:
    """At 40 µs for each of two deliveries and 70 µs for one alone, the second one costs 10 µs."""
    told = results(
        streamed(0, "gateway", "paced", {"gateway": 70.0}), streamed(0, "gateway", "readers", {"gateway": 40.0})
    )
    assert told.second_reader_us("gateway") == [10.0, None]


def test_added_delay_is_over_the_same_upstream_with_nothing_between() -> None:
    """The simulator's own delay is taken off, in the same round."""
    told = results(
        streamed(1, "gateway", "delay", {"gateway": 1.0}, delay_ms=3.5),
        streamed(1, "direct", "delay", {"simulator": 1.0}, delay_ms=1.0),
    )
    assert told.added_ms("delay", "gateway", lambda one: one.delay_ms.p50) == [None, 2.5]


def test_memory_of_a_stream_is_growth_over_streams() -> None:
    """The store's memory is not the gateway's."""
    told = results(
        Sample(round=0, shape="waiting", contender="gateway", idle_kib=1000.0, held_kib=1200.0, streams=10),
        streamed(0, "gateway", "paced", {"gateway": 1.0}, kib=1500.0),
    )
    assert told.held_kib("waiting", "gateway") == [20.0, None]
    assert told.streaming_kib("gateway") == [50.0, None]


def test_table_and_document_tell_losses_failures_and_what_was_skipped() -> None:
    """What went wrong stands beside the figures, and columns that nobody filled are left out."""
    failed = Sample(round=1, shape="paced", contender="relay", streams=10, failure="clients said nothing\nlog")
    told = results(streamed(0, "gateway", "paced", {"gateway": 10.0}, lost=3), failed)
    lines = table(told).splitlines()
    assert "µs / event, 500 × 4/s" in lines[0]
    assert "turn of 10" not in lines[0]
    assert any("**gateway, SSE**" in line and "3 + 0 + 0" in line for line in lines)
    assert len({line.count("|") for line in lines}) == 1
    comparison = Comparison(command="compare", machine="a machine", skipped=["nginx: skipped"], results=told)
    words = comparison.document(shapes(NAMES, 1.0))
    assert "nginx: skipped" in words
    assert "`paced`, round 2: clients said nothing" in words
    assert comparison.broken() == ["gateway, SSE: 3 events lost, 0 came twice, 0 faults"]


@pytest.mark.parametrize(("times", "past"), [(MOST_PER_EVENT - 0.1, 0), (MOST_PER_EVENT + 0.1, 1)])
def test_bound_is_on_the_ratio_to_the_bare_relay(times: float, past: int) -> None:
    """The same microseconds pass beside a slow relay and fail beside a fast one."""
    told = results(
        streamed(0, "gateway", "paced", {"gateway": 100.0 * times}), streamed(0, "relay", "paced", {"proxy": 100.0})
    )
    assert len(past_bounds(told)) == past


def test_plot_is_well_formed_and_has_a_point_for_each_figure() -> None:
    """One circle a contender and panel, names escaped, and none for what was not measured."""
    told = results(
        streamed(0, "gateway", "paced", {"gateway": 70.0}),
        streamed(1, "gateway", "paced", {"gateway": 90.0}),
        streamed(0, "relay", "paced", {"proxy": 30.0}),
        streamed(0, "relay", "turns", {"proxy": 60.0}),
    )
    root = ElementTree.fromstring(plot(told))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{name}circle")) == 3
    assert "not measured" in "".join(root.itertext())
    assert (decades(30, 90), decades(10, 10), decades(9, 1001)) == ((1, 2), (1, 2), (0, 4))


def test_memory_is_read_of_fresh_processes() -> None:
    """Streams and sockets do not find in one round what the other made a process allocate."""
    chosen = shapes(("waiting", "sockets", "paced"), 1.0)
    assert [[shape.name for shape in of_round(chosen, number)] for number in (0, 1, 2)] == [
        ["waiting", "paced"],
        ["sockets", "paced"],
        ["waiting", "paced"],
    ]
    assert [shape.name for shape in of_round(chosen[1:], 0)] == ["sockets", "paced"]
    assert of_round(shapes(("stalled",), 1.0), 0) == []  # processes of its own


def test_program_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is silently left out of a comparison."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found, missing = proxies.installed(tmp_path / "no-such-venv")
    assert found == []
    assert len(missing) == len(proxies.NAMES)
    assert all("skipped" in line for line in missing)


async def test_cpu_time_of_a_tree_has_its_ended_children_in_it(tmp_path: Path) -> None:
    """What a worker used counts, whether it still runs or has ended."""
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])\nprint('done', flush=True)\ninput()"
    )
    async with Child("parent", [sys.executable, "-c", parent], tmp_path / "log") as child:
        await child.line(within_s=30)
        assert tree(child.pid) == [child.pid]
        assert cpu_of_all_s(tree(child.pid)) >= 0.3


class Flood:
    """A source that answers every request with BODY, no faster than it is taken."""

    BODY = b"".join(b"%d@0 " % number for number in range(4_000_000))

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.moved = asyncio.Event()
        self.requests = 0
        self.connections = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                self.requests += 1
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for at in range(0, len(self.BODY), 50_000):
                    piece = self.BODY[at : at + 50_000]
                    # Written so that size lines are cut in two as well.
                    for part in (b"%x\r" % len(piece), b"\n" + piece + b"\r", b"\n"):
                        writer.write(part)
                        await writer.drain()
                    self.sent_bytes += len(piece)
                    self.moved.set()
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def flood() -> AsyncIterator[tuple[Flood, int]]:
    source = Flood()
    server = await asyncio.start_server(source.answer, "127.0.0.1", 0)
    yield source, server.sockets[0].getsockname()[1]
    server.close()


async def test_callback_relay_passes_on_all_of_an_answer_and_holds_nothing_for_a_stalled_reader(
    flood: tuple[Flood, int], tmp_path: Path
) -> None:
    """The baseline is no faster for being wrong: it stops reading its source, and loses nothing when it goes on."""
    source, port = flood
    command = [sys.executable, "-m", "tests.bench.callback_relay", f"http://127.0.0.1:{port}"]
    async with Child("relay", command, tmp_path / "log") as relay:
        url = await ready_url(relay)
        async with aiohttp.ClientSession() as http, http.post(url, data=b"{}") as stalled:
            before = resident_bytes(relay.pid)
            with contextlib.suppress(TimeoutError):  # nothing has moved for so long: the reader's end is full
                while source.sent_bytes < len(source.BODY):
                    source.moved.clear()
                    await asyncio.wait_for(source.moved.wait(), 1.0)
            assert source.sent_bytes < len(source.BODY)
            assert resident_bytes(relay.pid) - before < 4 * 2**20
            assert await stalled.read() == source.BODY
            async with http.post(url, data=b"{}") as again:
                assert await again.read() == source.BODY
    assert (source.requests, source.connections) == (2, 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_short_comparison_prints_its_table_and_writes_its_files(tmp_path: Path) -> None:
    """A short run ends by itself, measures both under both loads, loses nothing, and is within its bounds."""
    command = ["-m", "tests.bench", "compare", "--short", "--seconds", "1", "--out", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    assert "µs / turn of 10" in output.decode()
    assert output.decode().strip() == (tmp_path / "results.md").read_text("utf-8").strip()
    ElementTree.parse(tmp_path / "results.svg")
    document = json.loads((tmp_path / "results.json").read_bytes())
    assert {(one["contender"], one["shape"]) for one in document["results"]["samples"]} == {
        ("gateway", "paced"), ("relay", "paced"), ("gateway", "turns"), ("relay", "turns"),
    }  # fmt: skip
    assert all(one["figures"]["events"] > 0 and one["failure"] == "" for one in document["results"]["samples"])
