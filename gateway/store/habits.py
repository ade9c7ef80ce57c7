"""What workers have learned of the vendor, for all of them."""

from __future__ import annotations

from typing import Final

from gateway.store.redis import Redis

KEY: Final = "hg:{_vendor.default}:finishes"
LIFE_S: Final = 30 * 86_400  # then it is learned anew: a vendor may change


class RedisHabits:
    """Habits in one key of the vendor's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def finishes(self) -> bool:
        return bool(await self._redis.call("EXISTS", KEY))

    async def saw_finish(self) -> None:
        await self._redis.call("SET", KEY, 1, "EX", LIFE_S)
