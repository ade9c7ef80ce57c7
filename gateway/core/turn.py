"""A turn: one user message and its streamed answer; its states, and the port to the vendor that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, NewType, Protocol

import msgspec

from gateway.core.conversation import ConversationId, Feedback, VendorConversation
from gateway.core.errors import GatewayError
from gateway.core.identity import Model
from gateway.core.vendor_keys import KeyLabel

TurnId = NewType("TurnId", str)


class TurnState(StrEnum):
    """Where a turn stands. ``stopping`` is told to clients only; the log knows running and the three endings."""

    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({TurnState.COMPLETED, TurnState.STOPPED, TurnState.FAILED})


class StopReason(StrEnum):
    """Why a turn was stopped before the vendor ended it."""

    USER = "user"
    DISCONNECT = "disconnect"
    BUDGET = "budget"
    REVOKED = "revoked"
    SHUTDOWN = "shutdown"
    ADMIN = "admin"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one turn. A reported 0 is 0; ``estimated`` says that the vendor told nothing."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: Literal["reported", "estimated"]


CHARS_PER_TOKEN = 4  # the usual rule of thumb for English text; only ever used under the label "estimated"


def estimate_usage(message: str, text: str) -> Usage:
    """Estimate the tokens of a turn from what was sent and what was delivered, rounded up."""
    prompt, completion = -(-len(message) // CHARS_PER_TOKEN), -(-len(text) // CHARS_PER_TOKEN)
    return Usage(prompt, completion, prompt + completion, "estimated")


class AnswerItem(msgspec.Struct, frozen=True, gc=False):
    """One item of the vendor's stream in our terms. Absent and null mean the same and are None here."""

    text: str | None = None  # a delta
    message_id: str | None = None
    run_id: str | None = None
    finish_reason: str | None = None
    usage: tuple[int, int, int] | None = None  # prompt, completion, total
    citations: list[dict[str, Any]] | None = None
    moderation: list[dict[str, Any]] | None = None
    role: str | None = None
    index: int = 0
    name: str | None = None
    tool_call_id: str | None = None


class ChatReceiver(Protocol):
    """Takes an answer as it arrives, called straight from the upstream connection's data callback.

    Methods must return quickly and must not raise. ``chat_ended`` is called exactly once, last, unless the
    chat was cancelled, after which nothing is called. ``error`` is None after a whole, well-formed array.
    """

    def chat_items(self, items: Sequence[AnswerItem], /) -> None: ...

    def chat_ended(self, error: GatewayError | None, /) -> None: ...


class Chat(Protocol):
    """An answer under way."""

    def cancel(self) -> None:
        """Reset the upstream stream at once (RST_STREAM CANCEL). Never awaits; safe to repeat."""


class Upstream(Protocol):
    """The vendor, asked with one of a tenant's keys by its label.

    Every method raises GatewayError with an ``upstream_*`` code, never the vendor's words.
    """

    async def create_conversation(
        self,
        *,
        persona_id: str,
        persona_version_id: str | None,
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation: ...

    async def create_with_model(
        self,
        *,
        model: Model,
        configuration: Mapping[str, Any] | None,
        dataspaces: Sequence[str],
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation: ...

    async def open_chat(
        self, conversation_id: ConversationId, message: str, receiver: ChatReceiver, *, key: KeyLabel
    ) -> Chat:
        """Send the message; return once it is on its way. Cancelling the await leaves no stream behind."""
        ...

    async def read_conversation(self, conversation_id: ConversationId, *, key: KeyLabel) -> VendorConversation | None:
        """Read a conversation with its messages; None when the vendor does not know it."""
        ...

    async def score_message(
        self, conversation_id: ConversationId, message_id: str, feedback: Feedback, *, key: KeyLabel
    ) -> VendorConversation: ...
