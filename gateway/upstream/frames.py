"""HTTP/2 frames: cut out of a byte stream, and written (RFC 9113, 4.1 and 6). Sans-IO."""

import struct
from collections.abc import Iterable, Iterator

import msgspec
from h2.errors import ErrorCodes

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
HEADER_BYTES = 9
MAX_WINDOW_BYTES = 2**31 - 1

_HEADER = struct.Struct(">HBBBL")
_WITH_NUMBER = struct.Struct(">HBBBLL")


class FrameRefused(Exception):
    """A frame that ends the connection, with the code for GOAWAY; the text goes on after "the peer sent"."""

    def __init__(self, message: str, code: ErrorCodes) -> None:
        super().__init__(message)
        self.code = code


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One whole frame. A struct, for it is made in 0.05 µs and a named tuple in 0.24."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def raw(self) -> bytes:
        """The frame with its header, whose reserved bit is 0."""
        return _header(len(self.payload), self.kind, self.flags, self.stream_id) + self.payload

    def unpadded(self) -> bytes:
        """The payload of DATA or HEADERS without its padding (RFC 9113, 6.1 and 6.2). Raises FrameRefused."""
        payload = self.payload
        if not self.flags & PADDED:
            return payload
        if not payload:
            raise FrameRefused("a padded frame without a pad length", ErrorCodes.FRAME_SIZE_ERROR)
        end = len(payload) - payload[0]
        if end < 1:
            raise FrameRefused("more padding than payload", ErrorCodes.PROTOCOL_ERROR)
        return payload[1:end]

    def number(self) -> int:
        """The 32 bits that RST_STREAM and WINDOW_UPDATE consist of. Raises FrameRefused."""
        if len(self.payload) != 4:
            raise FrameRefused("a frame of the wrong length", ErrorCodes.FRAME_SIZE_ERROR)
        return int.from_bytes(self.payload, "big")


class FrameSplitter:
    """Cuts bytes into frames. Holds at most one partial frame."""

    def __init__(self, max_payload_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._rest = bytearray()
        self._wanted_bytes = HEADER_BYTES

    def feed(self, data: bytes) -> Iterable[Frame]:
        """Yield the frames that `data` completes; the caller must exhaust the iterable or drop the connection.

        Raises FrameRefused at a header with a length above the limit, after the frames before it; nothing of its
        payload is kept.
        """
        if not self._rest and len(data) >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data)
            if len(data) - HEADER_BYTES == (high << 8) | low <= self._max_payload_bytes:
                # One item is one frame is one TLS record, mostly.
                return (Frame(kind, flags, stream_id & 0x7FFFFFFF, data[HEADER_BYTES:]),)
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[Frame]:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted_bytes:
                return
            data = bytes(self._rest)
            self._rest.clear()
        position, size = 0, len(data)
        self._wanted_bytes = HEADER_BYTES
        while size - position >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, position)
            length = (high << 8) | low
            if length > self._max_payload_bytes:
                raise FrameRefused(f"a frame of {length} bytes", ErrorCodes.FRAME_SIZE_ERROR)
            begin = position + HEADER_BYTES
            end = begin + length
            if end > size:
                self._wanted_bytes = HEADER_BYTES + length
                break
            yield Frame(kind, flags, stream_id & 0x7FFFFFFF, data[begin:end])
            position = end
        if position < size:
            self._rest += data[position:] if position else data


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_payload_bytes: int) -> bytes:
    """A HEADERS frame, with CONTINUATIONs when the block does not fit into one."""
    ending = END_STREAM if end_stream else 0
    if len(block) <= max_payload_bytes:
        return _header(len(block), HEADERS, ending | END_HEADERS, stream_id) + block
    pieces = [block[begin : begin + max_payload_bytes] for begin in range(0, len(block), max_payload_bytes)]
    frames = [_header(len(pieces[0]), HEADERS, ending, stream_id), pieces[0]]
    for piece in pieces[1:-1]:
        frames += (_header(len(piece), CONTINUATION, 0, stream_id), piece)
    frames += (_header(len(pieces[-1]), CONTINUATION, END_HEADERS, stream_id), pieces[-1])
    return b"".join(frames)


def data(stream_id: int, payload: bytes | memoryview, *, end_stream: bool) -> bytes:
    """A DATA frame without padding."""
    return b"".join((_header(len(payload), DATA, END_STREAM if end_stream else 0, stream_id), payload))


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _WITH_NUMBER.pack(0, 4, RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return _WITH_NUMBER.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment_bytes)


def _header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)
