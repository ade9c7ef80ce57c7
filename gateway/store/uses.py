"""What was good for one use and has had it."""

from __future__ import annotations

from gateway.core.identity import TenantId
from gateway.store.redis import Keys, Redis


class RedisUses:
    """Uses over one key each, ``used:<id>``, which lives as long as what it is about."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def claim(self, tenant: TenantId, id_: str, life_s: float) -> bool:
        key = Keys(tenant).used(id_)
        return await self._redis.call("SET", key, "1", "NX", "PX", max(1, int(life_s * 1000))) is not None
