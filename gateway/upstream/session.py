"""An HTTP/2 session, client side: frames in, calls on receivers, bytes to send out. Sans-IO.

The streams are kept here, from HEADERS to the end (RFC 9113, 5.1); what concerns the connection as a whole is h2's
(control.py). We open every stream and the peer may open none, so a stream is open while it is listed, gone when its id
was used, and idle else.
"""

import logging
from typing import Protocol

from h2.errors import ErrorCodes
from h2.settings import Settings

from gateway.upstream import frames
from gateway.upstream.answer_head import AnswerHead, MalformedAnswer, check_trailers, read_head
from gateway.upstream.control import MAX_FRAME_BYTES, Control
from gateway.upstream.errors import GoneAway, ProtocolViolated, ReceiverRaised, StreamReset, UpstreamError
from gateway.upstream.frames import MAX_WINDOW_BYTES, Frame, FrameRefused, FrameSplitter
from gateway.upstream.header_blocks import NO_TABLE, HeaderBlock, HeaderBlockReader
from gateway.upstream.observer import UpstreamObserver
from gateway.upstream.origin import PoolSettings
from gateway.upstream.stream import Stream
from gateway.upstream.uploads import Uploads

_log = logging.getLogger(__name__)

_HIGHEST_STREAM_ID = 2**31 - 1
_LEFT_KEPT = 4096  # ids of streams that did not end by the peer's END_STREAM


class SessionHost(Protocol):
    """Does the session's input and output, and decides about connection and retries."""

    def flush_soon(self) -> None: ...  # once a tick
    def flush(self) -> None: ...  # now
    def settled(self) -> None: ...  # the peer's SETTINGS, the first or new ones, are in force
    def room_changed(self) -> None: ...  # a stream ended, or no more may be opened
    def stream_failed(self, stream: Stream, error: UpstreamError) -> None: ...
    def violated(self, error: ProtocolViolated, goaway: ErrorCodes | None) -> None: ...  # None: h2 has written it


def code_name(code: int) -> str:
    return ErrorCodes(code).name if code in ErrorCodes._value2member_map_ else str(code)


class Session:
    """The streams of one connection. The host calls `receive` and sends what `data_to_send` returns."""

    def __init__(self, host: SessionHost, settings: PoolSettings, observer: UpstreamObserver) -> None:
        self._host = host
        self._settings = settings
        self._observer = observer
        self.streams: dict[int, Stream] = {}
        self._left: dict[int, None] = {}
        self._unwritten: list[Stream] = []
        self._highest_id = 0
        self.is_settled = False
        self.draining = False
        self.is_closed = False
        self.goaway = ""  # the peer's reason, for the message of what follows

        self.uncredited_bytes = 0  # received, and not yet returned to the peer as connection credit
        self._credit_due_bytes = (settings.connection_window_bytes + 3) // 4
        self._window_bytes = settings.connection_window_bytes  # what the peer may still send

        self._control = Control(settings)
        self._splitter = FrameSplitter(MAX_FRAME_BYTES)
        self._header_blocks = HeaderBlockReader(self._control.decoder)
        self._out: list[bytes] = []
        self._send_window_bytes = self.peer_settings.initial_window_size  # of a new stream
        self.uploads = Uploads(self._control, self._out.append)

    @property
    def peer_settings(self) -> Settings:
        return self._control.peer_settings

    def greet(self) -> None:
        """Prepare the preface, our SETTINGS and the connection's window."""
        self._control.greet()
        self._take_from_control()

    def ping(self) -> None:
        self._control.ping()
        self._take_from_control()

    def say_goodbye(self, code: ErrorCodes) -> None:
        self._control.say_goodbye(code)
        self._take_from_control()

    def reset_all(self) -> None:
        """RST_STREAM(CANCEL) for every stream, for the last write; the streams stay listed."""
        for stream_id in self.streams:
            self._out.append(frames.rst_stream(stream_id, ErrorCodes.CANCEL))

    def data_to_send(self) -> bytes:
        """Take what has to be written; from here on the peer may have seen the requests in it."""
        data = b"".join(self._out)
        self._out.clear()
        for stream in self._unwritten:
            stream.written = True
        self._unwritten.clear()
        return data

    def _take_from_control(self) -> None:
        """Take what h2 wrote at once, so that an acknowledgement stays behind what went before the SETTINGS."""
        if self._control.has_to_send:
            self._out.append(self._control.data_to_send())

    def open(self, stream: Stream) -> None:
        """Send the request on a stream of its own; there must be `room`. What goes wrong goes to the owner."""
        request = stream.request
        block = request.block
        if self._highest_id:
            stream_id = self._highest_id + 2
        else:
            stream_id = 1
            block = NO_TABLE + block
        stream.attach(
            self,
            stream_id,
            window_bytes=self._settings.stream_window_bytes,
            send_window_bytes=self._send_window_bytes,
        )
        self._highest_id = stream_id
        self.streams[stream_id] = stream
        self._unwritten.append(stream)
        self._observer.stream_opened()
        if stream_id >= _HIGHEST_STREAM_ID - 2:
            self.draining = True  # ids are used up
        limit = self._control.max_frame_bytes
        self._out.append(frames.headers(stream_id, block, end_stream=not request.body, max_payload_bytes=limit))
        if request.body:
            self.uploads.add(stream)
        self._host.flush_soon()

    def cancel(self, stream: Stream) -> None:
        self._reset(stream, ErrorCodes.CANCEL)
        self._host.room_changed()

    def return_credit(self, stream: Stream) -> None:
        """Return what a stream's receiver has consumed to the peer (RFC 9113, 6.9)."""
        increment, stream.credit_bytes = stream.credit_bytes, 0
        stream.window_bytes += increment
        self._out.append(frames.window_update(stream.stream_id, increment))
        self._host.flush_soon()

    # Frames in

    def receive(self, data: bytes) -> None:
        """Act on bytes from the peer. Never raises."""
        try:
            for frame in self._splitter.feed(data):
                if self.is_closed:
                    return  # by a frame before this one
                if frame.kind == frames.DATA and not self._header_blocks.is_amid:
                    self._receive_data(frame)
                else:
                    self._receive(frame)
        except FrameRefused as error:
            self._host.violated(ProtocolViolated(f"the peer sent {error}"), error.code)
        except Exception as error:  # h2 may raise more than its own errors on bytes from outside
            violation = ProtocolViolated(f"the peer broke HTTP/2's rules ({type(error).__name__})")
            violation.__cause__ = error
            self._take_from_control()  # where it is the peer's fault, h2's GOAWAY
            self._host.violated(violation, None)

    def _receive(self, frame: Frame) -> None:
        kind = frame.kind
        if not self.is_settled and kind != frames.SETTINGS:
            raise FrameRefused("another frame before its SETTINGS", ErrorCodes.PROTOCOL_ERROR)  # RFC 9113, 3.4
        if kind == frames.HEADERS or self._header_blocks.is_amid:
            block = self._header_blocks.receive(frame)
            if block is not None:
                self._receive_headers(block)
        elif kind == frames.WINDOW_UPDATE and frame.stream_id:
            self._receive_window_update(frame)
        elif kind == frames.RST_STREAM:
            self._receive_reset(frame)
        elif kind == frames.GOAWAY and frame.stream_id == 0 and len(frame.payload) >= 8:
            self._receive_goaway(frame.payload)
        elif kind in (frames.PUSH_PROMISE, frames.CONTINUATION):
            # We do not take the one (RFC 9113, 6.6); the other belongs behind HEADERS (6.10).
            raise FrameRefused("a frame that has no place here", ErrorCodes.PROTOCOL_ERROR)
        else:
            has_settings, has_window = self._control.receive(frame.raw)
            self._take_from_control()
            if has_settings:
                self._settle()
            if self._out or (has_window and self.uploads.window_changed()):
                self._host.flush_soon()

    def _find(self, frame: Frame | HeaderBlock) -> Stream | None:
        """Return the stream of a frame, None when it is gone. Raises FrameRefused when it is idle (RFC 9113, 5.1)."""
        stream = self.streams.get(frame.stream_id)
        if stream is None and (frame.stream_id % 2 == 0 or frame.stream_id > self._highest_id):
            raise FrameRefused("a frame on an idle stream", ErrorCodes.PROTOCOL_ERROR)
        return stream

    def _receive_data(self, frame: Frame) -> None:
        data = frame.payload
        size = len(data)  # padding counts for flow control
        if frame.flags & frames.PADDED:
            data = frame.unpadded()
        self._window_bytes -= size
        if self._window_bytes < 0:
            raise FrameRefused("more than the connection's window", ErrorCodes.FLOW_CONTROL_ERROR)
        self.uncredited_bytes += size
        stream = self.streams.get(frame.stream_id)
        if stream is None:
            self._find(frame)  # if it is not idle: this was under way when we reset the stream
        else:
            stream.window_bytes -= size
            is_usual = stream.answered and stream.expected_bytes is None and stream.window_bytes >= 0
            if is_usual or self._is_in_order(stream, data):
                # Credit that falls due comes first, for the receiver may leave. Padding is nobody's to consume.
                returned = size if stream.keeps_nothing else size - len(data)
                if returned:
                    stream.credit_bytes += returned
                    if stream.credit_bytes >= stream.credit_due_bytes:
                        self.return_credit(stream)
                if data:
                    try:
                        stream.receiver.data_received(data)
                    except Exception:
                        self._receiver_raised(stream)
                if frame.flags & frames.END_STREAM and stream.session is self:
                    self._end(stream)
        if self.uncredited_bytes >= self._credit_due_bytes:
            self._return_credit()

    def _is_in_order(self, stream: Stream, data: bytes) -> bool:
        """Count a part of the body; False when it may not come, and the stream has ended over it."""
        if stream.window_bytes < 0:
            self._violate(stream, "the peer overran the stream's window", ErrorCodes.FLOW_CONTROL_ERROR)
            return False
        stream.content_bytes += len(data)
        if not stream.answered:
            self._violate(stream, "the body came before the answer's headers", ErrorCodes.PROTOCOL_ERROR)
            return False
        if stream.expected_bytes is not None and stream.content_bytes > stream.expected_bytes:
            self._violate(stream, "the body is longer than its content-length", ErrorCodes.PROTOCOL_ERROR)
            return False
        return True

    def _return_credit(self) -> None:
        """Give the whole connection window back on receipt, in portions of a quarter."""
        self._window_bytes += self.uncredited_bytes
        self._out.append(frames.window_update(0, self.uncredited_bytes))
        self.uncredited_bytes = 0
        self._host.flush_soon()

    def _receive_headers(self, block: HeaderBlock) -> None:
        stream = self._find(block)
        if stream is None:
            if block.stream_id not in self._left:
                raise FrameRefused("headers on a stream that it had ended", ErrorCodes.STREAM_CLOSED)
            return
        head = None
        try:
            if stream.answered:
                check_trailers(block)
            else:
                head = read_head(block, stream.request.method)
        except MalformedAnswer as error:
            self._violate(stream, str(error), ErrorCodes.PROTOCOL_ERROR)
            return
        if head is not None:
            self._answer(stream, head)
        if block.ends_stream and stream.session is self:
            self._end(stream)

    def _receive_window_update(self, frame: Frame) -> None:
        increment = frame.number() & MAX_WINDOW_BYTES
        if not increment:
            raise FrameRefused("a WINDOW_UPDATE by 0", ErrorCodes.PROTOCOL_ERROR)
        stream = self._find(frame)
        if stream is None:
            return
        stream.send_window_bytes += increment
        if stream.send_window_bytes > MAX_WINDOW_BYTES:
            self._violate(stream, "the peer opened a window too far", ErrorCodes.FLOW_CONTROL_ERROR)
        elif self.uploads.window_changed():
            self._host.flush_soon()

    def _receive_reset(self, frame: Frame) -> None:
        code = frame.number()
        stream = self._find(frame)
        if stream is not None:
            self._detach(stream, is_left=True)
            self._observer.stream_reset(code, by_peer=True)
            self._fail(stream, StreamReset(f"the peer reset the stream ({code_name(code)})", code=code))
            self._host.room_changed()

    def _receive_goaway(self, payload: bytes) -> None:
        """Let the streams up to the last id finish, and hand the others back: the peer never acts on them."""
        last_id = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        code = int.from_bytes(payload[4:8], "big")
        self.goaway = code_name(code)
        self._observer.goaway_received(code)
        self.draining = True
        for stream_id in sorted((i for i in self.streams if i > last_id), reverse=True):
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._detach(stream, is_left=True)
                self._fail(stream, GoneAway(f"the peer went away ({self.goaway})"))
        self._host.room_changed()

    def _settle(self) -> None:
        settings = self.peer_settings
        change_bytes = settings.initial_window_size - self._send_window_bytes
        if change_bytes:
            self._send_window_bytes += change_bytes
            for stream in self.streams.values():
                stream.send_window_bytes += change_bytes
                if stream.send_window_bytes > MAX_WINDOW_BYTES:  # RFC 9113, 6.9.2
                    raise FrameRefused("SETTINGS that open a window too far", ErrorCodes.FLOW_CONTROL_ERROR)
        self.is_settled = True
        self.uploads.window_changed()
        self._host.settled()

    # Streams

    def _answer(self, stream: Stream, head: AnswerHead) -> None:
        stream.answered = True
        stream.expected_bytes = head.content_bytes
        try:
            stream.receiver.headers_received(head.status, head.lines)
        except Exception:
            self._receiver_raised(stream)

    def _end(self, stream: Stream) -> None:
        if stream.expected_bytes is not None and stream.content_bytes != stream.expected_bytes:
            # The RFC asks for an error of the stream only (8.1.1).
            self._violate(stream, "the body is not as long as its content-length", ErrorCodes.PROTOCOL_ERROR)
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
        self._detach(stream, is_left=True)
        self._out.append(frames.rst_stream(stream.stream_id, code))
        self._observer.stream_reset(code, by_peer=False)
        self._host.flush()

    def _detach(self, stream: Stream, *, is_left: bool = False) -> None:
        """Take a stream off the list; what was under way on one that `is_left` may still come, and be headers."""
        del self.streams[stream.stream_id]
        if is_left:
            self._left[stream.stream_id] = None
            if len(self._left) > _LEFT_KEPT:
                del self._left[next(iter(self._left))]
        stream.session = None
        self.uploads.discard(stream)
        self._observer.stream_closed()

    def _fail(self, stream: Stream, error: UpstreamError) -> None:
        self._host.stream_failed(stream, error)

    def fail_all(self, error: UpstreamError) -> None:
        """Hand every open stream its own copy of the error; the connection is gone."""
        for stream in reversed(list(self.streams.values())):
            if stream.session is self:
                self._detach(stream, is_left=True)
                self._fail(stream, error.for_stream(processed=stream.written))
