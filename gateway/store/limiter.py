"""Limits decided in Redis, on Redis's clock: one script charges all limits of a request or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.identity import TenantId
from gateway.core.limits import Decision, Limit
from gateway.store.redis import Argument, Keys, Redis, Script

ADMIT: Final = Script("admit")


class RedisLimiter:
    """Limiter over one number a limit (the GCRA's theoretical arrival time, microseconds) at ``lim:<key>``."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def admit(self, tenant: TenantId, limits: Sequence[Limit]) -> Decision:
        keys = Keys(tenant)
        arguments: list[Argument] = []
        for limit in limits:
            arguments += (limit.limit, int(limit.period_s * 1_000_000))
        refused, wait_us = await self._redis.run(ADMIT, [keys.limit(limit.key) for limit in limits], arguments)
        if not refused:
            return Decision(None, 0.0)
        return Decision(limits[int(refused) - 1].name, int(wait_us) / 1_000_000)
