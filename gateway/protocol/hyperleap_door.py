"""Hyperleap's dialect towards clients: the bodies that they send, conversations and errors as the vendor shows them.

As the vendor does, unknown members are passed over: apps send what they always sent. What a body says of who asks
(``externalUserId``) is among them, for the gateway says that itself.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec

from gateway.core.conversation import Conversation, Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Persona
from gateway.protocol.hyperleap_items import NO_ID
from gateway.protocol.native import CHAT_ROLES

# --- bodies -------------------------------------------------------------------------------------------------------

PageSize = Annotated[int, msgspec.Meta(ge=1, le=20)]


class Body(msgspec.Struct, rename="camel", kw_only=True):
    """Any request body."""


class CreatePersonaChat(Body):
    """CreateGenAiPersonaChatRequest. ``stream`` changes nothing at the vendor either."""

    persona_id: UUID
    persona_version_id: UUID | None = None
    replacements: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class CreateChat(Body):
    """CreateGenAiChatRequest."""

    ai_system: Annotated[int, msgspec.Meta(ge=0, le=6)]
    model: Annotated[str, msgspec.Meta(min_length=1)]
    system_message: str | None = None
    configuration: dict[str, Any] | None = None
    replacements: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    dataspace_ids: list[UUID] | None = None


class UserMessage(Body):
    """GenAiUserMessage."""

    message: str


class RunPrompt(Body):
    """PromptRunRequest."""

    prompt_id: UUID
    prompt_version_id: UUID | None = None
    replacements: dict[str, Any] | None = None
    stream: bool | None = None


class OfConversation(Body):
    """What names the conversation once more."""

    conversation_id: UUID | None = None


class SetActive(OfConversation):
    """UpdateChatEntrySetConversationActiveRequest."""

    is_active: bool = False


class SetMetadata(OfConversation):
    """UpdateChatEntrySetConversationMetadataRequest."""

    metadata: dict[str, Any] | None = None


class SetName(OfConversation):
    """UpdateChatEntrySetConversationNameRequest."""

    conversation_name: str | None = None


class SetStatus(OfConversation):
    """UpdateChatEntrySetConversationStatusRequest."""

    conversation_status: str | None = None


class SetScore(OfConversation):
    """UpdateConversationScoreRequest."""

    score: int | None = None
    score_text: str | None = None
    score_tags: str | None = None


class ScoreMessage(Body):
    """UpsertRunScoreRequest, with the tags of the vendor's prose. A user has one feedback on a message."""

    message_id: UUID | None = None
    score: int = 0
    comments: str | None = None
    tags: list[str] | None = None
    score_confidence: float | None = None


class ScorePromptRun(Body):
    """UpdatePromptRunScoreRequest."""

    score: int = 0
    comments: str | None = None
    score_confidence: float | None = None


class Moderate(Body):
    """OpenAiModerationsRequest."""

    input: str | None = None


class AuditFeedback(Body, omit_defaults=True):
    """AuditFeedback."""

    score: int | None = None
    score_text: str | None = None
    score_tags: str | None = None


class AuditReport(Body, omit_defaults=True):
    """AuditReportRequest, but for what only the vendor sets. All of it is passed on."""

    caller_id: UUID | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    page_size: PageSize | None = None
    app_headers: dict[str, str | None] | None = None
    prompt_id: UUID | None = None
    prompt_version_id: UUID | None = None
    prompt_run_id: UUID | None = None
    conversation_run_id: UUID | None = None
    workspace_id: UUID | None = None
    conversation_id: UUID | None = None
    continuation_token: str | None = None
    include_feedback: bool | None = None
    feedback: AuditFeedback | None = None


class FeedbackReport(Body, omit_defaults=True):
    """FeedbackReportRequest, likewise."""

    caller_id: UUID
    start_date: datetime
    end_date: datetime
    page_size: PageSize | None = None
    app_headers: dict[str, str | None] | None = None
    score: int | None = None
    score_text: str | None = None
    score_tags: str | None = None
    prompt_id: UUID | None = None
    prompt_version_id: UUID | None = None
    conversation_id: UUID | None = None
    continuation_token: str | None = None


def plain(body: AuditReport | FeedbackReport) -> dict[str, Any]:
    """Return a body as it is passed on."""
    asked: dict[str, Any] = msgspec.to_builtins(body)
    return asked


# --- conversations ------------------------------------------------------------------------------------------------

NO_TIME: Final = "0001-01-01T00:00:00Z"  # what .NET writes for a time that is not set


def entry_body(conversation: Conversation, persona: Persona | None, external_user_id: str) -> dict[str, Any]:
    """ChatEntryResponse. System prompts, configuration and where the vendor keeps things are the tenant's."""
    messages = [message for message in conversation.messages if message.role in CHAT_ROLES]
    prompt = sum(message.prompt_tokens or 0 for message in messages)
    completion = sum(message.completion_tokens or 0 for message in messages)
    return {
        "conversationId": conversation.id,
        "aiSystem": conversation.ai_system,
        "model": conversation.model,
        "personaId": persona.persona_id if persona is not None else None,
        "personaVersionId": persona.persona_version_id if persona is not None else None,
        "conversationStatus": conversation.status,
        "conversationName": conversation.name,
        "chatMessages": None if conversation.messages_unavailable else [_message(message) for message in messages],
        "chatMessagesCount": None if conversation.messages_unavailable else len(messages),
        "chatStarted": bool(messages) or conversation.messages_unavailable,
        "areChatMessagesInBlob": conversation.messages_unavailable,
        "chatMessagesBlobUri": None,
        "configuration": None,
        "metadata": conversation.metadata,
        "externalUserId": external_user_id,
        "isActive": conversation.is_active,
        "isDeleted": False,
        "promptTokens": prompt,
        "completionTokens": completion,
        "totalTokens": prompt + completion,
    }


def _message(message: Message) -> dict[str, Any]:
    """HyperleapChatMessageResponse."""
    prompt, completion = message.prompt_tokens or 0, message.completion_tokens or 0
    return {
        "role": message.role,
        "content": message.content,
        "toolCallId": None,
        "name": None,
        "messageId": message.message_id or NO_ID,
        "timestamp": message.created_at or NO_TIME,
        "feedbacks": [_feedback(feedback) for feedback in message.feedback] if message.feedback else None,
        "promptTokens": prompt,
        "completionTokens": completion,
        "totalTokens": prompt + completion if message.total_tokens is None else message.total_tokens,
        "conversationRunId": message.run_id or NO_ID,
    }


def _feedback(feedback: Feedback) -> dict[str, Any]:
    """RunFeedback."""
    return {
        "feedbackId": feedback.feedback_id or NO_ID,
        "score": feedback.score,
        "comments": feedback.comments,
        "tags": feedback.tags,
        "timestamp": feedback.created_at or NO_TIME,
        "scoreConfidence": feedback.confidence,
    }


def run_score_body(run_id: str, feedback: Feedback) -> dict[str, Any]:
    """What a prompt run's score is now; the vendor has published no shape for it."""
    return {"promptRunId": run_id, **_feedback(feedback)}


# --- errors -------------------------------------------------------------------------------------------------------

ERROR_CODES: Final = {  # the vendor's where it has one for a status
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    410: "gone",
    411: "length_required",
    413: "payload_too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
    422: "unprocessable_entity",
    429: "too_many_requests",
    500: "internal_server_error",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
}
FIELDS: Final = {  # what the gateway's fields are called in this dialect
    "persona": "personaId",
    "prompt": "promptId",
    "system_message": "systemMessage",
    "dataspaces": "dataspaceIds",
    "name": "conversationName",
    "status": "conversationStatus",
    "score_text": "scoreText",
    "score_tags": "scoreTags",
    "confidence": "scoreConfidence",
    "cursor": "continuationToken",
    "conversation_id": "conversationId",
    "persona_id": "personaId",
    "message_id": "messageId",
    "run_id": "promptRunId",
}
ABOUT: Final = {Code.TURN_ACTIVE: "conversation_id"}  # of errors that name no field, what they are about


def status_of(error: GatewayError) -> int:
    """Return the status that the vendor would answer with, or did; that it refused the gateway's key is not told."""
    status = error.vendor_status
    if status is not None and 400 <= status <= 599 and error.code is not Code.UPSTREAM_UNAUTHORIZED:
        return status
    return error.wire.http


def error_body(error: GatewayError) -> dict[str, Any]:
    """Return an error in the documented shape, whichever the vendor used and whoever found it."""
    status = status_of(error)
    code = ERROR_CODES.get(status) or ("bad_request" if status < 500 else "internal_server_error")
    if error.vendor_status == 410:
        code = "invite_expired"  # all that the vendor has this status for
    field = error.field or ABOUT.get(error.code)
    details = [{"field": FIELDS.get(field, field), "issue": error.code}] if field is not None else []
    return {"error": {"code": code, "message": error.detail, "details": details}}
