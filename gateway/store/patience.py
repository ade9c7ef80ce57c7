"""How long a server is waited for: by the clock, unless it was this process that came late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LATE_S: Final = 0.02  # a timer that rings later than this has waited for our own loop
LATE_TURNS: Final = 4  # rounds of the loop that an answer takes from the socket to whoever waits, and one to spare
LONGEST: Final = 4  # times the patience, however late the loop is


class Patience:
    """Calls ``over`` once ``deadline_s`` (loop time) has passed, unless it is ended before.

    A timer that rings late tells that the loop is late, and then the answer may lie in the socket, unread: a busy
    worker would take a healthy server for away, refuse work, and be busier still with what follows from that. So the
    wait goes on for a few rounds of a loop as late as this one, and as often as it is, up to ``LONGEST`` times as long.
    """

    __slots__ = ("_due_s", "_last_s", "_loop", "_over", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline_s: float, over: Callable[[], None]) -> None:
        now_s = loop.time()
        self._loop = loop
        self._due_s = deadline_s
        self._last_s = now_s + LONGEST * max(0.0, deadline_s - now_s)
        self._over = over
        self._timer = loop.call_at(deadline_s, self._ring)

    def end(self) -> None:
        """Wait no more. Safe to repeat."""
        self._timer.cancel()

    def _ring(self) -> None:
        now_s = self._loop.time()
        late_s = now_s - self._due_s
        if late_s <= LATE_S or now_s >= self._last_s:
            self._over()
            return
        self._due_s = min(now_s + LATE_TURNS * late_s, self._last_s)
        self._timer = self._loop.call_at(self._due_s, self._ring)
