"""The admin API's part about turns that run just now: which they are, on every worker, and how one is stopped."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from gateway.core.errors import Code, GatewayError
from gateway.services.clock import iso
from gateway.services.live_turns import LiveTurns, Shown
from gateway.telemetry import audit
from gateway.transports.admin import DESK, tenant_of
from gateway.transports.edge import EDGE, json_answer, turn_id_of

PAGE: Final = 100  # turns on a page unless asked for more or fewer
PAGE_MAX: Final = 500
ASKED: Final = frozenset({"tenant", "cursor", "limit"})
LIVE_TURNS: Final[web.AppKey[LiveTurns]] = web.AppKey("live_turns", LiveTurns)

routes = web.RouteTableDef()


@routes.get("/turns")
async def list_turns(request: web.Request) -> web.Response:
    """List the turns that run, of all tenants or of one: whose, where and how far each is, never what it says."""
    query = request.query
    if strange := sorted(query.keys() - ASKED):
        raise GatewayError(Code.UNKNOWN_FIELD, "The query has a parameter that is not known here.", field=strange[0])
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= PAGE_MAX):
        raise GatewayError(Code.INVALID_VALUE, f"limit lies between 1 and {PAGE_MAX}.", field="limit")
    only = await request.app[DESK].find(query["tenant"]) if "tenant" in query else None
    found, more = await request.app[LIVE_TURNS].page(only, query.get("cursor"), int(limit))
    return json_answer({"data": [_facts(shown) for shown in found], "next_cursor": more})


@routes.post("/tenants/{tenant}/turns/{turn_id}/stop")
async def stop_turn(request: web.Request) -> web.Response:
    """Stop a turn, on whatever worker it runs; its readers are told the reason ``admin``."""
    tenant, turn_id = await tenant_of(request), turn_id_of(request)
    with audit.change("turn.stop_asked", tenant=tenant, turn_id=turn_id) as told:
        state = told["state"] = await request.app[EDGE].turns.stop_for_operator(tenant, turn_id)
    return json_answer({"tenant": tenant, "turn_id": turn_id, "state": state})


def _facts(shown: Shown) -> dict[str, Any]:
    turn = shown.turn
    return {
        "tenant": shown.tenant,
        "turn_id": turn.turn_id,
        "conversation_id": turn.conversation_id,
        "persona": turn.persona,
        "user": turn.owner,
        "state": turn.stage,
        "started_at": None if turn.started_at_s is None else iso(turn.started_at_s),
        "position": turn.position,
        "readers": shown.readers,
        "worker": turn.worker,
    }
