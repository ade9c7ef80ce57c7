"""The contract of the limiter: several limits in one step, all charged or none, on the store's clock."""

from __future__ import annotations

import asyncio
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.identity import TenantId
from gateway.core.limits import Decision, Limit, gcra
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Keys, Redis
from tests.store.conftest import OpenRedis

HOUR_S = 3600.0


def limit(name: str, count: int, period_s: float = HOUR_S) -> Limit:
    return Limit(name, f"turn:{name}", count, period_s)


async def test_admit_of_a_hundred_at_once_gives_exactly_the_limit(open_redis: OpenRedis, tenant: TenantId) -> None:
    """100 concurrent takes of a limit of 5, over four workers, give exactly 5."""
    workers = [RedisLimiter(open_redis()) for _ in range(4)]
    decisions = await asyncio.gather(*(workers[turn % 4].admit(tenant, [limit("user", 5)]) for turn in range(100)))
    assert sum(decision.limit is None for decision in decisions) == 5
    assert {decision.limit for decision in decisions} == {None, "user"}


async def test_admit_refused_names_the_limit_and_the_wait(store: Redis, tenant: TenantId) -> None:
    """A refusal says which limit it was and how long until it admits; an admission has no wait."""
    limiter = RedisLimiter(store)
    limits = [limit("tenant", 100), limit("user", 2, 60.0)]
    assert [await limiter.admit(tenant, limits) for _ in range(2)] == [Decision(None, 0.0)] * 2
    refused = await limiter.admit(tenant, limits)
    assert refused.limit == "user"
    assert 29.0 < refused.retry_after_s <= 30.0


async def test_admit_refused_charges_none(store: Redis, tenant: TenantId) -> None:
    """What one limit refuses, no other is charged for: the tenant's count is where it was."""
    limiter = RedisLimiter(store)
    assert (await limiter.admit(tenant, [limit("user", 1)])).limit is None
    for _ in range(20):
        assert (await limiter.admit(tenant, [limit("tenant", 3), limit("user", 1)])).limit == "user"
    assert await store.call("EXISTS", Keys(tenant).limit("turn:tenant")) == 0
    taken = [await limiter.admit(tenant, [limit("tenant", 3)]) for _ in range(4)]
    assert [decision.limit for decision in taken] == [None, None, None, "tenant"]


async def test_admit_refused_by_several_tells_the_longest_wait(store: Redis, tenant: TenantId) -> None:
    """Who waits as long as told is not refused again by the other limit."""
    limiter = RedisLimiter(store)
    both = [limit("tenant", 1, 60.0), limit("user", 1, HOUR_S)]
    assert (await limiter.admit(tenant, both)).limit is None
    assert (await limiter.admit(tenant, both)).limit == "user"
    assert (await limiter.admit(tenant, list(reversed(both)))).limit == "user"


async def test_admit_after_the_wait_admits_again(store: Redis, tenant: TenantId) -> None:
    """A used-up limit lets one through when its interval has passed, and the key is gone when it is full again."""
    limiter = RedisLimiter(store)
    small = [limit("user", 2, 0.2)]
    for _ in range(2):
        await limiter.admit(tenant, small)
    refused = await limiter.admit(tenant, small)
    assert refused.limit == "user"
    async with asyncio.timeout(2):
        while (await limiter.admit(tenant, small)).limit is not None:
            await asyncio.sleep(refused.retry_after_s / 4)
        while await store.call("EXISTS", Keys(tenant).limit("turn:user")):
            await asyncio.sleep(0.02)


async def test_admit_of_tenants_do_not_meet(store: Redis, tenant: TenantId) -> None:
    """One tenant's users use up nothing of another's."""
    limiter = RedisLimiter(store)
    other = TenantId(f"{tenant}-2")
    await limiter.admit(tenant, [limit("user", 1)])
    assert (await limiter.admit(other, [limit("user", 1)])).limit is None


async def test_admit_key_lives_no_longer_than_its_period(store: Redis, tenant: TenantId) -> None:
    """What a limit remembers goes by itself once it says nothing more."""
    await RedisLimiter(store).admit(tenant, [limit("user", 10, 60.0)])
    assert 0 < await store.call("PTTL", Keys(tenant).limit("turn:user")) <= 6002


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 13), min_size=1, max_size=3), st.integers(1, 40))
def test_admit_agrees_with_the_rule_of_the_core(any_store_url: str, counts: list[int], takes: int) -> None:
    """For a burst (periods so long that the clocks' difference says nothing) script and rule decide alike."""

    async def decide() -> list[str | None]:
        store = Redis(any_store_url, timeout_s=2.0, connections=1)
        limiter = RedisLimiter(store)
        tenant = TenantId(f"t-{uuid.uuid4().hex[:12]}")
        limits = [limit(f"l{index}", count) for index, count in enumerate(counts)]
        decisions = await asyncio.gather(*(limiter.admit(tenant, limits) for _ in range(takes)))
        await store.aclose()
        return [decision.limit for decision in decisions]

    def model() -> list[bool]:
        tats, admitted = [0.0] * len(counts), []
        for _ in range(takes):
            tried = [gcra(tat, 1000.0, count, HOUR_S) for tat, count in zip(tats, counts, strict=True)]
            admitted.append(all(wait_s == 0 for _, wait_s in tried))
            if admitted[-1]:
                tats = [tat for tat, _ in tried]
        return admitted

    assert [decision is None for decision in asyncio.run(decide())] == model()
