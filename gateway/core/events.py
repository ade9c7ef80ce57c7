"""The events of a turn's log, their positions, and the port to the log.

An event's id is a position, not a count: a delta advances the position by its number of code points, any
other event by one. A cursor therefore means "everything up to here": deltas may be merged or split when
they are replayed, and a reader that stopped in the middle of one continues at the exact character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import StopReason, TurnId, TurnState, Usage


class TurnStarted(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "turn.started"
    turn_id: str
    conversation_id: str
    ordinal: int


class TurnQueued(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "turn.queued"
    position: int
    wait_s: float


class MessageStarted(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "message.started"
    message_id: str | None
    run_id: str | None
    role: str


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    name: ClassVar[str] = "message.delta"
    text: str


class MessageExtra(msgspec.Struct, frozen=True):
    """An item of the vendor's that is not the assistant's text: another choice, a tool's role."""

    name: ClassVar[str] = "message.extra"
    index: int
    role: str | None
    tool_name: str | None = msgspec.field(name="name")
    tool_call_id: str | None
    content: str | None


class MessageCitations(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "message.citations"
    citations: list[dict[str, Any]]


class MessageModerated(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "message.moderated"
    categories: list[dict[str, Any]]


class TurnError(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error member of ``turn.failed``. ``vendor_status`` notes the vendor's HTTP status where there was one."""

    code: Code
    detail: str
    retryable: bool
    vendor_status: int | None = None
    retry_after_s: float | None = None


class TurnCompleted(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "turn.completed"
    message_id: str | None
    run_id: str | None
    finish_reason: str
    text: str
    usage: Usage


class TurnStopped(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "turn.stopped"
    message_id: str | None
    run_id: str | None
    reason: StopReason
    text: str
    usage: Usage


class TurnFailed(msgspec.Struct, frozen=True):
    name: ClassVar[str] = "turn.failed"
    message_id: str | None
    run_id: str | None
    error: TurnError
    text: str
    usage: Usage


Ending = TurnCompleted | TurnStopped | TurnFailed
Event = (
    TurnStarted | TurnQueued | MessageStarted | TextDelta | MessageExtra | MessageCitations | MessageModerated | Ending
)

EVENT_TYPES: dict[str, type[Event]] = {
    t.name: t
    for t in (
        TurnStarted,
        TurnQueued,
        MessageStarted,
        TextDelta,
        MessageExtra,
        MessageCitations,
        MessageModerated,
        TurnCompleted,
        TurnStopped,
        TurnFailed,
    )
}
ENDING_STATE: dict[type[Event], TurnState] = {
    TurnCompleted: TurnState.COMPLETED,
    TurnStopped: TurnState.STOPPED,
    TurnFailed: TurnState.FAILED,
}


class Entry(NamedTuple):
    """An event at its position. A delta covers the positions after ``position - len(text)`` up to ``position``."""

    position: int
    event: Event


def is_ending(event: Event) -> bool:
    return type(event) in ENDING_STATE


def advance(event: Event) -> int:
    """Return by how much an event moves the position."""
    return (len(event.text) or 1) if type(event) is TextDelta else 1


def after(entries: Iterable[Entry], position: int) -> list[Entry]:
    """Return what lies after a position, cutting the delta that the position falls into."""
    found: list[Entry] = []
    for entry in entries:
        if entry.position <= position:
            continue
        event = entry.event
        if type(event) is TextDelta and entry.position - len(event.text) < position:
            entry = Entry(entry.position, TextDelta(event.text[position - entry.position :]))
        found.append(entry)
    return found


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """Join neighbouring deltas into one, at the position of the last; other events stay as they are."""
    result: list[Entry] = []
    run: list[str] = []
    run_end = 0
    for position, event in entries:
        if type(event) is TextDelta:
            run.append(event.text)
            run_end = position
            continue
        if run:
            result.append(Entry(run_end, TextDelta("".join(run))))
            run = []
        result.append(Entry(position, event))
    if run:
        result.append(Entry(run_end, TextDelta("".join(run))))
    return result


_EVENT_ID = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.([0-9]{1,15})", re.ASCII)


class EventId(NamedTuple):
    """``<turn_id>.<position>``; clients treat it as opaque."""

    turn_id: TurnId
    position: int

    def __str__(self) -> str:
        return f"{self.turn_id}.{self.position}"

    @classmethod
    def parse(cls, value: str, *, field: str) -> EventId:
        """Read a cursor that a client sent; raises GatewayError(invalid_cursor) naming ``field``."""
        match = _EVENT_ID.fullmatch(value)
        if match is None:
            raise GatewayError(
                Code.INVALID_CURSOR, "A cursor is an event id as the gateway sent it: <turn>.<position>.", field=field
            )
        return cls(TurnId(match[1]), int(match[2]))


class Claim(NamedTuple):
    """What claiming a conversation for a new turn gave. ``turn_id`` is another turn's unless ``outcome`` is started."""

    outcome: str  # started | repeated | mismatched | busy | orphaned | unknown
    turn_id: TurnId
    ordinal: int


class Appended(NamedTuple):
    """What an append tells the owner: a stop asked for elsewhere, and how many readers other workers have."""

    stop: StopReason | None
    followers: int


class TurnRecord(NamedTuple):
    """What is known of a turn outside its log. ``leased`` says whether its owner has been heard of lately."""

    turn_id: TurnId
    conversation_id: ConversationId
    owner: UserHash
    state: TurnState
    epoch: int
    leased: bool


class EventLog(Protocol):
    """The shared, durable log of every turn. Raises GatewayError(store_unavailable); writes are idempotent."""

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
        """Make ``turn_id`` the conversation's one active turn, in one step.

        That writes its ``turn.started`` and the user's message, so every device sees the question while the
        answer runs.
        """
        ...

    async def repeated(
        self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId, idempotency_key: str
    ) -> tuple[TurnId, str] | None:
        """Return the turn that an idempotency key led to and its body's hash; None when the key is new."""
        ...

    async def append(self, tenant: TenantId, turn_id: TurnId, epoch: int, entries: Sequence[Entry]) -> Appended:
        """Append entries and renew the lease; learn whether to stop, and how many read the turn elsewhere.

        Entries at or before the log's last position are skipped, so resending is safe.
        Raises Fenced when the epoch is no longer the owner's, LogLost when the store has lost the turn.
        """
        ...

    async def finish(
        self,
        tenant: TenantId,
        conversation_id: ConversationId,
        turn_id: TurnId,
        epoch: int,
        entries: Sequence[Entry],
        messages: Sequence[Message],
    ) -> None:
        """Append the last entries (an ending last), free the conversation, extend its cached transcript.

        Raises as ``append`` does.
        """
        ...

    async def read(self, tenant: TenantId, turn_id: TurnId, position: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries after a position, the first cut to it. Empty when there are none."""
        ...

    async def record(self, tenant: TenantId, turn_id: TurnId) -> TurnRecord | None:
        """Return what is known of a turn; None when it never was or its time to live is over."""
        ...

    async def take_over(self, tenant: TenantId, turn_id: TurnId) -> int | None:
        """Fence a turn whose lease ran out and return the new epoch; None when its owner lives or it has ended."""
        ...

    async def follow(self, tenant: TenantId, turn_id: TurnId, reader: str, life_s: float) -> None:
        """Say that ``reader`` follows a turn from a worker that does not own it; 0 says that it has left."""
        ...

    async def request_stop(self, tenant: TenantId, turn_id: TurnId, reason: StopReason) -> None:
        """Set the stop flag that the owner sees in its next append's answer."""
        ...


class LogLost(Exception):
    """The store has lost the turn's record (emptied, failed over): nobody took it over, nobody can read it there."""


class Fenced(Exception):
    """Another worker owns the turn now; this one must stop writing and let go."""
