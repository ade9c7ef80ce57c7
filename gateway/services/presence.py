"""Who reads a turn, here and on other workers, and what happens when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.core.identity import Disconnect, DisconnectPolicy
from gateway.core.turn import StopReason

ARRIVAL_S: Final = 10.0  # a turn's first reader comes within this, or its client was gone before the turn began


CLOSED: Final = Disconnect(policy=DisconnectPolicy.DRAIN)


class Presence:
    """Counts one turn's readers and applies its tenant's rule when the last of them leaves.

    ``on_abandoned`` is called at most once, from the event loop. ``close`` it when the turn ends.
    """

    __slots__ = ("_followers", "_loop", "_on_abandoned", "_readers", "_rule", "_timer")

    def __init__(self, rule: Disconnect, on_abandoned: Callable[[StopReason], None]) -> None:
        self._rule = rule
        self._on_abandoned = on_abandoned
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
        self._disarm()

    def left(self) -> None:
        self._readers -= 1
        if not self.readers:
            self._arm(self._patience_s)

    def followed(self, count: int) -> None:
        """Take in how many read the turn on other workers."""
        before, self._followers = self.readers, count
        if self.readers:
            self._disarm()
        elif before:
            self._arm(self._patience_s)

    def close(self) -> None:
        self._disarm()
        self._rule = CLOSED
        self._on_abandoned = _nobody_cares  # the turn's own method: with it the two would keep each other

    @property
    def _patience_s(self) -> float:
        return self._rule.grace_s if self._rule.policy is DisconnectPolicy.DETACH else 0.0

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
