"""What the vendor does beside chats: runs of prompts, changes and scores, moderations, reports; and the port to it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, NamedTuple, NewType, Protocol

from gateway.core.conversation import ConversationId, Feedback, VendorConversation
from gateway.core.identity import Prompt, TenantId, UserHash
from gateway.core.turn import Chat, ChatReceiver
from gateway.core.vendor_keys import KeyLabel

RunId = NewType("RunId", str)  # of a prompt run, as the vendor names it

Attribute = Literal["name", "status", "metadata", "active"]


class Change(NamedTuple):
    """A conversation's attribute and its new value: text or None, for ``metadata`` an object, for ``active`` a bool."""

    attribute: Attribute
    value: Any


class Verdict(NamedTuple):
    """A score of a whole conversation, in the vendor's three parts."""

    score: int | None
    text: str | None
    tags: str | None


class Report(StrEnum):
    """The vendor's reports of a workspace, each by its path."""

    AUDIT_CONVERSATIONS = "audit/conversations"
    AUDIT_PROMPT_RUNS = "audit/prompt-runs"
    FEEDBACK_CONVERSATIONS = "feedback-report/conversations"
    FEEDBACK_PROMPT_RUNS = "feedback-report/prompt-runs"


class RunKind(StrEnum):
    """What a run was of, whose details the vendor's audit tells; by its path."""

    PROMPT = "audit/prompt-run"
    CONVERSATION = "audit/conversation-run"


class Operations(Protocol):
    """The vendor's API beside the ``Upstream`` port. Every method raises GatewayError with an ``upstream_*`` code.

    Where the vendor has published no shape for an answer, it is returned as the plain value of its JSON.
    """

    async def open_prompt_run(
        self, prompt: Prompt, replacements: Mapping[str, Any], receiver: ChatReceiver, *, key: KeyLabel
    ) -> Chat:
        """Send a prompt to be run; return once it is on its way. Cancelling the await leaves no stream behind."""
        ...

    async def change_conversation(
        self, conversation_id: ConversationId, change: Change, *, key: KeyLabel
    ) -> VendorConversation: ...

    async def score_conversation(self, conversation_id: ConversationId, verdict: Verdict, *, key: KeyLabel) -> None: ...

    async def score_prompt_run(self, run_id: RunId, feedback: Feedback, *, key: KeyLabel) -> None: ...

    async def moderate(self, text: str | None, *, key: KeyLabel) -> Any: ...

    async def report(self, report: Report, asked: Mapping[str, Any], *, key: KeyLabel) -> Any: ...

    async def run_details(self, kind: RunKind, run_id: str, *, key: KeyLabel) -> Any:
        """Return what the audit tells of one run; None when the vendor does not know it."""
        ...


class RunRecord(NamedTuple):
    """Whose prompt run it was, and of which of the tenant's prompts."""

    owner: UserHash
    alias: str


class PromptRunStore(Protocol):
    """Who made which prompt run: the vendor does not keep it. Raises GatewayError(store_unavailable)."""

    async def put(self, tenant: TenantId, run_id: RunId, record: RunRecord) -> None: ...

    async def find(self, tenant: TenantId, run_id: RunId) -> RunRecord | None: ...
