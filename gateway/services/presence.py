"""Who reads a turn, here and on other workers, and what happens when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.core.identity import Disconnect, DisconnectPolicy, TenantId
from gateway.core.turn import StopReason
from gateway.telemetry.turns import TurnMetrics

ARRIVAL_S: Final = 10.0  # a turn's first reader comes within this, or its client was gone before the turn began


CLOSED: Final = Disconnect(policy=DisconnectPolicy.DRAIN)


class Presence:
    """Counts one turn's readers and applies its tenant's rule when the last of them leaves.

    ``on_abandoned`` is called at most once, from the event loop. ``close`` it when the turn ends.
    """

    __slots__ = (
        "_detached",
        "_followers",
        "_loop",
        "_metrics",
        "_on_abandoned",
        "_readers",
        "_rule",
        "_tenant",
        "_timer",
    )

    def __init__(
        self, rule: Disconnect, on_abandoned: Callable[[StopReason], None], tenant: TenantId, metrics: TurnMetrics
    ) -> None:
        self._rule = rule
        self._on_abandoned = on_abandoned
        self._tenant = tenant
        self._metrics = metrics
        self._detached = False  # the last reader has left
        self._loop = asyncio.get_running_loop()
        self._readers = 0
        self._followers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._arm(max(self._patience_s, ARRIVAL_S))

    @property
    def readers(self) -> int:
        """Readers on this worker and, as far as the last append told, on others."""
        return self._readers + self._followers

    def joined(self) -> None:
        self._readers += 1
        self._be_read()

    def left(self) -> None:
        self._readers -= 1
        if not self.readers:
            self._be_left()

    def followed(self, count: int) -> None:
        """Take in how many read the turn on other workers."""
        before, self._followers = self.readers, count
        if self.readers:
            self._be_read()
        elif before:
            self._be_left()

    def close(self) -> None:
        """Apply the rule no more. Safe to repeat."""
        self._disarm()
        if self._detached:
            self._detached = False
            self._metrics.detached_ended(self._tenant)
        self._rule = CLOSED
        self._on_abandoned = _nobody_cares  # the turn's own method: with it the two would keep each other

    @property
    def _patience_s(self) -> float:
        return self._rule.grace_s if self._rule.policy is DisconnectPolicy.DETACH else 0.0

    def _be_read(self) -> None:
        self._disarm()
        if self._detached:
            self._detached = False
            self._metrics.reattached(self._tenant)

    def _be_left(self) -> None:
        self._arm(self._patience_s)
        if self._rule is not CLOSED:
            self._detached = True
            self._metrics.detached(self._tenant)

    def _arm(self, delay_s: float) -> None:
        rule = self._rule
        last = rule.after_grace if rule.policy is DisconnectPolicy.DETACH else rule.policy
        if last is DisconnectPolicy.STOP:
            self._disarm()
            self._timer = self._loop.call_later(delay_s, self._on_abandoned, StopReason.DISCONNECT)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nobody_cares(_: StopReason) -> None:
    pass
