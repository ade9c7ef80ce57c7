"""Connections to one origin, and the queue for a stream on one of them."""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path

from gateway.upstream.connection import Connection
from gateway.upstream.dial import ProbeFacts, dial, facts_of
from gateway.upstream.errors import ConnectFailed, ConnectTimedOut, PoolClosed, QueueFull, QueueTimedOut, UpstreamError
from gateway.upstream.observer import SilentObserver, UpstreamObserver
from gateway.upstream.origin import Origin, PoolSettings, tls_context
from gateway.upstream.request import Headers, Request
from gateway.upstream.stream import Receiver, Stream

__all__ = ["Headers", "Pool", "PoolFacts", "PoolSettings", "Receiver", "Stream"]

_ASSUMED_STREAMS = 100  # a connection, before a peer has told; RFC 9113, 6.5.2 recommends no less


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """The pool at this moment."""

    connections: int  # taking new streams
    draining: int  # after a GOAWAY, finishing what they carry
    connecting: int
    streams: int
    queued: int


class Pool:
    """Puts each request on a stream: of a connection with room, else of a new one, else in a queue.

    Requests are served in the order they came. One that the peer certainly did not act on goes to the head of the
    queue again, `max_attempts` times in all and within its deadline, as long as its receiver has had nothing.
    """

    def __init__(
        self,
        origin: str | Origin,
        *,
        settings: PoolSettings | None = None,
        ssl_context: ssl.SSLContext | None = None,
        ca_file: str | Path | None = None,
        observer: UpstreamObserver | None = None,
    ) -> None:
        """`ca_file` adds a private CA to the system's. Reads files when the origin is `https`; see `tls_context`."""
        self.origin = origin if isinstance(origin, Origin) else Origin.parse(origin)
        self.settings = settings or PoolSettings()
        self._observer = observer or SilentObserver()
        self._tls: ssl.SSLContext | None = None
        if self.origin.is_tls:
            self._tls = ssl_context or tls_context(ca_file)
            self._tls.set_alpn_protocols(["h2"])
        self._connections: list[Connection] = []
        self._draining: list[Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._queue: deque[Stream] = deque()
        self._usual_limit = _ASSUMED_STREAMS
        self._failures = 0
        self._last_failure: ConnectFailed | None = None
        self._not_before_s = 0.0
        self._backoff_timer: asyncio.TimerHandle | None = None
        self._is_stepping = False
        self._is_closed = False

    @property
    def facts(self) -> PoolFacts:
        return PoolFacts(
            connections=len(self._connections),
            draining=len(self._draining),
            connecting=len(self._connecting),
            streams=sum(c.streams for c in self._connections) + sum(c.streams for c in self._draining),
            queued=len(self._queue),
        )

    def __repr__(self) -> str:
        f = self.facts
        return f"<Pool {self.origin} connections={f.connections} streams={f.streams} queued={f.queued}>"

    def headers(self, lines: Sequence[tuple[bytes, bytes]]) -> Headers:
        """Check and encode header lines for `open_stream`. Raises InvalidRequest."""
        return Headers.build(lines, self.settings.secret_headers)

    async def open_stream(
        self,
        method: str,
        path: str,
        headers: Headers | Sequence[tuple[bytes, bytes]],
        body: bytes,
        receiver: Receiver,
        *,
        deadline_s: float,
        keeps_nothing: bool = False,
    ) -> Stream:
        """Send a request; returns when it is on a connection, which is at once where one has room.

        `deadline_s` bounds the wait for that, connecting and every further attempt included; `headers` that many
        requests have in common are best built once, by `headers`. With `keeps_nothing` the receiver need not call
        `consumed`. Raises InvalidRequest, ConnectFailed (ConnectTimedOut, TlsFailed, NoHttp2), QueueTimedOut, QueueFull
        or PoolClosed, all with `processed` False; after the return, errors go to the receiver. Safe to cancel: the
        request is then withdrawn.
        """
        if self._is_closed:
            raise PoolClosed("the pool is closed")
        loop = asyncio.get_running_loop()
        if not isinstance(headers, Headers):
            headers = self.headers(headers)
        request = Request.build(self.origin, method, path, headers, body)
        stream = Stream(self, request, receiver, deadline_s=loop.time() + deadline_s, keeps_nothing=keeps_nothing)
        if not self._queue and (connection := self._with_room()) is not None:
            self._put(stream, connection)
            return stream
        if len(self._queue) >= self.settings.max_queued:
            raise QueueFull(f"{len(self._queue)} requests wait for a stream already")
        if self._last_failure is not None and not self._can_wait(stream):
            raise self._last_failure.for_stream(processed=False)
        at_head = False
        while True:
            connection = await self._grant(stream, at_head=at_head)
            if connection.room > 0:
                self._put(stream, connection)
                return stream
            at_head = True  # the connection changed its mind in the meantime; the place in the queue is kept

    async def _grant(self, stream: Stream, *, at_head: bool) -> Connection:
        """Wait for a connection with a place reserved, and release it to the caller, who uses it before any await.

        The request is sent by the caller's own task, so that no callback comes before that task holds its stream.
        """
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        stream.waiter = waiter
        self._enqueue(stream, at_head=at_head)
        self._step()
        try:
            connection = await waiter
        except asyncio.CancelledError:
            if stream.expiry is not None:
                self._leave_queue(stream)
            elif not waiter.cancelled() and waiter.exception() is None:
                waiter.result().reserved -= 1
                self._step()
            raise
        finally:
            stream.waiter = None
        connection.reserved -= 1
        return connection

    async def probe(self) -> ProbeFacts:
        """Connect, read the peer's SETTINGS and leave, on a connection of its own. Raises ConnectFailed."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        connection = await dial(
            self.origin, settings=self.settings, tls=self._tls, owner=_Onlooker(), observer=SilentObserver()
        )
        try:
            return facts_of(connection, loop.time() - begun_s)
        finally:
            await connection.aclose()

    async def aclose(self) -> None:
        """Fail what waits, reset what is open, close every connection. Takes `close_timeout_s` at most."""
        self._is_closed = True
        if self._backoff_timer is not None:
            self._backoff_timer.cancel()
        for stream in list(self._queue):
            self._leave_queue(stream)
            self._refuse(stream, PoolClosed("the pool was closed"))
        connecting = list(self._connecting)
        for task in connecting:
            task.cancel()
        connections = self._connections + self._draining
        await asyncio.gather(*connecting, *(c.aclose() for c in connections), return_exceptions=True)

    # What connections tell (ConnectionOwner)

    def room_changed(self, connection: Connection) -> None:
        if connection.draining and connection in self._connections:
            self._connections.remove(connection)
            self._draining.append(connection)
        self._step()

    def connection_closed(self, connection: Connection) -> None:
        for group in (self._connections, self._draining):
            if connection in group:
                group.remove(connection)
        # The connection fails its streams next, and each of those steps the pool; one that waits must not depend on it.
        asyncio.get_running_loop().call_soon(self._step)

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None:
        """Queue the request again if that is certain to be harmless, else tell its receiver."""
        may_retry = not error.processed and not stream.answered and not self._is_closed
        if may_retry and stream.attempts < self.settings.max_attempts and self._now() < stream.deadline_s:
            stream.failure = error
            self._enqueue(stream, at_head=True)
            self._step()
        else:
            self._refuse(stream, error)

    # What streams ask

    def withdraw(self, stream: Stream) -> None:
        """Take a request out of the queue; its receiver hears nothing more."""
        self._leave_queue(stream)

    # The queue

    def _enqueue(self, stream: Stream, *, at_head: bool) -> None:
        stream.expiry = asyncio.get_running_loop().call_at(stream.deadline_s, self._expire, stream)
        if at_head:
            self._queue.appendleft(stream)
        else:
            self._queue.append(stream)

    def _leave_queue(self, stream: Stream) -> None:
        self._queue.remove(stream)
        if stream.expiry is not None:
            stream.expiry.cancel()
            stream.expiry = None

    def _expire(self, stream: Stream) -> None:
        self._leave_queue(stream)
        if stream.failure is not None:
            error = stream.failure
        elif self._connections:
            error = QueueTimedOut("every upstream stream stayed taken until the deadline")
        elif self._last_failure is not None:
            error = self._last_failure.for_stream(processed=False)
        else:
            error = ConnectTimedOut(f"{self.origin} was not ready before the deadline")
        self._refuse(stream, error)

    @staticmethod
    def _refuse(stream: Stream, error: UpstreamError) -> None:
        """Tell whoever waits: the task in open_stream, or the receiver when that has returned."""
        if stream.waiter is None:
            stream.receiver.stream_failed(error)
        elif not stream.waiter.done():
            stream.waiter.set_exception(error)

    def _put(self, stream: Stream, connection: Connection) -> None:
        stream.attempts += 1
        connection.open(stream)

    # Decisions, and acting on them

    def _with_room(self) -> Connection | None:
        """The oldest with room, so that those opened for a burst fall idle again."""
        for connection in self._connections:
            if connection.room > 0:
                return connection
        return None

    def _connections_wanted(self) -> int:
        """How many more to open for those in the queue, beyond those that are being opened."""
        if self._connections and self._connections[-1].limit == 0:
            return 0  # the newest peer wants no streams at all now: more connections would not help
        streams_each = max(1, min(self._usual_limit, self.settings.max_streams))
        missing = -(-len(self._queue) // streams_each) - len(self._connecting)
        spare = self.settings.max_connections - len(self._connections) - len(self._connecting)
        return max(0, min(missing, spare))

    def _step(self) -> None:
        """Serve the queue as far as there is room, then open connections for the rest."""
        if not self._queue or self._is_stepping or self._is_closed:
            return
        self._is_stepping = True
        try:
            while self._queue and (connection := self._with_room()) is not None:
                stream = self._queue[0]
                self._leave_queue(stream)
                if stream.waiter is None:
                    self._put(stream, connection)  # a further attempt
                elif not stream.waiter.done():
                    connection.reserved += 1
                    stream.waiter.set_result(connection)
        finally:
            self._is_stepping = False
        wanted = self._connections_wanted()
        if wanted == 0:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before_s:
            if self._backoff_timer is None:
                self._backoff_timer = loop.call_at(self._not_before_s, self._resume)
            return
        for _ in range(wanted):
            # In nobody's context: what is logged of a connection later is of whoever uses it, not of who first waited.
            task = loop.create_task(self._connect(), name="upstream-connect", context=Context())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _resume(self) -> None:
        self._backoff_timer = None
        self._step()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _can_wait(self, stream: Stream) -> bool:
        """Whether a connection may still come about before the request's deadline."""
        return bool(self._connections or self._connecting) or self._not_before_s < stream.deadline_s

    async def _connect(self) -> None:
        try:
            connection = await dial(
                self.origin, settings=self.settings, tls=self._tls, owner=self, observer=self._observer
            )
        except ConnectFailed as error:
            self._leave_connecting()
            self._connect_failed(error)
        else:
            self._leave_connecting()
            self._connected(connection)

    def _leave_connecting(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connecting.discard(task)

    def _connected(self, connection: Connection) -> None:
        self._failures = 0
        self._last_failure = None
        self._not_before_s = 0.0
        self._usual_limit = connection.limit
        self._connections.append(connection)
        self.room_changed(connection)  # it may be draining already

    def _connect_failed(self, error: ConnectFailed) -> None:
        """Wait longer each time before the next try; with no other way left, those in the queue fail now."""
        self._observer.connect_failed(type(error).__name__)
        self._last_failure = error
        delay_s = min(self.settings.backoff_max_s, self.settings.backoff_min_s * 2 ** min(self._failures, 30))
        self._failures += 1
        self._not_before_s = self._now() + delay_s * random.uniform(0.75, 1.0)  # noqa: S311 - spreads workers out
        if not self._connections and not self._connecting:
            for stream in list(self._queue):
                self._leave_queue(stream)
                self._refuse(stream, error.for_stream(processed=False))
        self._step()


class _Onlooker:
    """Owns a probe's connection, which carries no streams."""

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None:
        raise AssertionError("a probe opens no stream")

    def room_changed(self, connection: Connection) -> None:
        pass

    def connection_closed(self, connection: Connection) -> None:
        pass
