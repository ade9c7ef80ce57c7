"""Limits decided in Redis, on Redis's clock: one script charges all limits of a request or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.identity import TenantId
from gateway.core.limits import (
    COMPLETION_UNKNOWN,
    SLOT_LEASE_US,
    SLOT_WAIT_US,
    US_PER_S,
    Ask,
    Decision,
    Quota,
    Slot,
)
from gateway.store.redis import Argument, Keys, Redis, Script

ADMIT: Final = Script("admit", with_=("charges", "limits"))
EXTEND: Final = Script("extend_charge", with_=("charges",))
UNDO: Final = Script("undo_charge", with_=("charges",))
RENEW: Final = Script("renew_slots", with_=("charges",))
SWEEP: Final = Script("sweep_charges", with_=("charges",))

RESEND_S: Final = 60.0  # a request that comes again within this gets the answer that it had
CHARGE_TTL_S: Final = 86_400.0  # a turn's charge can be corrected for so long, counted from its admission
OPEN_S: Final = 60.0  # a charge whose turn is nowhere after this is given back
SWEEP_MAX: Final = 100


class RedisLimiter:
    """Limiter over ``lim:*``: a string for each bucket and budget, a sorted set for each kind of slot, all with a
    time to live, and the charge of each request at ``lim:of:<id>``. A refusal is not kept: asked again, the request is
    decided anew.
    """

    def __init__(self, redis: Redis, *, slot_lease_us: int = SLOT_LEASE_US) -> None:
        self._redis = redis
        self._lease_us = slot_lease_us

    async def admit(self, tenant: TenantId, ask: Ask) -> Decision:
        names, arguments = asked(Keys(tenant), ask, self._lease_us)
        return decided(ask, await self._redis.run(ADMIT, names, arguments))

    async def check(self) -> None:
        await self._redis.call("PING")

    async def extend(self, tenant: TenantId, request_id: str, tokens: int) -> int:
        reserved, _ = await self._redis.run(EXTEND, (Keys(tenant).charge(request_id),), (request_id, tokens))
        return tokens if reserved < 0 else int(reserved)

    async def undo(self, tenant: TenantId, request_id: str) -> None:
        await self._redis.run(UNDO, (Keys(tenant).charge(request_id),), (request_id,))

    async def renew(self, tenant: TenantId, slots: Sequence[Slot]) -> None:
        """Renew leases; after an outage, in which the store may have lost them, take them again too."""
        keys = Keys(tenant)
        numbers: dict[str, int] = {}
        again = self._redis.healthy_s(keys.open_charges()) < 2 * self._lease_us / US_PER_S
        arguments: list[Argument] = [self._lease_us, int(again)]
        for key, holder in slots:
            arguments += (numbers.setdefault(key, len(numbers) + 1), holder)
        await self._redis.run(RENEW, [keys.limit(key) for key in numbers], arguments)

    async def spent(self, tenant: TenantId, keys: Sequence[str]) -> Sequence[int]:
        at = Keys(tenant).limit("")
        return [int(value or 0) for value in await self._redis.call("MGET", *(at + key for key in keys))]

    async def sweep(self, tenant: TenantId) -> int:
        keys = Keys(tenant)
        arguments = (keys.charge(""), keys.turn(""), SWEEP_MAX, int(OPEN_S * 1000))
        return int(await self._redis.run(SWEEP, (keys.open_charges(),), arguments))


def asked(keys: Keys, ask: Ask, lease_us: int) -> tuple[list[str], list[Argument]]:
    """Return the keys and the arguments of a script that decides (``limits.lua``)."""
    at = keys.limit("")
    work = ask.work
    names = [keys.charge(ask.id), keys.open_charges()]
    if work is None:
        names += (f"{at}prompt:", f"{at}completion:")
        message, life_s = -1, RESEND_S
    else:
        names += (f"{at}prompt:{work.conversation_id}", f"{at}completion:{work.persona}")
        message, life_s = work.message_tokens, CHARGE_TTL_S
    arguments: list[Argument] = [
        *(ask.id, int(life_s * 1000), message, COMPLETION_UNKNOWN, lease_us, SLOT_WAIT_US),
        *(ask.since_us, ask.until_us, int(OPEN_S * 1000)),
    ]
    for _, key, kind, limit, period_us in ask.rules:
        names.append(at + key)
        arguments += (kind.value, limit, period_us)
    return names, arguments


def decided(ask: Ask, reply: Sequence[int]) -> Decision:
    """Read what such a script tells of its decision."""
    status, refused, wait_us, tokens, prompt, now_us, *left = reply
    return Decision(
        ask.rules[refused - 1] if refused else None,
        wait_us,
        tokens,
        prompt,
        now_us,
        tuple(map(Quota, ask.rules, left[::2], left[1::2])),
        status < 0,
    )
