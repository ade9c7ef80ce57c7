"""Threads in the store: what may be gone on from is used up once, by whatever way it is found."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId
from gateway.core.threads import Taken, Tip
from gateway.core.turn import TurnId
from gateway.store.redis import Redis
from gateway.store.threads import ALIKE_MAX, RedisThreads

NOTHING = Taken(None, False)


def tip() -> Tip:
    return Tip(ConversationId(str(uuid.uuid4())), TurnId(str(uuid.uuid4())), str(uuid.uuid4()))


@pytest.fixture
async def redis(store_url: str) -> AsyncIterator[Redis]:
    redis = Redis(store_url, timeout_s=2.0, connections=4)
    yield redis
    await redis.aclose()


@pytest.fixture
def threads(redis: Redis) -> RedisThreads:
    return RedisThreads(redis, ttl_s=60, key_ttl_s=30)


@pytest.fixture
def tenant() -> TenantId:
    return TenantId(f"t-{uuid.uuid4().hex[:12]}")


async def test_simultaneous_takings_of_one_tip_give_it_to_one(threads: RedisThreads, tenant: TenantId) -> None:
    """Of a hundred at once, by its digest and by its turn, exactly one has it."""
    one = tip()
    await threads.put(tenant, "d", one)
    ways = [threads.take(tenant, "d", None) if way % 2 else threads.use(tenant, one, None) for way in range(100)]
    taken = await asyncio.gather(*ways)
    assert [found.tip for found in taken if found.tip is not None] == [one]


async def test_tip_put_twice_is_used_up_once(threads: RedisThreads, tenant: TenantId) -> None:
    """Two readers of one answer both tell of it; the mark, not the list, says whether it is free."""
    one = tip()
    await asyncio.gather(*(threads.put(tenant, "d", one) for _ in range(3)))
    assert (await threads.take(tenant, "d", None)).tip == one
    assert await threads.take(tenant, "d", None) == NOTHING
    await threads.put(tenant, "d", one)
    assert await threads.take(tenant, "d", None) == NOTHING


async def test_tips_of_one_digest_are_taken_the_last_first_and_bounded(threads: RedisThreads, tenant: TenantId) -> None:
    """Equal lists have a tip each, up to a number that no user reaches by chatting."""
    put = [tip() for _ in range(ALIKE_MAX + 4)]
    for one in put:
        await threads.put(tenant, "d", one)
    taken = [(await threads.take(tenant, "d", None)).tip for _ in put]
    assert taken == [*reversed(put[4:]), *[None] * 4]


async def test_tip_that_is_given_back_may_be_taken_again(threads: RedisThreads, tenant: TenantId) -> None:
    """By whichever way it was taken; its key is free then, too."""
    one = tip()
    await threads.put(tenant, "d", one)
    for key in (None, "k"):
        assert (await threads.take(tenant, "d", key)).tip == one
        await threads.give_back(tenant, "d", one, key)
    assert (await threads.use(tenant, one, "k")).tip == one
    await threads.give_back(tenant, None, one, "k")
    assert await threads.use(tenant, one, "k") == Taken(one, False)


async def test_repeats_of_a_key_are_given_what_the_first_had(threads: RedisThreads, tenant: TenantId) -> None:
    """A tip, or nothing, also when there is something by then; and nothing once it was declined."""
    one, other = tip(), tip()
    await threads.put(tenant, "d", one)
    assert await threads.take(tenant, "d", "k1") == Taken(one, False)
    assert await threads.take(tenant, "d", "k2") == NOTHING
    await threads.put(tenant, "d", other)
    assert await threads.take(tenant, "d", "k1") == Taken(one, True)
    assert await threads.use(tenant, one, "k1") == Taken(one, True)
    assert await threads.take(tenant, "d", "k2") == Taken(None, True)
    await threads.decline(tenant, "k1")
    assert await threads.take(tenant, "d", "k1") == Taken(None, True)


async def test_forgotten_turn_is_remembered_as_such_and_used_up(threads: RedisThreads, tenant: TenantId) -> None:
    """Nobody goes on from it, and another turn is not forgotten with it."""
    one, other = tip(), tip()
    await threads.put(tenant, "d", one)
    await threads.forget(tenant, one.turn_id)
    assert await threads.forgotten(tenant, one.turn_id)
    assert await threads.take(tenant, "d", None) == NOTHING
    await threads.use(tenant, other, None)
    assert not await threads.forgotten(tenant, other.turn_id)


async def test_tenants_have_threads_of_their_own(threads: RedisThreads, tenant: TenantId) -> None:
    """The same digest and turn are others' in another tenant."""
    one, neighbour = tip(), TenantId(f"{tenant}-b")
    await threads.put(tenant, "d", one)
    assert await threads.take(neighbour, "d", None) == NOTHING
    assert (await threads.use(neighbour, one, None)).tip == one
    assert (await threads.take(tenant, "d", None)).tip == one


async def test_every_key_of_a_thread_has_an_end(threads: RedisThreads, redis: Redis, tenant: TenantId) -> None:
    """Nothing is kept for good: lists, marks, and what keys were given."""
    one, other = tip(), tip()
    await threads.put(tenant, "a", one)
    await threads.put(tenant, "b", other)
    await threads.take(tenant, "a", "k")
    await threads.decline(tenant, "k2")
    await threads.forget(tenant, other.turn_id)
    keys = await redis.call("KEYS", f"hg:{{{tenant}}}:*")
    assert len(keys) == 5
    for key in keys:
        assert 0 < await redis.call("TTL", key) <= 60
