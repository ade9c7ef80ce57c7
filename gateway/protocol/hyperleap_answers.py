"""The drop-in's answers as types: what the API's description tells of them. They are written by ``hyperleap_door``.

Names are the vendor's own; its published document tells more of what each member means.
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Told(msgspec.Struct, rename="camel", kw_only=True):
    pass


class RunFeedback(_Told):
    """A verdict on an answer."""

    feedback_id: str
    score: int
    comments: str | None
    tags: list[str] | None
    timestamp: str
    score_confidence: float | None


class PromptRunScore(RunFeedback, kw_only=True):
    """A prompt run's verdict."""

    prompt_run_id: str


class HyperleapChatMessageResponse(_Told):
    """A message."""

    role: str
    content: str
    tool_call_id: None
    name: None
    message_id: str
    timestamp: str
    feedbacks: list[RunFeedback] | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    conversation_run_id: str


class ChatEntryResponse(_Told):
    """A conversation. System prompts, configuration and where Hyperleap keeps things are not shown."""

    conversation_id: str
    ai_system: str | None
    model: str | None
    persona_id: str | None
    persona_version_id: str | None
    conversation_status: str | None
    conversation_name: str | None
    chat_messages: list[HyperleapChatMessageResponse] | None
    chat_messages_count: int | None
    chat_started: bool
    are_chat_messages_in_blob: bool
    chat_messages_blob_uri: None
    configuration: None
    metadata: dict[str, Any]
    external_user_id: str
    is_active: bool
    is_deleted: bool
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatEntries(_Told):
    """A page of conversations; ``continuationToken`` leads to the next, null on the last."""

    data: list[ChatEntryResponse]
    continuation_token: str | None


class ErrorDetail(_Told):
    """What an error is about: ``issue`` is the gateway's code."""

    field: str
    issue: str


class HyperleapErrorBody(_Told):
    """What went wrong. ``code`` is Hyperleap's for the status."""

    code: str
    message: str
    details: list[ErrorDetail]


class HyperleapError(_Told):
    """An error, in Hyperleap's documented shape."""

    error: HyperleapErrorBody
