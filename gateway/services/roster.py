"""The turns that this worker owns, each with the task that brings it to its ending."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.events import Fenced
from gateway.core.turn import StopReason, TurnId
from gateway.services.owned_turn import OwnedTurn
from gateway.telemetry.spans import CURRENT

logger = logging.getLogger(__name__)

LINGER_S: Final = 5.0  # an ended turn is kept this long, to be written again if the store turns out to have lost it
LINGER_MAX: Final = 2_000


class Roster:
    """Finds the turns of this worker, and keeps those that ended just now."""

    def __init__(self, healthy_s: Callable[[], float] = lambda: math.inf) -> None:
        """``healthy_s`` tells how long the store has been there without a failure, in seconds."""
        self._healthy_s = healthy_s
        self._looking: asyncio.TimerHandle | None = None
        self._turns: dict[TurnId, OwnedTurn] = {}
        self._ended: deque[tuple[float, OwnedTurn]] = deque(maxlen=LINGER_MAX)
        self.on_add: Callable[[TurnId], None] = lambda _: None  # called in the step that makes a turn this worker's
        self.on_end: Callable[[OwnedTurn], None] = lambda _: None  # called when a turn's task ends
        self.tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._turns)

    def log_lag_s(self) -> float:
        """Return for how long the oldest event of these turns has been waiting for the store; 0 where none does."""
        waiting = [since_s for turn in self._turns.values() if (since_s := turn.unsaved_since_s) is not None]
        return asyncio.get_running_loop().time() - min(waiting) if waiting else 0.0

    def find(self, turn_id: TurnId) -> OwnedTurn | None:
        return self._turns.get(turn_id)

    def all(self) -> tuple[OwnedTurn, ...]:
        return tuple(self._turns.values())

    def add(self, turn: OwnedTurn) -> asyncio.Task[object]:
        """Set a turn going; returns its task, which never raises."""
        self._turns[turn.turn_id] = turn
        self.on_add(turn.turn_id)
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._run(turn))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def reassert(self) -> None:
        """After an outage of the store: write the endings from just before it again where they are lost."""
        for _, turn in tuple(self._ended):
            try:
                await turn.reassert()
            except (GatewayError, Fenced):
                continue  # away again, or another worker has the turn

    async def _run(self, turn: OwnedTurn) -> None:
        if turn.span is not CURRENT.get():
            CURRENT.set(turn.span)
        try:
            await turn.run()
        except Exception:
            logger.exception("turn.crashed")
            turn.stop(StopReason.ADMIN)
            await turn.crash()
        finally:
            del self._turns[turn.turn_id]
            self.on_end(turn)
            self._ended.append((time.monotonic() + LINGER_S, turn))
            asyncio.get_running_loop().call_later(LINGER_S, self._forget)

    def _forget(self) -> None:
        """Let go of those that have lingered; of none while the store is away, or was until just now.

        However long it takes until another server is in its place, that one may lack what ended just before.
        """
        if self._healthy_s() < LINGER_S:
            if self._looking is None:
                self._looking = asyncio.get_running_loop().call_later(LINGER_S, self._look_again)
            return
        now_s = time.monotonic()
        while self._ended and self._ended[0][0] <= now_s:
            self._ended.popleft()

    def _look_again(self) -> None:
        self._looking = None
        self._forget()
