"""Who wants to know of turns that begin in a conversation, here and on other workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from gateway.core.conversation import ConversationId
from gateway.core.errors import GatewayError
from gateway.core.events import EventLog
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import TurnId

WATCH_LIFE_S: Final = 120.0  # a worker that says nothing for this long is told of no more turns
RENEW_S: Final = WATCH_LIFE_S / 3

Watcher = Callable[[TurnId, UserHash], None]


class Watches:
    """The conversations that sockets of this worker watch. ``aclose`` at the end."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._watchers: dict[tuple[TenantId, ConversationId], list[Watcher]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def watch(self, tenant: TenantId, conversation_id: ConversationId, watcher: Watcher) -> None:
        """Call ``watcher`` for every turn that begins in a conversation, on any worker, once this has returned.

        Raises GatewayError(store_unavailable): then nothing is watched.
        """
        key = (tenant, conversation_id)
        known = key in self._watchers
        self._watchers.setdefault(key, []).append(watcher)
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
        if not known:
            try:
                await self._log.watch(tenant, conversation_id, WATCH_LIFE_S)
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
                task = asyncio.get_running_loop().create_task(self._end(*key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def began(self, tenant: TenantId, conversation_id: ConversationId, turn_id: TurnId, owner: UserHash) -> None:
        """Tell whoever watches here that a turn has begun."""
        for watcher in tuple(self._watchers.get((tenant, conversation_id), ())):
            watcher(turn_id, owner)

    async def aclose(self) -> None:
        tasks = [*self._tasks, *([self._renewing] if self._renewing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            for tenant, conversation_id in tuple(self._watchers):
                with contextlib.suppress(GatewayError):
                    await self._log.watch(tenant, conversation_id, WATCH_LIFE_S)

    async def _end(self, tenant: TenantId, conversation_id: ConversationId) -> None:
        if (tenant, conversation_id) not in self._watchers:
            with contextlib.suppress(GatewayError):
                await self._log.watch(tenant, conversation_id, 0)
