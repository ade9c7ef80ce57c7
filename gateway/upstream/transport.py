"""httpx over the pool, for everything that is not the chat's hot path."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import MappingProxyType

import httpx

from gateway.upstream import errors
from gateway.upstream.errors import UpstreamError
from gateway.upstream.pool import Pool
from gateway.upstream.request import HOP_BY_HOP
from gateway.upstream.stream import Stream

ERRORS = MappingProxyType[type[UpstreamError], type[httpx.TransportError]](
    {
        errors.UpstreamError: httpx.ReadError,
        errors.InvalidRequest: httpx.LocalProtocolError,
        errors.ConnectFailed: httpx.ConnectError,
        errors.ConnectTimedOut: httpx.ConnectTimeout,
        errors.TlsFailed: httpx.ConnectError,
        errors.NoHttp2: httpx.ConnectError,
        errors.QueueTimedOut: httpx.PoolTimeout,
        errors.QueueFull: httpx.PoolTimeout,
        errors.PoolClosed: httpx.ConnectError,
        errors.StreamReset: httpx.RemoteProtocolError,
        errors.GoneAway: httpx.RemoteProtocolError,
        errors.ConnectionLost: httpx.ReadError,
        errors.PingTimedOut: httpx.ReadTimeout,
        errors.ProtocolViolated: httpx.RemoteProtocolError,
        errors.ReceiverRaised: httpx.LocalProtocolError,
    }
)


def to_httpx(error: UpstreamError, request: httpx.Request) -> httpx.TransportError:
    """The httpx face of an error; raise it `from` the error, which stays its cause and keeps `processed`."""
    return ERRORS[type(error)](str(error), request=request)


class Http2Transport(httpx.AsyncBaseTransport):
    """Sends requests for the pool's origin, and no other; request bodies are read whole, answers stream."""

    def __init__(self, pool: Pool, *, owns_pool: bool = False) -> None:
        """With `owns_pool`, closing the httpx client closes the pool."""
        self._pool = pool
        self._owns_pool = owns_pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._check_origin(request)
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in HOP_BY_HOP]
        answer = _Answer(request, read_s=timeouts.get("read"))
        try:
            answer.stream = await self._pool.open_stream(
                request.method,
                request.url.raw_path.decode("ascii"),
                headers,
                await request.aread(),
                answer,
                deadline_s=self._deadline_s(timeouts),
            )
            await answer.head(write_s=timeouts.get("write"))
        except UpstreamError as error:
            raise to_httpx(error, request) from error
        except BaseException:
            await answer.aclose()
            raise
        return httpx.Response(
            answer.status, headers=answer.headers, stream=answer, extensions={"http_version": b"HTTP/2"}
        )

    async def aclose(self) -> None:
        if self._owns_pool:
            await self._pool.aclose()

    def _check_origin(self, request: httpx.Request) -> None:
        """Refuse another origin: the headers may hold the vendor key. `http` stands for `h2c`."""
        origin, url = self._pool.origin, request.url
        scheme = "h2c" if url.scheme == "http" else url.scheme
        port = url.port or (443 if scheme == "https" else 80)
        if (scheme, url.raw_host.decode("ascii").strip("[]"), port) != (origin.scheme, origin.host, origin.port):
            raise httpx.UnsupportedProtocol("this transport is for one upstream origin only", request=request)

    def _deadline_s(self, timeouts: dict[str, float | None]) -> float:
        """`pool` bounds the wait for a stream; `connect` as well, while there is no connection to wait for."""
        facts = self._pool.facts
        limits = [timeouts.get("pool")] if facts.connections else [timeouts.get("pool"), timeouts.get("connect")]
        return min((limit for limit in limits if limit is not None), default=self._pool.settings.connect_timeout_s)


class _Answer(httpx.AsyncByteStream):
    """Receiver on the pool's side, byte stream on httpx's; leaving it early resets the HTTP/2 stream."""

    def __init__(self, request: httpx.Request, *, read_s: float | None) -> None:
        self.stream: Stream | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._request = request
        self._read_s = read_s
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: UpstreamError | None = None
        self._wake = asyncio.Event()

    # Receiver

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = headers
        self._wake.set()

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._wake.set()

    def stream_ended(self) -> None:
        self._ended = True
        self._wake.set()

    def stream_failed(self, error: UpstreamError) -> None:
        self._error = error
        self._wake.set()

    # httpx

    async def head(self, *, write_s: float | None) -> None:
        """Wait for the answer's headers; `write_s` bounds each pause of the upload before, `read_s` the wait after."""
        assert self.stream is not None
        while not self.status and self._error is None:
            unsent_bytes = len(self.stream.unsent)
            try:
                await self._wait(write_s if unsent_bytes else self._read_s)
            except TimeoutError:
                if len(self.stream.unsent) < unsent_bytes:
                    continue  # the upload moves
                self.stream.cancel()
                if unsent_bytes:
                    raise httpx.WriteTimeout("the peer does not take the request", request=self._request) from None
                raise httpx.ReadTimeout("no answer", request=self._request) from None
        if not self.status and self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self.stream is not None
        while True:
            while self._chunks:
                data = self._chunks.popleft()
                yield data
                self.stream.consumed(len(data))
            if self._error is not None:
                raise to_httpx(self._error, self._request) from self._error
            if self._ended:
                return
            try:
                await self._wait(self._read_s)
            except TimeoutError:
                self.stream.cancel()
                raise httpx.ReadTimeout("the answer stopped", request=self._request) from None

    async def aclose(self) -> None:
        if self.stream is not None:
            self.stream.cancel()
        self._chunks.clear()

    async def _wait(self, limit_s: float | None) -> None:
        self._wake.clear()
        async with asyncio.timeout(limit_s):
            await self._wake.wait()
