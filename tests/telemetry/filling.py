"""What fills metrics: every label value that there is, and what a hostile world would like to add."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import get_args

from gateway.core.errors import Code
from gateway.core.ledger import Source
from gateway.core.tenancy import Source as Origin
from gateway.core.turn import StopReason
from gateway.telemetry.clients import METHODS, STATUSES, TRANSPORTS
from gateway.telemetry.limits import LIMITS, PERIODS
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.store import PROBES
from gateway.telemetry.turns import CAPS, SCREENED
from gateway.telemetry.upstream import HTTP2_ERRORS
from gateway.telemetry.vendor_gate import REFUSALS, WINDOWS
from gateway.telemetry.vendor_keys import OUTCOMES as KEY_OUTCOMES

TENANTS = {"acme": ("support", "sales"), "umbrella": ("default",)}
ROUTES = ("/v1/sessions", "/v1/turns/{turn_id}/events")


@contextmanager
def no_collections() -> Iterator[None]:
    """Keep the collector of reference cycles away from what pytest has made, as a gateway does after its start."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def abuse(metrics: Metrics, word: str, number: int) -> None:
    """Call every verb with whatever a hostile client, vendor or programmer could make it say."""
    metrics.request_ended(word, word, number, 1)
    metrics.error_sent(word)
    metrics.turn_started(word, word)
    metrics.turn_started("acme", word)
    for outcome in (word, "completed", "stopped", "failed"):
        metrics.turn_ended("acme", word, outcome, word, 1)
        metrics.turn_ended(word, "support", outcome, word, 1)
    metrics.turn_taken_over(word, word)
    metrics.turn_taken_over("acme", word)
    metrics.turn_recovered(word, completed=False)
    metrics.turn_settled(word, "estimated")
    metrics.tokens_counted(word, word, 1, 1, word)
    metrics.first_token(word, word, 1)
    metrics.gap_histogram(word, word).observe(1)
    metrics.stream_opened(word)
    metrics.stream_closed(word)
    metrics.resumed(word, 1)
    metrics.reader_lagged(word)
    metrics.limit_refused(word, word)
    metrics.limit_refused("acme", word)
    metrics.limits.allowed(word, (word, "user_requests_per_min"))
    metrics.limits.decided_alone(word)
    metrics.limits.budgets_known(word, {PERIODS[number % len(PERIODS)]: (number, number)})
    metrics.turns.detached(word)
    metrics.turns.reattached(word)
    metrics.turns.detached_ended(word)
    metrics.turns.cut_off(word, CAPS[number % len(CAPS)])
    metrics.message_screened(word, word)
    metrics.message_screened("acme", word)
    metrics.feedback_given(word, word, number)
    metrics.upstream_oddity(word)
    metrics.upstream.connect_failed(word)
    metrics.upstream.connection_closed(word)
    metrics.upstream.stream_reset(number, by_peer=True)
    metrics.upstream.goaway_received(number)
    metrics.vendor_keys.key_health_changed(word, healthy=number % 2 == 0)
    metrics.vendor_keys.key_answered(word, word)
    metrics.vendor_gate.waiting(word, 1)
    metrics.vendor_gate.waited(word, number)
    metrics.vendor_gate.refused(word, REFUSALS[number % len(REFUSALS)])
    metrics.vendor_gate.held(word)
    metrics.vendor_gate.breaker(word, 1)
    metrics.vendor_gate.limits_known(word, {WINDOWS[number % len(WINDOWS)]: (number, number)})


def fill(metrics: Metrics, tenants: Mapping[str, Collection[str]] = TENANTS) -> None:
    """Call every verb with every label value that is allowed."""
    for route in (*ROUTES, "other"):
        for method in (*METHODS, "other"):
            for status in (*STATUSES, 0, 199, 299, 399, 418, 599):
                metrics.request_ended(route, method, status, 1)
    for source_of in Origin:
        metrics.tenants_changed({source_of: 1}, 1)
    for valid in (True, False):
        metrics.tenants_file_read(valid=valid)
    for tenant in (*tenants, "other"):
        for completed in (True, False):
            metrics.turn_recovered(tenant, completed=completed)
        for settled in get_args(Source):
            metrics.turn_settled(tenant, settled)
        for persona in (*tenants.get(tenant, ()), "other"):
            metrics.turn_started(tenant, persona)
            metrics.turn_taken_over(tenant, persona)
            for outcome in ("completed", "stopped", "failed", "other"):
                for reason in (
                    *Code,
                    *StopReason,
                    "finished",
                    "stop",
                    "length",
                    "content_filter",
                    "tool_calls",
                    "other",
                ):
                    metrics.turn_ended(tenant, persona, outcome, reason, 1)
            for source in ("reported", "estimated", "other"):
                metrics.tokens_counted(tenant, persona, 1, 1, source)
            metrics.first_token(tenant, persona, 1)
            metrics.gap_histogram(tenant, persona)
            for score in (-1, 0, 1):
                metrics.feedback_given(tenant, persona, score)
        for limit in (*LIMITS, "other"):
            metrics.limit_refused(tenant, limit)
            metrics.limits.allowed(tenant, [limit])
        metrics.limits.decided_alone(tenant)
        metrics.limits.budgets_known(tenant, dict.fromkeys(PERIODS, (2, 1)))
        metrics.turns.detached(tenant)
        metrics.turns.reattached(tenant)
        for cap in CAPS:
            metrics.turns.cut_off(tenant, cap)
        for screened in (*SCREENED, "other"):
            metrics.message_screened(tenant, screened)
    for label in ("default", "acme"):
        metrics.vendor_keys.key_found(label)
    for label in ("default", "acme", "other"):
        metrics.vendor_keys.key_health_changed(label, healthy=False)
        for outcome in (*KEY_OUTCOMES, "other"):
            metrics.vendor_keys.key_answered(label, outcome)
        metrics.vendor_gate.waiting(label, 1)
        metrics.vendor_gate.held(label)
        metrics.vendor_gate.breaker(label, 1)
        metrics.vendor_gate.limits_known(label, dict.fromkeys(WINDOWS, (2, 1)))
        for reason in REFUSALS:
            metrics.vendor_gate.refused(label, reason)
    for tenant in (*tenants, "other"):
        metrics.vendor_gate.waited(tenant, 1)
    for transport in (*TRANSPORTS, "other"):
        metrics.stream_opened(transport)
        metrics.resumed(transport, 1)
        metrics.reader_lagged(transport)
    for code in (*Code, "other"):
        metrics.error_sent(code)
    for n in range(40):
        metrics.upstream_oddity(f"kind{n}")
        metrics.upstream.connect_failed(f"Error{n}")
        metrics.upstream.connection_closed(f"reason{n}")
    for number in range(-1, len(HTTP2_ERRORS)):
        metrics.upstream.goaway_received(number)
        metrics.upstream.stream_reset(number, by_peer=True)
        metrics.upstream.stream_reset(number, by_peer=False)
    metrics.gateway_added(1)
    metrics.loop_lagged(1)
    metrics.redis_called(1, 1, True)
    metrics.store.saved(1)
    metrics.store.probe_delivered(1)
    for probe in PROBES:
        metrics.store.probe_missed(probe)
