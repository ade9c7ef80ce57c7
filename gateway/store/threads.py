"""Which turns lists of messages may go on from: lists of turns by digest, and a mark for each that was used up."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.identity import TenantId
from gateway.core.threads import Taken, Tip
from gateway.core.turn import TurnId
from gateway.store.redis import Keys, Redis, Script

TAKE: Final = Script("take_thread")
PUT: Final = Script("put_thread")
ALIKE_MAX: Final = 16  # conversations of one user in which the same was said; of more the oldest open new ones
FORGOTTEN: Final = b"forgotten"

_tip: Final = msgspec.json.Decoder(Tip)


class RedisThreads:
    """ThreadStore over ``thread:<digest>``, ``thread:used:<turn>`` and ``thread:key:<digest>``, all with an end.

    The mark is the truth: a turn that is on a list, or on two, can be used up as long as it has none.
    """

    def __init__(self, redis: Redis, *, ttl_s: float, key_ttl_s: float) -> None:
        """``ttl_s``: how long a list may rest before it goes on; ``key_ttl_s``: how long an idempotency key counts."""
        self._redis = redis
        self._ttl_s = int(ttl_s)
        self._key_ttl_s = int(key_ttl_s)

    async def put(self, tenant: TenantId, digest: str, tip: Tip) -> None:
        await self._redis.run(PUT, (_list(tenant, digest),), (msgspec.json.encode(tip), self._ttl_s, ALIKE_MAX))

    async def take(self, tenant: TenantId, digest: str, key: str | None) -> Taken:
        return await self._take(tenant, digest, b"", key)

    async def use(self, tenant: TenantId, tip: Tip, key: str | None) -> Taken:
        return await self._take(tenant, "", msgspec.json.encode(tip), key)

    async def _take(self, tenant: TenantId, digest: str, tip: bytes, key: str | None) -> Taken:
        repeated, found = await self._redis.run(
            TAKE,
            (_list(tenant, digest), _key(tenant, key or "")),
            (_used(tenant, ""), self._ttl_s, int(key is not None), self._key_ttl_s, tip),
        )
        return Taken(_tip.decode(found) if found else None, bool(repeated))

    async def decline(self, tenant: TenantId, key: str | None) -> None:
        if key is not None:
            await self._redis.call("SET", _key(tenant, key), "", "EX", self._key_ttl_s)

    async def give_back(self, tenant: TenantId, digest: str | None, tip: Tip, key: str | None) -> None:
        if key is not None:
            await self._redis.call("DEL", _key(tenant, key))
        await self._redis.call("DEL", _used(tenant, tip.turn_id))
        if digest is not None:
            await self.put(tenant, digest, tip)

    async def forget(self, tenant: TenantId, turn_id: TurnId) -> None:
        await self._redis.call("SET", _used(tenant, turn_id), FORGOTTEN, "EX", self._ttl_s)

    async def forgotten(self, tenant: TenantId, turn_id: TurnId) -> bool:
        return bool(await self._redis.call("GET", _used(tenant, turn_id)) == FORGOTTEN)


def _list(tenant: TenantId, digest: str) -> str:
    return f"{Keys(tenant).prefix}thread:{digest}"


def _used(tenant: TenantId, turn_id: str) -> str:
    return f"{Keys(tenant).prefix}thread:used:{turn_id}"


def _key(tenant: TenantId, key: str) -> str:
    return f"{Keys(tenant).prefix}thread:key:{key}"
