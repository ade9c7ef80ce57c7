"""Changes of a conversation that its user makes: name, status, metadata, the vendor's switch, a score of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.conversation import SCORE_MAX, SCORE_MIN, Conversation, ConversationId, ConversationStore
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.operations import Change, Operations, Verdict
from gateway.services.admission import Admission
from gateway.services.conversations import EXTRAS_MAX_BYTES, Conversations, check_metadata
from gateway.services.vendor import Vendor

TEXT_MAX_CHARS: Final = 256  # of a name and of a status
VERDICT_MAX_CHARS: Final = 4000


class Changes:
    """Changes conversations at the vendor, and what is cached of them with it."""

    def __init__(
        self,
        conversations: Conversations,
        store: ConversationStore,
        vendor: Vendor,
        operations: Operations,
        admission: Admission,
    ) -> None:
        self._conversations = conversations
        self._store = store
        self._vendor = vendor
        self._operations = operations
        self._admission = admission

    async def change(
        self, principal: Principal, conversation_id: ConversationId, change: Change, *, address: str
    ) -> Conversation:
        """Change one attribute and return the conversation as it is then.

        Safe to cancel: a change that has begun is cached too.
        Raises GatewayError: invalid_value, not_found, rate_limited, upstream_*, store_unavailable.
        """
        return await self.change_all(principal, conversation_id, (change,), address=address)

    async def change_all(
        self, principal: Principal, conversation_id: ConversationId, changes: Sequence[Change], *, address: str
    ) -> Conversation:
        """Change several attributes, one call of the vendor's each, and return the conversation as it is then.

        All are checked first and charged as one request. The vendor has no step for several: where it fails at one,
        those before it stand, and are named in the error's ``changed``. Otherwise as ``change``.
        """
        for change in changes:
            _check(change)
        conversation = await self._conversations.get(principal, conversation_id)
        await self._admission.admit(principal, "change", address, conversation.persona)
        return await asyncio.shield(
            asyncio.get_running_loop().create_task(self._change_all(principal, conversation, changes))
        )

    async def _change_all(
        self, principal: Principal, conversation: Conversation, changes: Sequence[Change]
    ) -> Conversation:
        changed: list[str] = []
        for change in changes:
            try:
                conversation = await self._change(principal, conversation, change)
            except GatewayError as error:
                if len(changes) > 1:
                    error.extra["changed"] = changed
                raise
            changed.append(change.attribute)
        return conversation

    async def _change(self, principal: Principal, conversation: Conversation, change: Change) -> Conversation:
        try:
            entry = await self._vendor.ask(
                principal.tenant, lambda key: self._operations.change_conversation(conversation.id, change, key=key)
            )
        except GatewayError as error:
            if error.vendor_status == 404:  # it is cached here, and gone there
                raise GatewayError(Code.NOT_FOUND, vendor_status=404) from error
            raise
        changed = msgspec.structs.replace(
            conversation,
            name=entry.name,
            status=entry.status,
            metadata=entry.metadata,
            is_active=entry.is_active,
        )
        await self._store.change(principal.tenant.id, changed)
        return changed

    async def score(
        self, principal: Principal, conversation_id: ConversationId, verdict: Verdict, *, address: str
    ) -> Conversation:
        """Score a conversation as a whole, and return it. Raises GatewayError as ``change``."""
        if verdict.score is not None and not SCORE_MIN <= verdict.score <= SCORE_MAX:
            raise GatewayError(Code.INVALID_VALUE, f"A score lies between {SCORE_MIN} and {SCORE_MAX}.", field="score")
        for field, text in (("score_text", verdict.text), ("score_tags", verdict.tags)):
            if text is not None and len(text) > VERDICT_MAX_CHARS:
                raise GatewayError(Code.INVALID_VALUE, f"This may have {VERDICT_MAX_CHARS} characters.", field=field)
        conversation = await self._conversations.get(principal, conversation_id)
        await self._admission.admit(principal, "score", address, conversation.persona)
        await self._vendor.ask(
            principal.tenant, lambda key: self._operations.score_conversation(conversation_id, verdict, key=key)
        )
        return conversation


def _check(change: Change) -> None:
    field, value = change
    if field in ("name", "status") and value is not None and len(value) > TEXT_MAX_CHARS:
        raise GatewayError(Code.INVALID_VALUE, f"This may have {TEXT_MAX_CHARS} characters.", field=field)
    if field == "metadata":
        check_metadata(value)
        if len(msgspec.json.encode(value)) > EXTRAS_MAX_BYTES:
            raise GatewayError(
                Code.INVALID_VALUE, f"metadata may have {EXTRAS_MAX_BYTES} bytes of JSON.", field="metadata"
            )
