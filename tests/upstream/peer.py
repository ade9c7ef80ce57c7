"""A scripted HTTP/2 server: real sockets, real TLS, raw h2, and every behaviour a test may ask of it."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

Handler = Callable[["Exchange"], Awaitable[None]]
PATIENCE_S = 5.0  # for what must happen; reached only by a failing test


@dataclass
class Exchange:
    """One request as the server sees it."""

    link: "Link"
    stream_id: int
    headers: dict[bytes, bytes]
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    reset_code: int | None = None

    def respond(self, status: int = 200, headers: list[tuple[str, str]] | None = None, *, end: bool = False) -> None:
        self.link.h2.send_headers(self.stream_id, [(":status", str(status)), *(headers or [])], end_stream=end)
        self.link.flush()

    async def send(self, data: bytes = b"", *, end: bool = False, pad: int | None = None) -> None:
        """Send as the client's windows allow, in frames of 16 KiB at most."""
        while True:
            room = min(self.link.h2.local_flow_control_window(self.stream_id), 16_000)
            if data and room <= 0:
                await self.link.until(lambda: self.link.h2.local_flow_control_window(self.stream_id) > 0)
                continue
            chunk, data = data[:room], data[room:]
            self.link.h2.send_data(self.stream_id, chunk, end_stream=end and not data, pad_length=pad)
            self.link.flush()
            if not data:
                return

    def reset(self, code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        self.link.h2.reset_stream(self.stream_id, code)
        self.link.flush()

    async def until_reset(self) -> int:
        await self.link.until(lambda: self.reset_code is not None)
        assert self.reset_code is not None
        return self.reset_code

    async def until_complete(self) -> bytes:
        await self.link.until(lambda: self.is_complete)
        return bytes(self.body)


class Link(asyncio.Protocol):
    """One connection, server side."""

    def __init__(self, peer: "Peer") -> None:
        self.peer = peer
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.transport: asyncio.Transport | None = None
        self.exchanges: dict[int, Exchange] = {}
        self.pongs: list[bytes] = []
        self.pings = 0
        self.goaways: list[int] = []
        self.resets: list[int] = []
        self.is_lost = False
        self.is_paused = False
        self.is_deaf = False  # reads and ignores everything
        self.errors: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open_ids(self) -> set[int]:
        """Streams that this server still works on."""
        return {i for i, s in self.h2.streams.items() if s.open}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self.peer.links.append(self)
        if self.peer.greeting is not None:
            transport.write(self.peer.greeting)
        elif self.peer.greets:
            self.h2.local_settings = Settings(
                client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: 100, **self.peer.settings}
            )
            self.h2.initiate_connection()
            self.flush()
        self.peer.notify()

    def data_received(self, data: bytes) -> None:
        if self.is_deaf or self.peer.greeting is not None or not self.peer.greets:
            return
        try:
            events = self.h2.receive_data(data)
        except Exception as error:  # the test looks at it
            self.errors.append(repr(error))
            events = []
        for event in events:
            self._act(event)
        self.flush()
        self.peer.notify()

    def _act(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=stream_id, headers=headers):
                exchange = Exchange(self, stream_id, dict(headers))
                self.exchanges[stream_id] = exchange
                task = asyncio.get_running_loop().create_task(self._run(exchange))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                self.exchanges[stream_id].body += data
                if self.peer.credits and size:
                    self.h2.acknowledge_received_data(size, stream_id)
            case StreamEnded(stream_id=stream_id):
                self.exchanges[stream_id].is_complete = True
            case StreamReset(stream_id=stream_id, error_code=code):
                self.exchanges[stream_id].reset_code = int(code or 0)
                self.resets.append(int(code or 0))
            case PingAckReceived(ping_data=data):
                self.pongs.append(data)
            case PingReceived():
                self.pings += 1
            case ConnectionTerminated(error_code=code):
                self.goaways.append(int(code or 0))
            case _:
                pass

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self.peer.handler(exchange)
        except Exception as error:
            if exchange.reset_code is None and not self.is_lost:
                self.errors.append(repr(error))
        self.peer.notify()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.peer.notify()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        for task in self._tasks:
            task.cancel()
        self.peer.notify()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def send_frame(self, frame: Frame) -> None:
        self.send_raw(frame.serialize())

    def send_raw(self, data: bytes) -> None:
        assert self.transport is not None
        self.flush()
        self.transport.write(data)

    def goaway(self, last_id: int, code: int = 0) -> None:
        """Send GOAWAY past h2, which would close its own state machine over it."""
        self.send_frame(GoAwayFrame(0, last_stream_id=last_id, error_code=code))

    def change_settings(self, settings: dict[SettingCodes | int, int]) -> None:
        self.h2.update_settings(settings)
        self.flush()

    def ping(self, data: bytes) -> None:
        self.h2.ping(data)
        self.flush()

    def cut(self) -> None:
        assert self.transport is not None
        self.transport.abort()

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.peer.until(condition)


async def answer_hello(exchange: Exchange) -> None:
    await exchange.until_complete()
    exchange.respond(200, [("content-type", "text/plain")])
    await exchange.send(b"hello", end=True)


class Peer:
    """Listens on loopback; `handler` answers each request. Use as an async context manager."""

    def __init__(
        self,
        handler: Handler = answer_hello,
        *,
        settings: dict[SettingCodes, int] | None = None,
        tls: bool = True,
        alpn: list[str] | None = None,
        greets: bool = True,
        greeting: bytes | None = None,
        credits: bool = True,
        ca: trustme.CA | None = None,
    ) -> None:
        self.handler = handler
        self.settings: dict[SettingCodes, int] = dict(settings or {})
        self.greets = greets
        self.greeting = greeting
        self.credits = credits
        self.links: list[Link] = []
        self.ca = ca or trustme.CA()
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.ca.issue_cert("localhost", "127.0.0.1").configure_cert(self._tls)
            if alpn != []:
                self._tls.set_alpn_protocols(alpn or ["h2"])
        self._watchers: set[asyncio.Future[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'h2c'}://localhost:{self.port}"

    @property
    def client_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    @property
    def exchanges(self) -> list[Exchange]:
        return [e for link in self.links for e in link.exchanges.values()]

    def notify(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this server saw makes the condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._watchers.add(watcher)
                try:
                    await watcher
                finally:
                    self._watchers.discard(watcher)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Link(self), "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        assert self._server is not None
        self._server.close()
        for link in self.links:
            if link.transport is not None:
                link.transport.abort()
        await self.until(lambda: all(link.is_lost for link in self.links))
