"""Scrapes of several workers become one that every scraper can read."""

from __future__ import annotations

import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.workers import WorkersMetrics, merge
from tests.telemetry.filling import no_collections

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def worker(turns: int) -> Metrics:
    metrics = Metrics({"acme": ["default"]}, ["/v1/ws"])
    for _ in range(turns):
        metrics.turn_started("acme", "default")
        metrics.first_token("acme", "default", 0.1, "4bf92f3577b34da6a3ce929d0e0e4736")
        metrics.request_ended("/v1/ws", "GET", 101, 1.0)
    return metrics


@pytest.mark.parametrize("accept", ["text/plain; version=0.0.4", OPENMETRICS])
async def test_merge_of_real_scrapes_keeps_every_series_once(accept: str) -> None:
    """What each worker told is there under its label, in both formats, with one HELP and TYPE a family."""
    own = WorkersMetrics(2)
    own.worker_ready(0)
    scrapes = {
        label: (await (await metrics.scrape(accept)).whole()).decode()
        for label, metrics in {"0": worker(3), "1": worker(5)}.items()
    }
    body = await own.scrape(accept).whole()
    merged = "".join(merge([*scrapes.items(), (None, body.decode())]))
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
    assert "".join(merge([("0-old", scrape), ("1", "")])).splitlines() == [
        "# HELP a A {brace} of text",
        "# TYPE a counter",
        'a_total{worker="0-old",path="/x {id} y",q="\\""} 1 # {trace_id="t"} 1.0',
        'a_total{worker="0-old"} 2',
        'a_total{worker="0-old"} 3',
        "# EOF",
    ]


def test_merge_of_nothing_is_empty() -> None:
    """Without a worker that answers there is nothing to tell, which is no error."""
    assert "".join(merge([])) == ""


async def test_worker_that_left_is_not_ready_and_counted_when_lost() -> None:
    """A worker's death shows as one fewer ready and one more lost; one that was asked to end is not lost."""
    metrics = WorkersMetrics(2)
    for slot in (0, 1):
        metrics.worker_ready(slot)
        metrics.worker_left(slot, lost=slot == 1)
    metrics.worker_failed(1)
    metrics.rolled(done=False)
    body = await metrics.scrape("").whole()
    lines = body.decode().splitlines()
    assert 'gateway_worker_ready{worker="1"} 0.0' in lines
    assert 'gateway_worker_lost_total{worker="1"} 1.0' in lines
    assert 'gateway_worker_lost_total{worker="0"} 0.0' in lines
    assert 'gateway_worker_failures_total{worker="1"} 1.0' in lines
    assert 'gateway_worker_rolls_total{outcome="abandoned"} 1.0' in lines


async def test_merge_of_many_series_comes_in_pieces_that_take_no_time() -> None:
    """With hundreds of tenants at several workers no piece takes the supervisor's loop 5 ms, though the whole does."""
    tenants = {f"t{number}": ("default", "sales", "support") for number in range(200)}
    metrics = Metrics(tenants)
    for tenant, personas in tenants.items():
        for persona in personas:
            metrics.turn_started(tenant, persona)
            metrics.first_token(tenant, persona, 0.1, "4bf92f3577b34da6a3ce929d0e0e4736")
            metrics.tokens_counted(tenant, persona, 1, 1, "reported")
            metrics.turn_ended(tenant, persona, "completed", "stop", 1.0)
    scrape = (await (await metrics.scrape(OPENMETRICS)).whole()).decode()
    steps, pieces = list[float](), list[str]()
    with no_collections():
        last_s = time.thread_time()
        for piece in merge([(label, scrape) for label in ("0", "0-old", "1", "2")]):
            pieces.append(piece)
            now_s = time.thread_time()
            steps.append(now_s - last_s)
            last_s = now_s
    assert max(steps) < 0.005 < sum(steps)
    merged = "".join(pieces)
    assert merged.count('worker="1"') == merged.count('worker="0"') == metrics.series()
    assert len(scrape.splitlines()) * 4 - merged.count("\n") == 3 * sum(
        map(scrape.count, ("# HELP", "# TYPE", "# EOF"))
    )


async def test_counts_of_workers_are_zero_before_anything_happens() -> None:
    """The first loss, failure or abandoned roll is an increase that Prometheus sees: its series was there before."""
    body = await WorkersMetrics(2).scrape("").whole()
    lines = body.decode().splitlines()
    for name in ("ready", "lost_total", "starts_total", "failures_total"):
        assert [line for line in lines if line.startswith(f"gateway_worker_{name}{{")] == [
            f'gateway_worker_{name}{{worker="{slot}"}} 0.0' for slot in (0, 1)
        ]
    assert 'gateway_worker_rolls_total{outcome="abandoned"} 0.0' in lines
