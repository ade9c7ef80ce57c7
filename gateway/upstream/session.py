"""An HTTP/2 session, client side: frames in, calls on receivers, bytes to send out. Sans-IO.

h2 does HTTP/2; what is done around it, and why, is said where it is done: GOAWAY, DATA, content-length, credit.
"""

import contextlib
import logging
from typing import Any, Protocol

import h2.events as h2e
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import Encoder

from gateway.upstream import frames
from gateway.upstream.errors import GoneAway, ProtocolViolated, ReceiverRaised, StreamReset, UpstreamError
from gateway.upstream.frames import Frame, FrameSplitter, FrameTooLong
from gateway.upstream.observer import UpstreamObserver
from gateway.upstream.origin import PoolSettings
from gateway.upstream.stream import Stream
from gateway.upstream.uploads import Uploads

_log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 16_384  # what we announce; RFC 9113's smallest, and plenty for chat
_DEFAULT_WINDOW_BYTES = 65_535  # of a connection, whatever SETTINGS say (RFC 9113, 6.9.2)
_HIGHEST_STREAM_ID = 2**31 - 1
CLOSED_KEPT = 32  # closed streams that h2 may keep whole until it walks its streams again


class SessionHost(Protocol):
    """Does the session's input and output, and decides about connection and retries."""

    def flush_soon(self) -> None: ...  # once a tick
    def flush(self) -> None: ...  # now
    def settled(self) -> None: ...  # the peer's SETTINGS, the first or new ones, are in force
    def room_changed(self) -> None: ...  # a stream ended, or no more may be opened
    def stream_failed(self, stream: Stream, error: UpstreamError) -> None: ...
    def violated(self, error: ProtocolViolated, goaway: ErrorCodes | None) -> None: ...  # None: h2 has written it


class _PlainEncoder(Encoder):
    """Sends text as it is. Huffman coding a path and a key in Python takes 20 µs a request, to save 30 bytes of it."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman=False)


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = 4096  # remembered ids; h2's own 65,536 are megabytes on a long-lived connection

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.encoder = _PlainEncoder()
        self._walk_at = 0

    @property
    def has_to_send(self) -> bool:
        return bool(self._data_to_send)

    def _open_streams(self, remainder: int) -> int:
        """Count the open streams, at most, and now and then forget those that are closed.

        h2 does both at every request, and walks all streams for it: 12 µs with 50 open. The number is compared with
        the peer's limit, for which those that h2 has not forgotten yet may count too while they are below it.
        """
        known = len(self.streams)
        if known < self._walk_at and known < self.remote_settings.max_concurrent_streams:
            return known
        count = super()._open_streams(remainder)
        self._walk_at = len(self.streams) + CLOSED_KEPT
        return count


def code_name(code: int) -> str:
    return ErrorCodes(code).name if code in ErrorCodes._value2member_map_ else str(code)


class Session:
    """The streams of one connection. The host calls `receive` and sends what `data_to_send` returns."""

    def __init__(self, host: SessionHost, settings: PoolSettings, observer: UpstreamObserver) -> None:
        self._host = host
        self._settings = settings
        self._observer = observer
        self.streams: dict[int, Stream] = {}
        self._unwritten: list[Stream] = []
        self._highest_id = 0
        self.peer_limit = 0  # 0 until the peer's first SETTINGS
        self.is_settled = False
        self.draining = False
        self.is_closed = False
        self.goaway = ""  # the peer's reason, for the message of what follows

        # What we return as connection credit: bytes that h2 counted go through h2, the others in frames of our own.
        self._window_bytes = settings.connection_window_bytes
        self._seen_bytes = 0
        self._unseen_bytes = 0
        self._own_frames: list[bytes] = []
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
        self.uploads = Uploads(self._h2)

    @property
    def uncredited_bytes(self) -> int:
        """Received, and not yet returned to the peer as connection credit."""
        return self._seen_bytes + self._unseen_bytes

    @property
    def peer_settings(self) -> Settings:
        return self._h2.remote_settings

    def greet(self) -> None:
        """Prepare the preface, our SETTINGS and the connection's window."""
        self._h2.initiate_connection()
        extra = self._settings.connection_window_bytes - _DEFAULT_WINDOW_BYTES
        if extra:
            self._h2.increment_flow_control_window(extra)

    def ping(self) -> None:
        self._h2.ping(b"hlgw-png")

    def say_goodbye(self, code: ErrorCodes) -> None:
        with contextlib.suppress(H2Error):
            self._h2.close_connection(code)

    def reset_all(self) -> None:
        """RST_STREAM(CANCEL) for every stream, for the last write; the streams stay listed."""
        for stream in self.streams.values():
            with contextlib.suppress(H2Error):
                self._h2.reset_stream(stream.stream_id, ErrorCodes.CANCEL)

    def data_to_send(self) -> bytes:
        """Take what has to be written; from here on the peer may have seen the requests in it."""
        data = self._h2.data_to_send()
        if self._own_frames:
            data += b"".join(self._own_frames)
            self._own_frames.clear()
        for stream in self._unwritten:
            stream.written = True
        self._unwritten.clear()
        return data

    def pump(self) -> bool:
        """Turn waiting bodies into frames as far as the windows allow; True when a write makes room for more."""
        try:
            return self.uploads.pump()
        except H2Error as error:
            self._break("HTTP/2 state broke at sending a body", error)
            return False

    def open(self, stream: Stream) -> None:
        """Send the request on a stream of its own; there must be `room`. What goes wrong goes to the owner."""
        stream_id = self._highest_id + 2 if self._highest_id else 1
        has_body = bool(stream.request.body)
        stream.attach(self, stream_id, window_bytes=self._settings.stream_window_bytes)
        self._highest_id = stream_id
        self.streams[stream_id] = stream
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
            self.uploads.add(stream)
        self._host.flush_soon()

    def cancel(self, stream: Stream) -> None:
        self._reset(stream, ErrorCodes.CANCEL)
        self._host.room_changed()

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
            with contextlib.suppress(
                H2Error, KeyError
            ):  # h2 closes a stream before the data of its last frame is delivered
                self._h2.increment_flow_control_window(increment, stream.stream_id)
        self._host.flush_soon()

    def receive(self, data: bytes) -> None:
        """Act on bytes from the peer. Never raises."""
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except FrameTooLong as error:
            self._host.violated(ProtocolViolated(f"the peer sent a {error}"), ErrorCodes.FRAME_SIZE_ERROR)
        except Exception as error:  # h2 may raise more than its own errors on bytes from outside
            self._break("the peer broke HTTP/2's rules", error)

    def _receive(self, frame: Frame) -> None:
        kind = frame.kind
        if self.is_closed:
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
            if not self.is_settled and kind != frames.SETTINGS:
                raise ProtocolViolated("the peer's first frame is not SETTINGS")  # RFC 9113, 3.4
            self._feed(frame.raw)

    def _feed(self, raw: bytes) -> None:
        """Give h2 one whole frame and act on what it says."""
        for event in self._h2.receive_data(raw):
            match event:
                case h2e.DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                    stream = self.streams.get(stream_id)
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
                    if self.uploads.window_changed():
                        self._host.flush_soon()
                case h2e.RemoteSettingsChanged():
                    self._settle()
                case _:
                    pass  # 1xx, trailers, PING (h2 answers), acknowledgements, extensions
        if self._h2.has_to_send:
            self._host.flush_soon()

    def _receive_data(self, frame: Frame) -> None:
        size = len(frame.raw) - frames.HEADER_BYTES  # padding counts for flow control
        stream = self.streams.get(frame.stream_id)
        self._window_bytes -= size
        if self._window_bytes < 0:
            overrun = ProtocolViolated("the peer overran the connection's window")
            self._host.violated(overrun, ErrorCodes.FLOW_CONTROL_ERROR)
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
            if frame.flags & frames.END_STREAM and stream.session is self:
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
        self.goaway = code_name(code)
        self._observer.goaway_received(code)
        self.draining = True
        for stream_id in sorted((i for i in self.streams if i > last_id), reverse=True):
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._detach(stream)
                self._fail(stream, GoneAway(f"the peer went away ({self.goaway})"))
        self._host.room_changed()

    def _settle(self) -> None:
        self.peer_limit = self._h2.remote_settings.max_concurrent_streams
        self.is_settled = True
        self.uploads.window_changed()
        self._host.settled()

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
        self._host.flush_soon()

    # Streams

    def _answer(self, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        stream = self.streams.get(stream_id)
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
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if stream.expected_bytes is not None and stream.content_bytes != stream.expected_bytes:
            self._violate(stream, "the body's length is not its content-length", ErrorCodes.PROTOCOL_ERROR)
            return
        if stream.unsent:
            # The answer is complete; the peer does not want the rest of the request (RFC 9113, 8.1).
            self._reset(stream, ErrorCodes.CANCEL)
        else:
            self._detach(stream)
        try:
            stream.receiver.stream_ended()
        except Exception:
            _log.exception("a receiver raised at the end of its stream")
        self._host.room_changed()

    def _reset_received(self, stream_id: int, code: int, *, by_peer: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        self._detach(stream)
        self._observer.stream_reset(code, by_peer=by_peer)
        if by_peer:
            self._fail(stream, StreamReset(f"the peer reset the stream ({code_name(code)})", code=code))
        else:
            self._fail(stream, ProtocolViolated(f"the peer broke the stream's rules ({code_name(code)})"))
        self._host.room_changed()

    def _violate(self, stream: Stream, message: str, code: ErrorCodes) -> None:
        self._reset(stream, code)
        self._fail(stream, ProtocolViolated(message))
        self._host.room_changed()

    def _receiver_raised(self, stream: Stream) -> None:
        _log.exception("a receiver raised; its stream is reset")
        if stream.session is self:
            self._reset(stream, ErrorCodes.CANCEL)
            self._fail(stream, ReceiverRaised("the receiver of the answer raised"))
            self._host.room_changed()

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        """RST_STREAM, on the wire before this returns (if the socket takes it)."""
        self._detach(stream)
        with contextlib.suppress(H2Error):  # already closed on both sides: nothing to reset
            self._h2.reset_stream(stream.stream_id, code)
            self._observer.stream_reset(code, by_peer=False)
        self._host.flush()

    def _detach(self, stream: Stream) -> None:
        del self.streams[stream.stream_id]
        stream.session = None
        self.uploads.discard(stream)
        self._observer.stream_closed()

    def _fail(self, stream: Stream, error: UpstreamError) -> None:
        self._host.stream_failed(stream, error)

    def fail_all(self, error: UpstreamError) -> None:
        """Hand every open stream its own copy of the error; the connection is gone."""
        for stream in reversed(list(self.streams.values())):
            if stream.session is self:
                self._detach(stream)
                self._fail(stream, error.for_stream(processed=stream.written))

    def _break(self, message: str, cause: Exception) -> None:
        """h2 has refused something; where it is the peer's fault it has put a GOAWAY in its buffer."""
        if isinstance(cause, ProtocolViolated):
            self._host.violated(cause, ErrorCodes.PROTOCOL_ERROR)
            return
        violation = ProtocolViolated(f"{message} ({type(cause).__name__})")
        violation.__cause__ = cause
        self._host.violated(violation, None)
