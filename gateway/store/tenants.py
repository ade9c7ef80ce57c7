"""What is kept of tenants: their settings, where an operator made them; their long-lived keys, as keyed hashes."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TENANT_ID, TenantId
from gateway.core.keys import KeyKind, KeyRecord
from gateway.store.redis import ALL, Argument, Keys, Redis, Script, fields, text
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

END_KEY: Final = Script("end_key")
PUT_TENANT: Final = Script("put_tenant")
REMOVE_TENANT: Final = Script("remove_tenant")
TENANTS: Final = "hg:{_sys}:tenants"
TENANTS_MAX: Final = 10_000  # every worker holds them all in memory, some KiB each
KEPT_S: Final = 30 * 86_400  # a key that has ended is listed this long


class RedisTenants:
    """TenantStore over one hash from a tenant's id to its document."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, tenant: TenantId, document: bytes) -> bool:
        reply = await self._redis.run(PUT_TENANT, (TENANTS,), (tenant, document, TENANTS_MAX, ALL))
        if reply is None:
            raise GatewayError(Code.INVALID_VALUE, f"{TENANTS_MAX} tenants are in the store already; delete one.")
        return bool(reply)

    async def remove(self, tenant: TenantId) -> bool:
        return bool(await self._redis.run(REMOVE_TENANT, (TENANTS,), (tenant, ALL)))

    async def load(self) -> dict[TenantId, bytes]:
        found: dict[TenantId, bytes] = {}
        for raw, document in (await self._redis.call("HGETALL", TENANTS) or {}).items():
            name = raw.decode(errors="replace")
            if TENANT_ID.fullmatch(name):
                found[TenantId(name)] = document
            else:  # written by nobody of ours
                throttled(logger, "tenant.misunderstood", tenant=name[:64])
        return found


class RedisKeys:
    """KeyStore over hashes ``key:<id>`` and the set ``keys`` of a tenant's key ids."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, record: KeyRecord) -> None:
        keys = Keys(record.tenant)
        key = keys.api_key(record.id)
        values: list[Argument] = ["kind", record.kind, "label", record.label, "digest", record.digest]
        values += ["created_at", record.created_at, "ending", record.ending]
        if record.expires_at_s is not None:
            values += ["expires_at", record.expires_at_s]
        await self._redis.call("HSET", key, *values)
        if record.expires_at_s is not None:
            await self._redis.call("EXPIREAT", key, int(record.expires_at_s) + KEPT_S)
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
            ending=values.get("ending", b"").decode(),
            expires_at_s=_seconds(values.get("expires_at")),
            revoked_at_s=_seconds(values.get("revoked_at")),
        )

    async def list(self, tenant: TenantId) -> list[KeyRecord]:
        keys = Keys(tenant)
        ids = sorted(text(member) or "" for member in await self._redis.call("SMEMBERS", keys.api_keys()))
        found = await asyncio.gather(*(self.find(tenant, key_id) for key_id in ids))
        if forgotten := [key_id for key_id, record in zip(ids, found, strict=True) if record is None]:
            await self._redis.call("SREM", keys.api_keys(), *forgotten)
        return [record for record in found if record is not None]

    async def expire(self, tenant: TenantId, key_id: str, at_s: float) -> bool:
        return await self._end(tenant, key_id, "expires_at", at_s)

    async def revoke(self, tenant: TenantId, key_id: str, at_s: float) -> bool:
        return await self._end(tenant, key_id, "revoked_at", at_s)

    async def remove(self, tenant: TenantId, key_id: str) -> None:
        keys = Keys(tenant)
        await self._redis.call("DEL", keys.api_key(key_id))
        await self._redis.call("SREM", keys.api_keys(), key_id)

    async def _end(self, tenant: TenantId, key_id: str, field: str, at_s: float) -> bool:
        arguments = (field, at_s, int(at_s) + KEPT_S)
        return bool(await self._redis.run(END_KEY, (Keys(tenant).api_key(key_id),), arguments))


def _seconds(value: bytes | None) -> float | None:
    return float(value) if value is not None else None
