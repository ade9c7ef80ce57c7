"""Idempotency keys of conversations: reserved while one is created, then leading to it for a day."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.conversation import Conversation
from gateway.core.idempotency import Known, Reservation
from gateway.core.identity import TenantId
from gateway.store.redis import Keys, Redis, Script

RESERVE: Final = Script("reserve_creation")
KEEP: Final = Script("keep_creation")
FREE: Final = Script("free_creation")


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a key. Two that are equal are equal as bytes, so a script can tell whose reservation it sees."""

    body_hash: str
    token: str
    conversation: Conversation | None = None


_record: Final = msgspec.json.Decoder(_Record)


class RedisCreationKeys:
    """CreationKeys over one JSON string a key, ``creation:<digest>``; a result lives for ``ttl_s``."""

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_s = int(ttl_s)

    async def reserve(self, tenant: TenantId, reservation: Reservation, life_s: float) -> Known | None:
        reply = await self._redis.run(
            RESERVE, _keys(tenant, reservation), (_value(reservation), max(1, int(life_s * 1000)))
        )
        if reply is None:
            return None
        known = _record.decode(reply)
        return Known(known.body_hash, known.conversation)

    async def keep(self, tenant: TenantId, reservation: Reservation, conversation: Conversation) -> None:
        values = (_value(reservation), _value(reservation, conversation), self._ttl_s)
        await self._redis.run(KEEP, _keys(tenant, reservation), values)

    async def free(self, tenant: TenantId, reservation: Reservation) -> None:
        await self._redis.run(FREE, _keys(tenant, reservation), (_value(reservation),))


def _keys(tenant: TenantId, reservation: Reservation) -> tuple[str]:
    return (Keys(tenant).creation(reservation.owner, reservation.key),)


def _value(reservation: Reservation, conversation: Conversation | None = None) -> bytes:
    return msgspec.json.encode(_Record(reservation.body_hash, reservation.token, conversation))
