"""Metrics: what a scrape shows after each verb, and that nobody can make it grow."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from time import sleep

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import gateway
from gateway.core.errors import Code
from gateway.core.tenancy import Source as Origin
from gateway.core.turn import StopReason, TurnState
from gateway.telemetry.metrics import Metrics, reference, watch_loop
from gateway.upstream.observer import CloseReason, UpstreamObserver
from tests.telemetry.filling import ROUTES, TENANTS, abuse, fill


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(TENANTS, ROUTES)


async def scrape(metrics: Metrics, accept: str = "") -> dict[str, float]:
    body = await (await metrics.scrape(accept)).whole()
    lines = [line for line in body.decode().splitlines() if line and not line.startswith("#")]
    return {in_order(name): float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def in_order(name: str) -> str:
    """Put the labels of a series into alphabetical order."""
    name, brace, labels = name.partition("{")
    return name + brace + ",".join(sorted(re.findall(r'[a-z_]+="(?:[^"\\]|\\.)*"', labels))) + ("}" if brace else "")


async def test_request_is_counted_by_route_method_and_status(metrics: Metrics) -> None:
    """A request shows up under its route's template with its exact status, and in the duration histogram."""
    metrics.request_ended("/v1/sessions", "POST", 201, 0.02)
    seen = await scrape(metrics)
    assert seen['gateway_requests_total{method="POST",route="/v1/sessions",status="201"}'] == 1
    labels = 'method="POST",route="/v1/sessions"'
    assert seen[f'gateway_request_duration_seconds_bucket{{le="0.01",{labels}}}'] == 0
    assert seen[f'gateway_request_duration_seconds_bucket{{le="0.025",{labels}}}'] == 1
    assert seen[f'gateway_request_duration_seconds_bucket{{le="+Inf",{labels}}}'] == 1
    assert seen[f"gateway_request_duration_seconds_sum{{{labels}}}"] == 0.02


async def test_request_of_a_scanner_is_folded(metrics: Metrics) -> None:
    """Paths, methods and statuses that nobody configured are counted, as other."""
    metrics.request_ended("/wp-login.php", "BREW", 418, 0.1)
    metrics.request_ended(None, "GET", 999, 0.1)
    seen = await scrape(metrics)
    assert seen['gateway_requests_total{method="other",route="other",status="4xx"}'] == 1
    assert seen['gateway_requests_total{method="GET",route="other",status="other"}'] == 1


async def test_routes_named_later_are_known(metrics: Metrics) -> None:
    """An application may build its router after its metrics."""
    metrics.know_routes(["/later"])
    metrics.request_ended("/later", "GET", 200, 0.1)
    assert 'gateway_requests_total{method="GET",route="/later",status="200"}' in await scrape(metrics)


async def test_turn_is_counted_from_start_to_end(metrics: Metrics) -> None:
    """A turn is live between start and end, and is then counted with outcome, reason, tokens and times."""
    metrics.turn_started("acme", "support")
    assert (await scrape(metrics))['gateway_turns_live{persona="support",tenant="acme"}'] == 1
    metrics.first_token("acme", "support", 0.3)
    metrics.gap_histogram("acme", "support").observe(0.05)
    metrics.tokens_counted("acme", "support", 12, 0, "reported")
    metrics.turn_ended("acme", "support", TurnState.STOPPED, StopReason.USER, 3.0)
    metrics.gateway_added(0.0015)
    seen = await scrape(metrics)
    labels = 'persona="support",tenant="acme"'
    genai = 'gen_ai_operation_name="chat",gen_ai_provider_name="hyperleap"'
    assert seen[f"gateway_turns_live{{{labels}}}"] == 0
    assert seen[f"gateway_turns_started_total{{{labels}}}"] == 1
    assert seen['gateway_turns_total{outcome="stopped",persona="support",reason="user",tenant="acme"}'] == 1
    assert seen[f"gen_ai_client_operation_time_to_first_chunk_seconds_sum{{{genai},{labels}}}"] == 0.3
    assert seen[f"gen_ai_client_operation_time_per_output_chunk_seconds_count{{{genai},{labels}}}"] == 1
    assert seen['gateway_tokens_total{direction="prompt",persona="support",source="reported",tenant="acme"}'] == 12
    assert seen['gateway_tokens_total{direction="completion",persona="support",source="reported",tenant="acme"}'] == 0
    assert seen[f'gen_ai_client_token_usage_sum{{{genai},gen_ai_token_type="input",{labels}}}'] == 12
    assert seen['gateway_added_latency_seconds_bucket{le="0.002"}'] == 1


async def test_turn_of_a_lost_worker_is_live_where_it_was_taken_over(metrics: Metrics) -> None:
    """A rescue is a live turn of this worker without having been started here, and says how it went."""
    metrics.turn_taken_over("acme", "support")
    seen = await scrape(metrics)
    assert seen['gateway_turns_live{persona="support",tenant="acme"}'] == 1
    assert 'gateway_turns_started_total{persona="support",tenant="acme"}' not in seen
    metrics.turn_ended("acme", "support", TurnState.FAILED, Code.WORKER_LOST, 3.0)
    metrics.turn_recovered("acme", completed=False)
    metrics.turn_settled("acme", "read_back")
    seen = await scrape(metrics)
    assert seen['gateway_turns_live{persona="support",tenant="acme"}'] == 0
    assert seen['gateway_turns_recovered_total{completed="no",tenant="acme"}'] == 1
    assert seen['gateway_settlements_total{source="read_back",tenant="acme"}'] == 1


async def test_attempt_is_missed_where_the_fault_is_not_the_callers(metrics: Metrics) -> None:
    """Both counts begin at 0; what failed or was refused with a 5xx code is missed, a caller's own fault is neither."""
    yes, no = 'gateway_turn_attempts_total{served="yes"}', 'gateway_turn_attempts_total{served="no"}'
    seen = await scrape(metrics)
    assert (seen[yes], seen[no]) == (0, 0)
    for fault in (None, Code.UPSTREAM_TRUNCATED, Code.STORE_UNAVAILABLE, Code.RATE_LIMITED, Code.MESSAGE_EMPTY):
        metrics.turn_attempted(fault)
    seen = await scrape(metrics)
    assert (seen[yes], seen[no]) == (1, 2)


async def test_recovered_turns_of_a_tenant_are_zero_before_any() -> None:
    """A tenant's first lost answer is an increase that Prometheus sees, also of a tenant that came after the start."""
    growing = Metrics({"acme": ["support"]}, personas_max=1)
    growing.know_tenants({"umbrella": ["default"], "beyond": ["default"]})
    seen = await scrape(growing)
    shown = {series for series in seen if series.startswith("gateway_turns_recovered_total")}
    assert shown == {
        f'gateway_turns_recovered_total{{completed="{completed}",tenant="{tenant}"}}'
        for tenant in ("acme", "umbrella")
        for completed in ("yes", "no")
    }
    assert {seen[series] for series in shown} == {0}


async def test_turn_of_unknown_labels_is_folded(metrics: Metrics) -> None:
    """An unknown persona keeps its tenant; an unknown tenant or outcome keeps nothing."""
    metrics.turn_started("acme", "sneaky")
    metrics.turn_started("stranger", "support")
    metrics.turn_ended("acme", "sales", "failed", "made up", 1)
    metrics.turn_ended("acme", "sales", "exploded", "user", 1)
    metrics.turn_recovered("stranger", completed=True)
    seen = await scrape(metrics)
    assert seen['gateway_turns_started_total{persona="other",tenant="acme"}'] == 1
    assert seen['gateway_turns_started_total{persona="other",tenant="other"}'] == 1
    assert seen['gateway_turns_total{outcome="failed",persona="sales",reason="other",tenant="acme"}'] == 1
    assert seen['gateway_turns_total{outcome="other",persona="sales",reason="other",tenant="acme"}'] == 1
    assert seen['gateway_turns_recovered_total{completed="yes",tenant="other"}'] == 1


async def test_client_streams_are_counted(metrics: Metrics) -> None:
    """Open streams, resumes and readers let go are counted by transport."""
    metrics.stream_opened("sse")
    metrics.stream_opened("sse")
    metrics.stream_closed("sse")
    metrics.resumed("websocket", 7)
    metrics.reader_lagged("sse")
    seen = await scrape(metrics)
    assert seen['gateway_streams_open{transport="sse"}'] == 1
    assert seen['gateway_streams_opened_total{transport="sse"}'] == 2
    assert seen['gateway_resumes_total{transport="websocket"}'] == 1
    assert seen['gateway_replayed_events_total{transport="websocket"}'] == 7
    assert seen['gateway_readers_lagged_total{transport="sse"}'] == 1


async def test_feedback_gives_the_mean_score(metrics: Metrics) -> None:
    """Count and points by sign are enough for the mean score, although counters cannot fall."""
    for score in (10, 5, 0, -3):
        metrics.feedback_given("acme", "support", score)
    seen = await scrape(metrics)

    def value(name: str, sign: str) -> float:
        return seen[f'{name}{{persona="support",sign="{sign}",tenant="acme"}}']

    points = value("gateway_feedback_points_total", "positive") - value("gateway_feedback_points_total", "negative")
    count = sum(value("gateway_feedback_total", sign) for sign in ("positive", "neutral", "negative"))
    assert points / count == 3


async def test_redis_errors_limits_and_oddities_are_counted(metrics: Metrics) -> None:
    """A failed round trip counts its commands and one error; refusals, codes and oddities have their own counters."""
    metrics.redis_called(0.0004, 12, False)
    metrics.redis_called(1.0, 1, True)
    metrics.limit_refused("acme", "user_requests_per_min")
    metrics.message_screened("acme", "flagged")
    metrics.error_sent(Code.RATE_LIMITED)
    metrics.error_sent("made up")
    metrics.upstream_oddity("no_finish_reason")
    seen = await scrape(metrics)
    assert seen["gateway_redis_commands_total"] == 13
    assert seen["gateway_redis_errors_total"] == 1
    assert seen['gateway_redis_call_seconds_bucket{le="0.0005"}'] == 1
    limit = 'limit="user_requests_per_min",tenant="acme"'
    assert seen[f'gateway_limit_decisions_total{{decision="refused",{limit}}}'] == 1
    assert seen['gateway_messages_screened_total{outcome="flagged",tenant="acme"}'] == 1
    assert seen['gateway_errors_total{code="rate_limited"}'] == 1
    assert seen['gateway_errors_total{code="other"}'] == 1
    assert seen['gateway_upstream_oddities_total{kind="no_finish_reason"}'] == 1


async def test_upstream_metrics_are_an_observer(metrics: Metrics) -> None:
    """The upstream's observer is served: connections and streams rise and fall, ends and resets are told apart."""
    observer: UpstreamObserver = metrics.upstream
    observer.connection_opened()
    observer.connection_opened()
    observer.connection_closed(CloseReason.GOAWAY)
    observer.connect_failed("ConnectionRefusedError")
    observer.stream_opened()
    observer.stream_reset(8, by_peer=False)
    observer.stream_reset(0xDEAD, by_peer=True)
    observer.stream_closed()
    observer.goaway_received(0)
    seen = await scrape(metrics)
    assert seen["gateway_upstream_connections"] == 1
    assert seen["gateway_upstream_streams"] == 0
    assert seen['gateway_upstream_connections_closed_total{reason="goaway"}'] == 1
    assert seen['gateway_upstream_connect_failures_total{reason="ConnectionRefusedError"}'] == 1
    assert seen['gateway_upstream_resets_total{by="gateway",code="cancel"}'] == 1
    assert seen['gateway_upstream_resets_total{by="peer",code="other"}'] == 1
    assert seen['gateway_upstream_goaways_total{code="no_error"}'] == 1


async def test_build_and_process_are_shown(metrics: Metrics) -> None:
    """A scrape says which build this is, and how the process fares."""
    seen = await scrape(metrics)
    assert any(name.startswith('gateway_build_info{python="3.') and gateway.__version__ in name for name in seen)
    assert "process_resident_memory_bytes" in seen


@pytest.mark.parametrize(
    ("accept", "content_type", "ends"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", False),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8", False),
        ("application/openmetrics-text;version=1.0.0,*/*", "application/openmetrics-text; version=1.0.0", True),
        ("application/openmetrics-text;version=garbage", "text/plain; version=0.0.4; charset=utf-8", False),
    ],
)
async def test_exposition_speaks_what_is_asked_for(
    metrics: Metrics, accept: str, content_type: str, ends: bool
) -> None:
    """Prometheus gets OpenMetrics when it asks, everyone else the plain text format, without `_created` series."""
    metrics.turn_started("acme", "support")
    metrics.loop_lagged(0.1)
    answer = await metrics.scrape(accept)
    body = await answer.whole()
    assert answer.content_type.startswith(content_type)
    assert body.endswith(b"# EOF\n") is ends
    assert b"_created" not in body


async def test_exposition_can_be_parsed(metrics: Metrics) -> None:
    """The library's own strict parsers read both formats, every family once and with the same figures."""
    fill(metrics)
    metrics.gap_histogram("acme", "support").observe(0.03)
    body = await (await metrics.scrape("")).whole()
    text = list(text_string_to_metric_families(body.decode()))
    body = await (await metrics.scrape("application/openmetrics-text;version=1.0.0")).whole()
    strict = list(openmetrics.text_string_to_metric_families(body.decode()))  # type: ignore[no-untyped-call]  # the library's
    assert len({family.name for family in strict}) == len(strict)
    names = {family.name.removesuffix("_total") for family in metrics.families()}
    assert names <= {family.name for family in strict}
    assert names <= {family.name for family in text}
    (gaps,) = (family for family in strict if family.name.endswith("per_output_chunk_seconds"))
    buckets = {s.labels["le"]: s.value for s in gaps.samples if "le" in s.labels and s.labels["persona"] == "support"}
    assert (buckets["0.02"], buckets["0.04"], buckets["+Inf"]) == (0, 1, 1)


async def test_series_are_bounded_and_the_bound_is_tight(metrics: Metrics) -> None:
    """With every allowed label value in use a scrape holds what max_series says, and hostile ones add nothing."""
    fill(metrics)
    full = await scrape(metrics)
    assert metrics.max_series() - 32 <= len(full) <= metrics.max_series()
    for n in range(300):
        abuse(metrics, f"evil{n}", n * 7 - 100)
        abuse(metrics, 'x" \\\n' + "é" * n, n)
    assert set(await scrape(metrics)) == set(full)


async def test_series_of_later_tenants_are_bounded_and_the_bound_is_tight() -> None:
    """Tenants that come while the gateway runs are named up to the bound of the settings, further ones are other."""
    metrics = Metrics({}, ROUTES, personas_max=3)
    bound = metrics.max_series()
    later = {"acme": ("support", "sales"), "umbrella": ("default",), "tardy": ("default",)}
    metrics.know_tenants({"acme": ("support",)})
    for n in range(50):
        metrics.know_tenants(later | {f"evil{n}": ("default",)})
    assert metrics.max_series() == bound
    fill(metrics)
    metrics.turn_started("tardy", "default")
    seen = await scrape(metrics)
    assert seen['gateway_turns_started_total{persona="sales",tenant="acme"}'] == 1
    assert seen['gateway_turns_started_total{persona="other",tenant="other"}'] == 2
    assert not [name for name in seen if "tardy" in name or "evil" in name]
    tight = Metrics({}, ROUTES, personas_max=3)  # the worst case: every persona is of a tenant of its own
    tight.know_tenants(dict.fromkeys("abc", ("p",)))
    fill(tight, dict.fromkeys("abc", ("p",)))
    assert tight.max_series() - 32 <= len(await scrape(tight)) <= tight.max_series()


async def test_tenants_in_force_and_their_file_are_told(metrics: Metrics) -> None:
    """How many tenants hold, from where, and whether what should be read can be."""
    metrics.tenants_changed({Origin.STORE: 3, Origin.FILE: 2}, unreadable=1)
    metrics.tenants_changed({Origin.STORE: 2}, unreadable=0)
    for valid in (True, False, False, True, False):
        metrics.tenants_file_read(valid=valid)
    seen = await scrape(metrics)
    assert seen['gateway_tenants{source="store"}'] == 2
    assert seen['gateway_tenants{source="file"}'] == 0
    assert seen["gateway_tenants_unreadable"] == 0
    assert seen["gateway_tenants_file_valid"] == 0
    assert seen['gateway_tenants_file_reads_total{outcome="refused"}'] == 3
    metrics.tenants_file_read(valid=True)
    assert (await scrape(metrics))["gateway_tenants_file_valid"] == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(words=st.lists(st.text(max_size=80), max_size=60))
def test_series_never_exceed_the_bound(words: list[str]) -> None:
    """Whatever is said, in whatever order, the scrape stays under the bound and can be parsed."""
    metrics = Metrics(TENANTS, ROUTES)
    for n, word in enumerate(words):
        abuse(metrics, word, n)
    seen = asyncio.run(scrape(metrics))
    assert len(seen) <= metrics.max_series()
    assert all(re.match(r"[a-z_]+(\{.*\})?$", name) for name in seen)


async def test_loop_watch_sees_a_blocked_loop(metrics: Metrics) -> None:
    """Something that blocks the event loop shows up as lag."""
    watch = asyncio.create_task(watch_loop(metrics, 0.01))
    await asyncio.sleep(0.02)
    sleep(0.12)
    await asyncio.sleep(0.02)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    seen = await scrape(metrics)
    assert seen["gateway_event_loop_lag_seconds_count"] > seen['gateway_event_loop_lag_seconds_bucket{le="0.05"}']


def test_reference_page_is_current() -> None:
    """docs/metrics.md is what the code says: `python -m gateway.telemetry.metrics > gateway/docs/metrics.md`."""
    page = Path(gateway.__file__).parent / "docs" / "metrics.md"
    assert page.read_text("utf-8") == reference()
