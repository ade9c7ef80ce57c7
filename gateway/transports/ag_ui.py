"""The AG-UI door: a run is a turn, a thread is a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from gateway.core.errors import GatewayError
from gateway.core.identity import Principal
from gateway.core.turn import TurnId
from gateway.protocol import ag_ui
from gateway.protocol.native import encode_json, problem
from gateway.services.chats import Ask
from gateway.transports.ai_sdk import stopped
from gateway.transports.dialect_stream import RunStream
from gateway.transports.edge import EDGE, REQUEST_ID, address_of, check_door, json_answer, principal_of, read_body

routes = web.RouteTableDef()

DOOR: Final = "ag-ui"
PATHS: Final = ("/v1/ag-ui",)
FIELDS: Final = {"id": "threadId", "persona": "forwardedProps.persona", "message": "messages"}


@routes.post("/v1/ag-ui")
async def start(request: web.Request) -> web.StreamResponse:
    """Answer the last message of a thread as the events of a run."""
    principal = await principal_of(request)
    check_door(principal, "sse")
    turn_id, run = await _begin(request, principal)
    return await _deliver(request, principal, turn_id, run)


async def _begin(request: web.Request, principal: Principal) -> tuple[TurnId, ag_ui.Run]:
    """Read what is asked and begin to answer it; apart, so that no list of messages is kept as long as the stream."""
    body = await read_body(request, ag_ui.RunInput)
    forwarded = body.forwarded or ag_ui.Forwarded()
    ask = Ask(
        door=DOOR,
        chat_id=body.thread_id,
        lines=ag_ui.lines_of(body),
        checked=True,  # a thread's messages are the client's, and may be changed without a word
        persona=forwarded.persona,
        replacements=forwarded.replacements,
        metadata=forwarded.metadata,
        address=address_of(request),
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    try:
        begun = await request.app[EDGE].chats.begin(principal, ask)
    except GatewayError as error:
        error.field = FIELDS.get(error.field or "", error.field)
        raise
    return begun.turn_id, ag_ui.run_of(body)


async def _deliver(request: web.Request, principal: Principal, turn_id: TurnId, run: ag_ui.Run) -> web.StreamResponse:
    subscription = await request.app[EDGE].subscriptions.open(principal, turn_id, None)
    assert subscription is not None, "only a cursor can be at the ending"
    headers = {"x-conversation-id": subscription.conversation_id}
    return await RunStream(request, turn_id, headers, run).deliver(subscription)


@routes.get("/v1/ag-ui/{thread_id}/stream", allow_head=False)  # a stream is its body
async def rejoin(request: web.Request) -> web.StreamResponse:
    """Replay the run of a thread from its beginning, and go on with it; 204 when there is none.

    The protocol has no request for it: what a run's input says of the run comes in the query.
    """
    principal = await principal_of(request)
    check_door(principal, "sse")
    thread_id = request.match_info["thread_id"]
    turn_id = await request.app[EDGE].chats.active(principal, DOOR, thread_id)
    if turn_id is None:
        return web.Response(status=204)
    run = ag_ui.Run(thread_id, request.query.get("runId") or turn_id, bool(request.query.get("protocolVersion")))
    return await _deliver(request, principal, turn_id, run)


@routes.post("/v1/ag-ui/{thread_id}/stop")
async def stop(request: web.Request) -> web.Response:
    """Stop the run of a thread; ``idle`` when there is none. The protocol has no word for it: a client just leaves."""
    principal = await principal_of(request)
    turn_id = await request.app[EDGE].chats.active(principal, DOOR, request.match_info["thread_id"])
    return json_answer(await stopped(request, turn_id))


def refusal(request: web.BaseRequest, error: GatewayError, headers: Mapping[str, str]) -> web.Response:
    """Tell an error as the problem that it is, declared as the JSON that ``HttpAgent`` reads into ``error.payload``."""
    return web.Response(
        body=encode_json(problem(error, request.get(REQUEST_ID))),
        status=error.wire.http,
        content_type="application/json",
        headers=dict(headers),
    )
