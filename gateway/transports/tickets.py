"""HTTP door to tickets."""

from __future__ import annotations

from aiohttp import web

from gateway.protocol.native import TakeTicket
from gateway.transports.edge import EDGE, json_answer, principal_of, read_body

routes = web.RouteTableDef()


@routes.post("/v1/tickets")
async def take(request: web.Request) -> web.Response:
    """Give a ticket for an address where no header can be set."""
    principal = await principal_of(request)
    body = await read_body(request, TakeTicket)
    ticket = request.app[EDGE].auth.tickets.mint(principal, body.path)
    return json_answer(ticket._asdict(), status=201)
