"""Allowance: the plan limit of a key: so many requests a period, told in ``X-RateLimit-*`` headers."""

from __future__ import annotations

import math
import time


class Allowance:
    """Counts requests of one key in fixed periods; a limit of 0 allows everything and says nothing."""

    def __init__(self, limit: int, period_s: float = 60.0) -> None:
        self._limit = limit
        self._period_s = period_s
        self._period = 0
        self._used = 0

    def take(self) -> bool:
        """Counts a request; returns False when the period's allowance is used up."""
        if not self._limit:
            return True
        period = int(time.time() // self._period_s)
        if period != self._period:
            self._period, self._used = period, 0
        if self._used >= self._limit:
            return False
        self._used += 1
        return True

    def headers(self, *, refused_for_s: float | None = None) -> list[tuple[str, str]]:
        """Returns the headers of an answer; a refusal also says when to come back."""
        if not self._limit and refused_for_s is None:
            return []
        left_s = self.wait_s() if refused_for_s is None else refused_for_s
        remaining = 0 if refused_for_s is not None else self._limit - self._used
        reset_at = str(math.ceil(time.time() + left_s))
        headers = [
            ("x-ratelimit-limit", str(self._limit or 100)),
            ("x-ratelimit-remaining", str(remaining)),
            ("x-ratelimit-reset", reset_at),
        ]
        if refused_for_s is not None:
            headers.append(("retry-after", str(math.ceil(refused_for_s))))
        return headers

    def wait_s(self) -> float:
        """Returns the seconds until the next period."""
        return self._period_s - time.time() % self._period_s
