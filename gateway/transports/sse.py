"""Server-sent events: a response whose body is written straight to the connection as events happen.

aiohttp parses the request and makes the headers; from then on a reader at the head of its turn is written to
from the upstream's data callback, without a task being woken. Only what aiohttp would do is done here: the
chunked framing (RFC 9112 section 7.1), under the connection's own flow control. The headers go out with the first
events, if there are any yet, and the end of the body with the ending: three of a short turn's writes less, and each
is a system call that costs more than all else that is done for an event.

It leans on this of aiohttp, not documented, and ``tests/transports/test_sse.py`` fails when it is otherwise:

- a ``StreamResponse`` whose ``_send_headers_immediately`` is false leaves its headers with its writer, as
  ``_headers_buf``, until something is written; ``_headers_written`` says that they need not be sent any more;
- a writer that is not ``chunked`` ends a body by writing nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_writer import StreamWriter

from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, is_ending
from gateway.core.identity import Door
from gateway.protocol.native import encode_json, encode_sse, problem
from gateway.protocol.sse import encode_comment, encode_event, encode_retry
from gateway.services.subscriptions import Subscription
from gateway.services.window import Batch, Encoder
from gateway.telemetry.logging import event as log_event
from gateway.transports.edge import EDGE, PRINCIPAL, REQUEST_ID, REVOKED_S, origin_of
from gateway.transports.pulse import BEATS_PER_PERIOD

logger = logging.getLogger(__name__)

HIGH_WATER_BYTES: Final = 65_536  # unsent bytes from which a reader is pulled instead of pushed to
OPEN: Final = encode_comment("open")
KEEPALIVE: Final = encode_comment("keep-alive")
LAST_CHUNK: Final = b"0\r\n\r\n"


def encode_plain(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries for a connection whose body ends with it (HTTP/1.0)."""
    if len(entries) == 1:  # the rule, and a join of one costs 0.15 µs
        return encode_sse(turn_id, entries[0])
    return b"".join([encode_sse(turn_id, entry) for entry in entries])


def encode_chunked(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries as one chunk of a chunked body; with a turn's ending the body ends."""
    data = chunk(encode_plain(turn_id, conversation_id, entries))
    return data + LAST_CHUNK if is_ending(entries[-1].event) else data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Response(web.StreamResponse):
    _send_headers_immediately = False


NOTHING_MORE: Final[Mapping[str, str]] = {}


class SseStream:
    """A Sink over one HTTP response. ``open`` it, ``deliver`` a subscription, and leave the rest to aiohttp."""

    comes_back: ClassVar[bool] = True  # the client comes back for the rest, when it is sent away between two events
    encoders: ClassVar[tuple[Encoder, Encoder]] = (encode_plain, encode_chunked)  # of a plain body, of a chunked one
    _closing: Callable[[Entry], bytes] | None = None  # encodes the ending, where a dialect's encoder does not

    def __init__(self, request: web.Request, turn_id: str, headers: Mapping[str, str] = NOTHING_MORE) -> None:
        self._request = request
        self._edge = request.app[EDGE]
        self._chunked = request.version >= HttpVersion11
        self._encoder = self.encoders[self._chunked]
        writer = request.writer
        assert isinstance(writer, StreamWriter)
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._quiet_beats = 0  # since something was written
        self._subscription: Subscription | None = None
        self._cut_off: asyncio.TimerHandle | None = None
        self._lost: GatewayError | None = None
        self._begun = b""  # the beginning of the answer, until it is written
        self._complete = False  # the ending is written, and nothing may follow
        self.principal = request[PRINCIPAL]
        self.origin = origin_of(request)
        self.door: Door = "sse"
        self.response = _Response(
            headers={
                hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-store",
                "X-Accel-Buffering": "no",
                "x-turn-id": turn_id,
                **headers,
            }
        )

    async def deliver(self, subscription: Subscription) -> web.StreamResponse:
        """Send the headers and every event of the subscription, to the ending; then end the body."""
        if self._chunked:
            self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)
        self.response.headers.clear()  # sent, and 4 KB as long as the stream
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("client left before the stream began")
        self._transport: asyncio.WriteTransport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._begun = self._take_headers() + self._framed(self._opening())
        self._loop.call_soon(self._begin)  # unless an event takes it along before
        metrics = self._edge.metrics
        metrics.stream_opened("sse")
        self._subscription = subscription
        self._edge.open.add(self)
        self._edge.pulse.join(self)
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
            self._edge.pulse.leave(self)
            self._subscription = None  # each would keep the other, and with it the request and its connection
            self._edge.open.discard(self)
            self._subscription = None  # which has this stream as its sink: a cycle would keep the whole request
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
        self._begin()
        if self._complete:
            self._writer.chunked = False
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
        data = batch.encoded(self._encoder)
        if batch.ends and self._closing is not None:
            data += self._framed(self._closing(batch.entries[-1])) + (LAST_CHUNK if self._chunked else b"")
        if self._begun:
            data, self._begun = self._begun + data, b""
        transport.write(data)
        self._complete = batch.ends
        self._quiet_beats = 0
        return transport.get_write_buffer_size() <= HIGH_WATER_BYTES

    async def write(self, batch: Batch, /) -> None:
        self.push(batch)
        await self.drain()

    async def drain(self) -> None:
        if self._transport.get_write_buffer_size() > 0:  # with nothing unsent there is nothing to wait for
            try:
                async with asyncio.timeout(self._edge.rules.reader_lag_s):
                    await self._writer.drain()
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
        if self.comes_back and self._subscription is not None:
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

    def _opening(self) -> bytes:
        """Return what a stream begins with; it is never empty."""
        return encode_retry(self._edge.rules.retry_ms) + OPEN

    def _take_headers(self) -> bytes:
        """Take the headers that aiohttp has made and not sent."""
        writer = self._writer
        headers = writer._headers_buf
        assert headers is not None
        writer._headers_buf, writer._headers_written = None, True
        writer.output_size += len(headers)  # by which it is known that an answer has begun
        return headers

    def _begin(self) -> None:
        """Write the beginning of the answer, if no event has taken it along."""
        if self._begun:
            self._put(b"")

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._chunked else data

    def _put(self, data: bytes) -> None:
        """Write what is no event: the beginning of the answer, where it is still due, then ``data``."""
        if not self._transport.is_closing() and not self._complete:
            begun, self._begun = self._begun, b""
            self._transport.write(begun + self._framed(data) if data else begun)
            self._quiet_beats = 0

    def _tell(self, error: GatewayError) -> None:
        """An error of the connection itself, after its beginning: an event without an id, so no cursor moves."""
        self._edge.metrics.error_sent(error.code)
        self._put(self._told(error))

    def _told(self, error: GatewayError) -> bytes:
        return encode_event(encode_json(problem(error, self._request.get(REQUEST_ID))), event="stream.error", id=None)

    def beat(self) -> None:
        """Write a comment where nothing else was written for a whole period, or an eighth less."""
        self._quiet_beats += 1
        # Not to a reader that is behind: its connection is alive, and comments would only pile up.
        if self._quiet_beats >= BEATS_PER_PERIOD and self._transport.get_write_buffer_size() == 0:
            self._put(KEEPALIVE)
