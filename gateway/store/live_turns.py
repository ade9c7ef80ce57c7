"""The running turns in Redis, as they can be looked at from outside; and the question of who reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.live_turns import LiveTurn, stage_of
from gateway.core.turn import TurnId
from gateway.store.redis import INBOX, Keys, Redis, Script, text

LOOK: Final = Script("look_at_turns")
RUNNING_MAX: Final = 10_000  # of a tenant; their ids are some 400 KB


class RedisLiveTurns:
    """LiveTurnStore over the sorted set ``running`` and the hashes ``turn:<id>``; asks over the workers' inboxes."""

    def __init__(self, redis: Redis, worker: WorkerId) -> None:
        self._redis = redis
        self._worker = worker

    async def running(self, tenant: TenantId) -> list[TurnId]:
        found: list[Any] = await self._redis.call("ZRANGE", Keys(tenant).running(), 0, RUNNING_MAX - 1)
        return sorted(TurnId(text(turn_id) or "") for turn_id in found or ())

    async def look(self, tenant: TenantId, turn_ids: Sequence[TurnId]) -> list[LiveTurn]:
        if not turn_ids:
            return []
        keys = Keys(tenant)
        names = [name for turn_id in turn_ids for name in (keys.turn(turn_id), keys.log(turn_id))]
        return [_live(row) for row in await self._redis.run(LOOK, names, turn_ids)]

    async def ask_readers(self, worker: WorkerId, turn_ids: Sequence[TurnId]) -> None:
        await self._publish(worker, ["readers?", self._worker, " ".join(turn_ids)])

    async def tell_readers(self, worker: WorkerId, readers: Mapping[TurnId, int]) -> None:
        await self._publish(worker, ["readers", readers])

    async def _publish(self, worker: WorkerId, message: Sequence[object]) -> None:
        await self._redis.call("PUBLISH", INBOX + worker, msgspec.json.encode(message))


def _live(row: Sequence[Any]) -> LiveTurn:
    turn_id, conversation_id, owner, persona, worker, begun_ms, leased, stopping, last_event, position = row
    return LiveTurn(
        TurnId(text(turn_id) or ""),
        ConversationId(text(conversation_id) or ""),
        UserHash(text(owner) or ""),
        text(persona) or "",
        WorkerId(text(worker) or ""),
        int(begun_ms) / 1000 if begun_ms else None,
        stage_of(leased=bool(leased), stopping=bool(stopping), last_event=text(last_event) or ""),
        int(position),
    )
