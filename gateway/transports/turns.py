"""HTTP doors to turns: start, follow, resume, stop."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec
from aiohttp import hdrs, web

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Ending, TurnCompleted, TurnFailed, TurnStopped
from gateway.core.identity import Door, Principal
from gateway.core.turn import StopReason, TurnId
from gateway.protocol.native import StartTurn
from gateway.services.subscriptions import Subscription
from gateway.services.window import Batch
from gateway.transports.edge import (
    EDGE,
    address_of,
    check_door,
    conversation_id_of,
    cursor_of,
    json_answer,
    origin_of,
    principal_of,
    read_body,
    turn_id_of,
)
from gateway.transports.sse import SseStream

routes = web.RouteTableDef()


@routes.post("/v1/conversations/{conversation_id}/turns")
async def start(request: web.Request) -> web.StreamResponse:
    """Start a turn; stream it, wait for it, or (``Prefer: respond-async``) leave it to be followed."""
    principal = await principal_of(request)
    conversation_id = conversation_id_of(request)
    body = await read_body(request, StartTurn)
    detached = "respond-async" in request.headers.get("Prefer", "")
    streamed = not detached and "text/event-stream" in request.headers.get(hdrs.ACCEPT, "")
    if streamed:
        check_door(principal, "sse")  # before there is a turn
    started = await request.app[EDGE].turns.start(
        principal,
        conversation_id,
        body.message,
        idempotency_key=request.headers.get("Idempotency-Key"),
        address=address_of(request),
    )
    if detached:
        return json_answer(
            {"turn_id": started.turn_id, "conversation_id": conversation_id},
            status=202,
            headers={
                hdrs.LOCATION: f"/v1/turns/{started.turn_id}/events",
                "Preference-Applied": "respond-async",
                "x-turn-id": started.turn_id,
            },
        )
    if streamed:
        return await _deliver(request, await _open(request, principal, started.turn_id))
    return await _wait(request, principal, started.turn_id)


@routes.get("/v1/turns/{turn_id}/events", allow_head=False)  # a stream is its body
async def follow_turn(request: web.Request) -> web.StreamResponse:
    principal = await principal_of(request, ticket=True)
    check_door(principal, "sse")
    return await _deliver(request, await _open(request, principal, turn_id_of(request)))


@routes.get("/v1/conversations/{conversation_id}/events", allow_head=False)
async def follow_conversation(request: web.Request) -> web.StreamResponse:
    """Follow the turn that the cursor is of, else the active one; 204 when there is neither."""
    principal = await principal_of(request, ticket=True)
    check_door(principal, "sse")
    conversation_id = conversation_id_of(request)
    active = await request.app[EDGE].subscriptions.active_turn(principal, conversation_id)
    cursor = cursor_of(request)
    if cursor is not None:
        return await _deliver(request, await _open(request, principal, cursor.turn_id, conversation_id))
    if active is None:
        return web.Response(status=204)
    return await _deliver(request, await _open(request, principal, active))


@routes.post("/v1/turns/{turn_id}/stop")
async def stop(request: web.Request) -> web.Response:
    principal = await principal_of(request)
    turn_id = turn_id_of(request)
    state = await request.app[EDGE].turns.stop(principal, turn_id, StopReason.USER)
    return json_answer({"turn_id": turn_id, "state": state})


async def _open(
    request: web.Request, principal: Principal, turn_id: TurnId, conversation_id: ConversationId | None = None
) -> Subscription | None:
    edge = request.app[EDGE]
    cursor = cursor_of(request) if request.method == hdrs.METH_GET else None
    try:
        return await edge.subscriptions.open(principal, turn_id, cursor, conversation_id)
    except GatewayError as error:
        if error.code is Code.INVALID_CURSOR and request.headers.get("Last-Event-ID"):
            error.field = "Last-Event-ID"
        raise


def _deliver(request: web.Request, subscription: Subscription | None) -> Awaitable[web.StreamResponse]:
    """Return what delivers a subscription. No coroutine of its own, which would take 0.3 KB of every stream."""
    if subscription is None:
        return _say_no_more()
    return SseStream(request, subscription.turn_id).deliver(subscription)


async def _say_no_more() -> web.Response:
    return web.Response(status=204)  # the ending was delivered: an EventSource stops reconnecting


class _Collector:
    """A Sink that keeps only the ending, of a request that waits for it; a connection that can be ended."""

    def __init__(self, request: web.Request, principal: Principal, subscription: Subscription) -> None:
        self.principal = principal
        self.origin = origin_of(request)
        self.door: Door | None = None
        self.lost: GatewayError | None = None
        self.ending: Ending | None = None
        self._subscription: Subscription | None = subscription

    def push(self, batch: Batch, /) -> bool:
        if batch.ends:
            last = batch.entries[-1].event
            assert isinstance(last, TurnCompleted | TurnStopped | TurnFailed)
            self.ending = last
        return True

    async def write(self, batch: Batch, /) -> None:
        self.push(batch)

    async def drain(self) -> None:
        return None

    async def leave(self) -> None:
        """Go on waiting: the turn ends before the gateway does."""

    async def shut(self) -> None:
        """Let the answer be written."""

    def revoke(self, error: GatewayError) -> None:
        self.lost = error
        if self._subscription is not None:
            self._subscription.leave()

    def release(self) -> None:
        """Let go of the subscription, which has this as its sink: a cycle would keep the whole request."""
        self._subscription = None


async def _wait(request: web.Request, principal: Principal, turn_id: TurnId) -> web.Response:
    """Answer with the ending; a turn that failed is told with its error's status, its partial text beside it."""
    edge = request.app[EDGE]
    subscription = await edge.subscriptions.open(principal, turn_id, None)
    assert subscription is not None, "only a cursor can be at the ending"
    collector = _Collector(request, principal, subscription)
    edge.open.add(collector)
    try:
        if not edge.auth.revoked(principal):
            await subscription.deliver(collector)
    finally:
        edge.open.discard(collector)
        collector.release()
    ending = collector.ending
    if collector.lost is not None or edge.auth.revoked(principal):
        raise collector.lost or GatewayError(Code.REVOKED)
    if ending is None:
        raise AssertionError("a log was delivered to its end without an ending")
    told: dict[str, Any] = {"turn_id": turn_id, "event": ending.name, **msgspec.to_builtins(ending)}
    if isinstance(ending, TurnFailed):
        error = ending.error
        raise GatewayError(
            error.code,
            error.detail,
            retry_after_s=error.retry_after_s,
            vendor_status=error.vendor_status,
            extra={"turn_id": turn_id, "text": ending.text, "usage": told["usage"], "message_id": ending.message_id},
        )
    return json_answer(told, headers={"x-turn-id": turn_id})
