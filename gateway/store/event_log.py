"""The log of every turn in Redis: one stream a turn, entry ids are positions, writes are idempotent scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.conversation import ConversationId, Message
from gateway.core.events import (
    ENDING_STATE,
    Append,
    Appended,
    Begun,
    Claim,
    Entry,
    Fenced,
    Followed,
    Heading,
    LogBehind,
    LogLost,
    Shown,
    TurnRecord,
    after,
)
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.ledger import Settlement
from gateway.core.limits import SLOT_LEASE_US, Ask
from gateway.core.turn import StopReason, TurnId, TurnState
from gateway.protocol.native import decode_event, encode_data
from gateway.store.appending import Appending, check_written
from gateway.store.inbox import encode_shown
from gateway.store.limiter import asked, decided
from gateway.store.redis import INBOX, Argument, Keys, Redis, Script, text

CLAIM: Final = Script("claim", with_=("claims",))
START: Final = Script("start", with_=("charges", "limits", "claims"))
RELEASE: Final = Script("release", with_=("charges",))
RESTORE: Final = Script("restore")
FINISH: Final = Script("finish", with_=("charges",))
ORPHANS: Final = Script("orphans")
TAKE_OVER: Final = Script("take_over")
FOLLOW: Final = Script("follow")
WATCH: Final = Script("watch")
REQUEST_STOP: Final = Script("request_stop")
READ_RECORD: Final = Script("read_record")

SWEEP_MAX: Final = 200  # running turns that one look for orphans may touch; the next look goes on
LOST_SWEEP_MAX: Final = 20_000  # when a worker has died, all that run


class RedisEventLog:
    """EventLog over Redis streams ``log:<turn>`` and hashes ``turn:<turn>`` (state, epoch, owner, lease, stop flag)."""

    def __init__(
        self,
        redis: Redis,
        worker: WorkerId,
        *,
        lease_s: float,
        turn_timeout_s: float,
        log_ttl_s: float,
        idempotency_ttl_s: float,
        conversation_ttl_s: float,
        ledger_ttl_s: float,
        settle_after_s: float,
        slot_lease_us: int = SLOT_LEASE_US,
    ) -> None:
        self.worker = worker
        self._redis = redis
        self._appending = Appending(redis)
        self._lease_ms = int(lease_s * 1000)
        self._live_ttl_s = int(turn_timeout_s + log_ttl_s)  # a running turn's keys outlive it by the log's life
        self._log_ttl_s = int(log_ttl_s)
        self._idempotency_ttl_s = int(idempotency_ttl_s)
        self._conversation_ttl_s = int(conversation_ttl_s)
        self._ledger_ttl_ms = int(ledger_ttl_s * 1000)
        self._settle_after_ms = max(1, int(settle_after_s * 1000))
        self._slot_lease_us = slot_lease_us

    async def claim(self, tenant: TenantId, heading: Heading) -> Claim:
        keys = Keys(tenant)
        return _claim(await self._redis.run(CLAIM, _claim_keys(keys, heading), self._claim_arguments(keys, heading)))

    async def start(self, tenant: TenantId, heading: Heading, ask: Ask) -> Begun:
        keys = Keys(tenant)
        names, arguments = asked(keys, ask, self._slot_lease_us)
        claim, decision = await self._redis.run(
            START, (*_claim_keys(keys, heading), *names), (*self._claim_arguments(keys, heading), *arguments)
        )
        return Begun(decided(ask, decision) if decision else None, _claim(claim) if claim else None)

    def _claim_arguments(self, keys: Keys, heading: Heading) -> Sequence[Argument]:
        return (
            *(heading.turn_id, heading.conversation_id, heading.owner),
            *(int(heading.idempotency_key is not None), heading.body_hash, keys.prefix),
            *(self._lease_ms, self._live_ttl_s, self._idempotency_ttl_s, self._conversation_ttl_s),
            *(msgspec.json.encode(heading.message), self.worker, heading.persona, INBOX, keys.tenant),
            *(int(heading.listed), heading.trace),
        )

    async def release(self, tenant: TenantId, heading: Heading) -> None:
        keys = Keys(tenant)
        await self._redis.run(
            RELEASE,
            (
                keys.conversation(heading.conversation_id),
                keys.turn(heading.turn_id),
                keys.log(heading.turn_id),
                keys.idempotency(heading.owner, heading.conversation_id, heading.idempotency_key or ""),
                keys.running(),
                keys.charge(heading.turn_id),
            ),
            (heading.turn_id, int(heading.listed)),
        )

    async def restore(self, tenant: TenantId, heading: Heading, epoch: int) -> None:
        keys = Keys(tenant)
        turn_id, conversation_id, owner = heading.turn_id, heading.conversation_id, heading.owner
        await self._redis.run(
            RESTORE,
            (
                keys.conversation(conversation_id),
                keys.turn(turn_id),
                keys.log(turn_id),
                keys.idempotency(owner, conversation_id, heading.idempotency_key or ""),
                keys.running(),
            ),
            (
                *(turn_id, conversation_id, owner),
                *(int(heading.idempotency_key is not None), heading.body_hash, keys.prefix),
                *(self._lease_ms, self._live_ttl_s, self._idempotency_ttl_s),
                *(msgspec.json.encode(heading.message), self.worker, heading.persona, epoch),
                *(heading.ordinal, heading.messages_before, heading.last_message_id or "", heading.trace),
            ),
        )

    async def append(
        self, tenant: TenantId, appends: Sequence[Append]
    ) -> Sequence[Appended | Fenced | LogBehind | LogLost]:
        return await self._appending.append(tenant, self._lease_ms, appends)

    async def hand_over(self, tenant: TenantId, append: Append) -> None:
        (answer,) = await self._appending.append(tenant, -1, (append,))
        self._appending.forget(append.turn_id)
        if isinstance(answer, Exception):
            raise answer

    async def finish(
        self,
        tenant: TenantId,
        conversation_id: ConversationId,
        turn_id: TurnId,
        epoch: int,
        after: int,
        entries: Sequence[Entry],
        messages: Sequence[Message],
        settlement: Settlement,
        *,
        look_up: bool,
    ) -> None:
        self._appending.forget(turn_id)
        keys = Keys(tenant)
        arguments: list[Argument] = [
            *(epoch, turn_id, ENDING_STATE[type(entries[-1].event)], self._log_ttl_s, self._conversation_ttl_s),
            *(settlement.message_id or "", msgspec.json.encode(settlement)),
            *(self._settle_after_ms if look_up else 0, self._ledger_ttl_ms, after, len(entries)),
        ]
        _extend(arguments, entries)
        arguments += [msgspec.json.encode(message) for message in messages]
        reply = await self._redis.run(
            FINISH,
            (
                keys.turn(turn_id),
                keys.log(turn_id),
                keys.conversation(conversation_id),
                keys.running(),
                keys.settlements(),
                keys.unsettled(),
                keys.charge(turn_id),
            ),
            arguments,
        )
        check_written(reply, turn_id)

    async def read(self, tenant: TenantId, turn_id: TurnId, position: int, limit: int) -> list[Entry]:
        reply: list[Any] = await self._redis.call(
            "XRANGE", Keys(tenant).log(turn_id), f"({position}-0", "+", "COUNT", limit
        )
        return after(map(_entry, reply or ()), position)

    async def record(self, tenant: TenantId, turn_id: TurnId) -> TurnRecord | None:
        reply = await self._redis.run(READ_RECORD, (Keys(tenant).turn(turn_id),), ())
        if not reply:
            return None
        conversation_id, owner, state, epoch, leased, persona, before, last, message_id, trace = reply
        return TurnRecord(
            turn_id,
            ConversationId(text(conversation_id) or ""),
            UserHash(text(owner) or ""),
            TurnState(text(state) or ""),
            int(epoch),
            bool(leased),
            text(persona) or "",
            int(before),
            text(last) or None,
            text(message_id) or None,
            text(trace) or "",
        )

    async def repeated(
        self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId, idempotency_key: str
    ) -> tuple[TurnId, str] | None:
        key = Keys(tenant).idempotency(owner, conversation_id, idempotency_key)
        known = text(await self._redis.call("GET", key))
        if known is None:
            return None
        turn_id, _, body_hash = known.partition(" ")
        return TurnId(turn_id), body_hash

    async def orphans(self, tenant: TenantId, lost: WorkerId | None) -> list[TurnId]:
        keys = Keys(tenant)
        most = SWEEP_MAX if lost is None else LOST_SWEEP_MAX
        found = await self._redis.run(ORPHANS, (keys.running(),), (keys.turn(""), lost or "", most))
        return [TurnId(text(turn_id) or "") for turn_id in found]

    async def take_over(self, tenant: TenantId, turn_id: TurnId, lost: WorkerId | None = None) -> int | None:
        keys = Keys(tenant)
        if lost is None and self._redis.healthy_s(keys.turn(turn_id)) < self._lease_ms / 1000:
            return None  # after an outage live owners get one lease's time to renew what they could not
        arguments = (self._lease_ms, self.worker, lost or "", turn_id)
        epoch = int(await self._redis.run(TAKE_OVER, (keys.turn(turn_id), keys.running()), arguments))
        return epoch or None

    async def follow(self, tenant: TenantId, turn_id: TurnId, life_s: float) -> Followed | None:
        keys = Keys(tenant)
        reply = await self._redis.run(
            FOLLOW,
            (keys.followers(turn_id), keys.turn(turn_id), keys.log(turn_id)),
            (self.worker, int(life_s * 1000), turn_id, INBOX),
        )
        if not reply:
            return None
        state, leased, position = reply
        return Followed(TurnState(text(state) or ""), bool(leased), int(position))

    async def watch(
        self, tenant: TenantId, conversation_id: ConversationId, life_s: float
    ) -> tuple[TurnId, UserHash] | None:
        keys = Keys(tenant)
        reply = await self._redis.run(
            WATCH,
            (keys.watchers(conversation_id), keys.conversation(conversation_id)),
            (self.worker, int(life_s * 1000)),
        )
        return (TurnId(text(reply[0]) or ""), UserHash(text(reply[1]) or "")) if reply else None

    async def show(self, worker: WorkerId, shown: Sequence[Shown]) -> None:
        await self._redis.call("PUBLISH", INBOX + worker, encode_shown(shown))

    async def request_stop(self, tenant: TenantId, turn_id: TurnId, reason: StopReason) -> None:
        await self._redis.run(REQUEST_STOP, (Keys(tenant).turn(turn_id),), (reason, turn_id, INBOX))


def _claim_keys(keys: Keys, heading: Heading) -> Sequence[str]:
    return (
        keys.conversation(heading.conversation_id),
        keys.turn(heading.turn_id),
        keys.log(heading.turn_id),
        keys.idempotency(heading.owner, heading.conversation_id, heading.idempotency_key or ""),
        keys.conversations(heading.owner),
        keys.running(),
        keys.watchers(heading.conversation_id),
    )


def _claim(reply: Sequence[Any]) -> Claim:
    outcome, found, ordinal, before, last = reply
    return Claim(text(outcome) or "", TurnId(text(found) or ""), int(ordinal), int(before), text(last) or None)


def _extend(arguments: list[Argument], entries: Sequence[Entry]) -> None:
    for entry in entries:
        arguments += (entry.position, entry.event.name, encode_data(entry.event))


def _entry(item: Any) -> Entry:
    """Read a stream entry as XRANGE gives it: [id, [name, value, …]] or with a map in the second place."""
    entry_id, pairs = item
    values = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
    return Entry(int(entry_id.split(b"-")[0]), decode_event(values[b"e"].decode(), values[b"d"]))
