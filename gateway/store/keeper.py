"""Keeps an embedded server running: one that dies is started again, until that is hopeless."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from gateway.store.embedded import EmbeddedError, EmbeddedValkey
from gateway.telemetry.logging import event as log_event

logger = logging.getLogger(__name__)

RESTARTS_MAX: Final = 5
WINDOW_S: Final = 60.0
PAUSE_S: Final = 0.1  # before the second start within the window; twice as long before each further one


class Deaths:
    """Counts deaths and starts that failed, and says when to try again. Pure but for its clock (seconds)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_s: deque[float] = deque()
        self._unstarted = 0  # starts that failed one after the other, however long each took

    def pause_s(self) -> float | None:
        """Count a death; return how long to wait before the next start, or None when it is one too many."""
        now_s = self._clock()
        self._at_s.append(now_s)
        while now_s - self._at_s[0] >= WINDOW_S:
            self._at_s.popleft()
        if max(len(self._at_s), self._unstarted + 1) > RESTARTS_MAX:
            return None
        return 0.0 if len(self._at_s) == 1 else PAUSE_S * 2.0 ** (len(self._at_s) - 2)

    def started(self) -> None:
        self._unstarted = 0

    def failed(self) -> None:
        self._unstarted += 1


async def keep(valkey: EmbeddedValkey) -> NoReturn:
    """Restart an opened server whenever it dies: at once, then after pauses that grow. Safe to cancel.

    Raises EmbeddedError when it dies more than RESTARTS_MAX times within WINDOW_S, a start that fails counting as
    a death, or when as many starts in a row have failed. The caller closes the server in any case.
    """
    deaths = Deaths()
    while True:
        reason = await asyncio.shield(valkey.died)
        died_s = time.monotonic()
        log_event(logger, logging.ERROR, "store.died", reason=reason)
        while True:
            pause_s = deaths.pause_s()
            if pause_s is None:
                raise EmbeddedError(f"gave up after {RESTARTS_MAX} restarts: {reason}")
            await asyncio.sleep(pause_s)
            try:
                await valkey.restart()
            except EmbeddedError as error:
                reason = str(error)
                deaths.failed()
                log_event(logger, logging.ERROR, "store.restart_failed", reason=reason)
            else:
                deaths.started()
                break
        log_event(logger, logging.WARNING, "store.restarted", duration_s=round(time.monotonic() - died_s, 3))
