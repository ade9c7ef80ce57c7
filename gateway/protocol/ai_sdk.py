"""The dialect of AI SDK UI: what ``useChat`` sends, and the UI message stream protocol, version 1, that it reads.

Sources: ``DefaultChatTransport``, ``uiMessageChunkSchema`` and ``processUIMessageStream`` of the npm package ``ai``, 5
and 6, and the page "Stream Protocols" of its documentation. A message's id is its turn's, so that a stream and its
replay are of the same message; its one text part is called ``text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, assert_never

import msgspec

from gateway.core.chats import Line, check_count
from gateway.core.conversation import Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.threads import ANSWER, QUESTION
from gateway.core.turn import Usage
from gateway.protocol.native import encode_data
from gateway.protocol.sse import encode_event

HEADERS: Final = {"x-vercel-ai-ui-message-stream": "v1"}
DONE: Final = encode_event(b"[DONE]")
FINISHES: Final = {"stop": "stop", "length": "length", "content_filter": "content-filter", "tool_calls": "tool-calls"}
SILENT_PARTS: Final = ("data-", "source-", "reasoning", "step-start")  # say nothing that Hyperleap has not said

_TEXT_ID: Final = "text"
_HEAD: Final = b'data: {"type":"text-delta","id":"text","delta":'

_json: Final = msgspec.json.Encoder().encode


# --- what is sent -------------------------------------------------------------------------------------------------


class UiMessage(msgspec.Struct):
    """One ``UIMessage``; what else there is in it is the page's own."""

    role: str
    parts: list[dict[str, Any]]
    id: str = ""


class UiChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /api/chat, as ``DefaultChatTransport`` sends it, or with the last ``message`` alone.

    ``persona``, ``replacements`` and ``metadata`` are the gateway's own; the latter two count when the chat is opened.
    """

    id: str
    messages: list[UiMessage] | None = None
    message: UiMessage | None = None
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: str | None = msgspec.field(default=None, name="messageId")
    persona: str | None = None
    replacements: dict[str, str | int | float | bool | None] = {}
    metadata: dict[str, Any] = {}
    # refused where they are not empty
    model: Any = None
    system: Any = None
    tools: Any = None

    @property
    def changed(self) -> bool:
        """Whether the list may be another than the chat so far: a message was changed, or is to be answered again."""
        return self.trigger == "regenerate-message" or self.message_id is not None


def lines_of(body: UiChatRequest) -> list[Line]:
    """Return what was said, the user's message last.

    Raises GatewayError: unsupported_parameter for what Hyperleap cannot be given, and missing_field, wrong_type and
    invalid_value for what is no list of messages. Each names the field.
    """
    for name in ("model", "system", "tools"):
        if getattr(body, name):
            hint = "`persona` names who answers." if name == "model" else "The persona has its own at Hyperleap."
            raise GatewayError(Code.UNSUPPORTED_PARAMETER, f"`{name}` cannot be given to Hyperleap. {hint}", field=name)
    if body.message is not None and body.messages is None:
        named = [("message", body.message)]
    elif body.message is None and body.messages:
        check_count(body.messages, "messages")
        named = [(f"messages[{index}]", message) for index, message in enumerate(body.messages)]
    else:
        raise GatewayError(Code.MISSING_FIELD, "Send `messages`, or the last `message` alone.", field="messages")
    lines = [_line(field, message) for field, message in named]
    if lines[-1].role != QUESTION:
        raise GatewayError(Code.INVALID_VALUE, "The last message must be the user's.", field=f"{named[-1][0]}.role")
    return lines


def _line(field: str, message: UiMessage) -> Line:
    if message.role == "system":
        raise GatewayError(
            Code.UNSUPPORTED_PARAMETER, "System messages are the persona's, at Hyperleap.", field=f"{field}.role"
        )
    if message.role not in (QUESTION, ANSWER):
        raise GatewayError(Code.INVALID_VALUE, "A role is `user` or `assistant`.", field=f"{field}.role")
    check_count(message.parts, f"{field}.parts")
    texts: list[str] = []
    for index, part in enumerate(message.parts):
        kind, at = part.get("type"), f"{field}.parts[{index}]"
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise GatewayError(Code.WRONG_TYPE, "A text part has its `text`, a string.", field=f"{at}.text")
            texts.append(text)
        elif not isinstance(kind, str):
            raise GatewayError(Code.WRONG_TYPE, "A part has a `type`, a string.", field=f"{at}.type")
        elif not kind.startswith(SILENT_PARTS):
            what = "Files" if kind == "file" else "Tools" if "tool" in kind else "Parts of this type"
            raise GatewayError(Code.UNSUPPORTED_PARAMETER, f"{what} cannot be given to Hyperleap.", field=at)
    return Line(message.role, "\n".join(texts), message.id)


# --- what is answered ---------------------------------------------------------------------------------------------


def encode_parts(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries as the parts of a stream; with a turn's ending the stream ends."""
    if len(entries) == 1 and type(event := entries[0].event) is TextDelta:  # nearly all there are
        return b"%b%b}\n\n" % (_HEAD, _json(event.text))
    return b"".join([_encode(turn_id, conversation_id, entry) for entry in entries])


def encode_error(error: GatewayError) -> bytes:
    """Encode an error of a stream that has begun, with the stream's end."""
    return _part("error", errorText=error.detail) + DONE


def error_text(error: GatewayError) -> str:
    """Return the text of an answer that tells an error before there is a stream: ``useChat`` shows it as it stands."""
    return error.detail if error.field is None else f"{error.field}: {error.detail}"


def ui_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a transcript as messages that ``useChat`` can begin with."""
    told = []
    for index, message in enumerate(messages):
        if message.role not in (QUESTION, ANSWER):
            continue
        id_ = message.turn_id or message.message_id or str(index)
        parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
        one: dict[str, Any] = {"id": id_ if message.role == ANSWER else f"{id_}-{QUESTION}", "role": message.role}
        if message.role == ANSWER:
            parts += [_source(f"{id_}-{number}", cited) for number, cited in enumerate(message.citations or ())]
            one["metadata"] = {
                **{"turnId": message.turn_id, "messageId": message.message_id, "runId": message.run_id},
                **({"stopReason": message.reason} if message.reason else {}),
                **({"error": message.error} if message.error else {}),
            }
        told.append({**one, "parts": parts})
    return told


def _encode(turn_id: str, conversation_id: str, entry: Entry) -> bytes:
    event: Event = entry.event
    match event:
        case TextDelta():
            return b"%b%b}\n\n" % (_HEAD, _json(event.text))
        case TurnStarted():
            begun = {"turnId": turn_id, "conversationId": conversation_id}
            return _part("start", messageId=turn_id, messageMetadata=begun)
        case TurnQueued():
            return _data("queue", event, b',"transient":true')
        case MessageStarted():
            told = {"messageId": event.message_id, "runId": event.run_id}
            return _part("message-metadata", messageMetadata=told) + _part("text-start", id=_TEXT_ID)
        case MessageExtra():
            return _data("extra", event)
        case MessageModerated():
            return _data("moderation", event)
        case MessageCitations():
            named = enumerate(event.citations)
            return b"".join([_part(**_source(f"{turn_id}-{entry.position}-{n}", cited)) for n, cited in named])
        case TurnCompleted():
            finish = FINISHES.get(event.finish_reason, "other")
            told_last = {**_ended(event), "finishReason": event.finish_reason}
            return _text_end(event.text or "-") + _part("finish", finishReason=finish, messageMetadata=told_last) + DONE
        case TurnStopped():
            told_last = {**_ended(event), "stopReason": event.reason}
            ended = _part("message-metadata", messageMetadata=told_last)
            return _text_end(event.text) + ended + _part("abort", reason=event.reason) + DONE
        case TurnFailed():
            error = event.error
            told_last = {**_ended(event), "error": {"code": error.code, "retryable": error.retryable}}
            ended = _part("message-metadata", messageMetadata=told_last)
            return _text_end(event.text) + ended + _part("error", errorText=error.detail) + DONE
        case _:
            assert_never(event)


def _text_end(text: str) -> bytes:
    """End the text part. An answer that came to no text may not have begun one, and none may be ended then."""
    return _part("text-end", id=_TEXT_ID) if text else b""


def _ended(event: TurnCompleted | TurnStopped | TurnFailed) -> dict[str, Any]:
    return {"messageId": event.message_id, "runId": event.run_id, "usage": _usage(event.usage)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.total_tokens,
        "source": usage.source,
    }


def _source(source_id: str, citation: dict[str, Any]) -> dict[str, Any]:
    """Return a citation as a source: of its URL where it has one, else of a document. The whole of it goes along."""
    url = citation.get("sourceUrl") or citation.get("link")
    name = citation.get("sourceName")
    rest = {"providerMetadata": {"hyperleap": citation}}
    if url:
        titled = {"title": str(name)} if name else {}
        return {"type": "source-url", "sourceId": source_id, "url": str(url), **titled, **rest}
    media_type = str(citation.get("sourceContentType") or "application/octet-stream")
    title = str(name or citation.get("documentId") or citation.get("fileId") or "")
    return {"type": "source-document", "sourceId": source_id, "mediaType": media_type, "title": title, **rest}


def _data(name: str, event: Event, more: bytes = b"") -> bytes:
    """Encode a data part: the gateway's own event, as its native door tells it."""
    return b'data: {"type":"data-%b","data":%b%b}\n\n' % (name.encode(), encode_data(event), more)


def _part(type: str, **members: Any) -> bytes:
    return b"data: %b\n\n" % _json({"type": type, **members})
