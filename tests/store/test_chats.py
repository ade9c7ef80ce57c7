"""Where chats are held: moved in one step, remembered from their last use on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from gateway.core.chats import Chat
from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId
from gateway.core.threads import Said
from gateway.store.chats import RedisChats
from gateway.store.redis import Keys, Redis


def chat(*said: Said) -> Chat:
    return Chat(ConversationId(str(uuid.uuid4())), "default", list(said))


@pytest.fixture
async def redis(store_url: str) -> AsyncIterator[Redis]:
    redis = Redis(store_url, timeout_s=2.0, connections=4)
    yield redis
    await redis.aclose()


@pytest.fixture
def chats(redis: Redis) -> RedisChats:
    return RedisChats(redis, ttl_s=60)


@pytest.fixture
def tenant() -> TenantId:
    return TenantId(f"t-{uuid.uuid4().hex[:12]}")


async def test_of_a_hundred_that_open_a_chat_one_does(chats: RedisChats, tenant: TenantId) -> None:
    """All are told of the same conversation, and so is whoever asks later."""
    told = await asyncio.gather(*(chats.put(tenant, "d", chat(), instead_of=None) for _ in range(100)))
    assert len({one.conversation_id for one in told}) == 1
    assert await chats.find(tenant, "d") == told[0]


async def test_chat_is_moved_from_where_it_was_seen_only(chats: RedisChats, tenant: TenantId) -> None:
    """Who saw it elsewhere moves nothing, and is told where it is; what was stated goes along."""
    first, second = chat(), chat(Said("user", "é\ud7ff"), Said("assistant", "b"), Said("user", "c"))
    assert await chats.put(tenant, "d", first, instead_of=None) == first
    assert await chats.put(tenant, "d", second, instead_of=None) == first
    assert await chats.put(tenant, "d", second, instead_of=chat()) == first
    assert await chats.put(tenant, "d", second, instead_of=first) == second
    assert await chats.put(tenant, "d", chat(), instead_of=first) == second
    assert await chats.find(tenant, "d") == second


async def test_chat_that_ended_meanwhile_is_not_moved(chats: RedisChats, tenant: TenantId) -> None:
    """One that was forgotten between two steps is told as it was seen, not written anew."""
    seen = chat()
    assert await chats.put(tenant, "d", chat(), instead_of=seen) == seen
    assert await chats.find(tenant, "d") is None


async def test_chat_is_remembered_from_its_last_use(chats: RedisChats, redis: Redis, tenant: TenantId) -> None:
    """A chat that is asked for lives on; a tenant's are its own."""
    await chats.put(tenant, "d", chat(), instead_of=None)
    key = Keys(tenant).chat("d")
    await redis.call("EXPIRE", key, 5)
    await chats.find(tenant, "d")
    assert await redis.call("TTL", key) > 50
    assert await chats.find(TenantId(f"{tenant}-b"), "d") is None
