"""How Redis fares, how far it is behind, whether what is published arrives, and whose turns are held under leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gateway.telemetry.families import Axis, Buckets, Families
from gateway.telemetry.turns import SHORT_SECONDS

Probe = Literal["delivered", "lost", "unsent"]
PROBES: tuple[Probe, ...] = ("delivered", "lost", "unsent")
SAVE_SECONDS = Buckets("save seconds", (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1, 2.5, 5, 10, 30, 60))


class StoreMetrics:
    """Verbs of the store, and of what stands and falls with it."""

    def __init__(self, make: Families) -> None:
        self._call_s = make.histogram("gateway_redis_call_seconds", "Duration of a call to Redis", SHORT_SECONDS)
        self._commands = make.counter("gateway_redis_commands_total", "Commands sent to Redis", unit="commands")
        self._errors = make.counter("gateway_redis_errors_total", "Calls to Redis that failed", unit="calls")
        self._breakers = make.gauge(
            "gateway_redis_breaker_open",
            "Servers of Redis whose breaker is open: one is asked again now and then, all other calls fail at once",
            unit="servers",
        )
        self._openings = make.counter(
            "gateway_redis_breaker_openings_total", "Times that a breaker of Redis opened", unit="times"
        )
        self._save_s = make.histogram(
            "gateway_log_save_seconds",
            "Time from when an event was shown to readers until Redis had it; the oldest event of each save of a turn",
            SAVE_SECONDS,
        )
        self._lag_s = make.gauge(
            "gateway_log_lag_seconds",
            "How far Redis is behind what readers saw: the age of the oldest event that it does not have yet",
        )
        self._probe_s = make.histogram(
            "gateway_delivery_probe_seconds",
            "Time that a message of this worker to itself took through Redis, publish to subscriber",
            SHORT_SECONDS,
        )
        self._probes = make.counter(
            "gateway_delivery_probes_total",
            "Such messages: delivered, lost (the subscription is made anew), or unsent (Redis did not take it)",
            Axis(("outcome",), len(PROBES)),
            unit="probes",
        )
        for outcome in PROBES:  # the first increase of a series that was not there is not seen as one
            self._probes.add(0, outcome)
        self._hears = make.gauge(
            "gateway_delivery_ok", "Whether this worker hears what others publish: 1, or 0", unit="0 or 1"
        )
        self._held = make.gauge(
            "gateway_leases_held",
            "Turns that this worker holds the lease of, and so brings to their ending",
            unit="turns",
        )
        self._lost = make.counter(
            "gateway_leases_lost_total",
            "Leases of running turns that this worker lost to another, before their ending was written",
            unit="turns",
        )
        self._taken = make.counter(
            "gateway_leases_taken_over_total", "Leases that this worker took over from a lost one", unit="turns"
        )
        self._handed = make.counter(
            "gateway_leases_handed_over_total", "Leases that this worker left to another when it drained", unit="turns"
        )

    def read_from(
        self, *, breakers_open: Callable[[], float], log_lag_s: Callable[[], float], leases_held: Callable[[], float]
    ) -> None:
        """Say where the numbers are found that are looked up at a scrape."""
        self._breakers.read_from(breakers_open)
        self._lag_s.read_from(log_lag_s)
        self._held.read_from(leases_held)

    def called(self, seconds: float, commands: int, error: bool) -> None:
        """One round trip that carried ``commands`` commands."""
        self._call_s.of().observe(seconds)
        self._commands.add(commands)
        if error:
            self._errors.add(1)

    def breaker_opened(self) -> None:
        self._openings.add(1)

    def saved(self, seconds: float) -> None:
        """A turn's events are in the store, so long after the oldest of them was shown."""
        self._save_s.of().observe(seconds)

    def probe_delivered(self, seconds: float) -> None:
        self._probe_s.of().observe(seconds)
        self._probes.add(1, "delivered")

    def probe_missed(self, outcome: Probe) -> None:
        self._probes.add(1, outcome)

    def hearing_changed(self, *, hears: bool) -> None:
        self._hears.put(hears)

    def lease_lost(self) -> None:
        self._lost.add(1)

    def lease_taken_over(self) -> None:
        self._taken.add(1)

    def lease_handed_over(self) -> None:
        self._handed.add(1)
