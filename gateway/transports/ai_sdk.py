"""The AI SDK UI door, for pages that use ``useChat``: send, come back, stop, and the messages to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from gateway.core.errors import GatewayError
from gateway.core.identity import Principal
from gateway.core.turn import StopReason, TurnId
from gateway.protocol import ai_sdk
from gateway.services.chats import Ask, Begun
from gateway.transports.dialect_stream import PartsStream
from gateway.transports.edge import (
    EDGE,
    PRINCIPAL,
    address_of,
    check_door,
    json_answer,
    principal_of,
    read_body,
)
from gateway.transports.middleware import problem_response

routes = web.RouteTableDef()

DOOR: Final = "ai-sdk"
PATHS: Final = ("/api/chat",)


@routes.post("/api/chat")
async def send(request: web.Request) -> web.StreamResponse:
    """Answer the last message of a chat as a UI message stream."""
    principal = await principal_of(request)
    check_door(principal, "sse")
    begun = await _begin(request, principal)
    return await _deliver(request, principal, begun.turn_id)


async def _begin(request: web.Request, principal: Principal) -> Begun:
    """Read what is asked and begin to answer it; apart, so that no list of messages is kept as long as the stream."""
    body = await read_body(request, ai_sdk.UiChatRequest)
    ask = Ask(
        door=DOOR,
        chat_id=body.id,
        lines=ai_sdk.lines_of(body),
        checked=body.changed,
        persona=body.persona,
        replacements=body.replacements,
        metadata=body.metadata,
        address=address_of(request),
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    try:
        return await request.app[EDGE].chats.begin(principal, ask)
    except GatewayError as error:
        if error.field == "message" and body.messages is not None:
            error.field = "messages"
        raise


async def _deliver(request: web.Request, principal: Principal, turn_id: TurnId) -> web.StreamResponse:
    subscription = await request.app[EDGE].subscriptions.open(principal, turn_id, None)
    assert subscription is not None, "only a cursor can be at the ending"
    headers = {**ai_sdk.HEADERS, "x-conversation-id": subscription.conversation_id}
    return await PartsStream(request, turn_id, headers).deliver(subscription)


@routes.get("/api/chat/{chat_id}/stream", allow_head=False)  # a stream is its body
async def resume(request: web.Request) -> web.StreamResponse:
    """Replay the answer that is being written from its beginning, and go on with it; 204 when there is none."""
    principal = await principal_of(request)
    check_door(principal, "sse")
    turn_id = await request.app[EDGE].chats.active(principal, DOOR, request.match_info["chat_id"])
    if turn_id is None:
        return web.Response(status=204)
    return await _deliver(request, principal, turn_id)


@routes.post("/api/chat/{chat_id}/stop")
async def stop(request: web.Request) -> web.Response:
    """Stop the answer that is being written; ``idle`` when there is none. Safe to repeat; a body is not read."""
    principal = await principal_of(request)
    turn_id = await request.app[EDGE].chats.active(principal, DOOR, request.match_info["chat_id"])
    return json_answer(await stopped(request, turn_id))


@routes.get("/api/chat/{chat_id}")
async def read(request: web.Request) -> web.Response:
    """Tell a chat's messages, to begin with after a reload."""
    principal = await principal_of(request)
    chat_id = request.match_info["chat_id"]
    conversation = await request.app[EDGE].chats.read(principal, DOOR, chat_id)
    return json_answer(
        {
            "id": chat_id,
            "conversation_id": conversation.id,
            "active_turn_id": conversation.active_turn_id,
            "messages": ai_sdk.ui_messages(conversation.messages),
        }
    )


async def stopped(request: web.Request, turn_id: TurnId | None) -> dict[str, str | None]:
    """Stop a turn of who asks, if there is one, and return what is told of it."""
    if turn_id is None:
        return {"turn_id": None, "state": "idle"}
    state = await request.app[EDGE].turns.stop(request[PRINCIPAL], turn_id, StopReason.USER)
    return {"turn_id": turn_id, "state": state}


def refusal(request: web.BaseRequest, error: GatewayError, headers: Mapping[str, str]) -> web.Response:
    """Tell an error as the text that ``useChat`` shows, or, to whoever accepts JSON by name, as a problem."""
    told = {**headers, "x-error-code": str(error.code)}
    if "json" in request.headers.get(hdrs.ACCEPT, ""):
        return problem_response(request, error, told)
    text = ai_sdk.error_text(error)
    return web.Response(text=text, status=error.wire.http, content_type="text/plain", charset="utf-8", headers=told)
