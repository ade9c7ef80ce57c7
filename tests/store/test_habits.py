"""What one worker has learned of the vendor, every worker knows."""

from __future__ import annotations

from gateway.store.habits import KEY, LIFE_S, RedisHabits
from gateway.store.redis import Redis
from tests.store.conftest import OpenRedis


async def test_habits_learned_by_one_worker_are_known_to_all(store: Redis, open_redis: OpenRedis) -> None:
    """Nothing is believed until it was seen, and then on every worker, for as long as it is kept."""
    await store.call("DEL", KEY)
    learning, other = RedisHabits(store), RedisHabits(open_redis())
    assert not await other.finishes()
    for _ in range(2):
        await learning.saw_finish()
        assert await other.finishes()
    assert LIFE_S - 60 < await store.call("TTL", KEY) <= LIFE_S
