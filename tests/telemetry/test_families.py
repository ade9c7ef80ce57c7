"""Families of metrics: plain numbers that a scrape shows as the library's own would be."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from gateway.core.turn import StopReason
from gateway.telemetry.families import Axis, Families

ENCODERS: list[Callable[[CollectorRegistry], bytes]] = [generate_latest, generate_openmetrics]
ADDED = st.lists(
    st.tuples(st.floats(0, 1e15) | st.integers(0, 1000), st.text(max_size=4), st.sampled_from(StopReason)), max_size=8
)


@pytest.mark.parametrize("encoder", ENCODERS)
@given(ADDED)
def test_tally_shows_what_the_library_would(
    encoder: Callable[[CollectorRegistry], bytes], added: list[tuple[float, str, StopReason]]
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
    assert make.render(encoder) == encoder(registry)


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
    with pytest.raises(ValueError, match="Duplicated"):
        make.gauge("a_total", "Again")
    assert b'a_total{x="v"} 1.0\n' in make.render(generate_latest)


def test_scrape_in_another_thread_disturbs_nothing() -> None:
    """While series come and grow, scrapes elsewhere neither fail nor lose a count."""
    make = Families()
    counter = make.counter("a_total", "A", Axis(("x",), 5000))
    done, failures = threading.Event(), []

    def scrape() -> None:
        while not done.is_set():
            try:
                make.render(generate_latest)
            except Exception as error:
                failures.append(error)

    other = threading.Thread(target=scrape)
    other.start()
    try:
        for n in range(20_000):
            counter.add(1, str(n % 5000))
    finally:
        done.set()
        other.join()
    assert failures == []
    assert make.render(generate_latest).count(b"} 4.0\n") == 5000
