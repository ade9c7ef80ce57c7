"""The dialect of AG-UI, the Agent User Interaction Protocol: a run's input, and its events over server-sent events.

Source: the specification 1.0 and the sources of the npm packages ``@ag-ui/core`` and ``@ag-ui/client``, whose
``verifyEvents`` holds a run to its rules. A run is a turn; the one message of a run has the turn's id. What AG-UI has
no event for is a ``CUSTOM`` one, by the name and with the data that it has in the native dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.chats import Line, check_count
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    ENDING_STATE,
    Entry,
    Event,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnStopped,
)
from gateway.core.threads import ANSWER, QUESTION
from gateway.core.turn import Usage
from gateway.protocol.native import encode_data

SILENT_ROLES: Final = frozenset({"reasoning", "activity"})  # shown to the user only

_json: Final = msgspec.json.Encoder().encode


# --- what is sent -------------------------------------------------------------------------------------------------


class AgMessage(msgspec.Struct):
    """One message of the thread."""

    role: str
    id: str = ""
    content: Any = None
    tool_calls: Any = msgspec.field(default=None, name="toolCalls")


class Forwarded(msgspec.Struct, forbid_unknown_fields=True):
    """``forwardedProps``: what the gateway takes beside the protocol. The latter two count when a thread is opened."""

    persona: str | None = None
    replacements: dict[str, str | int | float | bool | None] = {}
    metadata: dict[str, Any] = {}


class RunInput(msgspec.Struct):
    """``RunAgentInput``. The protocol grows by members, so unknown ones are passed over, and so is ``state``."""

    thread_id: str = msgspec.field(name="threadId")
    run_id: str = msgspec.field(name="runId")
    messages: list[AgMessage]
    forwarded: Forwarded | None = msgspec.field(default=None, name="forwardedProps")
    protocol_version: str | None = msgspec.field(default=None, name="protocolVersion")
    # refused where they are not empty
    tools: Any = None
    context: Any = None
    resume: Any = None


class Run(NamedTuple):
    """What a run's beginning and ending say of it.

    ``has_outcomes``: the client's protocol is 1.0 or later, and has an outcome for a run that was stopped; others are
    told by ``result.reason`` alone, for they take an outcome that they do not know for an error.
    """

    thread_id: str
    run_id: str
    has_outcomes: bool = False


def run_of(body: RunInput) -> Run:
    return Run(body.thread_id, body.run_id, body.protocol_version is not None)


def lines_of(body: RunInput) -> list[Line]:
    """Return what was said, the user's message last.

    Raises GatewayError: unsupported_parameter for what Hyperleap cannot be given, and wrong_type and invalid_value for
    what is no thread. Each names the field.
    """
    for name in ("tools", "context", "resume"):
        if getattr(body, name):
            raise GatewayError(Code.UNSUPPORTED_PARAMETER, f"`{name}` cannot be given to Hyperleap.", field=name)
    check_count(body.messages, "messages")
    lines = [
        _line(f"messages[{index}]", message)
        for index, message in enumerate(body.messages)
        if message.role not in SILENT_ROLES
    ]
    if not lines or lines[-1].role != QUESTION:
        raise GatewayError(Code.INVALID_VALUE, "The last message must be the user's.", field="messages")
    return lines


def _line(field: str, message: AgMessage) -> Line:
    if message.role not in (QUESTION, ANSWER):
        raise GatewayError(
            Code.UNSUPPORTED_PARAMETER,
            "Only messages of the user and the assistant can be given to Hyperleap.",
            field=f"{field}.role",
        )
    if message.tool_calls:
        raise GatewayError(
            Code.UNSUPPORTED_PARAMETER, "Tools cannot be given to Hyperleap.", field=f"{field}.toolCalls"
        )
    content = message.content
    if isinstance(content, str):
        return Line(message.role, content, message.id)
    if content is None and message.role == ANSWER:
        return Line(ANSWER, "", message.id)
    if not isinstance(content, list):
        raise GatewayError(Code.WRONG_TYPE, "`content` is a string or a list of parts.", field=f"{field}.content")
    check_count(content, f"{field}.content")
    texts: list[str] = []
    for index, part in enumerate(content):
        at = f"{field}.content[{index}]"
        if not isinstance(part, dict):
            raise GatewayError(Code.WRONG_TYPE, "A part is an object.", field=at)
        if part.get("type") != "text":
            raise GatewayError(Code.UNSUPPORTED_PARAMETER, "Only text can be given to Hyperleap.", field=at)
        if not isinstance(part.get("text"), str):
            raise GatewayError(Code.WRONG_TYPE, "A text part has its `text`, a string.", field=f"{at}.text")
        texts.append(part["text"])
    return Line(message.role, "\n".join(texts), message.id)


# --- what is answered ---------------------------------------------------------------------------------------------


def encode_run_started(run: Run) -> bytes:
    return _event("RUN_STARTED", threadId=run.thread_id, runId=run.run_id)


def encode_run(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries, all but a turn's ending, which names the run (``encode_ending``)."""
    if len(entries) == 1 and type(event := entries[0].event) is TextDelta and event.text:  # nearly all there are
        return _content(turn_id, event.text)
    return b"".join([_encode(turn_id, entry.event) for entry in entries if type(entry.event) not in ENDING_STATE])


def encode_ending(event: Event, *, turn_id: str, run: Run, message_open: bool) -> bytes:
    """Encode a turn's ending; ``message_open``: a ``message.started`` was encoded."""
    end = _event("TEXT_MESSAGE_END", messageId=turn_id) if message_open else b""
    match event:
        case TurnCompleted():
            why: dict[str, Any] = {"finish_reason": event.finish_reason}
            outcome: dict[str, Any] = {"outcome": {"type": "success"}} if run.has_outcomes else {}
        case TurnStopped():
            why = {"reason": event.reason}
            outcome = {"outcome": {"type": "cancelled"}} if run.has_outcomes else {}
        case TurnFailed():
            error = event.error
            return end + _event("RUN_ERROR", message=error.detail, code=error.code, usage=[_usage(event.usage)])
        case _:
            raise AssertionError("not an ending")
    ids = {"turn_id": turn_id, "message_id": event.message_id, "run_id": event.run_id}
    result = {**ids, **why, "usage": msgspec.to_builtins(event.usage)}
    return end + _event(
        "RUN_FINISHED", threadId=run.thread_id, runId=run.run_id, result=result, **outcome, usage=[_usage(event.usage)]
    )


def encode_error(error: GatewayError) -> bytes:
    """Encode an error of a stream that has begun."""
    return _event("RUN_ERROR", message=error.detail, code=error.code)


def _encode(turn_id: str, event: Event) -> bytes:
    if type(event) is TextDelta:
        return _content(turn_id, event.text) if event.text else b""  # older clients refuse an empty one
    if type(event) is MessageStarted:
        return _event("TEXT_MESSAGE_START", messageId=turn_id, role="assistant") + _custom(event)
    return _custom(event)


def _content(turn_id: str, text: str) -> bytes:
    return b'data: {"type":"TEXT_MESSAGE_CONTENT","messageId":"%b","delta":%b}\n\n' % (turn_id.encode(), _json(text))


def _custom(event: Event) -> bytes:
    return b'data: {"type":"CUSTOM","name":"%b","value":%b}\n\n' % (event.name.encode(), encode_data(event))


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "provider": "hyperleap",
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.total_tokens,
    }


def _event(type: str, **members: Any) -> bytes:
    return b"data: %b\n\n" % _json({"type": type, **members})
