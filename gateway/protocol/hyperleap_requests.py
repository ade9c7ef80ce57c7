"""Hyperleap's dialect: the requests beside chats, as the vendor's published contract (2025-11) has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.conversation import ConversationId, Feedback
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Model, Prompt
from gateway.core.operations import Attribute, Change, Verdict

_CHANGES: Final[Mapping[Attribute, tuple[str, str]]] = {  # the path's last part, and the body's member
    "name": ("set-conversation-name", "conversationName"),
    "status": ("set-conversation-status", "conversationStatus"),
    "metadata": ("set-metadata", "metadata"),
    "active": ("set-active", "isActive"),
}


class Request(NamedTuple):
    """A path below the vendor's base URL, and a JSON body."""

    path: str
    body: bytes


def create_with_model(
    *,
    model: Model,
    configuration: Mapping[str, Any] | None,
    dataspaces: Sequence[str],
    replacements: Mapping[str, Any],
    metadata: Mapping[str, Any],
    external_user_id: str,
) -> Request:
    """CreateGenAiChatRequest."""
    body: dict[str, Any] = {
        "aiSystem": model.ai_system,
        "model": model.name,
        "replacements": dict(replacements),
        "metadata": dict(metadata),
        "externalUserId": external_user_id,
    }
    if model.system_message is not None:
        body["systemMessage"] = model.system_message
    if configuration is not None:
        body["configuration"] = dict(configuration)
    if dataspaces:
        body["dataspaceIds"] = list(dataspaces)
    return Request("/conversations", msgspec.json.encode(body))


def run_prompt(prompt: Prompt, replacements: Mapping[str, Any], *, sse: bool = False) -> Request:
    """PromptRunRequest to the path that streams as ``chat-http2`` does, or as ``chat-sse`` does."""
    body: dict[str, Any] = {"promptId": prompt.prompt_id, "replacements": dict(replacements), "stream": True}
    if prompt.prompt_version_id is not None:
        body["promptVersionId"] = prompt.prompt_version_id
    return Request("/prompt-runs/run-sse" if sse else "/prompt-runs/async", msgspec.json.encode(body))


def change_conversation(conversation_id: ConversationId, change: Change) -> Request:
    """UpdateChatEntrySetConversation…Request."""
    path, member = _CHANGES[change.attribute]
    body = {"conversationId": conversation_id, member: change.value}
    return Request(f"/conversations/{conversation_id}/{path}", msgspec.json.encode(body))


def score_conversation(conversation_id: ConversationId, verdict: Verdict) -> Request:
    """UpdateConversationScoreRequest."""
    body = {
        "conversationId": conversation_id,
        "score": verdict.score,
        "scoreText": verdict.text,
        "scoreTags": verdict.tags,
    }
    return Request(f"/conversations/{conversation_id}/set-score", msgspec.json.encode(body))


def score_prompt_run(run_id: str, feedback: Feedback) -> Request:
    """UpdatePromptRunScoreRequest; what was not given is left out."""
    body: dict[str, Any] = {"feedbackId": feedback.feedback_id, "score": feedback.score}
    if feedback.comments is not None:
        body["comments"] = feedback.comments
    if feedback.confidence is not None:
        body["scoreConfidence"] = feedback.confidence
    return Request(f"/prompt-runs/{run_id}/set-score", msgspec.json.encode(body))


def moderate(text: str | None) -> Request:
    """OpenAiModerationsRequest."""
    return Request("/moderations", msgspec.json.encode({"input": text}))


def decode_plain(body: bytes) -> Any:
    """Read an answer that the vendor has published no shape for, as a plain value; None where it is empty.

    Raises GatewayError(upstream_malformed).
    """
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise GatewayError(Code.UPSTREAM_MALFORMED) from None
