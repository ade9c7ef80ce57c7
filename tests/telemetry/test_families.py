"""Families of metrics: plain numbers that a scrape shows as the library's own would be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.turn import StopReason
from gateway.telemetry import exposition
from gateway.telemetry.families import Axis, Buckets, Families
from gateway.telemetry.histogram import HistogramFamily
from gateway.telemetry.tally import Tally

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMATS: list[tuple[str, Callable[[CollectorRegistry], bytes]]] = [
    ("", generate_latest),
    (OPENMETRICS, generate_openmetrics),
]
ADDED = st.lists(
    st.tuples(st.floats(0, 1e15) | st.integers(0, 1000), st.text(max_size=4), st.sampled_from(StopReason)), max_size=8
)


def scrape(make: Families, accept: str = "") -> bytes:
    return asyncio.run(make.scrape(accept).whole())


@pytest.mark.parametrize(("accept", "encoder"), FORMATS)
@given(ADDED)
def test_tally_shows_what_the_library_would(
    accept: str, encoder: Callable[[CollectorRegistry], bytes], added: list[tuple[float, str, StopReason]]
) -> None:
    """Names, help, labels, figures and their order are those of the library's own counter and gauge, to the letter."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
    make, registry = Families(), CollectorRegistry()
    tallies = (
        make.counter("a_total", "A \\ counter\n", Axis(("x",), 9), Axis(("y",), 9)),
        make.gauge("b", "A gauge", Axis(("x",), 9), Axis(("y",), 9)),
    )
    counter = Counter("a_total", "A \\ counter\n", ("x", "y"), registry=registry)
    gauge = Gauge("b", "A gauge", ("x", "y"), registry=registry)
    alone, twin = make.counter("c_total", "Without labels"), Counter("c_total", "Without labels", registry=registry)
    for amount, x, y in added:
        for tally in tallies:
            tally.add(amount, x, y)
        counter.labels(x, y).inc(amount)
        gauge.labels(x, y).inc(amount)
        alone.add(amount)
        twin.inc(amount)
    tallies[1].add(-3, "x", StopReason.USER)
    gauge.labels("x", StopReason.USER).dec(3)
    assert scrape(make, accept) == encoder(registry)


def test_tally_refuses_what_makes_no_series() -> None:
    """A counter cannot fall, labels are all or none, and no two metrics have one name; figures stay as they were."""
    make = Families()
    counter = make.counter("a_total", "A", Axis(("x",), 1))
    counter.add(1, "v")
    with pytest.raises(ValueError, match="a counter"):
        counter.add(-1, "v")
    for values in ((), ("v", "w")):
        with pytest.raises(ValueError, match="labels"):
            counter.add(1, *values)
    with pytest.raises(ValueError, match="another metric"):
        make.gauge("a", "Again")
    with pytest.raises(ValueError, match="_total"):
        make.gauge("b_total", "A gauge that looks like a counter")
    with pytest.raises(ValueError, match="a counter"):
        counter.put(2, "v")
    assert b'a_total{x="v"} 1.0\n' in scrape(make)


async def test_series_that_change_between_slices_disturb_nothing() -> None:
    """While a scrape is under way series come, grow and go: it neither fails nor tells what never was."""
    make = Families()
    counter = make.counter("a_total", "A", Axis(("x",), 5000))
    gauge = make.gauge("b", "B", Axis(("x",), 5000))
    times = make.histogram("c_seconds", "C", Buckets("b", (1.0,)), Axis(("x",), 5000))
    for n in range(2000):
        counter.add(1, str(n))
        gauge.put(1, str(n))
        times.of(str(n)).observe(1)
    pieces = [piece async for piece in _disturbed(make, counter, gauge, times)]
    assert len(pieces) > 2
    lines = b"".join(pieces).decode().splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert {f'a_total{{x="{n}"}}' for n in range(2000)} <= told.keys()
    assert {value for name, value in told.items() if name.startswith(("a", "b"))} <= {"1.0", "2.0"}
    after = (await make.scrape("").whole()).decode().splitlines()
    assert sum(not line.startswith("#") for line in after) == make.series()


async def _disturbed(make: Families, counter: Tally, gauge: Tally, times: HistogramFamily) -> AsyncIterator[bytes]:
    """Read a scrape, and change something after each of its pieces."""
    number = 0
    async for piece in make.scrape("").pieces:
        yield piece
        for n in (number, 5000 + number):
            counter.add(1, str(n))
            gauge.drop(str(n))
            times.of(str(n)).observe(1)
        number += 1


def test_exemplar_is_told_in_openmetrics_and_nowhere_else() -> None:
    """The latest value of a bucket that has a trace comes with its id, value and time; the text format has no room."""
    make = Families()
    histogram = make.histogram("a_seconds", "A", Buckets("b", (0.1, 1.0)), Axis(("x",), 2))
    observed = histogram.of('v "\\')
    begun_s = time.time()
    for value, trace_id in ((0.05, "a" * 32), (0.06, "b" * 32), (0.07, ""), (0.5, ""), (7.0, "c" * 32)):
        observed.observe(value, trace_id)
    histogram.of("quiet").observe(1)
    (family,) = openmetrics.text_string_to_metric_families(scrape(make, OPENMETRICS).decode())  # type: ignore[no-untyped-call]  # the library's
    told = {
        (sample.labels["x"], sample.labels["le"]): (sample.value, sample.exemplar)
        for sample in family.samples
        if "le" in sample.labels
    }
    assert [told['v "\\', le][0] for le in ("0.1", "1.0", "+Inf")] == [3, 4, 5]
    first, none, last = (told['v "\\', le][1] for le in ("0.1", "1.0", "+Inf"))
    assert (first.labels, first.value) == ({"trace_id": "b" * 32}, 0.06)
    assert begun_s - 1 <= float(first.timestamp) <= time.time()
    assert (last.labels, last.value) == ({"trace_id": "c" * 32}, 7.0)
    assert none is None
    assert told["quiet", "+Inf"] == (1, None)
    plain = scrape(make).decode()
    assert "trace_id" not in plain
    assert all(line.count(" ") == 1 for line in plain.splitlines() if "quiet" in line)
    list(text_string_to_metric_families(plain))


async def test_scrape_lets_the_loop_turn_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a scrape takes, what else is due runs after each slice of it."""
    monkeypatch.setattr(exposition, "SLICE_S", 0.0)
    make = Families()
    counter = make.counter("a_total", "A", Axis(("x",), 5000))
    for n in range(1000):
        counter.add(1, str(n))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    pieces = [piece async for piece in make.scrape("").pieces]
    counting.cancel()
    assert turns >= len(pieces) - 1 > 1000 / exposition.LINES
