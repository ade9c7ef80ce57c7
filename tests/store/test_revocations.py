"""The contract of the store of revocations: kept for as long as they matter, told to all workers at once."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.revocation import NEVER, Revoked
from gateway.store import revocations as revocations_module
from gateway.store.redis import ALL, Redis
from gateway.store.revocations import REVOKED, RedisRevocations


@pytest.fixture
async def revocations(store: Redis) -> RedisRevocations:
    await store.call("DEL", REVOKED)
    return RedisRevocations(store, life_s=100.0)


@pytest.mark.parametrize("what", Revoked)
async def test_revocation_is_kept_as_of_now(revocations: RedisRevocations, tenant: TenantId, what: Revoked) -> None:
    """A revocation comes back as it was, by the server's clock; a tenant's has no end."""
    before_s = time.time()
    id_ = "" if what is Revoked.TENANT else "an|id|with|bars"
    revocation = await revocations.revoke(what, tenant, id_)
    assert before_s - 0.01 <= revocation.at_s <= time.time() + 0.01
    assert revocation.until_s == (NEVER if what is Revoked.TENANT else pytest.approx(before_s + 100, abs=2))
    assert await revocations.load() == [revocation]


async def test_revocation_is_told_on_the_channel_of_all_workers(
    revocations: RedisRevocations, store: Redis, tenant: TenantId
) -> None:
    """Whoever listens hears of it in the step that keeps it, and of a tenant that is let in again."""
    pubsub = store.pubsub()
    await pubsub.subscribe(ALL)
    await pubsub.get_message(timeout=2.0)
    revocation = await revocations.revoke(Revoked.TOKEN, tenant, "token-1")
    await revocations.lift(tenant)
    heard: list[list[str]] = []
    async with asyncio.timeout(5):
        while len(heard) < 2:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
            if message is not None:
                heard.append(msgspec.json.decode(message["data"]))
    await pubsub.aclose()
    assert heard[0][:4] == ["revoked", "token", tenant, "token-1"]
    assert [float(at) for at in heard[0][4:]] == [revocation.at_s, revocation.until_s]
    assert heard[1] == ["lifted", tenant]


async def test_revocation_whose_time_is_over_is_forgotten(store: Redis, tenant: TenantId) -> None:
    """What no token can outlive is not kept: the next revocation sweeps it out."""
    await store.call("DEL", REVOKED)
    short = RedisRevocations(store, life_s=0.05)
    await short.revoke(Revoked.TOKEN, tenant, "token-1")
    await asyncio.sleep(0.1)
    second = await short.revoke(Revoked.TOKEN, tenant, "token-2")
    assert await short.load() == [second]


async def test_revocation_of_a_tenant_is_lifted_alone(revocations: RedisRevocations, tenant: TenantId) -> None:
    """Letting a tenant in lifts every revocation of it, of no other, and nothing of its users."""
    other = TenantId(f"{tenant}-2")
    for name in (tenant, tenant, other):
        await revocations.revoke(Revoked.TENANT, name, "")
        await asyncio.sleep(0.002)
    user = await revocations.revoke(Revoked.USER, tenant, "hash")
    assert await revocations.lift(tenant)
    assert not await revocations.lift(tenant)
    left = await revocations.load()
    assert user in left
    assert {(revocation.what, revocation.tenant) for revocation in left} == {
        (Revoked.USER, tenant),
        (Revoked.TENANT, other),
    }


async def test_revocation_kept_again_is_the_same(revocations: RedisRevocations, store: Redis, tenant: TenantId) -> None:
    """A worker that writes what the store has lost restores it exactly, however often."""
    made = [await revocations.revoke(what, tenant, "x") for what in (Revoked.USER, Revoked.KEY)]
    await store.call("DEL", REVOKED)
    for revocation in [*made, *made]:
        await revocations.keep(revocation)
    assert sorted(await revocations.load()) == sorted(made)


async def test_revocations_are_bounded(
    revocations: RedisRevocations, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers hold all of them in memory, so there is a greatest number, and its refusal says what to do instead."""
    monkeypatch.setattr(revocations_module, "IN_FORCE_MAX", 2)
    for number in range(2):
        await revocations.revoke(Revoked.TOKEN, tenant, str(number))
    with pytest.raises(GatewayError) as refused:
        await revocations.revoke(Revoked.TOKEN, tenant, "3")
    assert refused.value.code is Code.INVALID_VALUE
    assert "tenant" in refused.value.detail
    assert len(await revocations.load()) == 2
