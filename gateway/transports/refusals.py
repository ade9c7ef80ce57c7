"""What aiohttp refuses before any of our handlers: answered as a problem too, with nothing of the request in it.

aiohttp reads HTTP in a parser of its own. What that cannot read (TLS bytes, a bad Content-Length, a header that is
too long) it would answer as plain text which quotes the line, credentials and all, and log as an error. ``EdgeRunner``
stands where ``web.AppRunner`` would and changes that. It leans on this of aiohttp, none of it documented, and
``tests/transports/test_refusals.py`` fails when any of it is otherwise:

- ``AppRunner._make_server`` gives a ``web.Server`` that keeps what its protocols are made of in ``_kwargs`` and
  ``_loop``, and makes each by being called;
- every protocol is a ``RequestHandler``, whose ``handle_error`` gives the answer to all that the parser could not read
  and to what no handler caught, and whose ``log_exception`` is told of what fails after an answer;
- what a protocol has parsed and not begun to handle is in its ``_messages``, of which it asks for ``append``,
  ``popleft`` and how many there are;
- an unreadable request comes as one without headers and without a route, so ``on_response_prepare`` is not sent for it;
- an ``Expect`` that nobody knows is raised as ``HTTPExpectationFailed`` before the middlewares.

CORS needs the origin. Of a request that could not be read it is not known, so no page can read that answer; no
browser sends such a request either, unless its cookies or its address are too long. A refused ``Expect`` has its
headers, and its answer has CORS.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong

from gateway.core.errors import Code, GatewayError
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.transports.edge import EDGE, REQUEST_ID
from gateway.transports.middleware import identify, problem_response

logger = logging.getLogger(__name__)

_TOO_MANY: Final = "Too many headers received"  # the words are all that tells this refusal of aiohttp's from others


class EdgeRunner(web.AppRunner):
    """Runs an application as ``web.AppRunner`` does, but answers what aiohttp refuses in our terms."""

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self.app)


class _Server(web.Server):
    """Stands in for the server that aiohttp made for an application."""

    def __init__(self, made: web.Server, app: web.Application) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        self._app = app
        self._handle = made.request_handler
        self.request_handler = self._answer

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._handle(request)
        except web.HTTPExpectationFailed:
            error = GatewayError(Code.EXPECTATION_FAILED, "Of all expectations only `100-continue` can be met.")
            return self.refuse(request, error, "Expect")

    def refuse(self, request: web.BaseRequest, error: GatewayError, reason: str) -> web.Response:
        """Build the answer to a request that no handler saw; its connection ends with it."""
        request_id = request.get(REQUEST_ID)
        if request_id is None:
            request_id = request[REQUEST_ID] = secrets.token_hex(8)
        if error.code is not Code.INTERNAL:
            throttled(logger, error.code, "request.unreadable", code=error.code, reason=reason, request_id=request_id)
        edge = self._app.get(EDGE)  # the internal port has none
        if edge is not None:
            edge.metrics.error_sent(error.code)
        response = problem_response(request, error, {"Connection": "close"})
        identify(request, response)
        response.force_close()
        return response


class _Queue(list[Any]):
    """The requests of a connection that wait: seldom one, and an empty deque takes 0.7 KB of every connection."""

    __slots__ = ()

    def popleft(self) -> Any:
        return self.pop(0)


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_server",)

    def __init__(self, server: _Server, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]  # what aiohttp gave the server, passed on
        self._messages = _Queue()  # type: ignore[assignment]  # has what is asked of the deque in its place
        self._server = server  # aiohttp's own reference ends with the connection, before handlers do

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read (``exc`` and ``message`` quote it: they go nowhere) or was not caught."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client left or was let go: neither an error of ours nor anybody there to tell
        if isinstance(exc, HttpProcessingError):
            error = self._unreadable(exc)
        else:
            log_event(logger, logging.ERROR, "request.crashed", error=exc, status=status)
            error = GatewayError(Code.INTERNAL)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; no other can follow")
        return self._server.refuse(request, error, type(exc).__name__)

    def log_exception(self, *args: object, **options: object) -> None:
        """Log what went wrong outside of any answer; that the rest of a refused body cannot be read is nothing."""
        error = options.get("exc_info")
        if isinstance(error, web.RequestPayloadError):
            throttled(logger, "body", "request.unreadable", code=Code.BAD_REQUEST, reason=type(error).__name__)
        else:
            super().log_exception(*args, **options)

    def _unreadable(self, error: HttpProcessingError) -> GatewayError:
        if isinstance(error, LineTooLong) or error.message == _TOO_MANY:
            return GatewayError(
                Code.HEADERS_TOO_LARGE,
                f"The address and every header may have {self.max_field_size} bytes, "
                f"and there may be {self.max_headers} headers.",
            )
        if isinstance(error, BadHttpMethod):
            return GatewayError(
                Code.BAD_REQUEST, "It begins with no method that HTTP knows. This port speaks HTTP, without TLS."
            )
        return GatewayError(Code.BAD_REQUEST, "The request line, a header or the body's framing breaks HTTP's rules.")
