"""The admin API's part about usage: what all tenants used, or one, for operators' programs."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.transports.admin import DESK
from gateway.transports.usage import PARAMETERS, answer, check_parameters

PREFIX: Final = "/admin/usage"  # the same is there without a version in its address

routes = web.RouteTableDef()
short_routes = web.RouteTableDef()


@short_routes.get("")
@routes.get("/usage")
async def tell_usage(request: web.Request) -> web.Response:
    """Tell what tenants used: all that are in force, or one."""
    check_parameters(request, PARAMETERS | {"tenant"})
    desk = request.app[DESK]
    await desk.enrolment.load()  # another worker may have been told of one just now
    return await answer(request, desk.usage, await desk.usage.tenants(request.query.get("tenant")))
