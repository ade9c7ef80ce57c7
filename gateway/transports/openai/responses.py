"""Responses: asked for by lists of items, by the response before or by a conversation, and read back by their ids."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from aiohttp import web

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Ending, TurnCompleted
from gateway.core.identity import Disconnect, DisconnectPolicy, Principal
from gateway.core.threads import ANSWER, INSTRUCTION, Said
from gateway.core.turn import StopReason, TurnId
from gateway.protocol.openai.messages import Item, said
from gateway.protocol.openai.parameters import check_parameters, tokens_max
from gateway.protocol.openai.response_events import STRIDE, ResponseEncoder, encode_error
from gateway.protocol.openai.responses import (
    CONVERSATION_PREFIX,
    ITEM_PREFIX,
    REFERENCE,
    RESPONSE_PREFIX,
    Response,
    ResponseRequest,
)
from gateway.services.answers import Answer
from gateway.services.threads import Ask, Begun
from gateway.transports.edge import EDGE, UUID, Edge, address_of, check_door
from gateway.transports.held_stream import HeldStream
from gateway.transports.openai.door import answer, asked, caller_of, turn_headers
from gateway.transports.openai.models import check_model
from gateway.transports.openai.telling import tell

routes = web.RouteTableDef()

BACKGROUND: Final = Disconnect(policy=DisconnectPolicy.DRAIN)
REFERENCES_MAX: Final = 256  # each is looked for by itself
CANCEL_S: Final = 5.0  # for an ending that was asked for


@routes.post("/v1/responses")
async def create(request: web.Request) -> web.StreamResponse:
    caller, body = await asked(request, ResponseRequest)
    check_parameters(body)
    tenant = caller.principal.tenant
    principal = caller.principal.leaving(BACKGROUND if body.background else tenant.openai_disconnect)
    check_model(principal, body.model)
    if body.stream:
        check_door(principal, "sse")
    edge = request.app[EDGE]
    items = [Item("user", body.input)] if isinstance(body.input, str) else body.input
    items = await _resolved(edge, principal, items)
    told = [Said(INSTRUCTION, body.instructions)] if body.instructions else []
    ask = Ask(
        alias=body.model,
        said=told + said(items, "input"),
        address=address_of(request),
        matched=caller.named and body.conversation is None and body.previous_response_id is None,
        replacements=body.replacements,
        metadata=body.metadata or {},
        idempotency_key=request.headers.get("Idempotency-Key"),
        tokens_max=tokens_max(max_output_tokens=body.max_output_tokens),
    )
    begun = await _start(edge, principal, body, ask)
    response = Response(
        begun.turn_id,
        begun.conversation_id,
        body.model,
        round(time.time(), 3),
        bool(body.background),
        body.instructions,
        body.metadata or {},
        body.previous_response_id,
        body.user,
        body.max_output_tokens,
    )
    if body.background and not body.stream:
        return answer(response.body(), turn_headers(begun))

    async def remember(ending: TurnCompleted) -> None:
        await edge.threads.remember(principal, ask, begun, ending.text, ending.message_id)

    undo = partial(edge.threads.undo, principal, ask, begun)
    return await tell(
        request, principal, begun, _Words(response), streamed=bool(body.stream), remember=remember, undo=undo
    )


@routes.get("/v1/responses/{response_id}", allow_head=False)
async def retrieve(request: web.Request) -> web.StreamResponse:
    """Tell a response as it stands, or stream it, from the beginning or from after an event."""
    caller = await caller_of(request)
    streamed = request.query.get("stream", "") in ("true", "1")
    after = _after(request)
    if streamed:
        check_door(caller.principal, "sse")
    found = await request.app[EDGE].answers.find(caller.principal, _turn_of(request))
    if not streamed:
        return answer(_response(found).body(found.ending, found.citations))
    begun = Begun(found.turn_id, found.conversation_id)
    return await tell(request, caller.principal, begun, _Words(_response(found), after), streamed=True, replayed=True)


@routes.post("/v1/responses/{response_id}/cancel")
async def cancel(request: web.Request) -> web.Response:
    """Stop a response that is under way, and tell how it ended; one that has ended is told as it is."""
    caller = await caller_of(request)
    edge, turn_id = request.app[EDGE], _turn_of(request)
    found = await edge.answers.find(caller.principal, turn_id)
    if found.ending is None:
        await edge.turns.stop(caller.principal, turn_id, StopReason.USER)
        subscription = await edge.subscriptions.open(caller.principal, turn_id, None)
        assert subscription is not None, "only a cursor can be at the ending"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                stream = HeldStream(request, None, {}, door=None)
                ending = await stream.deliver(subscription)
                found = found._replace(ending=ending, citations=stream.citations)
    return answer(_response(found).body(found.ending, found.citations))


@routes.delete("/v1/responses/{response_id}")
async def delete(request: web.Request) -> web.Response:
    """Forget a response; Hyperleap keeps the conversation that it is of."""
    caller = await caller_of(request)
    turn_id = _turn_of(request)
    await request.app[EDGE].answers.forget(caller.principal, turn_id)
    return answer({"id": RESPONSE_PREFIX + turn_id, "object": "response", "deleted": True})


class _Words(ResponseEncoder):
    """Events, and what ends them."""

    __slots__ = ()

    def whole(self, ending: Ending, citations: Sequence[dict[str, Any]], /) -> Any:
        return self._response.body(ending, citations)

    def error(self, error: GatewayError, position: int, /) -> bytes:
        return encode_error(error, (position + 1) * STRIDE)


async def _resolved(edge: Edge, principal: Principal, items: list[Item]) -> list[Item]:
    """Put answers in the place of references to them, as clients send that leave the keeping to the other side.

    Raises GatewayError: not_found, history_lost, invalid_value for too many.
    """
    referring = [index for index, item in enumerate(items) if item.type == REFERENCE]
    if len(referring) > REFERENCES_MAX:
        raise GatewayError(Code.INVALID_VALUE, f"There may be {REFERENCES_MAX} references to items.", field="input")
    found = list(items)
    for index in referring:
        try:
            answered = await edge.answers.find(principal, _turn_id(items[index].id or "", ITEM_PREFIX))
        except GatewayError as error:
            error.field = f"input[{index}].id"
            raise
        found[index] = Item(ANSWER, answered.ending.text if answered.ending is not None else "")
    return found


async def _start(edge: Edge, principal: Principal, body: ResponseRequest, ask: Ask) -> Begun:
    """Start the turn where the request says; raises GatewayError with the field that says it."""
    before, conversation = body.previous_response_id, body.conversation
    if before is not None and conversation is not None:
        raise GatewayError(
            Code.INVALID_VALUE,
            "Give either `previous_response_id` or `conversation`.",
            field="previous_response_id",
        )
    try:
        if before is not None:
            return await edge.threads.start_after(principal, _turn_id(before), ask)
        if conversation is not None:
            id_ = conversation if isinstance(conversation, str) else conversation.id
            return await edge.threads.start_in(principal, _conversation_id(id_), ask)
    except GatewayError as error:
        if error.code in (Code.NOT_FOUND, Code.HISTORY_LOST):
            error.field = "previous_response_id" if before is not None else "conversation"
        raise
    return await edge.threads.start(principal, ask)


def _response(found: Answer) -> Response:
    return Response(found.turn_id, found.conversation_id, found.persona, round(found.asked_at_s or 0.0, 3))


def _turn_of(request: web.Request) -> TurnId:
    return _turn_id(request.match_info["response_id"])


def _turn_id(id_: str, prefix: str = RESPONSE_PREFIX) -> TurnId:
    """Return the turn that a response or an item is of; an id that is none is not found."""
    turn_id = id_.removeprefix(prefix)
    if UUID.fullmatch(turn_id) is None:
        raise GatewayError(Code.NOT_FOUND)
    return TurnId(turn_id)


def _conversation_id(id_: str) -> ConversationId:
    id_ = id_.removeprefix(CONVERSATION_PREFIX).lower()
    if UUID.fullmatch(id_) is None:
        raise GatewayError(Code.NOT_FOUND)
    return ConversationId(id_)


def _after(request: web.Request) -> int:
    value = request.query.get("starting_after", "-1")
    if not (value == "-1" or (value.isascii() and value.isdigit() and len(value) < 16)):
        raise GatewayError(Code.INVALID_VALUE, "It is a sequence number.", field="starting_after")
    return int(value)
