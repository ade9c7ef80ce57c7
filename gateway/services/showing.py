"""Shows the turns of this worker to the workers that follow them: one message a worker and loop tick."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from gateway.core.errors import GatewayError
from gateway.core.events import EventLog, Shown
from gateway.core.identity import WorkerId
from gateway.services.live_log import LiveLog
from gateway.services.window import Batch


class Outlet:
    """A reader of one live log, for other workers. Exists from the turn's beginning, attached only while followed."""

    __slots__ = ("_live", "_showing", "workers")

    def __init__(self, showing: Showing, live: LiveLog) -> None:
        self._showing = showing
        self._live = live
        self.workers: Sequence[WorkerId] = ()

    def show_to(self, workers: Sequence[WorkerId]) -> None:
        """Show the turn to these workers from now on; a new one is given what the log does not have yet."""
        new = [worker for worker in workers if worker not in self.workers]
        if workers and not self.workers:
            self._live.attach(self)
        elif self.workers and not workers:
            self._live.detach(self)
        self.workers = workers
        if new:
            position = self._live.saved_position
            entries = self._live.shown_after(position)
            if entries:
                self._showing.send(new, Shown(self._live.turn_id, position, entries))

    def pushed(self, batch: Batch, /) -> None:
        self._showing.send(self.workers, Shown(batch.turn_id, batch.begins, batch.entries))

    def released(self) -> None:
        """Another worker owns the turn: that one shows it."""
        self.show_to(())


class Showing:
    """What is on its way to other workers in this tick of the loop. ``aclose`` waits for what is sent."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._waiting: dict[WorkerId, list[Shown]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def outlet(self, live: LiveLog) -> Outlet:
        return Outlet(self, live)

    def send(self, workers: Sequence[WorkerId], shown: Shown) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        for worker in workers:
            self._waiting.setdefault(worker, []).append(shown)

    async def aclose(self) -> None:
        while self._tasks or self._waiting:
            await asyncio.gather(*self._tasks)
            await asyncio.sleep(0)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for worker, shown in waiting.items():
            self._spawn(self._send(worker, shown))

    async def _send(self, worker: WorkerId, shown: list[Shown]) -> None:
        try:
            await self._log.show(worker, shown)
        except GatewayError:
            return  # whoever follows finds it in the log

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
