"""The admin API where a supervisor serves the internal port: passed on to a worker, which knows who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.transports.middleware import identify, problem_response

BODY_TIMEOUT_S: Final = 30.0  # of a body's arrival here; the worker has it at once then
PASSED_ON: Final = (hdrs.AUTHORIZATION, hdrs.CONTENT_TYPE, hdrs.ACCEPT, "x-request-id", "traceparent", "tracestate")
RELAYED_FOR: Final = "x-relayed-for"  # never passed on as it came
PASSED_BACK: Final = frozenset(
    name.lower()
    for name in (
        *(hdrs.CONTENT_TYPE, hdrs.CACHE_CONTROL, hdrs.WWW_AUTHENTICATE, hdrs.RETRY_AFTER, hdrs.ALLOW),
        *("x-request-id", "traceparent", "x-content-type-options", "x-next-cursor"),
    )
)


class Relayed(NamedTuple):
    """A worker's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Relay(Protocol):
    """Passes requests on to a worker that serves."""

    async def relay(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, /) -> Relayed:
        """Return the answer; raises GatewayError: draining (none serves), worker_lost (one may have done it)."""
        ...


RELAY: Final[web.AppKey[Relay]] = web.AppKey("relay", Relay)
BODY_MAX: Final[web.AppKey[int]] = web.AppKey("body_max", int)

routes = web.RouteTableDef()


@routes.route("*", "/admin/{tail:.*}")
async def pass_on(request: web.Request) -> web.Response:
    try:
        # What is no ASCII opens nothing there; as it came (undecoded bytes) it could not be sent at all.
        headers = [
            (name, value.encode("ascii", "replace").decode())
            for name in PASSED_ON
            for value in request.headers.getall(name, [])
        ]
        headers.append((RELAYED_FOR, request.remote or ""))
        told = await request.app[RELAY].relay(request.method, request.raw_path, headers, await _body(request))
    except GatewayError as error:
        response = problem_response(request, error)
        identify(request, response)
        return response
    kept = {name: value for name, value in told.headers.items() if name.lower() in PASSED_BACK}
    response = web.Response(status=told.status, headers=kept, body=told.body)
    response.headers[hdrs.SERVER] = "hyperleap-gateway"
    return response


async def _body(request: web.Request) -> bytes:
    """Read a body of a declared, bounded length; raises GatewayError: length_required, body_too_large, …"""
    if not request.can_read_body:
        return b""
    if request.content_length is None:
        raise GatewayError(Code.LENGTH_REQUIRED, "Send a Content-Length header.")
    most = request.app[BODY_MAX]
    if request.content_length > most:
        raise GatewayError(Code.BODY_TOO_LARGE, f"A body may have {most} bytes.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.content.readexactly(request.content_length)
    except (TimeoutError, asyncio.IncompleteReadError):
        raise GatewayError(Code.BAD_REQUEST, "The body did not arrive in time.") from None
