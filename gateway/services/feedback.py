"""A user's verdict on an answer: sent to the vendor's scores and kept in the cached transcript."""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

from gateway.core.conversation import (
    SCORE_MAX,
    SCORE_MIN,
    Conversation,
    ConversationId,
    ConversationStore,
    Feedback,
)
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.services.admission import Admission
from gateway.services.clock import timestamp
from gateway.services.conversations import Conversations
from gateway.services.vendor import Vendor
from gateway.telemetry.metrics import Metrics

COMMENTS_MAX_CHARS: Final = 4000
TAGS_MAX: Final = 16
TAG_MAX_CHARS: Final = 64
_NAMESPACE: Final = uuid.UUID("5b0c9c3e-6a55-4f1e-9f5b-0f6f2f6a7c11")  # of feedback ids; any fixed value would do


class FeedbackService:
    """Scores messages. The id of a feedback is the same for a user and a message, so scoring again updates."""

    def __init__(
        self,
        conversations: Conversations,
        store: ConversationStore,
        vendor: Vendor,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self._conversations = conversations
        self._store = store
        self._vendor = vendor
        self._admission = admission
        self._metrics = metrics

    async def give(
        self,
        principal: Principal,
        conversation_id: ConversationId,
        message_id: str,
        *,
        score: int,
        comments: str | None,
        tags: list[str] | None,
        confidence: float | None,
        address: str,
    ) -> Feedback:
        """Score one of the assistant's messages.

        Raises GatewayError: invalid_value, not_found, rate_limited, upstream_*.
        """
        check_feedback(score, comments, tags, confidence)
        conversation = await self._conversations.get(principal, conversation_id)
        rated = next((m for m in conversation.messages if m.message_id == message_id and m.role == "assistant"), None)
        if rated is None and not conversation.messages_unavailable:
            raise GatewayError(Code.NOT_FOUND, "The conversation has no such answer.", field="message_id")
        await self._admission.admit(principal, "score", address, conversation.persona)
        feedback = Feedback(
            feedback_id=str(uuid.uuid5(_NAMESPACE, f"{principal.external_user_id}\0{message_id}")),
            score=score,
            comments=comments,
            tags=tags,
            confidence=confidence,
            created_at=timestamp(),
        )
        # In a task of its own: a client that leaves must not leave a score that only the vendor knows.
        await asyncio.shield(
            asyncio.get_running_loop().create_task(self._give(principal, conversation, message_id, feedback))
        )
        return feedback

    async def _give(
        self, principal: Principal, conversation: Conversation, message_id: str, feedback: Feedback
    ) -> None:
        await self._vendor.ask(
            principal.tenant,
            lambda key: self._vendor.upstream.score_message(conversation.id, message_id, feedback, key=key),
        )
        await self._store.put_feedback(principal.tenant.id, conversation.id, message_id, feedback)
        self._metrics.feedback_given(principal.tenant.id, conversation.persona, feedback.score)


def check_feedback(score: int, comments: str | None, tags: list[str] | None, confidence: float | None) -> None:
    """Raise GatewayError(invalid_value) for a verdict beyond its bounds."""
    if not SCORE_MIN <= score <= SCORE_MAX:
        raise GatewayError(Code.INVALID_VALUE, f"A score lies between {SCORE_MIN} and {SCORE_MAX}.", field="score")
    if comments is not None and len(comments) > COMMENTS_MAX_CHARS:
        raise GatewayError(Code.INVALID_VALUE, f"Comments may have {COMMENTS_MAX_CHARS} characters.", field="comments")
    if tags is not None and (len(tags) > TAGS_MAX or any(not 0 < len(tag) <= TAG_MAX_CHARS for tag in tags)):
        raise GatewayError(
            Code.INVALID_VALUE, f"At most {TAGS_MAX} tags of 1 to {TAG_MAX_CHARS} characters.", field="tags"
        )
    if confidence is not None and not 0 <= confidence <= 1:
        raise GatewayError(Code.INVALID_VALUE, "Confidence lies between 0 and 1.", field="confidence")
