"""The other baseline: aiohttp takes the request, then the source's bytes go from one callback to the client.

``python -m tests.bench.callback_relay SOURCE_URL``. No task wakes for an event: ``data_received`` of the connection to
the source writes to the client's transport. When that holds more than HIGH_BYTES, the source is not read until it has
drained, so that a client that stops reading costs nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final, cast
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from tests.bench.relay import listen, runner

HIGH_BYTES: Final = 65_536


class Upstream(asyncio.Protocol):
    """A connection to the source, for one request after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._skip = 0  # bytes up to the next chunk's size line
        self._in_head = self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self.ended = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._wake()

    @property
    def reusable(self) -> bool:
        return self._transport is not None and self.ended

    def begin(self, request: bytes, client: asyncio.Transport) -> None:
        """Send a request; the chunks of its answer's body but the last, empty one go to ``client`` as they are."""
        assert self._transport is not None
        self._client = client
        self._in_head, self.ended, self._full = True, False, False
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)

    async def relayed(self, writer: AbstractStreamWriter) -> None:
        """Wait for the end of the answer, and for the client whenever it lags."""
        while self._waiter is not None:
            await self._waiter
            if self.ended:
                return
            if self._transport is None:
                raise ConnectionResetError("the source ended in mid-answer")
            await writer.drain()
            self._full = False
            self._waiter = asyncio.get_running_loop().create_future()
            self._transport.resume_reading()

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._in_head:
            stop = data.find(b"\r\n\r\n")
            if stop < 0:
                self._rest = data
                return
            self._in_head = False
            data = data[stop + 4 :]
        at, length = self._skip, len(data)
        while at < length:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                break
            size = int(data[at:stop], 16)
            if size == 0:
                self.ended = True
                break
            at = stop + 2 + size + 2
        self._skip = max(0, at - length)
        if at < length:
            self._rest = b"" if self.ended else data[at:]
            data = data[:at]
        client = self._client
        if data and not client.is_closing():
            client.write(data)
        if self.ended:
            self._wake()
        elif not self._full and client.get_write_buffer_size() > HIGH_BYTES:
            self._full = True
            assert self._transport is not None
            self._transport.pause_reading()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def serve(source_url: str) -> None:
    netloc = urlsplit(source_url).netloc
    host, _, port = netloc.rpartition(":")
    idle: list[Upstream] = []
    loop = asyncio.get_running_loop()

    async def connected() -> Upstream:
        while idle:
            if (upstream := idle.pop()).reusable:
                return upstream
        _, upstream = await loop.create_connection(Upstream, host, int(port))
        return upstream

    async def relay(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        client, writer = request.transport, request.writer
        if client is None:
            raise ConnectionResetError("client left before the stream began")
        cast("asyncio.WriteTransport", client).set_write_buffer_limits(high=HIGH_BYTES)
        upstream = await connected()
        head = f"POST / HTTP/1.1\r\nhost: {netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            upstream.begin(head.encode() + body, client)
            await upstream.relayed(writer)
        finally:
            if upstream.reusable:
                idle.append(upstream)
            else:
                upstream.leave()
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/", relay)
    await listen(app)


if __name__ == "__main__":
    runner(serve(sys.argv[1]))
