"""The contracts of what is kept of tenants: documents told to all workers; keys under their tenant, found by id."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import msgspec
import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind, KeyRecord
from gateway.store import tenants as tenants_module
from gateway.store.redis import ALL, Keys, Redis
from gateway.store.tenants import KEPT_S, TENANTS, RedisKeys, RedisTenants


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


@pytest.fixture
async def documents(store: Redis) -> RedisTenants:
    await store.call("DEL", TENANTS)
    return RedisTenants(store)


async def test_document_put_comes_back_until_it_is_removed(documents: RedisTenants, tenant: TenantId) -> None:
    """A tenant's document is kept as it is, whatever its bytes; putting and removing say whether there was one."""
    assert await documents.put(tenant, b"\x00\xff")
    assert not await documents.put(tenant, b"{}")
    assert await documents.load() == {tenant: b"{}"}
    assert await documents.remove(tenant)
    assert not await documents.remove(tenant)
    assert await documents.load() == {}


async def test_change_of_documents_is_told_on_the_channel_of_all_workers(
    documents: RedisTenants, store: Redis, tenant: TenantId
) -> None:
    """Whoever listens hears of it in the step that makes it."""
    pubsub = store.pubsub()
    await pubsub.subscribe(ALL)
    await pubsub.get_message(timeout=2.0)
    await documents.put(tenant, b"{}")
    await documents.remove(tenant)
    heard: list[list[str]] = []
    async with asyncio.timeout(5):
        while len(heard) < 2:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
            if message is not None:
                heard.append(msgspec.json.decode(message["data"]))
    await pubsub.aclose()
    assert heard == [["tenants", tenant]] * 2


async def test_documents_are_bounded(
    documents: RedisTenants, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than there may be is refused; those that are there can be put again."""
    monkeypatch.setattr(tenants_module, "TENANTS_MAX", 1)
    await documents.put(tenant, b"{}")
    with pytest.raises(GatewayError) as refused:
        await documents.put(TenantId(f"{tenant}-2"), b"{}")
    assert refused.value.code is Code.INVALID_VALUE
    assert not await documents.put(tenant, b"[]")


async def test_key_that_names_no_tenant_is_passed_over(documents: RedisTenants, store: Redis, tenant: TenantId) -> None:
    """What a stranger wrote into the hash hides no tenant."""
    await documents.put(tenant, b"{}")
    for name in (b"\xff", b"", b"UPPER", b"a:b"):
        await store.call("HSET", TENANTS, name, b"{}")
    assert await documents.load() == {tenant: b"{}"}
    await store.call("DEL", TENANTS)
