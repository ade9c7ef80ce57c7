"""The deadlines of all chats under way, under one timer."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from gateway.upstream.rules import UpstreamRules

BEATS_PER_TIMEOUT: Final = 60  # of the shortest: how late a deadline may be noticed
BEAT_MIN_S: Final = 0.005


class Timed(Protocol):
    """What has a deadline. ``ring`` must return quickly and must not raise."""

    due_s: float  # on the loop's clock

    def ring(self) -> None:
        """The deadline has passed: end, or set another."""


class Clocks:
    """Rings what is wound and due: up to a sixtieth of the shortest timeout late, and never early.

    A timer for each chat takes 0.5 KB of it, and is set twice and cancelled twice; a look takes 0.1 µs a chat.
    """

    def __init__(self, rules: UpstreamRules) -> None:
        self.rules = rules
        shortest_s = min(rules.first_token_timeout_s, rules.between_tokens_timeout_s, rules.turn_timeout_s)
        self._beat_s = max(BEAT_MIN_S, shortest_s / BEATS_PER_TIMEOUT)
        self._wound: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    def wind(self, timed: Timed) -> None:
        """Ring it when it is due, until it is stopped. Safe to repeat."""
        self._wound.add(timed)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)

    def stop(self, timed: Timed) -> None:
        """Safe to repeat, and for what was never wound."""
        self._wound.discard(timed)
        if not self._wound and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._beat_s, self._beat)
        now_s = loop.time()
        for timed in [one for one in self._wound if one.due_s <= now_s]:
            if timed in self._wound:  # the one before may have stopped it
                timed.ring()
