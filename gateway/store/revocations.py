"""Revocations in Redis: one sorted set of all that are in force, and one channel that every worker hears."""

from __future__ import annotations

import logging
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.revocation import NEVER, Revocation, Revoked
from gateway.store.redis import ALL, Redis, Script, text
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

REVOKE: Final = Script("revoke")
LIFT: Final = Script("lift")
REVOKED: Final = "hg:{_sys}:revoked"
IN_FORCE_MAX: Final = 50_000  # every worker holds them all in memory, about 0.5 KiB each


class RedisRevocations:
    """RevocationStore over members ``<what>|<at>|<tenant>|<id>``, scored by when they may be forgotten."""

    def __init__(self, redis: Redis, *, life_s: float) -> None:
        """``life_s``: how long a revocation matters, which is how long the longest token lives."""
        self._redis = redis
        self._life_s = life_s

    async def revoke(self, what: Revoked, tenant: TenantId, id_: str) -> Revocation:
        life_s = -1 if what is Revoked.TENANT else self._life_s
        reply = await self._redis.run(REVOKE, (REVOKED,), (what, tenant, id_, life_s, IN_FORCE_MAX, ALL))
        if not reply:
            raise GatewayError(
                Code.INVALID_VALUE, f"{IN_FORCE_MAX} revocations are in force already; revoke a key or the tenant."
            )
        return Revocation(what, tenant, id_, float(reply[0]), float(reply[1]))

    async def lift(self, tenant: TenantId) -> bool:
        return bool(await self._redis.run(LIFT, (REVOKED,), (tenant, ALL)))

    async def keep(self, revocation: Revocation) -> None:
        what, tenant, id_, at_s, until_s = revocation
        score = "inf" if until_s == NEVER else until_s
        await self._redis.call("ZADD", REVOKED, score, f"{what}|{at_s:.6f}|{tenant}|{id_}")

    async def load(self) -> list[Revocation]:
        reply = await self._redis.call("ZRANGEBYSCORE", REVOKED, "-inf", "inf", "WITHSCORES")
        pairs = [(entry[0], entry[1]) if isinstance(entry, list | tuple) else entry for entry in reply]
        found: list[Revocation] = []
        for member, until_s in pairs:
            try:
                what, at_s, tenant, id_ = (text(member) or "").split("|", 3)
                found.append(Revocation(Revoked(what), TenantId(tenant), id_, float(at_s), float(until_s)))
            except ValueError as error:  # another version's
                throttled(logger, "revocation.misunderstood", error=error)
        return found
