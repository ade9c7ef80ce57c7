"""Shows an operator the turns that run on every worker. What they ask and answer is never looked at."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TENANT_ID, Tenant, TenantId, WorkerId
from gateway.core.live_turns import LiveTurn, LiveTurnStore
from gateway.core.turn import TurnId
from gateway.services.roster import Roster
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

TENANTS_A_PAGE: Final = 500  # looked at for one page, which may so be empty and have a next one
TENANTS_AT_ONCE: Final = 50  # asked for together, so that their calls share round trips
LAST: Final = "~"  # after every turn id
TOLD_S: Final = 0.5  # how long an answer waits for other workers to say how many read


class Shown(NamedTuple):
    """A running turn; ``readers`` is None where its worker did not say in time.

    Every other worker that has readers of the turn counts as one.
    """

    tenant: TenantId
    turn: LiveTurn
    readers: int | None


class LiveTurns:
    """The running turns of all workers, in pages; and what this worker tells others of its own. A ReadersHearer.

    ``aclose`` it last.
    """

    def __init__(
        self, store: LiveTurnStore, roster: Roster, worker: WorkerId, tenants: Mapping[TenantId, Tenant]
    ) -> None:
        self._store = store
        self._roster = roster
        self._worker = worker
        self._tenants = tenants
        self._told: dict[TurnId, set[asyncio.Future[int]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def page(self, only: TenantId | None, cursor: str | None, limit: int) -> tuple[list[Shown], str | None]:
        """Return up to ``limit`` running turns after a cursor, by tenant and turn id, and where the next page begins.

        A page may hold fewer, or none, and still have a next one. Turns begin and end between two pages: what runs
        all the while is on exactly one of them. Raises GatewayError: invalid_cursor, store_unavailable.
        """
        after_tenant, after_turn = _parse(cursor) if cursor else ("", "")
        names = sorted([only] if only is not None else self._tenants)
        begun = [name for name in names if name >= after_tenant]
        found: list[tuple[TenantId, LiveTurn]] = []
        for first in range(0, min(len(begun), TENANTS_A_PAGE), TENANTS_AT_ONCE):
            some = begun[first : first + TENANTS_AT_ONCE]
            running = await asyncio.gather(*(self._store.running(name) for name in some))
            for name, ids in zip(some, running, strict=True):
                left = ids[bisect_right(ids, TurnId(after_turn)) :] if name == after_tenant else ids
                taken = left[: limit - len(found)]
                found += [(name, turn) for turn in await self._store.look(name, taken)]
                if len(taken) < len(left) and taken:
                    return await self._counted(found), f"{name}.{taken[-1]}"
                if len(found) == limit:
                    return await self._counted(found), f"{name}.{LAST}"
        if len(begun) > TENANTS_A_PAGE:
            return await self._counted(found), f"{begun[TENANTS_A_PAGE - 1]}.{LAST}"
        return await self._counted(found), None

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- ReadersHearer ---------------------------------------------------------------------------------------------

    def readers_asked(self, asker: WorkerId, turn_ids: Sequence[TurnId], /) -> None:
        counts = self._own(turn_ids)
        if counts:
            self._spawn(self._store.tell_readers(asker, counts))

    def readers_told(self, readers: Mapping[TurnId, int], /) -> None:
        for turn_id, count in readers.items():
            for waiter in self._told.get(turn_id, ()):
                if not waiter.done():
                    waiter.set_result(count)

    # ---------------------------------------------------------------------------------------------------------------

    async def _counted(self, found: Sequence[tuple[TenantId, LiveTurn]]) -> list[Shown]:
        """Add how many read each: what is this worker's own at once, the rest as their workers say."""
        counts = self._own(turn.turn_id for _, turn in found)
        asked: dict[WorkerId, list[TurnId]] = defaultdict(list)
        for _, turn in found:
            if turn.turn_id not in counts and turn.worker != self._worker:
                asked[turn.worker].append(turn.turn_id)
        counts |= await self._ask(asked)
        return [Shown(tenant, turn, counts.get(turn.turn_id)) for tenant, turn in found]

    async def _ask(self, asked: Mapping[WorkerId, Sequence[TurnId]]) -> dict[TurnId, int]:
        if not asked:
            return {}
        loop = asyncio.get_running_loop()
        waiters: dict[TurnId, asyncio.Future[int]] = {}
        for turn_ids in asked.values():
            for turn_id in turn_ids:
                waiters[turn_id] = loop.create_future()
                self._told.setdefault(turn_id, set()).add(waiters[turn_id])
        try:
            for worker, turn_ids in asked.items():
                await self._store.ask_readers(worker, turn_ids)
            await asyncio.wait(waiters.values(), timeout=TOLD_S)
            return {turn_id: waiter.result() for turn_id, waiter in waiters.items() if waiter.done()}
        finally:
            for turn_id, waiter in waiters.items():
                self._told[turn_id].discard(waiter)
                if not self._told[turn_id]:
                    del self._told[turn_id]

    def _own(self, turn_ids: Iterable[TurnId]) -> dict[TurnId, int]:
        owned = ((turn_id, self._roster.find(turn_id)) for turn_id in turn_ids)
        return {turn_id: turn.presence.readers for turn_id, turn in owned if turn is not None}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _parse(cursor: str) -> tuple[str, str]:
    tenant, dot, turn_id = cursor.partition(".")
    if not dot or len(turn_id) > 64 or not TENANT_ID.fullmatch(tenant):
        raise GatewayError(Code.INVALID_CURSOR, "The cursor is not one that this list gave.", field="cursor")
    return tenant, turn_id


async def _told(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except GatewayError as error:
        throttled(logger, "readers.untold", error=error)  # who asked goes on without
