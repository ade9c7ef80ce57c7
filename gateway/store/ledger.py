"""The ledger in Redis: a stream of settlements a tenant, and a sorted set of turns whose tokens are looked up yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.identity import TenantId
from gateway.core.ledger import Due, Settlement
from gateway.store.redis import Keys, Redis, Script, text

DUE: Final = Script("due")
SETTLE: Final = Script("settle", with_=("charges",))
ADD: Final = Script("add_settlement", with_=("charges",))

REPEAT_S: Final = 600  # a settlement that comes again within this is known

_settlement: Final = msgspec.json.Decoder(Settlement)


class RedisLedger:
    """Ledger over the stream ``usage:settled`` (one entry a turn) and the sorted set ``usage:unsettled``.

    The entry of a turn whose tokens were reported is written by ``finish`` of the event log, in the step that ends it.
    """

    def __init__(self, redis: Redis, *, ttl_s: float, retries_s: Sequence[float]) -> None:
        """``ttl_s``: how long settlements are kept; ``retries_s``: the waits between the tries of a look-up."""
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)
        self._retries_ms = [int(wait_s * 1000) for wait_s in retries_s]

    async def due(self, tenant: TenantId, limit: int) -> list[Due]:
        keys = Keys(tenant)
        found = await self._redis.run(DUE, (keys.unsettled(),), (keys.turn(""), limit, *self._retries_ms))
        return [Due(_settlement.decode(body), bool(last)) for body, last in found]

    async def settle(self, tenant: TenantId, settlement: Settlement) -> bool:
        keys = Keys(tenant)
        turn_id = settlement.turn_id
        written = await self._redis.run(
            SETTLE,
            (keys.turn(turn_id), keys.settlements(), keys.unsettled(), keys.charge(turn_id)),
            (turn_id, msgspec.json.encode(settlement), self._ttl_ms),
        )
        return bool(written)

    async def add(self, tenant: TenantId, settlement: Settlement) -> bool:
        keys, id_ = Keys(tenant), settlement.turn_id
        written = await self._redis.run(
            ADD,
            (keys.used(id_), keys.settlements(), keys.charge(id_)),
            (id_, msgspec.json.encode(settlement), self._ttl_ms, REPEAT_S),
        )
        return bool(written)

    async def settled(self, tenant: TenantId, after: str | None, limit: int) -> list[tuple[str, Settlement]]:
        start = f"({after}" if after else "-"
        reply: list[Any] = await self._redis.call("XRANGE", Keys(tenant).settlements(), start, "+", "COUNT", limit)
        found: list[tuple[str, Settlement]] = []
        for entry_id, pairs in reply or ():
            values = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
            found.append((text(entry_id) or "", _settlement.decode(values[b"s"])))
        return found

    def cursor(self, at_s: float) -> str:
        # Entries are named by the millisecond in which they were written and a number of 64 bits: this is the last
        # that there can be of the millisecond before.
        return f"{max(0, int(at_s * 1000) - 1)}-{2**64 - 1}"
