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
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.ledger import Settlement
from gateway.core.limits import Ask, Decision
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

    def refusal(self) -> GatewayError:
        """Return the error of a turn as one that a request can be refused with."""
        return GatewayError(self.code, self.detail, retry_after_s=self.retry_after_s, vendor_status=self.vendor_status)


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


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event at its position. A delta covers the positions after ``position - len(text)`` up to ``position``.

    A turn's log keeps one for every delta until it is saved. As a tuple, each would be one more object for the garbage
    collector to go over, and take 0.24 µs to make instead of 0.05.
    """

    position: int
    event: Event


def is_ending(event: Event) -> bool:
    return type(event) in ENDING_STATE


def advance(event: Event) -> int:
    """Return by how much an event moves the position."""
    return (len(event.text) or 1) if type(event) is TextDelta else 1


def after(entries: Iterable[Entry], position: int) -> list[Entry]:
    """Return what lies after a position, each position once.

    The delta that the position falls into is cut, and so is one that begins before the end of the entry before it, as
    when an append whose answer was lost is sent again with more text.
    """
    found: list[Entry] = []
    for entry in entries:
        if entry.position <= position:
            continue
        event = entry.event
        if type(event) is TextDelta and entry.position - len(event.text) < position:
            entry = Entry(entry.position, TextDelta(event.text[position - entry.position :]))
        found.append(entry)
        position = entry.position
    return found


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """Join neighbouring deltas into one, at the position of the last; other events stay as they are."""
    result: list[Entry] = []
    run: list[str] = []
    run_end = 0
    for entry in entries:
        event = entry.event
        if type(event) is TextDelta:
            run.append(event.text)
            run_end = entry.position
            continue
        if run:
            result.append(Entry(run_end, TextDelta("".join(run))))
            run = []
        result.append(entry)
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
    messages_before: int = 0
    last_message_id: str | None = None


class Begun(NamedTuple):
    """What starting a turn gave. Only where both are there, it was admitted, and the claim is ``started``, it runs.

    There is no claim where the limits refused, and no decision where the claim is ``repeated`` or ``mismatched``.
    """

    decision: Decision | None
    claim: Claim | None


class Append(NamedTuple):
    """An owner's entries for one turn's log; they follow position ``after``."""

    turn_id: TurnId
    epoch: int
    after: int
    entries: Sequence[Entry]


class Appended(NamedTuple):
    """What an append tells the owner: a stop asked for elsewhere, and which other workers have readers of the turn."""

    stop: StopReason | None
    followers: Sequence[WorkerId]


class TurnRecord(NamedTuple):
    """What is known of a turn outside its log. ``leased`` says whether its owner has been heard of lately.

    ``messages_before`` and ``last_message_id`` are how the vendor's copy of the conversation ended, as far as was
    known, before the turn's own message: its answer lies after them. ``message_id`` is the answer's, once it ended.
    """

    turn_id: TurnId
    conversation_id: ConversationId
    owner: UserHash
    state: TurnState
    epoch: int
    leased: bool
    persona: str
    messages_before: int
    last_message_id: str | None
    message_id: str | None
    trace: str = ""  # what its heading had


class Heading(msgspec.Struct, frozen=True):
    """What a turn's record is written from: at its claim, and again by its owner when the store has lost it."""

    turn_id: TurnId
    conversation_id: ConversationId
    owner: UserHash
    persona: str
    message: Message
    body_hash: str
    idempotency_key: str | None
    ordinal: int = 0  # 0 until claimed
    messages_before: int = 0
    last_message_id: str | None = None
    listed: bool = True  # else its conversation is made by its claim, and is in no list
    trace: str = ""  # where it was asked for in which trace, as a ``traceparent``


class EventLog(Protocol):
    """The shared, durable log of every turn, as one worker sees it. Raises GatewayError(store_unavailable).

    Writes are idempotent. Writes of an owner raise Fenced when another worker owns the turn, LogLost when the store
    has lost its record, and LogBehind when the log ends before the position that the entries follow.
    """

    async def claim(self, tenant: TenantId, heading: Heading) -> Claim:
        """Make a turn its conversation's one active turn, in one step.

        That writes its ``turn.started`` and the user's message, so every device sees the question while the
        answer runs, and tells the workers that watch the conversation.
        """
        ...

    async def start(self, tenant: TenantId, heading: Heading, ask: Ask) -> Begun:
        """Decide a turn's limits as ``Limiter.admit`` does and claim its conversation, in one step.

        A repeat is found first, whatever the limits say. Nothing is charged unless the claim is ``started``; it is
        ``unknown`` too where the conversation is of another persona than the heading says.
        """
        ...

    async def release(self, tenant: TenantId, heading: Heading) -> None:
        """Undo a claim whose turn never began, as when its answer was lost; nothing happens where there is none."""
        ...

    async def restore(self, tenant: TenantId, heading: Heading, epoch: int) -> None:
        """Write the record of a running turn again that the store has lost; its log is empty then.

        Nothing happens where there is a record. The caller owns the turn and appends its log anew from position 0.
        """
        ...

    async def repeated(
        self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId, idempotency_key: str
    ) -> tuple[TurnId, str] | None:
        """Return the turn that an idempotency key led to and its body's hash; None when the key is new."""
        ...

    async def append(
        self, tenant: TenantId, appends: Sequence[Append]
    ) -> Sequence[Appended | Fenced | LogBehind | LogLost]:
        """Append to the logs of some turns in one step, and renew their leases; returns what became of each.

        Entries at or before a log's last position are skipped, so resending is safe. The store serves nobody else
        meanwhile, at about 8 µs a turn: give it a few dozen at most.
        """
        ...

    async def hand_over(self, tenant: TenantId, append: Append) -> None:
        """Append as ``append`` does and give the lease up: any other worker may take the turn over at once."""
        ...

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
        """Append the last entries (an ending last), free the conversation, extend its cached transcript, settle.

        All in one step, so a turn that has an ending has a settlement: written for good, or with ``look_up`` kept
        until its tokens have been looked up at the vendor (see ``core.ledger``).
        """
        ...

    async def read(self, tenant: TenantId, turn_id: TurnId, position: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries after a position, the first cut to it. Empty when there are none."""
        ...

    async def record(self, tenant: TenantId, turn_id: TurnId) -> TurnRecord | None:
        """Return what is known of a turn; None when it never was or its time to live is over."""
        ...

    async def orphans(self, tenant: TenantId, lost: WorkerId | None) -> list[TurnId]:
        """Return some running turns whose lease ran out, or all that ``lost`` owned when it died."""
        ...

    async def take_over(self, tenant: TenantId, turn_id: TurnId, lost: WorkerId | None = None) -> int | None:
        """Fence a turn whose lease ran out, or whose owner ``lost`` is dead, and own it; return the new epoch.

        None when its owner lives, it has ended, or an outage of the store ended less than a lease ago.
        """
        ...

    async def follow(self, tenant: TenantId, turn_id: TurnId, life_s: float) -> Followed | None:
        """Say that this worker has readers of a turn that another owns; 0 says that it has none any more.

        The owner is told at once and shows its events to this worker from then on. None when there is no such turn.
        """
        ...

    async def watch(
        self, tenant: TenantId, conversation_id: ConversationId, life_s: float
    ) -> tuple[TurnId, UserHash] | None:
        """Have this worker told of every turn that begins in a conversation; 0 ends it.

        Returns the turn that is active there now and whose it is.
        """
        ...

    async def show(self, worker: WorkerId, shown: Sequence[Shown]) -> None:
        """Give entries to a worker that follows their turns, whether or not the log has them yet. May be lost."""
        ...

    async def request_stop(self, tenant: TenantId, turn_id: TurnId, reason: StopReason) -> None:
        """Have a turn's owner stop it: told at once, and again by its next append's answer."""
        ...


class Followed(NamedTuple):
    """How a followed turn stands: its state, whether its owner is alive, and where its log ends."""

    state: TurnState
    leased: bool
    position: int


class Shown(NamedTuple):
    """Entries of a turn on their way to a worker that follows it; they follow position ``after`` without a gap."""

    turn_id: TurnId
    after: int
    entries: Sequence[Entry]


class Hearer(Protocol):
    """Takes what other workers tell this one. Methods return quickly and do not raise. Anything may be lost."""

    def stop_asked(self, turn_id: TurnId, reason: StopReason, /) -> None: ...

    def followers_changed(self, turn_id: TurnId, workers: Sequence[WorkerId], /) -> None: ...

    def shown(self, shown: Shown, /) -> None: ...

    def turn_began(
        self, tenant: TenantId, conversation_id: ConversationId, turn_id: TurnId, owner: UserHash, /
    ) -> None: ...

    def heard_again(self) -> None:
        """The way here was cut for a while: the store may have lost what was written just before."""


class LogLost(Exception):
    """The store has lost the turn's record (emptied, failed over): nobody took it over, nobody can read it there."""


class LogBehind(Exception):
    """The store's log ends at ``position``, before what its owner thought saved: send again from there."""

    def __init__(self, turn_id: TurnId, position: int) -> None:
        super().__init__(turn_id, position)
        self.position = position


class Fenced(Exception):
    """Another worker owns the turn now; this one must stop writing and let go."""
