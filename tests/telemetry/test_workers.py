"""Scrapes of several workers become one that every scraper can read."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.workers import WorkersMetrics, merge

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def worker(turns: int) -> Metrics:
    metrics = Metrics({"acme": ["default"]}, ["/v1/ws"])
    for _ in range(turns):
        metrics.turn_started("acme", "default")
        metrics.first_token("acme", "default", 0.1)
        metrics.request_ended("/v1/ws", "GET", 101, 1.0)
    return metrics


@pytest.mark.parametrize("accept", ["text/plain; version=0.0.4", OPENMETRICS])
async def test_merge_of_real_scrapes_keeps_every_series_once(accept: str) -> None:
    """What each worker told is there under its label, in both formats, with one HELP and TYPE a family."""
    own = WorkersMetrics(2)
    own.worker_ready(0)
    scrapes = {
        label: (await metrics.exposition(accept))[0].decode()
        for label, metrics in {"0": worker(3), "1": worker(5)}.items()
    }
    body, _ = await own.exposition(accept)
    merged = merge([*scrapes.items(), (None, body.decode())])
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    samples = [s for family in parse(merged) for s in family.samples]
    series = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(series) == len(samples)
    told = [s for scrape in scrapes.values() for family in parse(scrape) for s in family.samples]
    told += [s for family in parse(body.decode()) for s in family.samples]
    assert len(samples) == len(told)
    started = {labels: value for (name, labels), value in series.items() if name == "gateway_turns_started_total"}
    key = (("persona", "default"), ("tenant", "acme"))
    assert started == {(*key, ("worker", "0")): 3, (*key, ("worker", "1")): 5}
    assert series["gateway_worker_ready", (("worker", "0"),)] == 1
    heads = [line for line in merged.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert merged.count("# EOF") == (accept == OPENMETRICS)
    assert merged.endswith("# EOF\n") == (accept == OPENMETRICS)


def test_merge_of_odd_lines_keeps_values_and_labels() -> None:
    """Braces and spaces inside a label's value, no labels, empty labels and exemplars are left as they are."""
    scrape = (
        "# HELP a A {brace} of text\n# TYPE a counter\n"
        'a_total{path="/x {id} y",q="\\""} 1 # {trace_id="t"} 1.0\n'
        "a_total 2\na_total{} 3\n# EOF\n"
    )
    assert merge([("0-old", scrape), ("1", "")]).splitlines() == [
        "# HELP a A {brace} of text",
        "# TYPE a counter",
        'a_total{worker="0-old",path="/x {id} y",q="\\""} 1 # {trace_id="t"} 1.0',
        'a_total{worker="0-old"} 2',
        'a_total{worker="0-old"} 3',
        "# EOF",
    ]


def test_merge_of_nothing_is_empty() -> None:
    """Without a worker that answers there is nothing to tell, which is no error."""
    assert merge([]) == "\n"


async def test_worker_that_left_is_not_ready_and_counted_when_lost() -> None:
    """A worker's death shows as one fewer ready and one more lost; one that was asked to end is not lost."""
    metrics = WorkersMetrics(2)
    for slot in (0, 1):
        metrics.worker_ready(slot)
        metrics.worker_left(slot, lost=slot == 1)
    metrics.worker_failed(1)
    metrics.rolled(done=False)
    body, _ = await asyncio.wait_for(metrics.exposition(""), 5)
    lines = body.decode().splitlines()
    assert 'gateway_worker_ready{worker="1"} 0.0' in lines
    assert 'gateway_worker_lost_total{worker="1"} 1.0' in lines
    assert not any(line.startswith('gateway_worker_lost_total{worker="0"}') for line in lines)
    assert 'gateway_worker_failures_total{worker="1"} 1.0' in lines
    assert 'gateway_worker_rolls_total{outcome="abandoned"} 1.0' in lines
