"""The log of every turn in Redis: one stream a turn, entry ids are positions, writes are idempotent scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.conversation import ConversationId, Message
from gateway.core.events import ENDING_STATE, Appended, Claim, Entry, Fenced, LogLost, TurnRecord, after
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import StopReason, TurnId, TurnState
from gateway.protocol.native import decode_event, encode_data
from gateway.store.redis import Argument, Keys, Redis, Script, text

CLAIM: Final = Script("claim")
APPEND: Final = Script("append")
FINISH: Final = Script("finish")
TAKE_OVER: Final = Script("take_over")
FOLLOW: Final = Script("follow")
REQUEST_STOP: Final = Script("request_stop")
READ_RECORD: Final = Script("read_record")


class RedisEventLog:
    """EventLog over Redis streams ``log:<turn>`` and hashes ``turn:<turn>`` (state, epoch, lease, stop flag)."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_s: float,
        turn_timeout_s: float,
        log_ttl_s: float,
        idempotency_ttl_s: float,
        conversation_ttl_s: float,
    ) -> None:
        self._redis = redis
        self._lease_ms = int(lease_s * 1000)
        self._live_ttl_s = int(turn_timeout_s + log_ttl_s)  # a running turn's keys outlive it by the log's life
        self._log_ttl_s = int(log_ttl_s)
        self._idempotency_ttl_s = int(idempotency_ttl_s)
        self._conversation_ttl_s = int(conversation_ttl_s)

    async def claim(
        self,
        tenant: TenantId,
        conversation_id: ConversationId,
        turn_id: TurnId,
        *,
        owner: UserHash,
        idempotency_key: str | None,
        body_hash: str,
        message: Message,
    ) -> Claim:
        keys = Keys(tenant)
        reply = await self._redis.run(
            CLAIM,
            (
                keys.conversation(conversation_id),
                keys.turn(turn_id),
                keys.log(turn_id),
                keys.idempotency(owner, conversation_id, idempotency_key or ""),
                keys.conversations(owner),
            ),
            (
                turn_id,
                conversation_id,
                owner,
                int(idempotency_key is not None),
                body_hash,
                keys.prefix,
                self._lease_ms,
                self._live_ttl_s,
                self._idempotency_ttl_s,
                self._conversation_ttl_s,
                msgspec.json.encode(message),
            ),
        )
        return Claim(text(reply[0]) or "", TurnId(text(reply[1]) or ""), int(reply[2]))

    async def append(self, tenant: TenantId, turn_id: TurnId, epoch: int, entries: Sequence[Entry]) -> Appended:
        keys = Keys(tenant)
        arguments: list[Argument] = [epoch, self._lease_ms]
        _extend(arguments, entries)
        owned, stop, followers = await self._redis.run(
            APPEND, (keys.turn(turn_id), keys.log(turn_id), keys.followers(turn_id)), arguments
        )
        _check_owned(owned, turn_id)
        return Appended(StopReason(text(stop) or "") if stop else None, int(followers))

    async def finish(
        self,
        tenant: TenantId,
        conversation_id: ConversationId,
        turn_id: TurnId,
        epoch: int,
        entries: Sequence[Entry],
        messages: Sequence[Message],
    ) -> None:
        keys = Keys(tenant)
        state = ENDING_STATE[type(entries[-1].event)]
        arguments: list[Argument] = [epoch, turn_id, state, self._log_ttl_s, self._conversation_ttl_s, len(entries)]
        _extend(arguments, entries)
        arguments += [msgspec.json.encode(message) for message in messages]
        owned = await self._redis.run(
            FINISH, (keys.turn(turn_id), keys.log(turn_id), keys.conversation(conversation_id)), arguments
        )
        _check_owned(owned, turn_id)

    async def read(self, tenant: TenantId, turn_id: TurnId, position: int, limit: int) -> list[Entry]:
        reply: list[Any] = await self._redis.call(
            "XRANGE", Keys(tenant).log(turn_id), f"({position}-0", "+", "COUNT", limit
        )
        return after(map(_entry, reply or ()), position)

    async def record(self, tenant: TenantId, turn_id: TurnId) -> TurnRecord | None:
        reply = await self._redis.run(READ_RECORD, (Keys(tenant).turn(turn_id),), ())
        if not reply:
            return None
        conversation_id, owner, state, epoch, leased = reply
        return TurnRecord(
            turn_id,
            ConversationId(text(conversation_id) or ""),
            UserHash(text(owner) or ""),
            TurnState(text(state) or ""),
            int(epoch),
            bool(leased),
        )

    async def take_over(self, tenant: TenantId, turn_id: TurnId) -> int | None:
        if self._redis.healthy_s() < self._lease_ms / 1000:
            return None  # after an outage live owners get one lease's time to renew what they could not
        epoch = int(await self._redis.run(TAKE_OVER, (Keys(tenant).turn(turn_id),), (self._lease_ms,)))
        return epoch or None

    async def repeated(
        self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId, idempotency_key: str
    ) -> tuple[TurnId, str] | None:
        key = Keys(tenant).idempotency(owner, conversation_id, idempotency_key)
        known = text(await self._redis.call("GET", key))
        if known is None:
            return None
        turn_id, _, body_hash = known.partition(" ")
        return TurnId(turn_id), body_hash

    async def follow(self, tenant: TenantId, turn_id: TurnId, reader: str, life_s: float) -> None:
        await self._redis.run(FOLLOW, (Keys(tenant).followers(turn_id),), (reader, int(life_s * 1000)))

    async def request_stop(self, tenant: TenantId, turn_id: TurnId, reason: StopReason) -> None:
        await self._redis.run(REQUEST_STOP, (Keys(tenant).turn(turn_id),), (reason,))


def _check_owned(owned: int, turn_id: TurnId) -> None:
    if owned < 0:
        raise LogLost(turn_id)
    if not owned:
        raise Fenced(turn_id)


def _extend(arguments: list[Argument], entries: Sequence[Entry]) -> None:
    for position, event in entries:
        arguments += (position, event.name, encode_data(event))


def _entry(item: Any) -> Entry:
    """Read a stream entry as XRANGE gives it: [id, [name, value, …]] or with a map in the second place."""
    entry_id, pairs = item
    values = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
    return Entry(int(entry_id.split(b"-")[0]), decode_event(values[b"e"].decode(), values[b"d"]))
