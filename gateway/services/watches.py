"""Who wants to know of turns that begin in a conversation, here and on other workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.core.conversation import ConversationId
from gateway.core.errors import GatewayError
from gateway.core.events import EventLog
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import TurnId

WATCH_LIFE_S: Final = 120.0  # a worker that says nothing for this long is told of no more turns
RENEW_S: Final = WATCH_LIFE_S / 3

Watcher = Callable[[TurnId, UserHash], None]
Key = tuple[TenantId, ConversationId]


class Watches:
    """The conversations that sockets of this worker watch. ``aclose`` at the end."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._watchers: dict[Key, list[Watcher]] = {}
        self._latest: dict[Key, TurnId] = {}  # the last turn that the watchers were told of, or found themselves
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def watch(self, tenant: TenantId, conversation_id: ConversationId, watcher: Watcher) -> None:
        """Call ``watcher`` for every turn that begins in a conversation, on any worker, once this has returned.

        The caller looks for a turn that is active already.
        Raises GatewayError(store_unavailable): then nothing is watched.
        """
        key = (tenant, conversation_id)
        known = key in self._watchers
        self._watchers.setdefault(key, []).append(watcher)
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
        if not known:
            try:
                active = await self._log.watch(tenant, conversation_id, WATCH_LIFE_S)
                if active is not None:
                    self._latest.setdefault(key, active[0])
            except BaseException:
                self.unwatch(tenant, conversation_id, watcher)
                raise

    def unwatch(self, tenant: TenantId, conversation_id: ConversationId, watcher: Watcher) -> None:
        """Safe to repeat."""
        key = (tenant, conversation_id)
        watchers = self._watchers.get(key, [])
        if watcher in watchers:
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[key]
                self._latest.pop(key, None)
                self._spawn(self._end(*key))

    def began(self, tenant: TenantId, conversation_id: ConversationId, turn_id: TurnId, owner: UserHash) -> None:
        """Tell whoever watches here that a turn has begun."""
        key = (tenant, conversation_id)
        watchers = self._watchers.get(key, ())
        if watchers:
            self._latest[key] = turn_id
        for watcher in tuple(watchers):
            watcher(turn_id, owner)

    def look_again(self) -> None:
        """Look for turns that began while this worker heard nothing."""
        for key in tuple(self._watchers):
            self._spawn(self._look(key))

    async def aclose(self) -> None:
        tasks = [*self._tasks, *([self._renewing] if self._renewing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            for key in tuple(self._watchers):
                await self._look(key)

    async def _look(self, key: Key) -> None:
        """Watch for longer, and tell of an active turn that was not heard of."""
        latest = self._latest.get(key)
        with contextlib.suppress(GatewayError):
            active = await self._log.watch(*key, WATCH_LIFE_S)
            # What was heard of meanwhile is newer than the answer.
            if active is not None and active[0] != latest and self._latest.get(key) == latest:
                self.began(*key, *active)

    async def _end(self, tenant: TenantId, conversation_id: ConversationId) -> None:
        if (tenant, conversation_id) not in self._watchers:
            with contextlib.suppress(GatewayError):
                await self._log.watch(tenant, conversation_id, 0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
