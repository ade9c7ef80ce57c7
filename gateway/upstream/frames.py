"""HTTP/2 frames cut out of a byte stream, before h2 sees them (RFC 9113, 4.1). Sans-IO.

h2 closes its state machine at GOAWAY and spends 9 to 14 µs on a DATA frame; cutting the stream at the 9-byte
frame headers lets the connection keep the first from it, and hand most of the second straight to their receivers.
"""

import struct
from collections.abc import Iterator

import msgspec

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 9
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8
HEADER_BYTES = 9

_HEADER = struct.Struct(">HBBBL")
_WINDOW_UPDATE = struct.Struct(">HBBBLL")


class FrameTooLong(Exception):
    """A frame header announces more than we allow; nothing of its payload is kept."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One whole frame; `raw` includes its header. A struct, for it is made in 0.05 µs and a named tuple in 0.24."""

    kind: int
    flags: int
    stream_id: int
    raw: bytes


class FrameSplitter:
    """Cuts bytes into frames. Holds at most one partial frame."""

    def __init__(self, max_payload_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._rest = bytearray()
        self._wanted_bytes = HEADER_BYTES

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes; the caller must exhaust the iterator or drop the connection.

        Raises FrameTooLong at a header with a length above the limit, after the frames before it.
        """
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
                raise FrameTooLong(f"frame of {length} bytes")
            end = position + HEADER_BYTES + length
            if end > size:
                self._wanted_bytes = HEADER_BYTES + length
                break
            yield Frame(kind, flags, stream_id & 0x7FFFFFFF, data[position:end])
            position = end
        if position < size:
            self._rest += data[position:] if position else data


def window_update(stream_id: int, increment_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return _WINDOW_UPDATE.pack(0, 4, 8, 0, stream_id, increment_bytes)


def end_of_stream(stream_id: int) -> bytes:
    """An empty DATA frame with END_STREAM."""
    return _HEADER.pack(0, 0, DATA, END_STREAM, stream_id)
