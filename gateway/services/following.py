"""Turns of other workers that somebody reads here: one copy of the head of each, however many readers it has.

The owner of a turn shows its events to the workers that follow it, beside writing the log. What comes is joined to
what came before by position: a repeat is cut, a gap sends the readers to the log. So nothing is lost with a message,
and while nothing is heard the log is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, EventLog, Shown, after
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId
from gateway.services.window import Window

logger = logging.getLogger(__name__)

FOLLOW_LIFE_S: Final = 4.5  # a worker that says nothing for this long is taken for gone by the owner
LOOK_S: Final = FOLLOW_LIFE_S / 3  # between looks at the log of a turn that we hear of …
DEAF_LOOK_S: Final = 0.25  # … and while this worker hears nothing
OUTAGE_S: Final = 30.0  # a reader waits this long for a store that is away
PAGE: Final = 256
ENTRIES_MAX: Final = 2_000  # kept of a turn; a reader further behind reads the log


class Rescuer(Protocol):
    """Brings a turn whose owner is gone to its end; see ``recovery``."""

    async def recover(self, tenant: TenantId, turn_id: TurnId) -> bool: ...


class RemoteLog(Window):
    """The head of one followed turn. ``base`` is infinite until it is known where the head is."""

    __slots__ = ("_stored", "moved", "readers_joined", "task", "tenant")

    def __init__(self, tenant: TenantId, turn_id: TurnId, conversation_id: ConversationId) -> None:
        super().__init__(turn_id, conversation_id, math.inf, [])
        self.tenant = tenant
        self.moved = False
        self._stored = False  # whole, its ending included
        self.readers_joined = 0
        self.task: asyncio.Task[None]

    @property
    def closed(self) -> bool:
        return self.moved

    @property
    def ended(self) -> bool:
        return self._stored or super().ended

    @property
    def seeded(self) -> bool:
        return self.base != math.inf

    def feed(self, position: int, entries: list[Entry]) -> None:
        """Take entries that follow a position."""
        if not entries or self.ended:
            return
        if not self.seeded or position > self.head:  # a gap: those who wait at the old head find it in the log
            self.base, self._shown = position, []
            self.release()
        new = after(entries, self.head)
        if new:
            self._show(new)
        if len(self._shown) > ENTRIES_MAX:
            half = ENTRIES_MAX // 2
            self.base = self._shown[half - 1].position
            self._shown = self._shown[half:]

    def finish(self) -> None:
        """Note that the ending is in the log and nothing follows what is here."""
        self._stored = True
        self.release()

    def fail(self, error: GatewayError) -> None:
        self.error = error
        self.release()


class Following:
    """The turns of other workers that are read on this one. ``aclose`` at the end."""

    def __init__(self, log: EventLog, rescuer: Rescuer, *, hears: Callable[[], bool], lost_after_s: float) -> None:
        """``hears`` tells whether what other workers say arrives here.

        ``lost_after_s`` is how long a turn whose record the store has lost may take to be written again by its owner.
        """
        self._log = log
        self._rescuer = rescuer
        self._hears = hears
        self._lost_after_s = lost_after_s
        self._remotes: dict[TurnId, RemoteLog] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, tenant: TenantId, turn_id: TurnId, conversation_id: ConversationId) -> RemoteLog:
        """Follow a turn; each ``join`` wants a ``leave``."""
        remote = self._remotes.get(turn_id)
        if remote is None:
            remote = self._remotes[turn_id] = RemoteLog(tenant, turn_id, conversation_id)
            remote.task = self._spawn(self._look_after(remote))
        remote.readers_joined += 1
        return remote

    def leave(self, remote: RemoteLog) -> None:
        remote.readers_joined -= 1
        if not remote.readers_joined:
            if self._remotes.get(remote.turn_id) is remote:
                del self._remotes[remote.turn_id]
            remote.task.cancel()
            if not remote.ended:
                self._spawn(self._unfollow(remote))

    def shown(self, shown: Shown) -> None:
        """Take what a turn's owner shows."""
        remote = self._remotes.get(shown.turn_id)
        if remote is not None:
            remote.feed(shown.after, list(shown.entries))

    def moved(self, turn_id: TurnId) -> None:
        """Send the readers of a turn that runs on this worker from now on to its own log."""
        remote = self._remotes.pop(turn_id, None)
        if remote is not None:
            remote.task.cancel()
            remote.moved = True
            remote.release()

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_after(self, remote: RemoteLog) -> None:
        """Keep the owner showing, and look at the log for what it may not have shown."""
        loop = asyncio.get_running_loop()
        heard_at_s = loop.time()
        while not remote.ended:
            wait_s = LOOK_S if self._hears() else DEAF_LOOK_S
            error: GatewayError | None = None
            patience_s = OUTAGE_S
            try:
                followed = await self._log.follow(remote.tenant, remote.turn_id, FOLLOW_LIFE_S)
                if followed is None:
                    error = GatewayError(Code.HISTORY_LOST, extra={"turn_id": remote.turn_id})
                    patience_s = self._lost_after_s
                else:
                    if not remote.seeded:
                        remote.base = followed.position
                    elif followed.position > remote.head:
                        await self._catch_up(remote)
                    if followed.state.ended:
                        remote.finish()
                    elif not followed.leased:
                        await self._rescuer.recover(remote.tenant, remote.turn_id)
            except GatewayError as refused:
                error = refused
            except Exception:
                logger.exception("following.crashed")
                error = GatewayError(Code.INTERNAL)
            if error is None:
                heard_at_s = loop.time()
            elif loop.time() > heard_at_s + patience_s:
                remote.fail(error)
                return
            else:
                wait_s = DEAF_LOOK_S
            await asyncio.sleep(wait_s)

    async def _catch_up(self, remote: RemoteLog) -> None:
        while True:
            head = remote.head
            page = await self._log.read(remote.tenant, remote.turn_id, head, PAGE)
            remote.feed(head, page)
            if len(page) < PAGE:
                return

    async def _unfollow(self, remote: RemoteLog) -> None:
        """Let the owner know; without it the owner would learn it later."""
        if remote.turn_id not in self._remotes:
            with contextlib.suppress(GatewayError):
                await self._log.follow(remote.tenant, remote.turn_id, 0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
