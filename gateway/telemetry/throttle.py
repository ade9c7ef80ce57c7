"""Repeated events, of which one in a while is enough."""

from __future__ import annotations

import time
from collections.abc import Callable

THROTTLED_MAX = 1024


class Throttle:
    """Lets one event of a key through in ``every_s`` and counts those that it holds back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], tuple[float, int]] = {}  # when the last one passed, how many were held since

    def admit(self, logger: str, key: str, every_s: float) -> int | None:
        """Return how many were held back before this one, or None when this one is held back too."""
        now_s = self._clock()
        last_s, held = self._held.pop((logger, key), (now_s - every_s, 0))
        passes = now_s - last_s >= every_s
        self._held[logger, key] = (now_s, 0) if passes else (last_s, held + 1)
        if len(self._held) > THROTTLED_MAX:
            del self._held[next(iter(self._held))]  # the one untouched for longest
        return held if passes else None
