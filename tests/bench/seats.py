"""Seats: readers that each hold one stream at a time, one kind a transport. Protocol callbacks only, no tasks."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from gateway.upstream.errors import UpstreamError
from gateway.upstream.pool import Pool, Stream
from tests.bench.dialects import Dialect, FrameDialect, VendorItems
from tests.bench.ledger import Reading, Tally
from tests.bench.requests import frame

_OPEN_S: Final = 30.0
_TURN_ID: Final = re.compile(rb"\r\nx-turn-id: ([0-9a-f-]{36})", re.IGNORECASE)


class Seat(Protocol):
    """``begin`` starts a turn and may be called again from the callback that tells of its end."""

    def begin(self) -> None: ...
    def leave(self) -> None: ...


class _SocketSeat(asyncio.Protocol):
    """What HTTP/1.1 and WebSocket seats share: a connection of their own."""

    def __init__(self, tally: Tally, events: int, over: Callable[[Seat], None]) -> None:
        self.tally = tally
        self._events = events
        self._over = over
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._running = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._running:
            self._end_turn("connection lost in mid-turn")

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def read(self, *, on: bool) -> None:
        """Take what comes, or leave it with the kernel."""
        if self._transport is not None:
            if on:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            self._end_turn("connection lost between turns")
        else:
            self._transport.write(data)

    def _end_turn(self, fault: str | None) -> None:
        self._running = False
        if fault is not None:
            self.tally.faults[fault] += 1
            self.tally.barren += 1
        self._over(cast("Seat", self))


class HttpSeat(_SocketSeat):
    """Sends one request a turn and reads a chunked body (RFC 9112, section 7.1)."""

    def __init__(
        self,
        tally: Tally,
        events: int,
        over: Callable[[Seat], None],
        request: bytes,
        dialect: Callable[[Reading], Dialect],
    ) -> None:
        super().__init__(tally, events, over)
        self._request = request
        self._make = dialect
        self._in_head = True
        self.opened.set_result(None)

    def begin(self) -> None:
        self._in_head = self._running = True
        self._dialect = self._make(Reading(self.tally, self._events))
        self._write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._in_head:
            stop = data.find(b"\r\n\r\n")
            if stop < 0:
                self._rest = data
                return
            status = data[9:12]
            if status != b"200":
                self._end_turn(f"HTTP {status.decode()}")
                return
            self._in_head = False
            self._answered(data[:stop])
            data = data[stop + 4 :]
        at, length, body, ended = 0, len(data), b"", False
        while at < length:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                break
            size = int(data[at:stop], 16)
            end = stop + 2 + size
            if end + 2 > length:
                break
            body = body + data[stop + 2 : end] if body else data[stop + 2 : end]
            ended = size == 0
            at = end + 2
        self._rest = data[at:]
        if body:
            self._dialect.feed(body)
        if ended:
            self._dialect.close()
            self._end_turn(None)

    def _answered(self, head: bytes) -> None:
        self.tally.answered += 1


class ShownSeat(HttpSeat):
    """Tells of each turn that it starts, so that others can follow it."""

    shown: Callable[[bytes], None]

    def _answered(self, head: bytes) -> None:
        super()._answered(head)
        found = _TURN_ID.search(head)
        if found is None:
            self.tally.faults["answer without a turn id"] += 1
        else:
            self.shown(found[1])


class FollowingSeat(HttpSeat):
    """Follows a turn that another seat has started."""

    def follow(self, turn_id: bytes) -> None:
        self._request = self._follow_request % turn_id
        self.begin()

    def __init__(
        self,
        tally: Tally,
        events: int,
        over: Callable[[Seat], None],
        request: bytes,
        dialect: Callable[[Reading], Dialect],
    ) -> None:
        """``request`` has a %b for the turn."""
        super().__init__(tally, events, over, b"", dialect)
        self._follow_request = request


class StopLine(asyncio.Protocol):
    """The connection over which a user asks the gateway to stop a turn, beside the one that it is read on."""

    def __init__(self, host: str, token: str) -> None:
        self._request = f"POST /v1/turns/%b/stop HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._turn_id = b""
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opened.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def know(self, turn_id: bytes) -> None:
        self._turn_id = turn_id

    def ask(self) -> None:
        assert self._transport is not None
        self._transport.write(self._request.encode() % self._turn_id)


class SocketSeat(_SocketSeat):
    """Holds a WebSocket (RFC 6455) and starts its turns over it."""

    def __init__(
        self,
        tally: Tally,
        events: int,
        over: Callable[[Seat], None],
        upgrade: bytes,
        command: dict[str, str],
        dialect: Callable[[Reading], FrameDialect],
    ) -> None:
        super().__init__(tally, events, over)
        self._upgrade = upgrade
        self._command = frame(1, json.dumps(command).encode())
        self._make = dialect
        self._in_head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._write(self._upgrade)

    def begin(self) -> None:
        self._running = True
        self._dialect = self._make(Reading(self.tally, self._events))
        self._write(self._command)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._in_head:
            stop = data.find(b"\r\n\r\n")
            if stop < 0:
                self._rest = data
                return
            if data[9:12] != b"101":
                self.opened.set_exception(ConnectionError(f"no upgrade: {data[:stop].decode()}"))
                return
            self._in_head = False
            self.opened.set_result(None)
            data = data[stop + 4 :]
        now_ns = time.monotonic_ns()
        at, length = 0, len(data)
        while length - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126 and length - at >= 4:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127 and length - at >= 10:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            elif size >= 126:
                break
            if start + size > length:
                break
            kind, payload = data[at] & 15, data[start : start + size]
            at = start + size
            if kind == 1:
                if self._dialect.take(payload, now_ns):
                    self._dialect.close()
                    self._end_turn(None)
            elif kind == 9:
                self._write(frame(10, payload))
            elif kind == 8:
                self.tally.faults[f"closed by the gateway: {payload!r}"] += 1
        self._rest = data[at:]


class DirectSeat:
    """Chats with the simulator itself, over the gateway's own HTTP/2 pool."""

    def __init__(
        self,
        tally: Tally,
        events: int,
        over: Callable[[Seat], None],
        pool: Pool,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> None:
        self._tally = tally
        self._events = events
        self._over = over
        self._pool = pool
        self._request = ("PATCH", path, headers, body)
        self._stream: Stream | None = None
        self._unreturned_bytes = 0
        self._opening: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._dialect = VendorItems(Reading(self._tally, self._events))
        self._opening = asyncio.get_running_loop().create_task(self._open())

    def leave(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    async def _open(self) -> None:
        stream = await self._pool.open_stream(*self._request, self, deadline_s=_OPEN_S)
        stream.consumed(self._unreturned_bytes)
        self._stream, self._unreturned_bytes = stream, 0

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status != 200:
            self._tally.faults[f"HTTP {status}"] += 1

    def data_received(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.consumed(len(data))
        else:
            self._unreturned_bytes += len(data)
        self._dialect.feed(data)

    def stream_ended(self) -> None:
        self._stream = None
        self._dialect.close()
        self._over(self)

    def stream_failed(self, error: UpstreamError) -> None:
        self._stream = None
        self._tally.faults[type(error).__name__] += 1
        self._over(self)
