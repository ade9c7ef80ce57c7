"""How calls get past the gates of the vendor keys: who waits, for how long, who is refused, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from gateway.core.gate import Outcome
from gateway.telemetry.families import Axis, Buckets, Families
from gateway.telemetry.labels import Labels
from gateway.telemetry.vendor_keys import VendorKeyMetrics

REFUSALS = (Outcome.FULL, Outcome.LATE, Outcome.OPEN, Outcome.LEFT)
WAIT_SECONDS = Buckets("wait seconds", (0.001, 0.25, 1, 2.5, 5, 10, 20, 30, 60, 120, 300))
Window = Literal["hour", "minute"]
WINDOWS: tuple[Window, ...] = ("hour", "minute")


class VendorGateMetrics:
    """Verbs of the gate. Keys are told by the labels that ``keys`` knows, tenants as ``labels`` folds them."""

    def __init__(self, make: Families, keys: VendorKeyMetrics, labels: Labels) -> None:
        self._keys = keys
        self._labels = labels
        self._waiting = make.gauge(
            "gateway_vendor_waiting",
            "Turns and calls of this worker that wait for room with a vendor key",
            keys.axis,
            unit="calls",
        )
        self._wait_s = make.histogram(
            "gateway_vendor_wait_seconds",
            "Time that turns and calls waited for room with a vendor key that has a limit; 0: they passed at once",
            WAIT_SECONDS,
            labels.tenant,
        )
        self._refused = make.counter(
            "gateway_vendor_refusals_total",
            "Turns and calls that found no room: full, late (they would wait for too long) or open (the breaker)",
            keys.axis,
            Axis(("reason",), len(REFUSALS)),
            unit="calls",
        )
        self._holds = make.counter(
            "gateway_vendor_holds_total",
            "Answers of Hyperleap's to this worker that said to come later",
            keys.axis,
            unit="answers",
        )
        self._open = make.gauge(
            "gateway_vendor_breaker_open",
            "Whether the breaker of a vendor key is open, as far as is known: 1, or 0",
            keys.axis,
            unit="0 or 1",
        )
        self._openings = make.counter(
            "gateway_vendor_breaker_openings_total",
            "Times that this worker learnt that the breaker of a vendor key had opened",
            keys.axis,
            unit="times",
        )
        window = Axis(("window",), len(WINDOWS))
        self._limit = make.gauge(
            "gateway_vendor_limit_requests",
            "What the plan grants a vendor key in a window (hour, minute), where it has a limit",
            keys.axis,
            window,
            unit="requests",
        )
        self._left = make.gauge(
            "gateway_vendor_limit_left_requests",
            "What is left of it now, for all workers together; every worker tells the same, a few seconds old",
            keys.axis,
            window,
            unit="requests",
        )

    def waiting(self, key: str, change: int) -> None:
        self._waiting.add(change, self._keys.fold(key))

    def waited(self, tenant: str, seconds: float) -> None:
        self._wait_s.of(self._labels.of_tenant(tenant)).observe(seconds)

    def refused(self, key: str, reason: Outcome) -> None:
        self._refused.add(1, self._keys.fold(key), reason.value)

    def held(self, key: str) -> None:
        self._holds.add(1, self._keys.fold(key))

    def breaker(self, key: str, change: int) -> None:
        self._open.add(change, self._keys.fold(key))
        if change > 0:
            self._openings.add(1, self._keys.fold(key))

    def limits_known(self, key: str, limits: Mapping[Window, tuple[int, int]]) -> None:
        """How a vendor key's plan limits stand: the whole and what is left. Of keys that are no labels none is told."""
        for window in WINDOWS:
            if window in limits and self._keys.fold(key) == key:
                limit, left = limits[window]
                self._limit.put(limit, key, window)
                self._left.put(left, key, window)
            else:
                self._limit.drop(key, window)
                self._left.drop(key, window)
