"""How calls get past the gates of the vendor keys: who waits, for how long, who is refused, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.gate import Outcome
from gateway.telemetry.families import Axis, Families
from gateway.telemetry.vendor_keys import VendorKeyMetrics

REFUSALS = (Outcome.FULL, Outcome.LATE, Outcome.OPEN, Outcome.LEFT)
WAIT_SECONDS = (0.001, 0.25, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class VendorGateMetrics:
    """Verbs of the gate. Keys are told by the labels that ``keys`` knows, tenants as ``fold`` has it."""

    def __init__(self, make: Families, keys: VendorKeyMetrics, tenant: Axis, fold: Callable[[str], str]) -> None:
        self._keys = keys
        self._fold = fold
        self._waiting = make.gauge(
            "gateway_vendor_waiting", "Turns and calls of this worker that wait for room with a vendor key", keys.axis
        )
        self._wait_s = make.histogram(
            "gateway_vendor_wait_seconds",
            "Time that turns and calls waited for room with a vendor key that has a limit; 0: they passed at once",
            WAIT_SECONDS,
            tenant,
        )
        self._refused = make.counter(
            "gateway_vendor_refusals_total",
            "Turns and calls that found no room: full, late (they would wait for too long) or open (the breaker)",
            keys.axis,
            Axis(("reason",), len(REFUSALS)),
        )
        self._holds = make.counter(
            "gateway_vendor_holds_total", "Answers of Hyperleap's to this worker that said to come later", keys.axis
        )
        self._open = make.gauge(
            "gateway_vendor_breaker_open",
            "Whether the breaker of a vendor key is open, as far as is known: 1, or 0",
            keys.axis,
        )

    def waiting(self, key: str, change: int) -> None:
        self._waiting.add(change, self._keys.fold(key))

    def waited(self, tenant: str, seconds: float) -> None:
        self._wait_s.of(self._fold(tenant)).observe(seconds)

    def refused(self, key: str, reason: Outcome) -> None:
        self._refused.add(1, self._keys.fold(key), reason.value)

    def held(self, key: str) -> None:
        self._holds.add(1, self._keys.fold(key))

    def breaker(self, key: str, change: int) -> None:
        self._open.add(change, self._keys.fold(key))
