"""One HTTP/2 connection to the upstream: a session on a socket, with its clocks."""

import asyncio
import socket
from typing import Protocol, cast

from h2.errors import ErrorCodes
from h2.settings import Settings

from gateway.upstream.errors import (
    ConnectionLost,
    NoHttp2,
    PingTimedOut,
    PoolClosed,
    ProtocolViolated,
    UpstreamError,
)
from gateway.upstream.keepalive import Keepalive
from gateway.upstream.observer import CloseReason, UpstreamObserver
from gateway.upstream.origin import PoolSettings
from gateway.upstream.session import Session
from gateway.upstream.stream import Stream


class ConnectionOwner(Protocol):
    """Whom a connection tells; called from within the protocol's callbacks."""

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None: ...
    def room_changed(self, connection: "Connection") -> None: ...
    def connection_closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """Carries streams until the peer says GOAWAY, dies, or nobody has used it for a while.

    Usable once `ready` is done, which is at the peer's first SETTINGS: before them its stream limit is unknown.
    """

    def __init__(
        self, *, tls: bool, settings: PoolSettings, owner: ConnectionOwner, observer: UpstreamObserver
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._settings = settings
        self._owner = owner
        self._observer = observer
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self.transport: asyncio.Transport | None = None
        self.session = Session(self, settings, observer)
        self.limit = 0  # streams that may be open at once; 0 until the peer's SETTINGS
        self.reserved = 0  # places that the pool has promised to tasks which have not resumed yet
        self.heard_s = 0.0  # when bytes came in last, on the loop's clock
        self._flush_is_due = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._keepalive: Keepalive | None = None

    # What the pool asks

    @property
    def streams(self) -> int:
        return len(self.session.streams)

    @property
    def draining(self) -> bool:
        """The peer takes no new streams; those that it has are carried to their end."""
        return self.session.draining

    @property
    def room(self) -> int:
        """Streams that may be opened now; negative after the peer lowered its limit under way."""
        session = self.session
        return 0 if session.draining or session.is_closed else self.limit - len(session.streams) - self.reserved

    @property
    def peer_settings(self) -> Settings:
        return self.session.peer_settings

    def __repr__(self) -> str:
        state = "closed" if self.session.is_closed else "draining" if self.draining else "open"
        return f"<Connection {state} streams={self.streams}/{self.limit}>"

    def open(self, stream: Stream) -> None:
        """Send the request on a stream of its own; there must be `room`. What goes wrong goes to the owner."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self.session.open(stream)

    async def aclose(self) -> None:
        """Reset what is open, say GOAWAY, and wait a bounded time for the goodbye."""
        if not self.session.is_closed:
            self.session.reset_all()
        self._shut(CloseReason.CLOSED, PoolClosed("the pool was closed"), goaway=ErrorCodes.NO_ERROR)
        await asyncio.wait([self._lost], timeout=self._settings.close_timeout_s)
        self.abort()

    def abort(self) -> None:
        """Cut the socket; for a connection that never became ready, and after the goodbye."""
        if not self.ready.cancel() and not self.ready.cancelled():
            self.ready.exception()  # read, so that asyncio does not report it as forgotten
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            if chosen != "h2":
                self._shut(
                    CloseReason.PROTOCOL_ERROR, NoHttp2(f"the peer chose {chosen or 'no protocol'} by ALPN, not h2")
                )
                return
        self.session.greet()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.session.is_closed:
            return
        self.heard_s = self._loop.time()
        if self._keepalive is None and data.startswith(b"HTTP/"):
            self._shut(CloseReason.PROTOCOL_ERROR, NoHttp2("the peer answered in HTTP/1"))
            return
        self.session.receive(data)

    def eof_received(self) -> None:
        return None  # closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        detail = f" ({type(exc).__name__})" if exc is not None else ""
        after = f" after GOAWAY {self.session.goaway}" if self.session.goaway else ""
        reason = CloseReason.GOAWAY if self.draining else CloseReason.LOST
        self._shut(reason, ConnectionLost(f"the connection was lost{after}{detail}"))
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self.session.uploads.paused = True

    def resume_writing(self) -> None:
        self.session.uploads.paused = False
        if self.session.uploads.window_changed():
            self.flush_soon()

    # SessionHost

    def flush_soon(self) -> None:
        """One write a loop tick, however many streams have something to say."""
        if not self._flush_is_due and not self.session.is_closed:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flush_is_due = False
        if self.session.is_closed or self.transport is None or self.transport.is_closing():
            return
        more = self.session.uploads.pump()
        self._write()
        if more:
            self.flush_soon()

    def settled(self) -> None:
        self.limit = min(self.peer_settings.max_concurrent_streams, self._settings.max_streams)
        if not self.ready.done():
            self.ready.set_result(None)
            self._keepalive = Keepalive(
                interval_s=self._settings.ping_interval_s,
                timeout_s=self._settings.ping_timeout_s,
                heard_s=lambda: self.heard_s,
                send_ping=self._send_ping,
                give_up=self._give_up,
            )
            self._observer.connection_opened()
        self.room_changed()

    def room_changed(self) -> None:
        if not self.session.streams and not self.session.is_closed:
            if self.draining:
                self._shut(CloseReason.GOAWAY, ConnectionLost("the connection was drained"), goaway=ErrorCodes.NO_ERROR)
                return
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self._settings.idle_timeout_s, self._close_idle)
        self._owner.room_changed(self)

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None:
        self._owner.stream_failed(stream, error)

    def violated(self, error: ProtocolViolated, goaway: ErrorCodes | None) -> None:
        self._shut(CloseReason.PROTOCOL_ERROR, error, goaway=goaway)

    # Clocks and the end

    def _write(self) -> None:
        data = self.session.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)

    def _send_ping(self) -> None:
        self.session.ping()
        self.flush()

    def _close_idle(self) -> None:
        self._shut(CloseReason.IDLE, ConnectionLost("the connection was idle"), goaway=ErrorCodes.NO_ERROR)

    def _give_up(self) -> None:
        self._shut(CloseReason.PING_TIMEOUT, PingTimedOut("the peer is silent and answers no PING"), abort=True)

    def _shut(
        self, reason: CloseReason, error: UpstreamError, *, goaway: ErrorCodes | None = None, abort: bool = False
    ) -> None:
        """End the connection, once: say goodbye if that is still possible, fail what is open, tell the owner."""
        if self.session.is_closed:
            return
        self.session.is_closed = True
        was_ready = self.ready.done()
        if not was_ready:
            self.ready.set_exception(error)
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self.transport is not None and abort:
            self.transport.abort()
        elif self.transport is not None and not self.transport.is_closing():
            if goaway is not None:
                self.session.say_goodbye(goaway)
            self._write()
            self.transport.close()
        if was_ready:
            self._observer.connection_closed(reason)
        self._owner.connection_closed(self)
        self.session.fail_all(error)
