"""The native dialect's answers and WebSocket frames as types: what the API's description tells of them.

Answers are written by ``protocol.native`` and the doors, as plain values; tests hold what is sent to these types.
Members may be added to any of them, so clients pass over those that they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core.conversation import Feedback
from gateway.core.errors import Code
from gateway.core.events import TurnCompleted, TurnError, TurnStopped
from gateway.core.turn import StopReason, TurnState, Usage

Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class SessionOpened(msgspec.Struct):
    """A session token. ``visitor_id`` is an anonymous visitor's, to be sent with the next session's request."""

    token: str
    token_id: Annotated[str, Meta(description="Names the token when it is revoked.")]
    expires_at: Time
    user_id: str
    visitor_id: str | UnsetType = UNSET


class TicketTaken(msgspec.Struct):
    """A ticket, for the query of the one address that it was taken for: ``?ticket=``."""

    ticket: str
    expires_at: Time


class MessageUsage(msgspec.Struct):
    """Tokens of an answer, as its transcript has them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TranscriptMessage(msgspec.Struct):
    """One message. ``state`` is there where an answer did not complete: with its ``reason``, or its ``error``."""

    message_id: Id | None
    role: Literal["user", "assistant"]
    content: str
    created_at: str | None
    turn_id: Id | UnsetType = UNSET
    state: TurnState | UnsetType = UNSET
    reason: StopReason | UnsetType | None = UNSET
    error: TurnError | UnsetType | None = UNSET
    usage: MessageUsage | UnsetType = UNSET
    citations: Annotated[list[dict[str, Any]], Meta(description="In Hyperleap's shape.")] | UnsetType = UNSET
    feedback: Feedback | UnsetType = UNSET


class ConversationListed(msgspec.Struct):
    """A conversation without its messages. ``persona`` is the tenant's alias."""

    id: Id
    persona: str | None
    status: str | None
    name: str | None
    active: Annotated[bool, Meta(description="Hyperleap's switch.")]
    created_at: str | None
    active_turn_id: Id | None
    messages_unavailable: Literal[True] | UnsetType = UNSET


class ConversationRead(ConversationListed, kw_only=True):
    """A conversation with its messages. ``messages_unavailable`` is there where Hyperleap does not give them."""

    metadata: dict[str, Any]
    messages: list[TranscriptMessage]


class ConversationPage(msgspec.Struct):
    """The latest used first. ``next_cursor`` leads to the next page; null on the last."""

    data: list[ConversationListed]
    next_cursor: str | None


class TurnAccepted(msgspec.Struct):
    """A turn that was left to be followed."""

    turn_id: Id
    conversation_id: Id


class TurnAnswered(TurnCompleted, frozen=True, tag_field="event", tag=TurnCompleted.name, kw_only=True):
    """The ending of a turn that was waited for: complete."""

    turn_id: Id


class TurnCutShort(TurnStopped, frozen=True, tag_field="event", tag=TurnStopped.name, kw_only=True):
    """The ending of a turn that was waited for: stopped, and why."""

    turn_id: Id


class TurnStands(msgspec.Struct):
    """Where a turn stands: ``stopping`` until it has ended, then its ending. Repeats tell the same."""

    turn_id: Id
    state: Literal["stopping", "completed", "stopped", "failed"]


class Problem(msgspec.Struct):
    """An error (RFC 9457). ``type`` leads to its code's row on the page of errors."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: int
    code: Code
    detail: str
    request_id: Annotated[str, Meta(description="As in the header `x-request-id`.")] | UnsetType = UNSET
    field: Annotated[str, Meta(description="What it is about, as a path into the body or a name.")] | UnsetType = UNSET
    retry_after_s: Annotated[float, Meta(description="Seconds after which to try again.")] | UnsetType = UNSET
    vendor_status: Annotated[int, Meta(description="The HTTP status of Hyperleap's answer.")] | UnsetType = UNSET
    limit: Annotated[str, Meta(description="With `rate_limited`: the limit that refused.")] | UnsetType = UNSET
    turn_id: (
        Annotated[str, Meta(description="The turn that is active, that failed, or whose log is gone.")] | UnsetType
    ) = UNSET
    state: Annotated[TurnState, Meta(description="With `history_lost`: how that turn ended.")] | UnsetType = UNSET
    text: Annotated[str, Meta(description="What there is of that turn's answer.")] | UnsetType | None = UNSET
    usage: Usage | UnsetType = UNSET
    message_id: str | UnsetType | None = UNSET
    categories: (
        Annotated[list[str], Meta(description="With `message_flagged`: as Hyperleap names them.")] | UnsetType
    ) = UNSET
    cause: Annotated[Code, Meta(description="With `moderation_unavailable`: why no judgement came.")] | UnsetType = (
        UNSET
    )
    changed: (
        Annotated[list[str], Meta(description="Of several changes, those that were made before one failed.")]
        | UnsetType
    ) = UNSET
    limits: (
        Annotated[list[LimitStands], Meta(description="In WebSocket frames: where the limits stand.")] | UnsetType
    ) = UNSET


# --- WebSocket frames ---------------------------------------------------------------------------------------------


class LimitStands(msgspec.Struct):
    """One limit and what is left of it."""

    name: str
    limit: int
    remaining: int
    reset_s: Annotated[int, Meta(description="Seconds until it is whole again, or its period begins anew.")]


class EventFrame(msgspec.Struct):
    """An event of a turn that is followed; ``data`` is the event's, by its name."""

    id: Annotated[str, Meta(description="`<turn>.<position>`: the cursor after this event.")]
    event: str
    turn_id: str
    conversation_id: str
    data: dict[str, Any]
    limits: (
        Annotated[list[LimitStands], Meta(description="With `turn.started`, to the socket that started it.")]
        | UnsetType
    ) = UNSET


class AckData(msgspec.Struct):
    """What a command led to; which members there are depends on the command."""

    turn_id: (
        Annotated[
            str | None,
            Meta(description="`turn.start`, `turn.stop`, `subscribe`: the turn; null where a conversation has none."),
        ]
        | UnsetType
    ) = UNSET
    conversation_id: Annotated[str, Meta(description="`subscribe` to a conversation.")] | UnsetType = UNSET
    ended: (
        Annotated[bool, Meta(description="`subscribe` to a turn: the cursor is at its ending, nothing follows.")]
        | UnsetType
    ) = UNSET
    state: Annotated[TurnState, Meta(description="`turn.stop`: where the turn stands.")] | UnsetType = UNSET


class AckFrame(msgspec.Struct, tag_field="event", tag="ack"):
    """A command was carried out. It comes before any event that the command leads to."""

    request_id: Annotated[str | None, Meta(description="The command's own, to match them.")]
    data: AckData


class PongFrame(msgspec.Struct, tag_field="event", tag="pong"):
    """The answer to ``ping``."""

    request_id: str | None


class ErrorFrame(msgspec.Struct, tag_field="event", tag="error"):
    """A command was refused, the delivery of a turn failed (then it is named), or the socket is about to be closed."""

    request_id: str | None
    data: Problem
    turn_id: str | UnsetType = UNSET
    conversation_id: str | UnsetType = UNSET
