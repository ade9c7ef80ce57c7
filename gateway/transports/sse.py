"""Server-sent events: a response whose body is written straight to the connection as events happen.

aiohttp parses the request and sends the headers; from then on a reader at the head of its turn is written to
from the upstream's data callback, without a task being woken. Only what aiohttp would do is done here: the
chunked framing (RFC 9112 section 7.1), under the connection's own flow control.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry
from gateway.core.identity import Door
from gateway.protocol.native import encode_json, encode_sse, problem
from gateway.protocol.sse import encode_comment, encode_event, encode_retry
from gateway.services.subscriptions import Subscription
from gateway.services.window import Batch
from gateway.telemetry.logging import event as log_event
from gateway.transports.edge import EDGE, PRINCIPAL, REQUEST_ID, REVOKED_S, origin_of

logger = logging.getLogger(__name__)

HIGH_WATER_BYTES: Final = 65_536  # unsent bytes from which a reader is pulled instead of pushed to
KEEPALIVE: Final = encode_comment("keep-alive")


def encode_plain(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries for a connection whose body ends with it (HTTP/1.0)."""
    if len(entries) == 1:  # the rule, and a join of one costs 0.15 µs
        return encode_sse(turn_id, entries[0])
    return b"".join([encode_sse(turn_id, entry) for entry in entries])


def encode_chunked(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries as one chunk of a chunked body."""
    return chunk(encode_plain(turn_id, conversation_id, entries))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class SseStream:
    """A Sink over one HTTP response. ``open`` it, ``deliver`` a subscription, and leave the rest to aiohttp."""

    def __init__(self, request: web.Request, turn_id: str) -> None:
        self._request = request
        self._edge = request.app[EDGE]
        self._chunked = request.version >= HttpVersion11
        self._encoder = encode_chunked if self._chunked else encode_plain
        self._loop = asyncio.get_running_loop()
        self._written_at_s = self._loop.time()
        self._keepalive: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None
        self._cut_off: asyncio.TimerHandle | None = None
        self._lost: GatewayError | None = None
        self.principal = request[PRINCIPAL]
        self.origin = origin_of(request)
        self.door: Door = "sse"
        self.response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-store",
                "X-Accel-Buffering": "no",
                "x-turn-id": turn_id,
            }
        )

    async def deliver(self, subscription: Subscription) -> web.StreamResponse:
        """Send the headers and every event of the subscription, to the ending; then end the body."""
        if self._chunked:
            self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("client left before the stream began")
        self._transport: asyncio.WriteTransport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        metrics = self._edge.metrics
        metrics.stream_opened("sse")
        self._subscription = subscription
        self._edge.open.add(self)
        self._put(encode_retry(self._edge.rules.retry_ms) + encode_comment("open"))
        self._keepalive = self._loop.call_later(self._edge.rules.keepalive_s, self._keep_alive)
        error = self._edge.auth.lost(self.principal, self.origin, self.door)  # since the request was let in
        if error is not None:
            self.revoke(error)
        try:
            await subscription.deliver(self)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except GatewayError as error:
            self._tell(error)
        except Exception:
            logger.exception("stream.crashed")
            self._tell(GatewayError(Code.INTERNAL))
        finally:
            self._keepalive.cancel()
            self._edge.open.discard(self)
            metrics.stream_closed("sse")
            if subscription.resumed:
                metrics.resumed("sse", subscription.replayed)
        if subscription.left and self._lost is not None:
            self._tell(self._lost)
            self._request.protocol.close()
        elif subscription.left:
            # A moment of the client's own, so that those who leave together do not come back together.
            retry_ms = self._edge.rules.retry_ms
            self._put(encode_retry(random.randint(retry_ms // 4, retry_ms)))  # noqa: S311 - spreads load
            self._request.protocol.close()  # after the answer: it would be asked for the next one too
        await self.response.write_eof()
        if self._cut_off is not None:
            self._cut_off.cancel()
        return self.response

    # --- Sink ----------------------------------------------------------------------------------------------------

    def push(self, batch: Batch, /) -> bool:
        transport = self._transport
        if transport.is_closing():
            return True  # the handler is about to be cancelled
        if transport.get_write_buffer_size() > self._edge.rules.reader_lag_bytes:
            self._let_go()
            return True
        transport.write(batch.encoded(self._encoder))
        self._written_at_s = self._loop.time()
        return transport.get_write_buffer_size() <= HIGH_WATER_BYTES

    async def write(self, batch: Batch, /) -> None:
        self.push(batch)
        await self.drain()

    async def drain(self) -> None:
        writer = self._request.writer
        try:
            async with asyncio.timeout(self._edge.rules.reader_lag_s):
                await writer.drain()
        except TimeoutError:
            self._let_go()
            raise ConnectionResetError("reader lagged") from None
        if self._transport.is_closing():
            raise ConnectionResetError("client left")

    def _let_go(self) -> None:
        """Cut off a reader that lags more than allowed; it can come back with its cursor."""
        self._edge.metrics.reader_lagged("sse")
        log_event(logger, logging.INFO, "reader.lagged", transport="sse")
        self._transport.abort()

    # --- beside the events ---------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """End the stream between two events, with the time after which to come back for the rest."""
        if self._subscription is not None:
            self._subscription.leave()

    async def shut(self) -> None:
        """End the connection at shutdown, after the turns have been settled."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def revoke(self, error: GatewayError) -> None:
        """End the stream between two events; a client that does not take in why is cut off."""
        if self._subscription is not None and self._lost is None:
            self._lost = error
            self._cut_off = self._loop.call_later(REVOKED_S, self._transport.abort)
            self._subscription.leave()

    def _put(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(chunk(data) if self._chunked else data)
            self._written_at_s = self._loop.time()

    def _tell(self, error: GatewayError) -> None:
        """An error of the connection itself, after its beginning: an event without an id, so no cursor moves."""
        self._edge.metrics.error_sent(error.code)
        body = encode_json(problem(error, self._request.get(REQUEST_ID)))
        self._put(encode_event(body, event="stream.error", id=None))

    def _keep_alive(self) -> None:
        idle_s = self._loop.time() - self._written_at_s
        period_s = self._edge.rules.keepalive_s
        if idle_s >= period_s:
            # Not to a reader that is behind: its connection is alive, and comments would only pile up.
            if self._transport.get_write_buffer_size() == 0:
                self._put(KEEPALIVE)
            idle_s = 0.0
        self._keepalive = self._loop.call_later(max(period_s - idle_s, 0.001), self._keep_alive)
