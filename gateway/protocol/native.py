"""The native dialect: public JSON bodies, SSE events and WebSocket frames, to and from core values."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from gateway.core.conversation import Conversation, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EVENT_TYPES, Entry, Event
from gateway.core.operations import Attribute, Change

T = TypeVar("T")

_encoder: Final = msgspec.json.Encoder()
_decoders: Final = {name: msgspec.json.Decoder(event_type) for name, event_type in EVENT_TYPES.items()}
_event_names: Final = {event_type: name.encode() for name, event_type in EVENT_TYPES.items()}

encode_json: Final = _encoder.encode


# --- events -------------------------------------------------------------------------------------------------------


def encode_data(event: Event) -> bytes:
    """Encode the ``data`` of an event, as clients and the stored log see it."""
    return _encoder.encode(event)


def decode_event(name: str, data: bytes) -> Event:
    """Read an event from its name and data; raises KeyError or msgspec.DecodeError on what this version never wrote."""
    event: Event = _decoders[name].decode(data)
    return event


def encode_sse(turn_id: str, entry: Entry) -> bytes:
    """Encode an entry as a server-sent event (WHATWG HTML 9.2.5); JSON holds no raw newline, so one data line does."""
    event = entry.event
    return b"id: %b.%d\nevent: %b\ndata: %b\n\n" % (
        turn_id.encode(),
        entry.position,
        _event_names[type(event)],
        _encoder.encode(event),
    )


def encode_frame(turn_id: str, conversation_id: str, entry: Entry) -> bytes:
    """Encode an entry as the JSON of a WebSocket frame. Ids and names need no escaping."""
    event = entry.event
    turn = turn_id.encode()
    return b'{"id":"%b.%d","event":"%b","turn_id":"%b","conversation_id":"%b","data":%b}' % (
        turn,
        entry.position,
        _event_names[type(event)],
        turn,
        conversation_id.encode(),
        _encoder.encode(event),
    )


def text_frame(payload: bytes) -> bytes:
    """Frame a payload as one unmasked, unfragmented text message from a server (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


# --- errors -------------------------------------------------------------------------------------------------------

PROBLEM_BASE: Final = (
    "/docs/errors#"  # a relative reference (RFC 9457 section 3.1.1): the gateway serves the page itself
)


def problem(error: GatewayError, request_id: str | None) -> dict[str, Any]:
    """Build the RFC 9457 problem document of an error; ``field`` and other members only where there are any."""
    document: dict[str, Any] = {
        "type": PROBLEM_BASE + error.code,
        "title": error.wire.title,
        "status": error.wire.http,
        "code": error.code,
        "detail": error.detail,
    }
    if error.field is not None:
        document["field"] = error.field
    if error.retry_after_s is not None:
        document["retry_after_s"] = round(error.retry_after_s, 3)
    if error.vendor_status is not None:
        document["vendor_status"] = error.vendor_status
    document.update(error.extra)
    if request_id is not None:
        document["request_id"] = request_id
    return document


# --- request bodies -----------------------------------------------------------------------------------------------


class SessionLimits(msgspec.Struct, forbid_unknown_fields=True):
    """What a session may do, at most as much as its tenant lets a user do."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrent_turns: int | None = None

    def given(self) -> dict[str, int]:
        """Return those that are given, by name."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class OpenSession(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/sessions. A secret key needs ``user_id``; a publishable one takes ``ttl_s`` and ``visitor_id``."""

    user_id: str | None = None
    ttl_s: int | None = None
    personas: list[str] | None = None
    origins: list[str] | None = None
    limits: SessionLimits | None = None
    single_use: bool | None = None
    visitor_id: str | None = None


class TakeTicket(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/tickets. ``path`` is that of an event stream or of the WebSocket, without a query."""

    path: str


class CreateConversation(msgspec.Struct, forbid_unknown_fields=True):
    persona: str = "default"
    replacements: dict[str, str | int | float | bool | None] = {}
    metadata: dict[str, Any] = {}


class ChangeConversation(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH /v1/conversations/{id}: what is given is changed; null empties a name or a status."""

    name: str | msgspec.UnsetType | None = msgspec.UNSET
    status: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    active: bool | msgspec.UnsetType = msgspec.UNSET

    def changes(self) -> list[Change]:
        """Return what is given, in a fixed order; raises GatewayError(missing_field) where that is nothing."""
        given: dict[Attribute, object] = {
            "name": self.name,
            "status": self.status,
            "metadata": self.metadata,
            "active": self.active,
        }
        changes = [Change(name, value) for name, value in given.items() if value is not msgspec.UNSET]
        if not changes:
            words = "Give at least one of name, status, metadata and active."
            raise GatewayError(Code.MISSING_FIELD, words, field="name")
        return changes


class StartTurn(msgspec.Struct, forbid_unknown_fields=True):
    message: str


class GiveFeedback(msgspec.Struct, forbid_unknown_fields=True):
    score: int
    comments: str | None = None
    tags: list[str] | None = None
    confidence: float | None = None


# --- WebSocket commands -------------------------------------------------------------------------------------------


class StartCommand(msgspec.Struct, tag="turn.start", forbid_unknown_fields=True):
    conversation_id: str
    message: str
    request_id: str | None = None
    client_message_id: str | None = None


class SubscribeCommand(msgspec.Struct, tag="subscribe", forbid_unknown_fields=True):
    """Follow one turn (``turn_id``) or a conversation's active and future turns (``conversation_id``)."""

    turn_id: str | None = None
    conversation_id: str | None = None
    after: str | None = None
    request_id: str | None = None


class UnsubscribeCommand(msgspec.Struct, tag="unsubscribe", forbid_unknown_fields=True):
    turn_id: str | None = None
    conversation_id: str | None = None
    request_id: str | None = None


class StopCommand(msgspec.Struct, tag="turn.stop", forbid_unknown_fields=True):
    turn_id: str
    request_id: str | None = None


class PingCommand(msgspec.Struct, tag="ping", forbid_unknown_fields=True):
    request_id: str | None = None


class AuthCommand(msgspec.Struct, tag="auth", forbid_unknown_fields=True):
    token: str
    request_id: str | None = None


class RefreshCommand(msgspec.Struct, tag="refresh", forbid_unknown_fields=True):
    token: str
    request_id: str | None = None


Command = (
    StartCommand | SubscribeCommand | UnsubscribeCommand | StopCommand | PingCommand | AuthCommand | RefreshCommand
)

_command: Final = msgspec.json.Decoder(Command)


class _Envelope(msgspec.Struct):
    type: Any = None
    request_id: Any = None


_envelope: Final = msgspec.json.Decoder(_Envelope)


def decode_command(frame: str) -> Command:
    """Read a client's frame; raises GatewayError with the command's request id under ``extra`` where it has one."""
    try:
        command: Command = _command.decode(frame)
        return command
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        request_id, kind = None, None
        try:
            envelope = _envelope.decode(frame)
            kind = envelope.type
            request_id = envelope.request_id if isinstance(envelope.request_id, str) else None
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            pass
        known = [command.__struct_config__.tag for command in Command.__args__]  # a type need not be hashable
        if isinstance(error, msgspec.ValidationError) and kind is not None and kind not in known:
            refusal = GatewayError(Code.COMMAND_UNKNOWN, "No command has this type.", field="type")
        else:
            refusal = _refusal(error)
        refusal.extra["command_request_id"] = request_id
        raise refusal from None


def decode_body(data: bytes, body_type: type[T]) -> T:
    """Read a request body; raises GatewayError naming the field, without repeating any of its content."""
    try:
        return msgspec.json.decode(data, type=body_type)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _refusal(error) from None


_AT: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")


def _refusal(error: Exception) -> GatewayError:
    """Turn msgspec's error into ours. Its texts name types and fields, never values."""
    if not isinstance(error, msgspec.ValidationError):
        return GatewayError(Code.MALFORMED_JSON)
    words = str(error)
    at = _AT.search(words)
    path = at[1] if at else ""
    sentence = words[: at.start()] if at else words
    if match := _UNKNOWN.match(sentence):
        name = match[1][:64]
        return GatewayError(Code.UNKNOWN_FIELD, "The body has a field that is not known here.", field=_join(path, name))
    if match := _MISSING.match(sentence):
        return GatewayError(Code.MISSING_FIELD, "A required field is missing.", field=_join(path, match[1]))
    if not sentence.startswith("Expected `"):
        return GatewayError(Code.INVALID_VALUE, "The value is not allowed.", field=path or None)
    return GatewayError(Code.WRONG_TYPE, sentence.rstrip(".") + ".", field=path or None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- answers ------------------------------------------------------------------------------------------------------


def conversation_body(conversation: Conversation) -> dict[str, Any]:
    """A conversation as its owner sees it. The owner's hash stays inside."""
    body: dict[str, Any] = {
        "id": conversation.id,
        "persona": conversation.persona or None,
        "status": conversation.status,
        "name": conversation.name,
        "active": conversation.is_active,
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
        "active_turn_id": conversation.active_turn_id,
        "messages": [message_body(message) for message in conversation.messages if message.role in CHAT_ROLES],
    }
    if conversation.messages_unavailable:
        body["messages_unavailable"] = True
    return body


CHAT_ROLES: Final = frozenset({"user", "assistant"})  # system prompts and tool traffic are the tenant's, not the user's


def message_body(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {
        "message_id": message.message_id,
        "role": message.role,
        "content": message.content,
        "created_at": message.created_at,
    }
    if message.turn_id is not None:
        body["turn_id"] = message.turn_id
    if message.state is not None:
        body["state"] = message.state
        body["reason"] = message.reason
        body["error"] = message.error
    if message.total_tokens is not None:
        body["usage"] = {
            "prompt_tokens": message.prompt_tokens or 0,
            "completion_tokens": message.completion_tokens or 0,
            "total_tokens": message.total_tokens,
        }
    if message.citations:
        body["citations"] = message.citations
    if message.feedback:
        body["feedback"] = message.feedback[-1]
    return body
