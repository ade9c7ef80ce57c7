"""Real servers for the contract tests: the same tests run against Valkey and against Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.core.identity import TenantId
from gateway.store.embedded import EmbeddedValkey, Server, find_servers
from gateway.store.redis import Redis
from tests.store.log_bench import Bench

OpenRedis = Callable[..., Redis]
MakeBench = Callable[..., Bench]


def server_of(product: str) -> Server:
    """Find a server of a product, or skip."""
    for server in find_servers():
        if server.product == product:
            return server
    pytest.skip(f"no {product} server on this machine")


@pytest.fixture(scope="session", params=["valkey", "redis"])
def any_store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of each product; at the end every key that the tests wrote must bear a tenant's name."""
    loop = asyncio.new_event_loop()
    store = EmbeddedValkey(tmp_path_factory.mktemp(request.param), servers=[server_of(request.param)])
    loop.run_until_complete(store.open())
    try:
        yield store.url
        with redis.Redis.from_url(store.url) as client:
            strangers = [key for key in client.scan_iter(count=1000) if not key.startswith(b"hg:{")]
        assert strangers == []
    finally:
        loop.run_until_complete(store.aclose())
        loop.close()


@pytest.fixture
async def open_redis(any_store_url: str) -> AsyncIterator[OpenRedis]:
    """Open clients of the server, closed after the test."""
    async with AsyncExitStack() as stack:

        def open_one(url: str = any_store_url, **options: Any) -> Redis:
            client = Redis(url, **({"timeout_s": 2.0, "connections": 4} | options))
            stack.push_async_callback(client.aclose)
            return client

        yield open_one


@pytest.fixture
async def store(open_redis: OpenRedis) -> Redis:
    """A client of the server."""
    return open_redis()


@pytest.fixture
def tenant() -> TenantId:
    """A tenant that no other test shares."""
    return TenantId(f"t-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def make_bench(store: Redis, tenant: TenantId) -> MakeBench:
    """Make benches of the tenant; the conversation is not cached yet."""

    def make(**options: float) -> Bench:
        return Bench(store, tenant, **options)

    return make


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    """A bench with its conversation cached."""
    bench = make_bench()
    await bench.cache()
    return bench


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[EmbeddedValkey]]]:
    """Start servers that belong to one test, to be killed, paused or restarted by it."""
    async with AsyncExitStack() as stack:

        async def start() -> EmbeddedValkey:
            server = EmbeddedValkey(tmp_path / uuid.uuid4().hex[:6])
            await server.open()
            stack.push_async_callback(server.aclose)
            return server

        yield start
