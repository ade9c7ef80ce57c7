"""The contract of creations' keys: one holder at a time, results that stay, and nobody else's touched."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from gateway.core.conversation import Conversation, ConversationId
from gateway.core.idempotency import Reservation
from gateway.core.identity import TenantId, UserHash
from gateway.store.creations import RedisCreationKeys
from gateway.store.redis import Keys, Redis

OWNER = UserHash("0f" * 16)


def reservation(body_hash: str = "b") -> Reservation:
    return Reservation(OWNER, "k", body_hash, uuid.uuid4().hex)


def conversation() -> Conversation:
    return Conversation(
        ConversationId(str(uuid.uuid4())), OWNER, "default", status="Active", metadata={"a": [1, None, 1.5], "é": "😀"}
    )


@pytest.fixture
def keys(store: Redis) -> RedisCreationKeys:
    return RedisCreationKeys(store, ttl_s=500)


async def test_reserve_of_many_at_once_succeeds_once(keys: RedisCreationKeys, tenant: TenantId) -> None:
    """One of a hundred gets the key; the others see that it is being used, and for which body."""
    seen = await asyncio.gather(*(keys.reserve(tenant, reservation(), 10) for _ in range(100)))
    assert [known for known in seen if known is not None] == [("b", None)] * 99


async def test_keep_gives_every_later_reserve_the_conversation_whole(
    keys: RedisCreationKeys, store: Redis, tenant: TenantId
) -> None:
    """A result takes the reservation's place for its own time, and writing it again changes nothing."""
    mine, made = reservation(), conversation()
    await keys.reserve(tenant, mine, 10)
    for _ in range(2):
        await keys.keep(tenant, mine, made)
    assert await keys.reserve(tenant, reservation("other"), 10) == ("b", made)
    assert 490 < await store.call("TTL", Keys(tenant).creation(OWNER, "k")) <= 500


async def test_keep_after_the_reservation_ran_out_is_written_unless_another_has_the_key(
    keys: RedisCreationKeys, store: Redis, tenant: TenantId
) -> None:
    """A late result is better than none, but it never takes the place of another's reservation or result."""
    late, made = reservation(), conversation()
    await keys.reserve(tenant, late, 0.001)
    while await store.call("EXISTS", Keys(tenant).creation(OWNER, "k")):
        await asyncio.sleep(0.002)
    await keys.keep(tenant, late, made)
    assert await keys.reserve(tenant, reservation(), 10) == ("b", made)
    await store.call("DEL", Keys(tenant).creation(OWNER, "k"))
    taker, theirs = reservation("theirs"), conversation()
    assert await keys.reserve(tenant, taker, 10) is None
    await keys.keep(tenant, late, made)
    assert await keys.reserve(tenant, reservation(), 10) == ("theirs", None)
    await keys.keep(tenant, taker, theirs)
    await keys.keep(tenant, late, made)
    assert await keys.reserve(tenant, reservation(), 10) == ("theirs", theirs)


async def test_free_gives_up_ones_own_reservation_only(keys: RedisCreationKeys, tenant: TenantId) -> None:
    """A key that another request holds, or that has led somewhere, is not freed by a third."""
    mine, made = reservation(), conversation()
    await keys.reserve(tenant, mine, 10)
    await keys.free(tenant, reservation())
    assert await keys.reserve(tenant, reservation(), 10) == ("b", None)
    await keys.free(tenant, mine)
    assert await keys.reserve(tenant, mine, 10) is None
    await keys.keep(tenant, mine, made)
    await keys.free(tenant, mine)
    assert await keys.reserve(tenant, reservation(), 10) == ("b", made)


async def test_reserve_of_another_owner_tenant_or_key_is_another(keys: RedisCreationKeys, tenant: TenantId) -> None:
    """A key is one user's of one tenant."""
    for who, held in (
        (tenant, Reservation(OWNER, "k", "b", "t")),
        (tenant, Reservation(UserHash("1f" * 16), "k", "b", "t")),
        (tenant, Reservation(OWNER, "K", "b", "t")),
        (TenantId(f"{tenant}-2"), Reservation(OWNER, "k", "b", "t")),
    ):
        assert await keys.reserve(who, held, 10) is None
