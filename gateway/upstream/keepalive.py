"""Whether the peer still lives: a PING after silence, and giving up when nothing at all follows it."""

import asyncio
from collections.abc import Callable


class Keepalive:
    """Watches one connection. Any byte from the peer is a sign of life, so a busy connection sends no PING."""

    def __init__(
        self,
        *,
        interval_s: float,
        timeout_s: float,
        heard_s: Callable[[], float],
        send_ping: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        """`heard_s` tells when bytes came in last, on the loop's clock; it is asked when a timer runs out only."""
        self._loop = asyncio.get_running_loop()
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._heard_s = heard_s
        self._send_ping = send_ping
        self._give_up = give_up
        self._pinged_s = self._due_s = 0.0
        self._timer = self._loop.call_later(interval_s, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        now_s = self._loop.time()
        silence_s = now_s - self._heard_s()
        if silence_s < self._interval_s:
            self._timer = self._loop.call_later(self._interval_s - silence_s, self._check)
            return
        self._pinged_s = now_s
        self._due_s = now_s + self._timeout_s
        self._send_ping()
        self._await_answer(self._timeout_s)

    def _await_answer(self, longest_s: float) -> None:
        self._timer = self._loop.call_later(min(longest_s, self._interval_s), self._judge)

    def _judge(self) -> None:
        now_s = self._loop.time()
        if self._heard_s() >= self._pinged_s:
            self._check()
        elif now_s < self._due_s:
            self._await_answer(self._due_s - now_s)
        elif now_s > self._due_s + self._timeout_s / 2:
            # The loop was blocked; uvloop runs timers before it reads sockets, so the answer may lie there unread.
            self._due_s = now_s + self._timeout_s
            self._await_answer(self._timeout_s)
        else:
            self._give_up()
