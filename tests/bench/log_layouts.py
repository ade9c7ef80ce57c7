"""Ways to lay a turn's log out in Redis, all with the promises of EventLog: what gateway/docs/event-log.md compares."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from gateway.core.conversation import Conversation, ConversationId, Message
from gateway.core.events import (
    Append,
    Appended,
    Entry,
    Fenced,
    Heading,
    LogBehind,
    LogLost,
    TurnStarted,
    advance,
    is_ending,
)
from gateway.core.identity import UserHash, WorkerId
from gateway.core.turn import StopReason, TurnId
from gateway.protocol.native import encode_data
from gateway.services.subscriptions import PAGE
from gateway.store.conversations import RedisConversations
from gateway.store.event_log import RedisEventLog
from gateway.store.redis import Argument, Redis, text
from tests.bench.log_forms import KEYS, TENANT, BenchScript, Form, LeanStream, OneText, PackedList

OWNER: Final = UserHash("0f" * 16)
LEASE_MS: Final = 5_000
LIVE_TTL_S: Final = 4_200
EPOCH: Final = 1  # of a turn's first owner


class Due(NamedTuple):
    """What one turn has to append on a beat."""

    turn_id: TurnId
    entries: Sequence[Entry]


class Layout(Protocol):
    """A way to keep logs. ``append`` raises Fenced, LogLost and LogBehind as EventLog's does."""

    async def open(self, turn_id: TurnId) -> None:
        """Write the record of a new turn and its ``turn.started`` at position 1."""
        ...

    async def append(self, turn_id: TurnId, entries: Sequence[Entry], *, epoch: int = EPOCH) -> Appended: ...

    async def append_due(self, due: Sequence[Due]) -> Sequence[Appended | BaseException]:
        """Append what several turns have, in one round trip."""
        ...

    async def read(self, turn_id: TurnId, position: int) -> list[Entry]:
        """Return what the log holds after a position, in pages of the size that readers ask for."""
        ...

    def keys(self, turn_id: TurnId) -> list[str]:
        """Return the keys that hold the turn."""
        ...


class Streams:
    """The gateway's own log: a stream a turn, an entry's id is the position."""

    def __init__(self, store: Redis) -> None:
        self._conversations = RedisConversations(store, ttl_s=LIVE_TTL_S)
        self._log = RedisEventLog(
            store,
            WorkerId("bench"),
            lease_s=LEASE_MS / 1000,
            turn_timeout_s=LIVE_TTL_S / 2,
            log_ttl_s=LIVE_TTL_S / 2,
            idempotency_ttl_s=LIVE_TTL_S,
            conversation_ttl_s=LIVE_TTL_S,
            ledger_ttl_s=LIVE_TTL_S,
            settle_after_s=LIVE_TTL_S,
        )

    async def open(self, turn_id: TurnId) -> None:
        conversation_id = ConversationId(turn_id)  # one conversation a turn, so one name does
        await self._conversations.put(TENANT, Conversation(id=conversation_id, owner=OWNER, persona="default"))
        heading = Heading(
            turn_id=turn_id,
            conversation_id=conversation_id,
            owner=OWNER,
            persona="default",
            message=Message("user", "Hi"),
            body_hash="",
            idempotency_key=None,
        )
        claim = await self._log.claim(TENANT, heading)
        assert claim.outcome == "started"

    async def append(self, turn_id: TurnId, entries: Sequence[Entry], *, epoch: int = EPOCH) -> Appended:
        (answer,) = await self._log.append(TENANT, [Append(turn_id, epoch, _followed(entries), entries)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def append_due(self, due: Sequence[Due]) -> Sequence[Appended | BaseException]:
        return await _each(self, due)

    async def read(self, turn_id: TurnId, position: int) -> list[Entry]:
        found: list[Entry] = []
        while page := await self._log.read(TENANT, turn_id, position, PAGE):
            found += page
            position = page[-1].position
            if is_ending(page[-1].event):
                break
        return found

    def keys(self, turn_id: TurnId) -> list[str]:
        return [KEYS.turn(turn_id), KEYS.log(turn_id)]


class StreamsByBeat(Streams):
    """The same streams, but one script call appends what up to ``together`` turns of a tenant have on a beat."""

    def __init__(self, store: Redis, together: int) -> None:
        super().__init__(store)
        self._store = store
        self._together = together
        self._append_due = BenchScript("append_due")

    async def append(self, turn_id: TurnId, entries: Sequence[Entry], *, epoch: int = EPOCH) -> Appended:
        (told,) = await self._run((Due(turn_id, entries),), epoch)
        if isinstance(told, BaseException):
            raise told
        return told

    async def append_due(self, due: Sequence[Due]) -> Sequence[Appended | BaseException]:
        calls = (due[at : at + self._together] for at in range(0, len(due), self._together))
        return list(itertools.chain(*await asyncio.gather(*(self._run(call, EPOCH) for call in calls))))

    async def _run(self, due: Sequence[Due], epoch: int) -> list[Appended | BaseException]:
        keys: list[str] = []
        arguments: list[Argument] = [LEASE_MS]
        for turn_id, entries in due:
            keys += (KEYS.turn(turn_id), KEYS.log(turn_id), KEYS.followers(turn_id))
            arguments += (epoch, _followed(entries), len(entries))
            for entry in entries:
                arguments += (entry.position, entry.event.name, encode_data(entry.event))
        found: list[Appended | BaseException] = []
        for reply, one in zip(await self._store.run(self._append_due, keys, arguments), due, strict=True):
            try:
                found.append(_told(reply, one.turn_id))
            except (Fenced, LogBehind, LogLost) as error:  # one turn's news, and not the others'
                found.append(error)
        return found


class Candidate:
    """A layout that keeps the last position in the turn's hash, and its log in a form of its own."""

    def __init__(self, store: Redis, form: Form) -> None:
        self._store = store
        self._form = form

    async def open(self, turn_id: TurnId) -> None:
        record = ("conversation", turn_id, "owner", OWNER, "state", "running", "epoch", EPOCH, "lease", 0)
        await self._store.call("HSET", KEYS.turn(turn_id), *record)
        await self._store.call("EXPIRE", KEYS.turn(turn_id), LIVE_TTL_S)
        await self.append(turn_id, [Entry(1, TurnStarted(turn_id, turn_id, 1))])

    async def append(self, turn_id: TurnId, entries: Sequence[Entry], *, epoch: int = EPOCH) -> Appended:
        form = self._form
        arguments: list[Argument] = [epoch, LEASE_MS, LIVE_TTL_S, _followed(entries)]
        for entry in entries:
            arguments += form.pack(entry)
        keys = (KEYS.turn(turn_id), *form.keys(turn_id), KEYS.followers(turn_id))
        return _told(await self._store.run(form.append, keys, arguments), turn_id)

    async def append_due(self, due: Sequence[Due]) -> Sequence[Appended | BaseException]:
        return await _each(self, due)

    async def read(self, turn_id: TurnId, position: int) -> list[Entry]:
        return await self._form.read(self._store, turn_id, position)

    def keys(self, turn_id: TurnId) -> list[str]:
        return [KEYS.turn(turn_id), *self._form.keys(turn_id)]


LAYOUTS: Final[dict[str, Callable[[Redis], Layout]]] = {
    "stream": Streams,
    "lean stream": lambda store: Candidate(store, LeanStream()),
    "list": lambda store: Candidate(store, PackedList()),
    "text": lambda store: Candidate(store, OneText()),
    "call a beat": lambda store: StreamsByBeat(store, together=1_000),
    "call of 10": lambda store: StreamsByBeat(store, together=10),
}


async def _each(layout: Layout, due: Sequence[Due]) -> Sequence[Appended | BaseException]:
    """Append each turn's by itself, a task a turn as in services/journal.py; the client joins them."""
    return await asyncio.gather(*(layout.append(*one) for one in due), return_exceptions=True)


def _followed(entries: Sequence[Entry]) -> int:
    """Return the position that entries follow, as the turn's owner knows it."""
    return entries[0].position - advance(entries[0].event) if entries else 0


def _told(reply: Any, turn_id: TurnId) -> Appended:
    match reply:
        case [1, stop, workers]:
            followers = [WorkerId(worker.decode()) for worker in workers] if workers else ()
            return Appended(StopReason(text(stop) or "") if stop else None, followers)
        case [-2, position]:
            raise LogBehind(turn_id, position)
        case [-1]:
            raise LogLost(turn_id)
        case _:
            raise Fenced(turn_id)
