"""Hyperleap's dialect: the vendor's JSON to and from core values.

Shapes are the vendor's published contract (2025-11). Absent and null mean the same, unknown fields are
ignored, and nothing of the vendor's words is passed on in an error: only its HTTP status is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.core.conversation import ConversationId, Feedback, Message, VendorConversation
from gateway.core.errors import Code, GatewayError
from gateway.core.turn import AnswerItem

# --- a stream's items ---------------------------------------------------------------------------------------------


class _ChatMessage(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | None = None
    tool_call_id: str | None = msgspec.field(name="toolCallId", default=None)
    name: str | None = None


class _Moderation(msgspec.Struct):
    category_results: list[dict[str, Any]] | None = msgspec.field(name="categoryResults", default=None)


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    index: int | None = None
    message: _ChatMessage | None = None
    moderation_results: _Moderation | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class StreamItem(msgspec.Struct, gc=False):
    """GenAiStreamingChatChoice: one element of the array that ``chat-http2`` streams."""

    choice: _Choice | None = None
    usage: _Usage | None = None
    message_id: str | None = msgspec.field(name="messageId", default=None)
    run_id: str | None = msgspec.field(name="runId", default=None)
    citations: list[dict[str, Any]] | None = None


def read_item(item: StreamItem) -> AnswerItem:
    """Bring a stream's item into our terms."""
    choice = item.choice
    message = choice.message if choice is not None else None
    if (
        choice is not None
        and message is not None
        and choice.finish_reason is None
        and not choice.index
        and item.usage is None
        and item.citations is None
        and choice.moderation_results is None
        and message.tool_call_id is None
        and message.name is None
    ):  # the item that a stream is made of
        return AnswerItem(message.content, item.message_id, item.run_id, role=message.role)
    usage = item.usage
    moderation = choice.moderation_results if choice is not None else None
    return AnswerItem(
        text=message.content if message is not None else None,
        message_id=item.message_id,
        run_id=item.run_id,
        finish_reason=choice.finish_reason if choice is not None else None,
        usage=_usage(usage) if usage is not None else None,
        citations=item.citations or None,
        moderation=(moderation.category_results or None) if moderation is not None else None,
        role=message.role if message is not None else None,
        index=(choice.index or 0) if choice is not None else 0,
        name=message.name if message is not None else None,
        tool_call_id=message.tool_call_id if message is not None else None,
    )


def ends_answer(item: StreamItem) -> bool:
    """Whether an item has the answer's ``finish_reason``, after which only more about it may follow."""
    choice = item.choice
    return choice is not None and choice.finish_reason is not None and not choice.index


def _usage(usage: _Usage) -> tuple[int, int, int] | None:
    """A reported 0 is 0; a usage object with nothing in it reports nothing."""
    if usage.prompt_tokens is None and usage.completion_tokens is None and usage.total_tokens is None:
        return None
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return prompt, completion, prompt + completion if usage.total_tokens is None else usage.total_tokens


# --- conversations ------------------------------------------------------------------------------------------------


class _RunFeedback(msgspec.Struct):
    feedback_id: str | None = msgspec.field(name="feedbackId", default=None)
    score: int | None = None
    comments: str | None = None
    tags: list[str] | None = None
    timestamp: str | None = None
    score_confidence: float | None = msgspec.field(name="scoreConfidence", default=None)


class _EntryMessage(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    message_id: str | None = msgspec.field(name="messageId", default=None)
    run_id: str | None = msgspec.field(name="conversationRunId", default=None)
    timestamp: str | None = None
    feedbacks: list[_RunFeedback] | None = None
    prompt_tokens: int | None = msgspec.field(name="promptTokens", default=None)
    completion_tokens: int | None = msgspec.field(name="completionTokens", default=None)
    total_tokens: int | None = msgspec.field(name="totalTokens", default=None)


class ChatEntry(msgspec.Struct):
    """ChatEntryResponse: a conversation as the vendor answers it."""

    conversation_id: str = msgspec.field(name="conversationId")
    persona_id: str | None = msgspec.field(name="personaId", default=None)
    status: str | None = msgspec.field(name="conversationStatus", default=None)
    conversation_name: str | None = msgspec.field(name="conversationName", default=None)
    messages: list[_EntryMessage] | None = msgspec.field(name="chatMessages", default=None)
    in_blob: bool | None = msgspec.field(name="areChatMessagesInBlob", default=None)
    blob_uri: str | None = msgspec.field(name="chatMessagesBlobUri", default=None)
    metadata: dict[str, Any] | None = None
    external_user_id: str | None = msgspec.field(name="externalUserId", default=None)
    is_deleted: bool | None = msgspec.field(name="isDeleted", default=None)
    is_active: bool | None = msgspec.field(name="isActive", default=None)
    ai_system: str | None = msgspec.field(name="aiSystem", default=None)
    model: str | None = None


_entry: Final = msgspec.json.Decoder(ChatEntry)
_messages: Final = msgspec.json.Decoder(list[_EntryMessage])


def decode_entry(body: bytes) -> ChatEntry:
    """Read a ChatEntryResponse; raises GatewayError(upstream_malformed)."""
    entry: ChatEntry = _decode(_entry, body)
    return entry


def read_entry(entry: ChatEntry, blob: bytes | None = None) -> VendorConversation:
    """Bring a conversation into our terms; ``blob`` holds its messages where the vendor keeps them apart."""
    messages = entry.messages or []
    if entry.in_blob and blob is not None:
        messages = _decode(_messages, blob)
    return VendorConversation(
        id=ConversationId(entry.conversation_id),
        external_user_id=entry.external_user_id,
        persona_id=entry.persona_id,
        status=entry.status,
        name=entry.conversation_name,
        metadata=entry.metadata or {},
        messages=[_transcript_message(message) for message in messages],
        messages_unavailable=bool(entry.in_blob and blob is None),
        is_deleted=bool(entry.is_deleted),
        is_active=entry.is_active is not False,
        ai_system=entry.ai_system,
        model=entry.model,
    )


def _transcript_message(message: _EntryMessage) -> Message:
    return Message(
        role=message.role or "assistant",
        content=message.content or "",
        message_id=message.message_id,
        run_id=message.run_id,
        created_at=message.timestamp,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        total_tokens=message.total_tokens,
        feedback=[_feedback(known) for known in message.feedbacks or () if known.feedback_id] or None,
    )


def _feedback(known: _RunFeedback) -> Feedback:
    return Feedback(
        feedback_id=known.feedback_id or "",
        score=known.score or 0,
        comments=known.comments,
        tags=known.tags,
        confidence=known.score_confidence,
        created_at=known.timestamp,
    )


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise GatewayError(Code.UPSTREAM_MALFORMED) from None


# --- requests -----------------------------------------------------------------------------------------------------


def encode_create(
    *,
    persona_id: str,
    persona_version_id: str | None,
    replacements: Mapping[str, Any],
    metadata: Mapping[str, Any],
    external_user_id: str,
) -> bytes:
    """CreateGenAiPersonaChatRequest. ``stream: false``: creating answers with the record, not with a stream."""
    body: dict[str, Any] = {
        "personaId": persona_id,
        "replacements": dict(replacements),
        "metadata": dict(metadata),
        "stream": False,
        "externalUserId": external_user_id,
    }
    if persona_version_id is not None:
        body["personaVersionId"] = persona_version_id
    return msgspec.json.encode(body)


def encode_message(message: str) -> bytes:
    """GenAiUserMessage."""
    return msgspec.json.encode({"message": message})


def encode_score(message_id: str, feedback: Feedback) -> bytes:
    """UpsertRunScoreRequest, with the tags that the vendor's answers carry; what was not given is left out."""
    body: dict[str, Any] = {"messageId": message_id, "feedbackId": feedback.feedback_id, "score": feedback.score}
    if feedback.comments is not None:
        body["comments"] = feedback.comments
    if feedback.tags is not None:
        body["tags"] = feedback.tags
    if feedback.confidence is not None:
        body["scoreConfidence"] = feedback.confidence
    return msgspec.json.encode(body)


# --- errors -------------------------------------------------------------------------------------------------------


def refusal(status: int, retry_after: str | None) -> GatewayError:
    """Name a vendor's refusal by its status alone: bodies come in four shapes and may repeat what was sent."""
    if status in (401, 403):
        code = Code.UPSTREAM_UNAUTHORIZED
    elif status == 429:
        code = Code.UPSTREAM_RATE_LIMITED
    elif status in (408, 504):
        code = Code.UPSTREAM_TIMEOUT
    elif 400 <= status < 500:
        code = Code.UPSTREAM_REJECTED
    else:
        code = Code.UPSTREAM_ERROR
    return GatewayError(
        code,
        f"Hyperleap answered with status {status}.",
        vendor_status=status,
        retry_after_s=_retry_after_s(retry_after) if status in (429, 503) else None,
    )


def _retry_after_s(value: str | None) -> float | None:
    """Read ``Retry-After`` in seconds, bounded to an hour; the date form is rare here and left unread."""
    digits = (value or "").strip()
    if not (digits.isascii() and digits.isdigit()):
        return None
    return float(min(int(digits), 3600)) if len(digits) <= 9 else 3600.0
