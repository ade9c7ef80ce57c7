"""What becomes of requests by vendor key, and which keys work. A key is told by its label only."""

from __future__ import annotations

from typing import Final

from gateway.telemetry.families import OTHER, Axis, Families

KEYS_MAX: Final = 256  # labels told apart; those that are found later are counted together
OUTCOMES: Final = ("answered", "refused", "limited", "rejected", "failed", "unanswered")


class VendorKeyMetrics:
    """Has the shape of the key ring's observer. A label is told once its key has been read, which bounds them."""

    def __init__(self, make: Families) -> None:
        self._known: set[str] = set()
        self.axis = Axis(("key",), 1)
        self._healthy = make.gauge(
            "gateway_vendor_key_healthy",
            "Whether Hyperleap takes a key, as far as is known: 1, or 0",
            self.axis,
            unit="0 or 1",
        )
        self._requests = make.counter(
            "gateway_vendor_key_requests_total",
            "Requests to Hyperleap by key and by what came of them: answered, refused (401, 403), limited (429),"
            " rejected (other 4xx), failed (5xx) or unanswered",
            self.axis,
            Axis(("outcome",), len(OUTCOMES) + 1),
            unit="requests",
        )

    def fold(self, label: str) -> str:
        return label if label in self._known else OTHER

    def key_found(self, label: str) -> None:
        if label in self._known or len(self._known) >= KEYS_MAX:
            return
        self._known.add(label)
        self.axis.size = len(self._known) + 1
        self._healthy.add(1, label)

    def key_health_changed(self, label: str, *, healthy: bool) -> None:
        if label in self._known:
            self._healthy.add(1 if healthy else -1, label)

    def key_answered(self, label: str, outcome: str) -> None:
        self._requests.add(1, self.fold(label), outcome if outcome in OUTCOMES else OTHER)
