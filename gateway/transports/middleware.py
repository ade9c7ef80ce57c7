"""Around every request: its id, its errors as problem documents, CORS on every answer, one log line, one metric."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, TenantId, UserHash
from gateway.protocol.native import encode_json, problem
from gateway.services.admission import TOLD, Told
from gateway.telemetry import audit
from gateway.telemetry.logging import REQUEST_ID as LOGGED_REQUEST_ID
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import started
from gateway.telemetry.spans import CURRENT
from gateway.telemetry.tracing import FRESH_CHARS, example
from gateway.transports.edge import DECLARED_PROBLEM, EDGE, PRINCIPAL, REQUEST_ID, SPAN, address_of, origin_of
from gateway.transports.limit_headers import EXPOSED as LIMITS_EXPOSED
from gateway.transports.limit_headers import limit_headers

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
Refusal = Callable[[web.BaseRequest, GatewayError, Mapping[str, str]], web.Response]
# How errors look at the paths of a door that has a shape of its own for them: what those begin with, and the answer.
REFUSALS: Final[web.AppKey[Sequence[tuple[tuple[str, ...], Refusal]]]] = web.AppKey("refusals")
_REFUSED: Final = web.RequestKey("refused", dict)
_TOLD: Final = web.RequestKey("told", Told)
_TURN: Final = web.RequestKey("turn", str)  # that its answer is about

REQUEST_ID_CHARS: Final = 16  # of one that we make
METHODS: Final = "GET, POST, PUT, PATCH, DELETE, OPTIONS"
OPENAI_HEADERS: Final = ", ".join(  # what OpenAI's own client sends from a page, and no page decides
    (
        "openai-organization, openai-project, x-user-id",
        *(
            f"x-stainless-{what}"
            for what in (
                *("arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version"),
                *("poll-helper", "read-timeout", "retry-count", "runtime", "runtime-version", "timeout"),
            )
        ),
    )
)
REQUEST_HEADERS: Final = (
    "authorization, content-type, idempotency-key, last-event-id, prefer, traceparent, tracestate, x-hl-api-key, "
    "x-request-id, " + OPENAI_HEADERS
)
EXPOSED: Final = (
    "location, preference-applied, retry-after, traceparent, x-conversation-id, x-error-code, x-request-id, "
    f"x-should-retry, x-turn-id, x-vercel-ai-ui-message-stream, {LIMITS_EXPOSED}"
)
PREFLIGHT_MAX_AGE_S: Final = 600

# What aiohttp itself refuses beside our handlers, in our terms; what it refuses before them: refusals.py.
_STATUS: Final = {
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.BODY_TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
}


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and trace, then count and log it once, when its answer is over."""
    shown = request.headers.get("x-request-id", "")
    # For all ids at once: each read of the system's entropy is a call of its own.
    fresh = secrets.token_hex((FRESH_CHARS + REQUEST_ID_CHARS) // 2)
    request_id = shown if shown and _REQUEST_ID.fullmatch(shown) else fresh[FRESH_CHARS:]
    request[REQUEST_ID] = request_id
    route = route_of(request)
    span = request[SPAN] = request.app[EDGE].tracing.request(
        *trace_of(request), fresh, method=request.method, route=route, request_id=request_id
    )
    current = CURRENT.set(span)
    token = LOGGED_REQUEST_ID.set(request_id)
    started(logger, "request.started", method=request.method, route=route)
    request[_TOLD] = told = Told(address_of(request))
    TOLD.set(told)  # seen by what this request's task starts, and gone with it or overwritten by the next
    started_s = time.perf_counter()
    status = 499  # the client left; only logs and metrics see this number
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        seconds = time.perf_counter() - started_s
        edge = request.app[EDGE]
        edge.metrics.request_ended(route, request.method, status, seconds, example(edge.tracing, span))
        tenant, user = tenant_of(request, status), user_of(request)
        log_event(
            logger,
            logging.INFO,
            "request.ended",
            method=request.method,
            route=route,
            status=status,
            **request.get(_REFUSED, {}),
            duration_s=round(seconds, 4),
            turn_id=request.get(_TURN),
            tenant=tenant,
            user=user,
        )
        code = request.get(_REFUSED, {}).get("code")
        span.end(
            code or Code.INTERNAL if status >= 500 else None,
            status=status,
            code=code,
            tenant=tenant,
            user=user,
        )
        CURRENT.reset(current)
        LOGGED_REQUEST_ID.reset(token)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer preflights, and turn every error into a problem document. Internal errors tell nothing."""
    if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(status=204)
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except GatewayError as raised:
        error = raised
    except web.HTTPException as raised:
        if raised.status < 400:
            raise
        error = GatewayError(_STATUS.get(raised.status, Code.INTERNAL if raised.status >= 500 else Code.BAD_REQUEST))
        if hdrs.ALLOW in raised.headers:
            headers[hdrs.ALLOW] = raised.headers[hdrs.ALLOW]
    except web.RequestPayloadError:
        error = GatewayError(Code.BAD_REQUEST, "The body is not in the encoding or the chunks that its headers tell.")
    except ConnectionError:
        raise
    except Exception:
        logger.exception("request.crashed")
        error = GatewayError(Code.INTERNAL)
    request.app[EDGE].metrics.error_sent(error.code)
    if error.code in audit.REFUSALS:
        audit_refusal(request, error)
    request[_REFUSED] = {"code": error.code} | (
        {"vendor_status": error.vendor_status} if error.vendor_status is not None else {}
    )
    for paths, refusal in request.app.get(REFUSALS, ()):
        if request.path.startswith(paths):
            return refusal(request, error, error_headers(error, headers))
    return problem_response(request, error, headers)


def audit_refusal(request: web.Request, error: GatewayError) -> None:
    """Tell the audit stream who was turned away. What was shown (credential, origin, path) is anybody's words."""
    with audit.acting("anybody", address=address_of(request)):
        audit.flooded(
            "access.refused",
            tenant=_proved_tenant(request),
            code=error.code,
            user=user_of(request),
            route=route_of(request),
        )


def tenant_of(request: web.Request, status: int) -> TenantId | None:
    """Return the tenant that a request was about: whose token or key it showed, else whom its path names.

    Only the admin API has names in its paths. One that is no tenant's is anybody's words, as is any from who shows no
    token. A tenant that was just deleted is still known.
    """
    proved = _proved_tenant(request)
    if proved is not None or status == 401:
        return proved
    named = TenantId(request.match_info.get("tenant", ""))
    return named if named in request.app[EDGE].auth.tenants.known else None


def user_of(request: web.Request) -> UserHash | None:
    principal: Principal | None = request.get(PRINCIPAL)
    return principal.user_hash if principal is not None else None


def _proved_tenant(request: web.Request) -> TenantId | None:
    """Return whose token or key a request shows, once that is proved."""
    principal: Principal | None = request.get(PRINCIPAL)
    if principal is not None:
        return principal.tenant.id
    told: Told | None = request.get(_TOLD)
    return told.tenant if told is not None else None


def route_of(request: web.Request) -> str:
    """Return the route's template, ``other`` where there is none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"


def problem_response(
    request: web.BaseRequest, error: GatewayError, headers: dict[str, str] | None = None
) -> web.Response:
    """Build the answer that tells an error (RFC 9457)."""
    return web.Response(
        body=encode_json(problem(error, request.get(REQUEST_ID))),
        status=error.wire.http,
        content_type=DECLARED_PROBLEM,
        headers=error_headers(error, headers),
    )


def error_headers(error: GatewayError, headers: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers of an answer that tells an error, whatever its shape."""
    headers = dict(headers or {})
    headers[hdrs.CACHE_CONTROL] = "no-store"
    if error.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, -int(-error.retry_after_s // 1)))
    if error.code is Code.UPGRADE_REQUIRED:
        headers[hdrs.UPGRADE] = "websocket"
        headers[hdrs.CONNECTION] = "Upgrade"
    if error.wire.http == 401:
        headers[hdrs.WWW_AUTHENTICATE] = f'Bearer error="{error.code}"'
    return headers


def identify(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Say on an answer which request it is for and who answers, without naming the software beneath."""
    headers = response.headers
    headers["x-request-id"] = request.get(REQUEST_ID) or secrets.token_hex(8)
    span = request.get(SPAN)
    if span is not None:
        headers["traceparent"] = span.traceparent
    headers[hdrs.SERVER] = "hyperleap-gateway"
    headers.setdefault("X-Content-Type-Options", "nosniff")


async def prepare(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put CORS and identity on every answer, streamed ones and errors too (they have no other chance)."""
    identify(request, response)
    headers = response.headers
    if not isinstance(request, web.Request):
        return
    if (turn_id := headers.get("x-turn-id")) is not None:
        request[_TURN] = turn_id
    told = request.get(_TOLD)
    if told is not None and told.quotas:
        headers.update(limit_headers(told.quotas))
        told.quotas = ()  # a stream would keep them as long as it lasts
    if request.app[EDGE].draining and response.status != 101:
        headers[hdrs.CONNECTION] = "close"
        response.force_close()
    headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = origin_of(request)
    if origin is None:
        return
    auth = request.app[EDGE].auth
    principal = request.get(PRINCIPAL)
    allowed = auth.origin_known(origin) if principal is None else auth.origin_allowed(principal, origin)
    if not allowed:
        return
    headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
    if request.method == hdrs.METH_OPTIONS:
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = METHODS
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = REQUEST_HEADERS
        headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_MAX_AGE_S)


def trace_of(request: web.BaseRequest) -> tuple[str, str]:
    """Return the caller's place in a trace, and what other tracing systems keep of it; of two places none counts."""
    places = request.headers.getall("traceparent", ())
    if len(places) != 1:
        return "", ""
    return places[0], ",".join(request.headers.getall("tracestate", ()))
