"""Conversations, their messages and feedback, as the gateway and its clients see them."""

from __future__ import annotations

from typing import Any, NamedTuple, NewType, Protocol

import msgspec

from gateway.core.identity import TenantId, UserHash

ConversationId = NewType("ConversationId", str)

SCORE_MIN, SCORE_MAX = -10, 10  # the vendor's bounds (UpsertRunScoreRequest)


class Feedback(msgspec.Struct, frozen=True, omit_defaults=True):
    """One user's verdict on one message. ``feedback_id`` is stable a user and message: PUT again updates."""

    feedback_id: str
    score: int
    comments: str | None = None
    tags: list[str] | None = None
    confidence: float | None = None
    created_at: str | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a transcript. Times are ISO 8601 with Z; a user's message may have no vendor id yet."""

    role: str
    content: str
    message_id: str | None = None
    run_id: str | None = None
    turn_id: str | None = None
    created_at: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    finish_reason: str | None = None
    state: str | None = None  # set when the answer did not complete: stopped or failed
    reason: str | None = None  # why it was stopped
    error: dict[str, Any] | None = None  # why it failed, as in turn.failed
    citations: list[dict[str, Any]] | None = None
    feedback: list[Feedback] | None = None


class Conversation(msgspec.Struct, frozen=True):
    """A conversation of one user of one tenant. ``persona`` is the tenant's alias, never the vendor's id."""

    id: ConversationId
    owner: UserHash
    persona: str
    status: str | None = None
    name: str | None = None
    created_at: str | None = None
    metadata: dict[str, Any] = {}
    messages: list[Message] = []
    messages_unavailable: bool = False  # the vendor keeps them in a blob that the gateway may not fetch
    active_turn_id: str | None = None
    is_active: bool = True  # the vendor's switch
    ai_system: str | None = None  # the vendor's names of provider and model, where it tells them
    model: str | None = None
    listed: bool = True  # not where it only holds a prompt run, whose claim makes it


class VendorConversation(msgspec.Struct, frozen=True):
    """A conversation as read from the vendor, in our terms, before anyone's ownership is known."""

    id: ConversationId
    external_user_id: str | None
    persona_id: str | None
    status: str | None
    name: str | None
    metadata: dict[str, Any]
    messages: list[Message]
    messages_unavailable: bool = False
    is_deleted: bool = False
    is_active: bool = True
    ai_system: str | None = None
    model: str | None = None


class Opening(NamedTuple):
    """What a client states of a conversation that is held with a model, where the tenant lets it."""

    system_message: str | None = None
    configuration: dict[str, Any] | None = None
    dataspaces: tuple[str, ...] = ()


class ConversationStore(Protocol):
    """The cache of conversation records and transcripts. Raises GatewayError(store_unavailable)."""

    async def put(self, tenant: TenantId, conversation: Conversation) -> None:
        """Write a record with its transcript, replacing what the cache had, and list it under its owner."""
        ...

    async def head(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation | None:
        """Return the record without messages (what a turn's start needs); None when it is not cached."""
        ...

    async def get(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation | None:
        """Return the record with its transcript in order; None when it is not cached."""
        ...

    async def list(
        self, tenant: TenantId, owner: UserHash, before: str | None, limit: int
    ) -> tuple[list[ConversationId], str | None]:
        """Return a page of the owner's conversation ids, the latest used first, and the next page's cursor."""
        ...

    async def unlist(self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId) -> None:
        """Take a conversation that is gone off its owner's list."""
        ...

    async def put_feedback(
        self, tenant: TenantId, conversation_id: ConversationId, message_id: str, feedback: Feedback
    ) -> None:
        """Write feedback into the cached transcript; nothing happens when it is not cached."""
        ...

    async def change(self, tenant: TenantId, conversation: Conversation) -> None:
        """Write status, name, metadata and ``is_active`` of a record; nothing happens when it is not cached."""
        ...
