"""Header blocks in HPACK (RFC 7541): written without a table, read with hpack's.

What we write refers to the static table only, so a block is the same bytes on every connection and the parts of it that
do not change are built once. The first block of a connection says so (`NO_TABLE`), and from then on no SETTINGS of the
peer's can ask us for a change of size.
"""

import msgspec
from h2.errors import ErrorCodes
from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from gateway.upstream.frames import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PRIORITY, Frame, FrameRefused

NO_TABLE = b"\x20"  # dynamic table size update to 0 (RFC 7541, 6.3)
MAX_FRAMES = 64  # a block: what h2 allows, and a bound on what an endless one can hold

_PRIORITY_BYTES = 5
_NEVER_INDEXED, _NOT_INDEXED, _INDEXED = 0x10, 0x00, 0x80


def encode_line(name: bytes, value: bytes, *, secret: bool = False) -> bytes:
    """Write one header line; a `secret` one asks every hop to keep it out of its tables (RFC 7541, 7.1.3).

    Text goes as it is: Huffman coding a path and a key in Python takes 20 µs a request, to save 30 bytes of it.
    """
    known = HeaderTable.STATIC_TABLE_MAPPING.get(name)
    index = known[1].get(value) if known is not None and not secret else None
    if index is not None:
        return _integer(index, 7, _INDEXED)
    form = _NEVER_INDEXED if secret else _NOT_INDEXED
    key = _integer(known[0], 4, form) if known is not None else bytes([form]) + _integer(len(name), 7) + name
    return key + _integer(len(value), 7) + value


def _integer(number: int, prefix_bits: int, form: int = 0) -> bytes:
    """RFC 7541, 5.1."""
    limit = (1 << prefix_bits) - 1
    if number < limit:
        return bytes([form | number])
    octets = bytearray([form | limit])
    number -= limit
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


class HeaderBlock(msgspec.Struct, frozen=True):
    """What one HEADERS frame and its CONTINUATIONs brought."""

    stream_id: int
    lines: list[tuple[bytes, bytes]]
    ends_stream: bool


class HeaderBlockReader:
    """Puts blocks together and decodes them; every block must pass through it, for each may change the table."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.is_amid = False  # nothing but a CONTINUATION may come next
        self._first: Frame | None = None
        self._parts: list[bytes] = []
        self._last_block = b""
        self._last_lines: list[tuple[bytes, bytes]] = []

    def receive(self, frame: Frame) -> HeaderBlock | None:
        """Take the next frame, of whatever kind while `is_amid`, else HEADERS; None until the block is complete.

        Raises FrameRefused where RFC 9113 (4.3, 6.2, 6.10) wants the connection to end.
        """
        if self._first is None:
            first, part = frame, self._fragment(frame)
        elif frame.kind == CONTINUATION and frame.stream_id == self._first.stream_id:
            first, part = self._first, frame.payload
        else:
            raise FrameRefused("a frame amid a header block", ErrorCodes.PROTOCOL_ERROR)
        if frame.flags & END_HEADERS:
            block = b"".join((*self._parts, part)) if self._parts else part
            self._first = None
            self.is_amid = False
            self._parts.clear()
            return HeaderBlock(first.stream_id, self._decode(block), bool(first.flags & END_STREAM))
        self._first = first
        self.is_amid = True
        self._parts.append(part)
        if len(self._parts) >= MAX_FRAMES:
            raise FrameRefused(f"a header block of more than {MAX_FRAMES} frames", ErrorCodes.ENHANCE_YOUR_CALM)
        return None

    @staticmethod
    def _fragment(frame: Frame) -> bytes:
        assert frame.kind == HEADERS
        fragment = frame.unpadded()
        if not frame.flags & PRIORITY:
            return fragment
        if len(fragment) < _PRIORITY_BYTES:
            raise FrameRefused("a HEADERS frame cut short", ErrorCodes.FRAME_SIZE_ERROR)
        return fragment[_PRIORITY_BYTES:]

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        if block == self._last_block:
            return self._last_lines
        table = self._decoder.header_table
        size, entries = table.maxsize, table.dynamic_entries
        count, newest = len(entries), entries[0] if entries else None
        try:
            lines = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise FrameRefused("too many headers", ErrorCodes.ENHANCE_YOUR_CALM) from None
        except (HPACKError, IndexError, TypeError, UnicodeError):
            raise FrameRefused("headers that HPACK cannot read", ErrorCodes.COMPRESSION_ERROR) from None
        # A block that left the table alone means the same until another changes it. Whatever is added is a new object
        # in front; reading a block that is told by its bytes alone takes a twentieth of the time.
        same = table.maxsize == size and len(entries) == count and (not count or entries[0] is newest)
        self._last_block, self._last_lines = (block, lines) if same else (b"", [])
        return lines
