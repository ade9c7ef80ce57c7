"""The contract of the key store: records under their tenant, found by id, gone when removed."""

from __future__ import annotations

import pytest

from gateway.core.identity import KeyKind, KeyRecord, TenantId
from gateway.store.redis import Keys, Redis
from gateway.store.tenants import RedisKeys


def record(tenant: TenantId, key_id: str = "k1234567", kind: KeyKind = KeyKind.SECRET) -> KeyRecord:
    return KeyRecord(
        id=key_id, tenant=tenant, kind=kind, label="tests", digest="ab" * 32, created_at="2026-01-01T00:00:00Z"
    )


@pytest.fixture
def keys(store: Redis) -> RedisKeys:
    return RedisKeys(store)


@pytest.mark.parametrize("kind", KeyKind)
async def test_key_added_is_found_and_listed(keys: RedisKeys, tenant: TenantId, kind: KeyKind) -> None:
    """A key's record comes back as it was."""
    added = record(tenant, kind=kind)
    await keys.add(added)
    assert await keys.find(tenant, added.id) == added
    assert await keys.list(tenant) == [added]


async def test_key_of_another_tenant_is_not_found(keys: RedisKeys, tenant: TenantId) -> None:
    """A key's id opens nothing in another tenant's name."""
    await keys.add(record(tenant))
    stranger = TenantId(f"{tenant}-2")
    assert await keys.find(stranger, "k1234567") is None
    assert await keys.list(stranger) == []


async def test_key_removed_is_gone(keys: RedisKeys, tenant: TenantId) -> None:
    """A removed key is neither found nor listed, the others stay; removing it again is no error."""
    await keys.add(record(tenant))
    kept = record(tenant, "k7654321")
    await keys.add(kept)
    for _ in range(2):
        await keys.remove(tenant, "k1234567")
    assert await keys.find(tenant, "k1234567") is None
    assert await keys.list(tenant) == [kept]


async def test_key_does_not_expire(keys: RedisKeys, store: Redis, tenant: TenantId) -> None:
    """A long-lived key lives until it is removed."""
    await keys.add(record(tenant))
    assert await store.call("TTL", Keys(tenant).api_key("k1234567")) == -1
    assert await store.call("TTL", Keys(tenant).api_keys()) == -1
