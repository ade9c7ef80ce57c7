"""One HTTP/2 connection to the upstream: h2 behind an asyncio protocol."""

import asyncio
import contextlib
import logging
import socket
from typing import Protocol, cast

import h2.events as h2e
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from gateway.upstream import frames
from gateway.upstream.errors import (
    ConnectionLost,
    GoneAway,
    NoHttp2,
    PingTimedOut,
    PoolClosed,
    ProtocolViolated,
    ReceiverRaised,
    StreamReset,
    UpstreamError,
)
from gateway.upstream.frames import Frame, FrameSplitter, FrameTooLong
from gateway.upstream.keepalive import Keepalive
from gateway.upstream.observer import CloseReason, UpstreamObserver
from gateway.upstream.origin import PoolSettings
from gateway.upstream.stream import Stream
from gateway.upstream.uploads import Uploads

_log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 16_384  # what we announce; RFC 9113's smallest, and plenty for chat
_DEFAULT_WINDOW_BYTES = 65_535  # of a connection, whatever SETTINGS say (RFC 9113, 6.9.2)
_HIGHEST_STREAM_ID = 2**31 - 1


class ConnectionOwner(Protocol):
    """Whom a connection tells; called from within the protocol's callbacks."""

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None: ...
    def room_changed(self) -> None: ...
    def connection_closed(self, connection: "Connection") -> None: ...


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = 4096  # remembered ids; h2's own 65,536 are megabytes on a long-lived connection


def _code_name(code: int) -> str:
    return ErrorCodes(code).name if code in ErrorCodes._value2member_map_ else str(code)


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
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._unwritten: list[Stream] = []
        self._peer_limit = 0
        self._highest_id = 0
        self.draining = False
        self._goaway = ""  # the peer's reason, for the message of what follows
        self._is_closed = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._keepalive: Keepalive | None = None

        # What we return as connection credit: bytes that h2 counted go through h2, the others in frames of our own.
        self._window_bytes = settings.connection_window_bytes
        self._seen_bytes = 0
        self._unseen_bytes = 0
        self._own_frames: list[bytes] = []
        self._flush_is_due = False
        self._splitter = FrameSplitter(MAX_FRAME_BYTES)
        self._in_header_block = False

        # Our request headers are checked where they are built (stream.py).
        self._h2 = _H2(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self._uploads = Uploads(self._h2)

    # What the pool asks

    @property
    def streams(self) -> int:
        return len(self._streams)

    @property
    def limit(self) -> int:
        """Streams that may be open at once; 0 until the peer's SETTINGS."""
        return min(self._peer_limit, self._settings.max_streams)

    @property
    def room(self) -> int:
        """Streams that may be opened now; negative after the peer lowered its limit under way."""
        return 0 if self.draining or self._is_closed else self.limit - len(self._streams)

    @property
    def uncredited_bytes(self) -> int:
        """Received, and not yet returned to the peer as connection credit."""
        return self._seen_bytes + self._unseen_bytes

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._transport

    @property
    def peer_settings(self) -> Settings:
        return self._h2.remote_settings

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "draining" if self.draining else "open"
        return f"<Connection {state} streams={len(self._streams)}/{self.limit}>"

    def open(self, stream: Stream) -> None:
        """Send the request on a stream of its own; there must be `room`. What goes wrong goes to the owner."""
        stream_id = self._highest_id + 2 if self._highest_id else 1
        has_body = bool(stream.request.body)
        stream.attach(self, stream_id, window_bytes=self._settings.stream_window_bytes)
        self._highest_id = stream_id
        self._streams[stream_id] = stream
        self._unwritten.append(stream)
        self._observer.stream_opened()
        if stream_id >= _HIGHEST_STREAM_ID - 2:
            self.draining = True  # ids are used up
        try:
            self._h2.send_headers(stream_id, stream.request.headers, end_stream=not has_body)
        except H2Error as error:
            self._break("HTTP/2 state broke at sending headers", error)
            return
        if has_body:
            self._uploads.add(stream)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._flush_soon()

    def cancel(self, stream: Stream) -> None:
        self._reset(stream, ErrorCodes.CANCEL)
        self._room_changed()

    def credit(self, stream: Stream, size_bytes: int) -> None:
        """Return consumed bytes to the peer, in portions of half a window (RFC 9113, 6.9)."""
        stream.credit_bytes += size_bytes
        if stream.credit_bytes * 2 < self._settings.stream_window_bytes:
            return
        increment, stream.credit_bytes = stream.credit_bytes, 0
        stream.window_bytes += increment
        if stream.fast:
            self._own_frames.append(frames.window_update(stream.stream_id, increment))
        else:
            self._h2.increment_flow_control_window(increment, stream.stream_id)
        self._flush_soon()

    async def aclose(self) -> None:
        """Reset what is open, say GOAWAY, and wait a bounded time for the goodbye."""
        for stream in list(self._streams.values()):
            with contextlib.suppress(H2Error):
                self._h2.reset_stream(stream.stream_id, ErrorCodes.CANCEL)
        self._shut(CloseReason.CLOSED, PoolClosed("the pool was closed"), goaway=ErrorCodes.NO_ERROR)
        await asyncio.wait([self._lost], timeout=self._settings.close_timeout_s)
        self.abort()

    def abort(self) -> None:
        """Cut the socket; for a connection that never became ready, and after the goodbye."""
        if not self.ready.cancel() and not self.ready.cancelled():
            self.ready.exception()  # read, so that asyncio does not report it as forgotten
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
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
        self._h2.initiate_connection()
        extra = self._settings.connection_window_bytes - _DEFAULT_WINDOW_BYTES
        if extra:
            self._h2.increment_flow_control_window(extra)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        if self._keepalive is not None:
            self._keepalive.heard()
        elif data.startswith(b"HTTP/"):
            self._shut(CloseReason.PROTOCOL_ERROR, NoHttp2("the peer answered in HTTP/1"))
            return
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except FrameTooLong as error:
            violation = ProtocolViolated(f"the peer sent a {error}")
            self._shut(CloseReason.PROTOCOL_ERROR, violation, goaway=ErrorCodes.FRAME_SIZE_ERROR)
        except Exception as error:  # h2 may raise more than its own errors on bytes from outside
            self._break("the peer broke HTTP/2's rules", error)

    def eof_received(self) -> None:
        return None  # closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        detail = f" ({type(exc).__name__})" if exc is not None else ""
        after = f" after GOAWAY {self._goaway}" if self._goaway else ""
        reason = CloseReason.GOAWAY if self.draining else CloseReason.LOST
        self._shut(reason, ConnectionLost(f"the connection was lost{after}{detail}"))
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._uploads.paused = True

    def resume_writing(self) -> None:
        self._uploads.paused = False
        if self._uploads.window_changed():
            self._flush_soon()

    # Sending

    def _flush_soon(self) -> None:
        """One write a loop tick, however many streams have something to say."""
        if not self._flush_is_due and not self._is_closed:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._is_closed or self._transport is None or self._transport.is_closing():
            return
        try:
            more = self._uploads.pump()
        except H2Error as error:
            self._break("HTTP/2 state broke at sending a body", error)
            return
        self._write()
        if more and not self._uploads.paused:
            self._flush_soon()

    def _write(self) -> None:
        assert self._transport is not None
        data = self._h2.data_to_send()
        if self._own_frames:
            data += b"".join(self._own_frames)
            self._own_frames.clear()
        if data:
            for stream in self._unwritten:
                stream.written = True
            self._unwritten.clear()
            self._transport.write(data)

    def _send_ping(self) -> None:
        self._h2.ping(b"hlgw-png")
        self._flush()

    def _return_credit(self) -> None:
        """Give the whole connection window back on receipt, in portions of a quarter."""
        if self.uncredited_bytes * 4 < self._settings.connection_window_bytes:
            return
        self._window_bytes += self.uncredited_bytes
        if self._seen_bytes:
            self._h2.increment_flow_control_window(self._seen_bytes)
            self._seen_bytes = 0
        if self._unseen_bytes:
            self._own_frames.append(frames.window_update(0, self._unseen_bytes))
            self._unseen_bytes = 0
        self._flush_soon()

    # Receiving

    def _receive(self, frame: Frame) -> None:
        kind = frame.kind
        if self._is_closed:
            return  # by a frame before this one
        if self._in_header_block:
            # Nothing may come between HEADERS and its CONTINUATIONs (RFC 9113, 6.10); h2 sees to it.
            self._in_header_block = kind != frames.CONTINUATION or not frame.flags & frames.END_HEADERS
            self._feed(frame.raw)
        elif kind == frames.DATA:
            self._receive_data(frame)
        elif kind == frames.GOAWAY and frame.stream_id == 0 and len(frame.raw) >= frames.HEADER_BYTES + 8:
            self._receive_goaway(frame.raw)
        else:
            self._in_header_block = (
                kind in (frames.HEADERS, frames.PUSH_PROMISE) and not frame.flags & frames.END_HEADERS
            )
            if not self.ready.done() and kind != frames.SETTINGS:
                raise ProtocolViolated("the peer's first frame is not SETTINGS")  # RFC 9113, 3.4
            self._feed(frame.raw)

    def _feed(self, raw: bytes) -> None:
        """Give h2 one whole frame and act on what it says."""
        for event in self._h2.receive_data(raw):
            match event:
                case h2e.DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                    stream = self._streams.get(stream_id)
                    if stream is not None:
                        if size > len(data):
                            self.credit(stream, size - len(data))  # padding is nobody's to consume
                        self._deliver(stream, data)
                case h2e.StreamEnded(stream_id=stream_id):
                    self._end(stream_id)
                case h2e.ResponseReceived(stream_id=stream_id, headers=headers):
                    self._answer(stream_id, headers)
                case h2e.StreamReset(stream_id=stream_id, error_code=code, remote_reset=by_peer):
                    self._reset_received(stream_id, int(code), by_peer=by_peer)
                case h2e.WindowUpdated():
                    if self._uploads.window_changed():
                        self._flush_soon()
                case h2e.RemoteSettingsChanged():
                    self._settle()
                case _:
                    pass  # 1xx, trailers, PING (h2 answers), acknowledgements, extensions
        self._flush_soon()

    def _receive_data(self, frame: Frame) -> None:
        size = len(frame.raw) - frames.HEADER_BYTES  # padding counts for flow control
        stream = self._streams.get(frame.stream_id)
        self._window_bytes -= size
        if self._window_bytes < 0:
            violation = ProtocolViolated("the peer overran the connection's window")
            self._shut(CloseReason.PROTOCOL_ERROR, violation, goaway=ErrorCodes.FLOW_CONTROL_ERROR)
            return
        if stream is None:
            if frame.stream_id % 2 == 0 or frame.stream_id > self._highest_id:
                self._feed(frame.raw)  # an idle stream: h2 ends the connection
            else:
                # Under way when we reset the stream. h2 would answer each such frame with one more RST_STREAM.
                self._unseen_bytes += size
                self._return_credit()
            return
        stream.window_bytes -= size
        if stream.window_bytes < 0:
            self._unseen_bytes += size
            self._violate(stream, "the peer overran the stream's window", ErrorCodes.FLOW_CONTROL_ERROR)
        elif stream.fast and not frame.flags & frames.PADDED:
            self._unseen_bytes += size
            self._deliver(stream, frame.raw[frames.HEADER_BYTES :])
            if frame.flags & frames.END_STREAM and stream.connection is self:
                self._feed(frames.end_of_stream(frame.stream_id))
        elif not self._fits(stream, frame, size):
            self._unseen_bytes += size
            # h2 would end the connection for it, and everyone on it; the RFC asks for the stream only (8.1.1).
            self._violate(stream, "the body's length is not its content-length", ErrorCodes.PROTOCOL_ERROR)
        else:
            stream.fast = False
            self._seen_bytes += size
            self._feed(frame.raw)
        self._return_credit()

    @staticmethod
    def _fits(stream: Stream, frame: Frame, size: int) -> bool:
        """Count a DATA frame against the content-length, where there is one."""
        if stream.expected_bytes is None:
            return True
        padding = frame.raw[frames.HEADER_BYTES] + 1 if frame.flags & frames.PADDED and size else 0
        stream.content_bytes += max(0, size - padding)
        if frame.flags & frames.END_STREAM:
            return stream.content_bytes == stream.expected_bytes
        return stream.content_bytes <= stream.expected_bytes

    def _receive_goaway(self, raw: bytes) -> None:
        """Let the streams up to the last id finish, and hand the others back: the peer never acts on them."""
        last_id = int.from_bytes(raw[9:13], "big") & 0x7FFFFFFF
        code = int.from_bytes(raw[13:17], "big")
        self._goaway = _code_name(code)
        self._observer.goaway_received(code)
        self.draining = True
        for stream_id in sorted((i for i in self._streams if i > last_id), reverse=True):
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._detach(stream)
                self._fail(stream, GoneAway(f"the peer went away ({self._goaway})"))
        self._room_changed()

    def _settle(self) -> None:
        self._peer_limit = self._h2.remote_settings.max_concurrent_streams
        self._uploads.window_changed()
        if not self.ready.done():
            self.ready.set_result(None)
            self._keepalive = Keepalive(
                interval_s=self._settings.ping_interval_s,
                timeout_s=self._settings.ping_timeout_s,
                send_ping=self._send_ping,
                give_up=self._give_up,
            )
            self._observer.connection_opened()
        self._room_changed()

    # Streams

    def _answer(self, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        status, length = 0, None
        for name, value in headers:
            if name == b":status":
                status = int(value) if len(value) == 3 and value.isdigit() else 0
            elif name == b"content-length":
                length = int(value)  # h2 has seen to it that it is one
        if not 200 <= status <= 599:
            self._violate(stream, "the answer has no sound status", ErrorCodes.PROTOCOL_ERROR)
            return
        stream.answered = True
        if length is not None and stream.request.method != "HEAD" and status not in (204, 304):
            stream.expected_bytes = length
        stream.fast = length is None
        try:
            stream.receiver.headers_received(status, [(bytes(n), bytes(v)) for n, v in headers if n[:1] != b":"])
        except Exception:
            self._receiver_raised(stream)

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if data:
            try:
                stream.receiver.data_received(data)
            except Exception:
                self._receiver_raised(stream)

    def _end(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.expected_bytes is not None and stream.content_bytes != stream.expected_bytes:
            self._violate(stream, "the body's length is not its content-length", ErrorCodes.PROTOCOL_ERROR)
            return
        if stream.unsent:
            self._reset(
                stream, ErrorCodes.CANCEL
            )  # the answer is complete; the peer does not want the rest of the request
        else:
            self._detach(stream)
        try:
            stream.receiver.stream_ended()
        except Exception:
            _log.exception("a receiver raised at the end of its stream")
        self._room_changed()

    def _reset_received(self, stream_id: int, code: int, *, by_peer: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        self._detach(stream)
        self._observer.stream_reset(code, by_peer=by_peer)
        if by_peer:
            self._fail(stream, StreamReset(f"the peer reset the stream ({_code_name(code)})", code=code))
        else:
            self._fail(stream, ProtocolViolated(f"the peer broke the stream's rules ({_code_name(code)})"))
        self._room_changed()

    def _violate(self, stream: Stream, message: str, code: ErrorCodes) -> None:
        self._reset(stream, code)
        self._fail(stream, ProtocolViolated(message))
        self._room_changed()

    def _receiver_raised(self, stream: Stream) -> None:
        _log.exception("a receiver raised; its stream is reset")
        if stream.connection is self:
            self._reset(stream, ErrorCodes.CANCEL)
            self._fail(stream, ReceiverRaised("the receiver of the answer raised"))
            self._room_changed()

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        """RST_STREAM, on the wire before this returns (if the socket takes it)."""
        self._detach(stream)
        with contextlib.suppress(H2Error):  # already closed on both sides: nothing to reset
            self._h2.reset_stream(stream.stream_id, code)
            self._observer.stream_reset(code, by_peer=False)
        self._flush()

    def _detach(self, stream: Stream) -> None:
        del self._streams[stream.stream_id]
        stream.connection = None
        self._uploads.discard(stream)
        self._observer.stream_closed()

    def _fail(self, stream: Stream, error: UpstreamError) -> None:
        self._owner.stream_failed(stream, error)

    # The end

    def _room_changed(self) -> None:
        if not self._streams and not self._is_closed:
            if self.draining:
                self._shut(CloseReason.GOAWAY, ConnectionLost("the connection was drained"), goaway=ErrorCodes.NO_ERROR)
                return
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self._settings.idle_timeout_s, self._close_idle)
        self._owner.room_changed()

    def _close_idle(self) -> None:
        self._shut(CloseReason.IDLE, ConnectionLost("the connection was idle"), goaway=ErrorCodes.NO_ERROR)

    def _give_up(self) -> None:
        self._shut(CloseReason.PING_TIMEOUT, PingTimedOut("the peer is silent and answers no PING"), abort=True)

    def _break(self, message: str, cause: Exception) -> None:
        """h2 has refused something; where it is the peer's fault it has put a GOAWAY in its buffer."""
        own = isinstance(cause, ProtocolViolated)
        violation = (
            cause if isinstance(cause, ProtocolViolated) else ProtocolViolated(f"{message} ({type(cause).__name__})")
        )
        violation.__cause__ = None if own else cause
        self._shut(CloseReason.PROTOCOL_ERROR, violation, goaway=ErrorCodes.PROTOCOL_ERROR if own else None)

    def _shut(
        self, reason: CloseReason, error: UpstreamError, *, goaway: ErrorCodes | None = None, abort: bool = False
    ) -> None:
        """End the connection, once: say goodbye if that is still possible, fail what is open, tell the owner."""
        if self._is_closed:
            return
        self._is_closed = True
        was_ready = self.ready.done()
        if not was_ready:
            self.ready.set_exception(error)
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        written = {i for i, stream in self._streams.items() if stream.written}
        if self._transport is not None and abort:
            self._transport.abort()
        elif self._transport is not None and not self._transport.is_closing():
            if goaway is not None:
                with contextlib.suppress(H2Error):
                    self._h2.close_connection(goaway)
            self._write()
            self._transport.close()
        if was_ready:
            self._observer.connection_closed(reason)
        self._owner.connection_closed(self)
        for stream in reversed(list(self._streams.values())):
            if stream.connection is self:
                self._detach(stream)
                self._fail(stream, error.for_stream(processed=stream.stream_id in written))
