"""Whether the peer still lives: a PING after silence, and giving up when nothing at all follows it."""

import asyncio
from collections.abc import Callable


class Keepalive:
    """Watches one connection. Any byte from the peer is a sign of life, so a busy connection sends no PING."""

    def __init__(
        self, *, interval_s: float, timeout_s: float, send_ping: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._send_ping = send_ping
        self._give_up = give_up
        self._heard_s = self._loop.time()
        self._waiting = False
        self._timer = self._loop.call_later(interval_s, self._check)

    def heard(self) -> None:
        """Note that bytes came in."""
        self._heard_s = self._loop.time()
        if self._waiting:
            self._waiting = False
            self._timer.cancel()
            self._timer = self._loop.call_later(self._interval_s, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        silence_s = self._loop.time() - self._heard_s
        if silence_s < self._interval_s:
            self._timer = self._loop.call_later(self._interval_s - silence_s, self._check)
            return
        self._waiting = True
        self._send_ping()
        self._await_answer()

    def _await_answer(self) -> None:
        due_s = self._loop.time() + self._timeout_s
        self._timer = self._loop.call_later(self._timeout_s, self._judge, due_s)

    def _judge(self, due_s: float) -> None:
        if self._loop.time() > due_s + self._timeout_s / 2:
            # The loop was blocked; uvloop runs timers before it reads sockets, so the answer may lie there unread.
            self._await_answer()
        else:
            self._give_up()
