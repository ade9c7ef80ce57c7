"""The drop-in's conversations: opened, read, listed, changed and scored, each its caller's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from aiohttp import web

from gateway.core.conversation import Conversation, ConversationId, Opening
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Persona, Principal
from gateway.core.operations import Change, Verdict
from gateway.protocol.hyperleap_door import (
    CreateChat,
    CreatePersonaChat,
    OfConversation,
    ScoreMessage,
    SetActive,
    SetMetadata,
    SetName,
    SetScore,
    SetStatus,
    entry_body,
)
from gateway.transports.edge import EDGE, address_of, json_answer, read_body
from gateway.transports.hyperleap.door import BASE, SERVICES, caller, path_id

B = TypeVar("B", bound=OfConversation)

PAGE: Final = 10  # as the vendor's
LOOKS_MAX: Final = 10  # for a page of one persona among a user's conversations


async def create_with_persona(request: web.Request) -> web.Response:
    principal = await caller(request)
    body = await read_body(request, CreatePersonaChat)
    alias = _persona(principal, body.persona_id, body.persona_version_id)
    return await _create(request, principal, alias, body.replacements, body.metadata, None)


async def create(request: web.Request) -> web.Response:
    """Open a conversation with a model that the tenant lists."""
    principal = await caller(request)
    body = await read_body(request, CreateChat)
    alias = principal.tenant.persona_named(None, body.model)
    model = principal.tenant.personas[alias].model if alias is not None else None
    if alias is None or model is None or model.ai_system != body.ai_system:
        raise GatewayError(Code.PERSONA_UNKNOWN, "The tenant lists no such model.", field="model")
    dataspaces = tuple(str(one) for one in body.dataspace_ids or ())
    opening = Opening(body.system_message, body.configuration, dataspaces)
    return await _create(request, principal, alias, body.replacements, body.metadata, opening)


async def _create(
    request: web.Request,
    principal: Principal,
    alias: str,
    replacements: dict[str, Any] | None,
    metadata: dict[str, Any] | None,
    opening: Opening | None,
) -> web.Response:
    conversation = await request.app[EDGE].conversations.create(
        principal,
        alias=alias,
        replacements=replacements or {},
        metadata=metadata or {},
        address=address_of(request),
        idempotency_key=request.headers.get("Idempotency-Key"),
        opening=opening,
    )
    return _entry(principal, conversation)


async def get(request: web.Request) -> web.Response:
    conversation_id = ConversationId(path_id(request, "conversation_id"))
    principal = await caller(request, conversation=conversation_id)
    return _entry(principal, await request.app[EDGE].conversations.get(principal, conversation_id))


async def list_all(request: web.Request) -> web.Response:
    principal = await caller(request)
    return await _page(request, principal, None)


async def list_of_persona(request: web.Request) -> web.Response:
    principal = await caller(request)
    persona_id = path_id(request, "persona_id")
    named = {alias for alias, persona in principal.tenant.personas.items() if persona.persona_id == persona_id}
    return await _page(request, principal, frozenset(named) & (principal.personas or named))


async def list_of_user(request: web.Request) -> web.Response:
    """List the caller's own, by what the gateway or the app calls him; nobody else has any here."""
    principal = await caller(request)
    if request.match_info["user"] not in (principal.external_user_id, principal.user_id):
        return json_answer({"data": [], "continuationToken": None})
    return await _page(request, principal, None)


async def _page(request: web.Request, principal: Principal, aliases: frozenset[str] | None) -> web.Response:
    """Answer with a page of the caller's conversations, of some personas only where there are ``aliases``."""
    conversations = request.app[EDGE].conversations
    token = request.query.get("continuationToken") or None
    narrowed = principal if aliases is None else replace(principal, personas=aliases)
    found: list[Conversation] = []
    for _ in range(LOOKS_MAX):
        some, token = await conversations.list(narrowed, token, PAGE - len(found))
        found += [one for one in some if aliases is None or one.persona in aliases]
        if token is None or len(found) >= PAGE:
            break

    async def whole(head: Conversation) -> Conversation:
        try:
            return await conversations.get(principal, head.id) if head.persona else head
        except GatewayError:
            return head  # it left the cache, and the vendor does not give it now

    data = await asyncio.gather(*(whole(head) for head in found))
    return json_answer({"data": [_body(principal, one) for one in data], "continuationToken": token})


async def set_attribute(request: web.Request, kind: type[OfConversation]) -> web.Response:
    conversation_id, principal, body = await _own(request, kind)
    match body:
        case SetActive():
            change = Change("active", body.is_active)
        case SetMetadata():
            change = Change("metadata", body.metadata or {})
        case SetName():
            change = Change("name", body.conversation_name)
        case SetStatus():
            change = Change("status", body.conversation_status)
        case _:
            raise AssertionError(kind)
    changes = request.app[SERVICES].changes
    changed = await changes.change(principal, conversation_id, change, address=address_of(request))
    return _entry(principal, changed)


async def score(request: web.Request) -> web.Response:
    conversation_id, principal, body = await _own(request, SetScore)
    verdict = Verdict(body.score, body.score_text, body.score_tags)
    changes = request.app[SERVICES].changes
    return _entry(principal, await changes.score(principal, conversation_id, verdict, address=address_of(request)))


async def score_message(request: web.Request) -> web.Response:
    conversation_id = ConversationId(path_id(request, "conversation_id"))
    message_id = path_id(request, "message_id")
    principal = await caller(request, conversation=conversation_id)
    body = await read_body(request, ScoreMessage)
    _check_same(body.message_id, message_id, "message_id")
    edge = request.app[EDGE]
    await edge.feedback.give(
        principal,
        conversation_id,
        message_id,
        score=body.score,
        comments=body.comments,
        tags=body.tags,
        confidence=body.score_confidence,
        address=address_of(request),
    )
    return _entry(principal, await edge.conversations.get(principal, conversation_id))


CHANGES: Final[dict[str, type[OfConversation]]] = {
    "set-active": SetActive,
    "set-metadata": SetMetadata,
    "set-conversation-name": SetName,
    "set-conversation-status": SetStatus,
}


def routes() -> list[web.RouteDef]:
    """Return the routes."""
    one = f"{BASE}conversations/{{conversation_id}}"
    return [
        web.post(f"{BASE}conversations/persona", create_with_persona),
        web.post(f"{BASE}conversations", create),
        web.get(f"{BASE}conversations", list_all),
        web.get(f"{BASE}conversations/persona/{{persona_id}}", list_of_persona),
        web.get(f"{BASE}conversations/user/{{user}}", list_of_user),
        # But for the one address beside it that has no GET: that is told as such.
        web.get(f"{BASE}conversations/{{conversation_id:(?!persona$)[^/]+}}", get),
        *(web.patch(f"{one}/{path}", partial(set_attribute, kind=kind)) for path, kind in CHANGES.items()),
        web.patch(f"{one}/set-score", score),
        web.patch(f"{one}/set-score/{{message_id}}", score_message),
    ]


async def _own(request: web.Request, kind: type[B]) -> tuple[ConversationId, Principal, B]:
    conversation_id = ConversationId(path_id(request, "conversation_id"))
    principal = await caller(request, conversation=conversation_id)
    body = await read_body(request, kind)
    _check_same(body.conversation_id, conversation_id, "conversation_id")
    return conversation_id, principal, body


def _check_same(said: UUID | None, meant: str, field: str) -> None:
    if said is not None and str(said) != meant:
        raise GatewayError(Code.INVALID_VALUE, "The body names another one than the path.", field=field)


def _persona(principal: Principal, persona_id: UUID, version_id: UUID | None) -> str:
    """Return the tenant's name of a persona; without a version one that pins none is preferred."""
    version = str(version_id) if version_id is not None else None
    named = [
        persona
        for persona in principal.tenant.personas.values()
        if persona.persona_id == str(persona_id)
        and (principal.personas is None or persona.alias in principal.personas)
        and version in (None, persona.persona_version_id)
    ]
    if not named:
        raise GatewayError(Code.PERSONA_UNKNOWN, "The tenant lists no such persona.", field="persona")
    return min(named, key=lambda persona: persona.persona_version_id is not None).alias


def _entry(principal: Principal, conversation: Conversation) -> web.Response:
    return json_answer(_body(principal, conversation))


def _body(principal: Principal, conversation: Conversation) -> dict[str, Any]:
    persona: Persona | None = principal.tenant.personas.get(conversation.persona)
    return entry_body(conversation, persona, principal.external_user_id)
