"""A stage for every test of this room: one worker's services on the shared store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.core.identity import Tenant
from gateway.store.redis import Redis
from tests.services.access import CountedKeys, tenant_named
from tests.services.stage import Stage

SetStage = Callable[..., Stage]


@pytest.fixture
async def set_stage(store_url: str) -> AsyncIterator[SetStage]:
    """Set stages, each with a tenant of its own unless told; all are cleared after the test."""
    async with AsyncExitStack() as stack:

        def set_one(url: str = store_url, **options: Any) -> Stage:
            stage = Stage(url, **options)
            stack.push_async_callback(stage.aclose)
            return stage

        yield set_one


@pytest.fixture
async def stage(set_stage: SetStage) -> Stage:
    """One worker."""
    return set_stage()


@pytest.fixture
async def keys(store_url: str) -> AsyncIterator[CountedKeys]:
    """The key store, counting."""
    store = Redis(store_url, timeout_s=2.0, connections=2)
    yield CountedKeys(store)
    await store.aclose()


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> Tenant:
    """A tenant of the test's own."""
    return tenant_named(f"t-{abs(hash(request.node.nodeid)) % 10**10}")
