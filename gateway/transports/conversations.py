"""HTTP doors to sessions, conversations and feedback."""

from __future__ import annotations

from aiohttp import web

from gateway.core.errors import Code, GatewayError
from gateway.protocol.native import ChangeConversation, CreateConversation, GiveFeedback, OpenSession, conversation_body
from gateway.services.conversations import PAGE_MAX
from gateway.telemetry import audit
from gateway.transports.edge import (
    EDGE,
    address_of,
    bearer,
    conversation_id_of,
    json_answer,
    message_id_of,
    origin_of,
    principal_of,
    read_body,
)

routes = web.RouteTableDef()


@routes.post("/v1/sessions")
async def open_session(request: web.Request) -> web.Response:
    credential = bearer(request)
    body = await read_body(request, OpenSession)
    with audit.acting("key", address=address_of(request)):
        session = await request.app[EDGE].sessions.open(
            credential,
            origin_of(request),
            user_id=body.user_id,
            ttl_s=body.ttl_s,
            personas=body.personas,
            origins=body.origins,
            visitor_id=body.visitor_id,
            limits=body.limits.given() if body.limits is not None else None,
            single_use=body.single_use,
        )
    answer = {
        "token": session.token,
        "token_id": session.token_id,
        "expires_at": session.expires_at,
        "user_id": session.user_id,
    }
    if session.visitor_id is not None:
        answer["visitor_id"] = session.visitor_id
    return json_answer(answer, status=201)


@routes.post("/v1/conversations")
async def create(request: web.Request) -> web.Response:
    """Create a conversation; a repeat with the same ``Idempotency-Key`` gets the first one's answer, 201 included."""
    principal = await principal_of(request)
    body = await read_body(request, CreateConversation)
    conversation = await request.app[EDGE].conversations.create(
        principal,
        alias=body.persona,
        replacements=body.replacements,
        metadata=body.metadata,
        address=address_of(request),
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    location = f"/v1/conversations/{conversation.id}"
    return json_answer(conversation_body(conversation), status=201, headers={"Location": location})


@routes.get("/v1/conversations")
async def list_(request: web.Request) -> web.Response:
    principal = await principal_of(request)
    limit = request.query.get("limit", str(PAGE_MAX))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= PAGE_MAX):
        raise GatewayError(Code.INVALID_VALUE, f"limit lies between 1 and {PAGE_MAX}.", field="limit")
    found, more = await request.app[EDGE].conversations.list(principal, request.query.get("cursor"), int(limit))
    data = [conversation_body(conversation) for conversation in found]
    for entry in data:
        del entry["messages"], entry["metadata"]  # a list tells of conversations, not what is in them
    return json_answer({"data": data, "next_cursor": more})


@routes.get("/v1/conversations/{conversation_id}")
async def get(request: web.Request) -> web.Response:
    principal = await principal_of(request)
    edge = request.app[EDGE]
    conversation_id = conversation_id_of(request)
    conversation = await edge.conversations.get(principal, conversation_id)
    body = conversation_body(conversation)
    body["active_turn_id"] = await edge.subscriptions.active_turn(principal, conversation_id)
    return json_answer(body)


@routes.patch("/v1/conversations/{conversation_id}")
async def change(request: web.Request) -> web.Response:
    """Change what is given of a conversation's name, status, metadata and whether it is active."""
    principal = await principal_of(request)
    conversation_id = conversation_id_of(request)
    body = await read_body(request, ChangeConversation)
    edge = request.app[EDGE]
    changes = body.changes()
    conversation = await edge.changes.change_all(principal, conversation_id, changes, address=address_of(request))
    shown = conversation_body(conversation)
    shown["active_turn_id"] = await edge.subscriptions.active_turn(principal, conversation_id)
    return json_answer(shown)


@routes.put("/v1/conversations/{conversation_id}/messages/{message_id}/feedback")
async def give_feedback(request: web.Request) -> web.Response:
    principal = await principal_of(request)
    conversation_id, message_id = conversation_id_of(request), message_id_of(request)
    body = await read_body(request, GiveFeedback)
    feedback = await request.app[EDGE].feedback.give(
        principal,
        conversation_id,
        message_id,
        score=body.score,
        comments=body.comments,
        tags=body.tags,
        confidence=body.confidence,
        address=address_of(request),
    )
    return json_answer(feedback)
