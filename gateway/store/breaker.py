"""The breaker: a server that is away or silent is asked again now and then, not by everybody who would wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

RETRY_S: Final = 0.25


class Breaker:
    """Closed while the server answers. Once open it lets one trial through at a time, until one succeeds.

    The first trial may go at once: what failed may have been one connection and not the server. After a failed
    trial the next has to wait for ``RETRY_S``. Call ``admit`` before each attempt, and ``succeed`` or ``fail`` after.
    """

    __slots__ = ("_clock", "_trial_at_s", "_trying", "is_open")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_open = False
        self._trying = False
        self._trial_at_s = 0.0
        self._clock = clock

    @property
    def is_due(self) -> bool:
        """Whether it is open and a trial may be made now."""
        return self.is_open and not self._trying and self._clock() >= self._trial_at_s

    def admit(self) -> bool:
        """Say whether an attempt may be made; while open, a yes makes it the trial."""
        if not self.is_open:
            return True
        if not self.is_due:
            return False
        self._trying = True
        return True

    def succeed(self) -> None:
        """Close: the server has answered, whoever asked."""
        self.is_open = self._trying = False

    def fail(self, *, trial: bool) -> None:
        """Open, or stay open. ``trial``: the breaker was open when the attempt was admitted."""
        if trial and self.is_open:
            self._trying = False
            self._trial_at_s = self._clock() + RETRY_S
        elif not self.is_open:
            self.is_open = True
            self._trying = False
            self._trial_at_s = self._clock()
