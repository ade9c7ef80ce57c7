"""Conversations: what the stand-in keeps in memory, and their JSON as the vendor shows it (ChatEntryResponse)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from gateway.simulator.answers import Json

PAGE_SIZE = 10
KEPT_CONVERSATIONS = 20_000


def now_iso() -> str:
    """Returns the time as ISO 8601 with ``Z``, microseconds included."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass(slots=True, kw_only=True)
class Message:
    """Is one message of a conversation."""

    role: str
    content: str
    message_id: str = field(default_factory=lambda: str(uuid4()))
    run_id: str = field(default_factory=lambda: str(uuid4()))
    timestamp: str = field(default_factory=now_iso)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    feedbacks: list[Json] = field(default_factory=list)

    def as_json(self) -> Json:
        """Returns the vendor's HyperleapChatMessageResponse."""
        return {
            "role": self.role,
            "content": self.content,
            "toolCallId": None,
            "name": None,
            "messageId": self.message_id,
            "timestamp": self.timestamp,
            "feedbacks": list(self.feedbacks) or None,
            "promptTokens": self.prompt_tokens,
            "completionTokens": self.completion_tokens,
            "totalTokens": self.prompt_tokens + self.completion_tokens,
            "conversationRunId": self.run_id,
        }

    def put_feedback(self, feedback: Json) -> None:
        """Adds a feedback, or replaces the one with the same ``feedbackId``."""
        for at, known in enumerate(self.feedbacks):
            if known["feedbackId"] == feedback["feedbackId"]:
                self.feedbacks[at] = feedback
                return
        self.feedbacks.append(feedback)


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Is one conversation; ``ordinal`` orders them by creation, ``workspace`` says whose keys it is for."""

    ordinal: int
    workspace: int = 0
    conversation_id: str = field(default_factory=lambda: str(uuid4()))
    ai_system: str | None = "azure-openai"
    model: str | None = "gpt-4o"
    persona_id: str | None = None
    persona_version_id: str | None = None
    status: str | None = "Active"
    name: str | None = None
    configuration: Json | None = None
    replacements: Json | None = None
    metadata: Json | None = None
    external_user_id: str | None = None
    is_active: bool = True
    messages: list[Message] = field(default_factory=list)
    score: Json | None = None

    def as_json(self, *, blob_uri: str | None = None) -> Json:
        """Returns the vendor's ChatEntryResponse; with `blob_uri` the messages are said to be there instead."""
        messages = self.messages
        prompt_tokens = sum(message.prompt_tokens for message in messages)
        completion_tokens = sum(message.completion_tokens for message in messages)
        return {
            "conversationId": self.conversation_id,
            "aiSystem": self.ai_system,
            "model": self.model,
            "personaId": self.persona_id,
            "personaVersionId": self.persona_version_id,
            "conversationStatus": self.status,
            "conversationName": self.name,
            "chatMessages": None if blob_uri else self.messages_json(),
            "chatMessagesCount": len(messages),
            "chatStarted": any(message.role == "user" for message in messages),
            "areChatMessagesInBlob": blob_uri is not None,
            "chatMessagesBlobUri": blob_uri,
            "configuration": self.configuration,
            "metadata": self.metadata,
            "externalUserId": self.external_user_id,
            "isActive": self.is_active,
            "isDeleted": False,
            "promptTokens": prompt_tokens,
            "completionTokens": completion_tokens,
            "totalTokens": prompt_tokens + completion_tokens,
        }

    def messages_json(self) -> list[Json]:
        """Returns the messages alone, as the blob holds them."""
        return [message.as_json() for message in self.messages]

    def message(self, message_id: str) -> Message | None:
        """Finds a message."""
        return next((message for message in self.messages if message.message_id == message_id), None)


class Conversations:
    """Keeps the last 20,000 conversations."""

    def __init__(self) -> None:
        self._by_id: dict[str, Conversation] = {}
        self._created = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def create(self, **fields: Any) -> Conversation:
        """Makes a conversation with those fields; the oldest is forgotten when there are too many."""
        self._created += 1
        conversation = Conversation(ordinal=self._created, **fields)
        self._by_id[conversation.conversation_id] = conversation
        if len(self._by_id) > KEPT_CONVERSATIONS:
            del self._by_id[next(iter(self._by_id))]
        return conversation

    def get(self, conversation_id: str) -> Conversation | None:
        """Finds a conversation."""
        return self._by_id.get(conversation_id)

    def newest(self) -> Iterator[Conversation]:
        """Yields all, the newest first."""
        return reversed(self._by_id.values())

    def page(self, chosen: Callable[[Conversation], bool], token: str | None) -> tuple[list[Conversation], str | None]:
        """Returns up to ten, newest first, and the token of the next page; raises ValueError for a bad token.

        The token names the last one shown, so conversations made meanwhile neither repeat nor hide any.
        """
        before = _read_token(token) if token else self._created + 1
        page: list[Conversation] = []
        for conversation in reversed(self._by_id.values()):
            if conversation.ordinal >= before or not chosen(conversation):
                continue
            if len(page) == PAGE_SIZE:
                return page, _write_token(page[-1].ordinal)
            page.append(conversation)
        return page, None


def _write_token(ordinal: int) -> str:
    return base64.urlsafe_b64encode(f"before:{ordinal}".encode()).decode()


def _read_token(token: str) -> int:
    try:
        kind, _, ordinal = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition(":")
        if kind == "before":
            return int(ordinal)
    except (binascii.Error, ValueError):
        pass
    raise ValueError("The continuationToken is not valid.")
