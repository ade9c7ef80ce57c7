"""Conversations of one user: created at the vendor, cached in the store, read back from the vendor on a miss."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from gateway.core.conversation import Conversation, ConversationId, ConversationStore, Opening, VendorConversation
from gateway.core.errors import Code, GatewayError
from gateway.core.idempotency import checked_key
from gateway.core.identity import Model, Persona, Principal, TenantId
from gateway.core.vendor_keys import KeyLabel
from gateway.services.admission import Admission
from gateway.services.clock import timestamp
from gateway.services.creations import Creations
from gateway.services.vendor import Vendor

METADATA_MAX_ENTRIES = 32
EXTRAS_MAX_BYTES = 16_384  # of metadata, and of replacements: both are kept in the store for a week
PAGE_MAX = 100
REMEMBERED_MAX: Final = 5_000  # conversations a worker, about 500 bytes each
EXACT_BELOW: Final = 2.0**53  # whole numbers from here on are not told apart by a double


class Conversations:
    """Every method checks that the conversation belongs to the principal; one that does not is not found.

    It is not found by the same steps, too: whoever asks for another's conversation has the vendor asked, as for one
    that does not exist, so that neither the time nor the limits that are told give away that there is one.
    """

    def __init__(self, store: ConversationStore, vendor: Vendor, admission: Admission, creations: Creations) -> None:
        self._store = store
        self._vendor = vendor
        self._admission = admission
        self._creations = creations
        self._remembered: dict[tuple[TenantId, ConversationId], Conversation] = {}
        self._reads: dict[tuple[str, frozenset[str] | None, ConversationId], asyncio.Task[Conversation]] = {}

    async def create(
        self,
        principal: Principal,
        *,
        alias: str,
        replacements: Mapping[str, Any],
        metadata: dict[str, Any],
        address: str,
        idempotency_key: str | None = None,
        opening: Opening | None = None,
    ) -> Conversation:
        """Open a conversation with one of the tenant's personas, or models, for which ``opening`` may state more.

        A repeat with an idempotency key returns the conversation that the key led to, whatever the caps say; see
        ``Creations`` for what is promised. Safe to cancel: a creation that has begun goes on and is listed.
        Raises GatewayError: persona_unknown, replacement_not_allowed, invalid_value, rate_limited, upstream_*,
        idempotency_mismatch, idempotency_pending, store_unavailable.
        """
        if idempotency_key is not None:
            checked_key(idempotency_key)
        persona = _persona(principal, alias)
        check_replacements(replacements, persona.replacements)
        check_metadata(metadata)
        for field, value in (("metadata", metadata), ("replacements", replacements)):
            if len(msgspec.json.encode(value)) > EXTRAS_MAX_BYTES:
                raise GatewayError(
                    Code.INVALID_VALUE, f"{field} may have {EXTRAS_MAX_BYTES} bytes of JSON.", field=field
                )
        model = _stated(persona.model, opening) if persona.model is not None else None
        external_user_id = principal.external_user_id

        def create(key: KeyLabel) -> Awaitable[VendorConversation]:
            if model is not None:
                return self._vendor.upstream.create_with_model(
                    model=model,
                    configuration=opening.configuration if opening is not None else None,
                    dataspaces=opening.dataspaces if opening is not None else (),
                    replacements=replacements,
                    metadata=metadata,
                    external_user_id=external_user_id,
                    key=key,
                )
            assert persona.persona_id is not None, "there is no model"
            return self._vendor.upstream.create_conversation(
                persona_id=persona.persona_id,
                persona_version_id=persona.persona_version_id,
                replacements=replacements,
                metadata=metadata,
                external_user_id=external_user_id,
                key=key,
            )

        async def ask() -> Conversation:
            await self._admission.admit(principal, "create", address, persona.alias)
            entry = await self._vendor.ask(principal.tenant, create)
            return _owned_by(principal, persona.alias, entry, timestamp())

        if idempotency_key is None:
            return await self._creations.run(principal, ask)
        body_hash = _hash([alias, replacements, metadata, *(opening or ())])
        return await self._creations.once(principal, idempotency_key, body_hash, ask)

    async def owned(self, principal: Principal, conversation_id: ConversationId) -> Conversation:
        """Return the record, without messages where it is cached; raises GatewayError(not_found)."""
        found = await self._store.head(principal.tenant.id, conversation_id)
        if found is not None and principal.owns(found.owner, found.persona):
            return found
        return await self._read_through(principal, conversation_id)

    async def of_turn(
        self, principal: Principal, conversation_id: ConversationId, *, anew: bool = False
    ) -> Conversation:
        """Return whose a conversation is and of which persona, as ``owned`` does, for a turn that is about to begin.

        What this worker remembers of the principal's own will do: both are the same for life, and the step that claims
        the conversation looks again. Where it finds something else, ask ``anew``.
        """
        key = (principal.tenant.id, conversation_id)
        known = self._remembered.get(key) if not anew else None
        if known is not None and principal.owns(known.owner, known.persona):
            return known
        found = await self.owned(principal, conversation_id)
        self._remembered.pop(key, None)
        self._remembered[key] = Conversation(found.id, found.owner, found.persona)
        if len(self._remembered) > REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        return found

    async def get(self, principal: Principal, conversation_id: ConversationId) -> Conversation:
        """Return the record with its transcript; raises GatewayError(not_found)."""
        head = await self._store.head(principal.tenant.id, conversation_id)
        found = None
        if head is not None and principal.owns(head.owner, head.persona):  # no other transcript is even read
            found = await self._store.get(principal.tenant.id, conversation_id)
        return found or await self._read_through(principal, conversation_id)

    async def list(self, principal: Principal, cursor: str | None, limit: int) -> tuple[list[Conversation], str | None]:
        """Return a page of the principal's conversations, the latest used first, and the next page's cursor."""
        ids, more = await self._store.list(principal.tenant.id, principal.user_hash, cursor, min(limit, PAGE_MAX))
        found = await asyncio.gather(*(self._listed(principal, conversation_id) for conversation_id in ids))
        return [conversation for conversation in found if conversation is not None], more

    async def _listed(self, principal: Principal, conversation_id: ConversationId) -> Conversation | None:
        try:
            found = await self._store.head(principal.tenant.id, conversation_id)
            # What the token is too narrow for is left out, and stays on the list of the user's other tokens.
            found = found or await self._read_through(replace(principal, personas=None), conversation_id)
            return found if principal.owns(found.owner, found.persona) else None
        except GatewayError as error:
            if error.code is Code.NOT_FOUND:
                await self._store.unlist(principal.tenant.id, principal.user_hash, conversation_id)
                return None  # deleted at the vendor since
            if error.code is Code.STORE_UNAVAILABLE:
                raise
            # One that left the cache, and that the vendor does not give now, must not hide the others.
            return Conversation(id=conversation_id, owner=principal.user_hash, persona="")

    async def _read_through(self, principal: Principal, conversation_id: ConversationId) -> Conversation:
        """Bring a conversation from the vendor, once however many ask; only its owner's question is cached."""
        key = (principal.external_user_id, principal.personas, conversation_id)
        task = self._reads.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read(principal, conversation_id))
            self._reads[key] = task
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        return await asyncio.shield(task)

    async def _read(self, principal: Principal, conversation_id: ConversationId) -> Conversation:
        await self._admission.admit(principal, "read", None)  # guessing ids must not spend the vendor's plan limit
        entry = await self._vendor.ask(
            principal.tenant, lambda key: self._vendor.upstream.read_conversation(conversation_id, key=key)
        )
        if entry is None or entry.is_deleted or entry.external_user_id != principal.external_user_id:
            raise GatewayError(Code.NOT_FOUND)
        alias = principal.tenant.persona_named(entry.persona_id, entry.model)
        conversation = _owned_by(principal, alias or "", entry, None)
        if alias is None or not principal.owns(conversation.owner, conversation.persona):
            raise GatewayError(Code.NOT_FOUND)
        await self._store.put(principal.tenant.id, conversation)
        return conversation


def _persona(principal: Principal, alias: str) -> Persona:
    persona = principal.tenant.personas.get(alias)
    if persona is None or (principal.personas is not None and alias not in principal.personas):
        raise GatewayError(Code.PERSONA_UNKNOWN, field="persona")
    return persona


def _owned_by(principal: Principal, alias: str, entry: VendorConversation, created_at: str | None) -> Conversation:
    first = entry.messages[0].created_at if entry.messages else None
    return Conversation(
        id=entry.id,
        owner=principal.user_hash,
        persona=alias,
        status=entry.status,
        name=entry.name,
        created_at=created_at or first,
        metadata=entry.metadata,
        messages=entry.messages,
        messages_unavailable=entry.messages_unavailable,
        is_active=entry.is_active,
        ai_system=entry.ai_system,
        model=entry.model,
    )


def check_replacements(given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise GatewayError(replacement_not_allowed) for one that the tenant does not let clients set."""
    for name in given:
        if name not in allowed:
            raise GatewayError(Code.REPLACEMENT_NOT_ALLOWED, field=f"replacements.{name[:64]}")


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise GatewayError(invalid_value) for metadata with too many entries."""
    if len(metadata) > METADATA_MAX_ENTRIES:
        raise GatewayError(Code.INVALID_VALUE, f"metadata may have {METADATA_MAX_ENTRIES} entries.", field="metadata")


def _stated(model: Model, opening: Opening | None) -> Model:
    """Return a model as a client states it, within what the tenant allows; raises GatewayError(forbidden)."""
    if opening is None:
        return model
    given = {"system_message": opening.system_message, "configuration": opening.configuration}
    for name, value in given.items():
        if value and name not in model.stated:
            raise GatewayError(Code.FORBIDDEN, "The tenant does not let clients state this.", field=name)
    if not model.dataspaces.issuperset(opening.dataspaces):
        raise GatewayError(Code.FORBIDDEN, "The tenant does not list this dataspace.", field="dataspaces")
    return replace(model, system_message=opening.system_message) if opening.system_message else model


def _hash(body: object) -> str:
    """Hash a body so that the order of its members and the way its numbers are written (1, 1.0) do not matter."""
    plain = _plain_numbers.decode(msgspec.json.encode(body))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:32]


def _plain_number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < EXACT_BELOW else number


_plain_numbers: Final = msgspec.json.Decoder(float_hook=_plain_number)
