"""The contract of the key store: records under their tenant, found by id, gone when removed."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind, KeyRecord
from gateway.store.redis import Keys, Redis
from gateway.store.tenants import KEPT_S, RedisKeys


def record(
    tenant: TenantId,
    key_id: str = "k1234567",
    kind: KeyKind = KeyKind.SECRET,
    expires_at_s: float | None = None,
) -> KeyRecord:
    return KeyRecord(
        id=key_id,
        tenant=tenant,
        kind=kind,
        label="tests",
        digest="ab" * 32,
        created_at="2026-01-01T00:00:00Z",
        ending="wxyz",
        expires_at_s=expires_at_s,
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


async def test_key_with_an_end_is_forgotten_some_time_after_it(keys: RedisKeys, store: Redis, tenant: TenantId) -> None:
    """A key that has ended is listed for a month, so that one sees what it was, and then its record goes."""
    ends_s = time.time() + 1000
    added = record(tenant, expires_at_s=ends_s)
    await keys.add(added)
    assert await keys.find(tenant, added.id) == added
    assert 1000 + KEPT_S - 10 < await store.call("TTL", Keys(tenant).api_key(added.id)) <= 1000 + KEPT_S


async def test_key_is_ended_at_the_earliest_time_that_was_told(keys: RedisKeys, store: Redis, tenant: TenantId) -> None:
    """An end can come nearer but not move away, nor a revocation later; an unknown key stays unknown."""
    await keys.add(record(tenant))
    now_s = time.time()
    for at_s, ends_s in ((now_s + 500, now_s + 500), (now_s + 900, now_s + 500), (now_s + 100, now_s + 100)):
        assert await keys.expire(tenant, "k1234567", at_s)
        found = await keys.find(tenant, "k1234567")
        assert found == replace(record(tenant), expires_at_s=ends_s)
    for at_s in (now_s, now_s + 60):
        assert await keys.revoke(tenant, "k1234567", at_s)
        found = await keys.find(tenant, "k1234567")
        assert found is not None
        assert found.revoked_at_s == now_s
    assert 0 < await store.call("TTL", Keys(tenant).api_key("k1234567")) <= KEPT_S
    assert not await keys.revoke(tenant, "k7654321", now_s)
    assert await store.call("EXISTS", Keys(tenant).api_key("k7654321")) == 0


async def test_key_that_was_forgotten_leaves_the_list(keys: RedisKeys, store: Redis, tenant: TenantId) -> None:
    """The list keeps no id of a record that is gone."""
    await keys.add(record(tenant))
    await store.call("DEL", Keys(tenant).api_key("k1234567"))
    assert await keys.list(tenant) == []
    assert await store.call("SCARD", Keys(tenant).api_keys()) == 0
