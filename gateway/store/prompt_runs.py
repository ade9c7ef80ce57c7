"""Who made which prompt run: a key each, which lives as long as a conversation does after its last use."""

from __future__ import annotations

from gateway.core.identity import TenantId, UserHash
from gateway.core.operations import RunId, RunRecord
from gateway.store.redis import Keys, Redis, text


class RedisPromptRuns:
    """PromptRunStore over strings ``run:<id>``, each an owner and an alias."""

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_s = int(ttl_s)

    async def put(self, tenant: TenantId, run_id: RunId, record: RunRecord) -> None:
        value = f"{record.owner} {record.alias}"
        await self._redis.call("SET", Keys(tenant).prompt_run(run_id), value, "EX", self._ttl_s)

    async def find(self, tenant: TenantId, run_id: RunId) -> RunRecord | None:
        value = text(await self._redis.call("GET", Keys(tenant).prompt_run(run_id)))
        if value is None:
            return None
        owner, _, alias = value.partition(" ")
        return RunRecord(UserHash(owner), alias)
