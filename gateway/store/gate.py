"""The gates of the vendor keys in Redis, on Redis's clock: who passes, who waits, and the words to the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.core.gate import (
    FORGOTTEN,
    GRANTS_MAX,
    HOUR_US,
    LEASE_US,
    MINUTE_US,
    PROBE_LOOK_US,
    SHARE_US,
    Answer,
    Asker,
    Departure,
    Left,
    Outcome,
    Place,
    Served,
    State,
)
from gateway.core.identity import WorkerId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.store.redis import ALL, INBOX, Argument, Redis, Script, text

ENTER: Final = Script("gate_enter", with_=("gate",))
SERVE: Final = Script("gate_serve", with_=("gate",))
LEAVE: Final = Script("gate_leave", with_=("gate",))
LEFT: Final = Script("gate_left", with_=("gate",))
TELL: Final = Script("gate_tell", with_=("gate",))


def key_of_gate(label: KeyLabel) -> str:
    """Return the key that all others of a gate begin with; its tag is reserved for the vendor key."""
    return f"hg:{{_vendor.{label}}}:gate"


class RedisGate:
    """Gate over a few keys a vendor key (see ``scripts/gate.lua``), all with a time to live."""

    def __init__(
        self,
        redis: Redis,
        worker: WorkerId,
        limit_of: Callable[[KeyLabel], PlanLimit],
        *,
        queue_max: int,
        lease_us: int = LEASE_US,
        minute_us: int = MINUTE_US,
        hour_us: int = HOUR_US,
    ) -> None:
        self._redis = redis
        self._worker = worker
        self._limit_of = limit_of
        self._queue_max = queue_max
        self._lease_us = lease_us
        self._minute_us = minute_us
        self._hour_us = hour_us

    async def enter(self, label: KeyLabel, asker: Asker) -> Answer:
        id_, tenant, weight, wait_max_us = asker
        outcome, wait_us, position, probe, state, _ = await self._run(
            ENTER, label, id_, self._worker, tenant, weight, wait_max_us, self._queue_max, SHARE_US
        )
        return Answer(Outcome(text(outcome) or ""), wait_us, position, probe == 1, State(text(state) or ""))

    async def serve(self, label: KeyLabel, ids: Sequence[str], *, places: bool) -> Served:
        next_us, state, _, *found = await self._run(SERVE, label, self._worker, int(places), *ids)
        stands = zip(found[::3], found[1::3], found[2::3], strict=True)
        return Served(
            next_us,
            State(text(state) or ""),
            tuple(Place(what >= 1, what == 2, FORGOTTEN if what < 0 else at, wait_us) for what, at, wait_us in stands),
        )

    async def leave(self, label: KeyLabel, id_: str, *, unsent: bool) -> Departure:
        departure, _ = await self._run(LEAVE, label, id_, int(unsent))
        return Departure(text(departure) or "")

    async def left(self, label: KeyLabel) -> Left:
        per_hour, per_min, _ = await self._run(LEFT, label)
        return Left(None if per_hour < 0 else per_hour, None if per_min < 0 else per_min)

    async def hold(self, label: KeyLabel, wait_us: int) -> None:
        await self._run(TELL, label, ALL, "hold", wait_us)

    async def trip(self, label: KeyLabel, rest_us: int) -> None:
        await self._run(TELL, label, ALL, "trip", rest_us)

    async def judge(self, label: KeyLabel, id_: str, *, alive: bool, rest_max_us: int) -> None:
        await self._run(TELL, label, ALL, "alive" if alive else "dead", rest_max_us, id_)

    async def _run(self, script: Script, label: KeyLabel, *own: Argument) -> Any:
        limit = self._limit_of(label)
        rules = (limit.per_hour or 0, self._hour_us, limit.per_min or 0, self._minute_us)
        shared = (INBOX, label, self._lease_us, *rules)
        return await self._redis.run(script, (key_of_gate(label),), (*shared, GRANTS_MAX, PROBE_LOOK_US, *own))
