"""The ledger as an exporter sees it: every tenant's stream of settlements, and the one exporter's post."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from gateway.core.identity import TENANT_ID, TenantId, WorkerId
from gateway.core.warehouse import Line, Mark, Post, Reading, turn_of
from gateway.store.redis import Keys, Redis, Script, text

EXPORT_POST: Final = Script("export_post")
POST: Final = "hg:{_sys}:ledger:exporter"
TENANTS: Final = "hg:{_sys}:ledger:tenants"


class RedisLedgerTap:
    """LedgerTap over the streams, a hash with the post, a set of tenants by when they were known."""

    def __init__(self, redis: Redis, worker: WorkerId, *, post_s: float, keep_s: float) -> None:
        """``post_s``: how long the post is held; ``keep_s``: how long settlements are kept."""
        self._redis = redis
        self._worker = worker
        self._post_ms = int(post_s * 1000)
        self._keep_s = keep_s
        self._life_ms = int((keep_s + post_s) * 2000)
        self._noted_at_s = 0.0

    async def take_post(self, *, complete_s: float | None = None) -> Post:
        complete = "" if complete_s is None else int(complete_s * 1000)
        arguments = (self._worker, self._post_ms, complete, self._life_ms)
        held, now_ms, complete_ms = await self._redis.run(EXPORT_POST, (POST,), arguments)
        return Post(bool(held), now_ms / 1000, complete_ms / 1000)

    async def leave_post(self) -> None:
        await self._redis.run(EXPORT_POST, (POST,), (self._worker, 0, "", self._life_ms))

    async def tenants(self, known: Collection[TenantId]) -> Sequence[TenantId]:
        kept = {TenantId(text(member) or "") for member in await self._redis.call("ZRANGE", TENANTS, 0, -1) or ()}
        now_s = time.time()
        note = set(known) - kept
        if now_s - self._noted_at_s > self._keep_s / 10:
            self._noted_at_s, note = now_s, set(known)
            await self._redis.call("ZREMRANGEBYSCORE", TENANTS, "-inf", now_s - 2 * self._keep_s)
        if note:
            await self._redis.call("ZADD", TENANTS, *(part for tenant in note for part in (now_s, tenant)))
            await self._redis.call("PEXPIRE", TENANTS, self._life_ms)
        return sorted(tenant for tenant in kept.union(known) if TENANT_ID.fullmatch(tenant))

    async def read(self, tenant: TenantId, after: Mark | None, limit: int) -> Reading:
        # From the mark on and not from behind it, so that the same command tells whether the stream still holds it.
        # Ids only rise while a stream lives: if it holds the mark, all that came later lies behind it.
        start, count = ("-", limit) if after is None else (after.entry, limit + 1)
        reply: list[Any] = await self._redis.call("XRANGE", Keys(tenant).settlements(), start, "+", "COUNT", count)
        lines = [Line(text(entry_id) or "", _body(pairs)) for entry_id, pairs in reply or ()]
        if after is None:
            return Reading(True, lines)
        if not lines or Mark(lines[0].entry, turn_of(lines[0].body)) != after:
            return Reading(False, ())
        return Reading(True, lines[1:])


def _body(pairs: Any) -> bytes:
    values = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
    body: bytes = values.get(b"s", b"")
    return body
