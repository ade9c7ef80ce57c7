"""Pace: one timer for all streams, so that thousands of paced answers cost one wake-up a tick instead of one each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

SLACK_S = 0.001  # what is due this soon goes out in the same tick; event loops' timers are no finer


class Pace:
    """Calls functions at their times on the running loop's clock. A call cannot be taken back: the callee checks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._ticking = False
        self._closed = False

    def now_s(self) -> float:
        """Returns the clock that `at` counts on, in seconds."""
        return self._loop.time()

    def at(self, due_s: float, call: Callable[[], None]) -> None:
        """Calls `call` once at `due_s` or as soon after as the loop allows, never from inside this function."""
        if self._closed:
            return
        heappush(self._heap, (due_s, next(self._order), call))
        if not self._ticking and (self._timer is None or due_s < self._armed_for):
            self._arm(due_s)

    def close(self) -> None:
        """Forgets every call that is still to come."""
        self._closed = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due_s
        self._timer = self._loop.call_at(due_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ticking = True
        heap = self._heap
        limit_s = self._loop.time() + SLACK_S
        due: list[Callable[[], None]] = []
        while heap and heap[0][0] <= limit_s:  # taken first, so that a call which asks again waits for the next tick
            due.append(heappop(heap)[2])
        try:
            for call in due:
                call()
        finally:
            self._ticking = False
            if heap and not self._closed:
                self._arm(heap[0][0])
