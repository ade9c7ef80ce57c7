"""Tenants' long-lived keys: kept as keyed hashes, listed under their tenant, replaced by label."""

from __future__ import annotations

from gateway.core.identity import KeyKind, KeyRecord, TenantId
from gateway.store.redis import Keys, Redis, fields, text


class RedisKeys:
    """KeyStore over hashes ``key:<id>`` and the set ``keys`` of a tenant's key ids."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, record: KeyRecord) -> None:
        keys = Keys(record.tenant)
        await self._redis.call(
            "HSET",
            keys.api_key(record.id),
            *("kind", record.kind, "label", record.label, "digest", record.digest, "created_at", record.created_at),
        )
        await self._redis.call("SADD", keys.api_keys(), record.id)

    async def find(self, tenant: TenantId, key_id: str) -> KeyRecord | None:
        values = fields(await self._redis.call("HGETALL", Keys(tenant).api_key(key_id)))
        if not values:
            return None
        return KeyRecord(
            id=key_id,
            tenant=tenant,
            kind=KeyKind(values["kind"].decode()),
            label=values["label"].decode(),
            digest=values["digest"].decode(),
            created_at=values["created_at"].decode(),
        )

    async def list(self, tenant: TenantId) -> list[KeyRecord]:
        ids = sorted(text(member) or "" for member in await self._redis.call("SMEMBERS", Keys(tenant).api_keys()))
        found = [await self.find(tenant, key_id) for key_id in ids]
        return [record for record in found if record is not None]

    async def remove(self, tenant: TenantId, key_id: str) -> None:
        keys = Keys(tenant)
        await self._redis.call("DEL", keys.api_key(key_id))
        await self._redis.call("SREM", keys.api_keys(), key_id)
