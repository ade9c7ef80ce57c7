"""Header blocks: ours against hpack's decoder, the peer's against plain hpack."""

import itertools

import pytest
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.upstream import frames
from gateway.upstream.frames import Frame, FrameRefused
from gateway.upstream.header_blocks import MAX_FRAMES, NO_TABLE, HeaderBlock, HeaderBlockReader, encode_line

NAMES = st.sampled_from([b":method", b":path", b":authority", b"accept", b"content-type", b"x-a", b"x-" + b"n" * 300])
VALUES = st.one_of(st.sampled_from([b"", b"GET", b"/", b"v" * 127, b"v" * 128]), st.binary(max_size=40))
LINES = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=6)


@given(LINES, LINES)
@example([(b"x-" + b"n" * 200, b"v" * 20_000, False)], [(b":path", b"v" * 300, True)])
def test_lines_are_read_back_as_they_were_and_touch_no_table(
    first: list[tuple[bytes, bytes, bool]], second: list[tuple[bytes, bytes, bool]]
) -> None:
    """Any name and value arrive; what is secret is marked as never to be indexed (RFC 7541, 7.1.3)."""
    decoder = Decoder(10**6)
    for prefix, lines in ((NO_TABLE, first), (b"", second)):
        block = prefix + b"".join(encode_line(name, value, secret=secret) for name, value, secret in lines)
        got = list(decoder.decode(block, raw=True))
        assert [(bytes(line[0]), bytes(line[1])) for line in got] == [(name, value) for name, value, _ in lines]
        assert [isinstance(line, NeverIndexedHeaderTuple) for line in got] == [secret for _, _, secret in lines]
        assert (decoder.header_table.maxsize, len(decoder.header_table.dynamic_entries)) == (0, 0)


def framed(block: bytes, cuts: list[int], *, padding: int | None = None, priority: bool = False) -> list[Frame]:
    """The frames of a block that is cut at will."""
    edges = [0, *sorted(min(cut, len(block)) for cut in cuts), len(block)]
    parts = [block[begin:end] for begin, end in itertools.pairwise(edges)]
    flags = frames.END_STREAM
    if priority:
        parts[0] = b"\x00\x00\x00\x00\x0f" + parts[0]
        flags |= frames.PRIORITY
    if padding is not None:
        parts[0] = bytes([padding]) + parts[0] + b"\x00" * padding
        flags |= frames.PADDED
    kinds = [(frames.HEADERS, flags)] + [(frames.CONTINUATION, 0)] * (len(parts) - 1)
    last_kind, last_flags = kinds[-1]
    kinds[-1] = (last_kind, last_flags | frames.END_HEADERS)
    return [Frame(kind, flags, 1, part) for (kind, flags), part in zip(kinds, parts, strict=True)]


@given(
    lists=st.lists(LINES, min_size=1, max_size=3),
    order=st.lists(
        st.tuples(
            st.integers(0, 2),  # which list
            st.booleans(),  # in Huffman's code
            st.none() | st.integers(0, 300),  # a new size of the table before it
            st.lists(st.integers(0, 500), max_size=4),
            st.none() | st.integers(0, 255),
            st.booleans(),
        ),
        max_size=20,
    ),
)
def test_blocks_mean_what_they_mean_to_hpack_however_they_are_framed(
    lists: list[list[tuple[bytes, bytes, bool]]],
    order: list[tuple[int, bool, int | None, list[int], int | None, bool]],
) -> None:
    """Blocks that repeat, change the table, resize it: lines and table are those of a decoder without memory."""
    encoder, plain, ours = Encoder(), Decoder(10**6), Decoder(10**6)
    reader = HeaderBlockReader(ours)
    for which, huffman, table_size, cuts, padding, priority in order:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(lists[which % len(lists)], huffman=huffman)
        *head, last = framed(block, cuts, padding=padding, priority=priority)
        for frame in head:
            assert reader.receive(frame) is None
            assert reader.is_amid
        got = reader.receive(last)
        assert not reader.is_amid
        expected = [(bytes(line[0]), bytes(line[1])) for line in plain.decode(block, raw=True)]
        assert got == HeaderBlock(1, expected, True)
        assert list(ours.header_table.dynamic_entries) == list(plain.header_table.dynamic_entries)


HEADERS = Frame(frames.HEADERS, 0, 1, b"")


@pytest.mark.parametrize(
    ("received", "code"),
    [
        ([HEADERS, Frame(frames.CONTINUATION, frames.END_HEADERS, 3, b"")], ErrorCodes.PROTOCOL_ERROR),
        ([HEADERS, Frame(frames.DATA, 0, 1, b"")], ErrorCodes.PROTOCOL_ERROR),
        ([HEADERS, HEADERS], ErrorCodes.PROTOCOL_ERROR),
        ([Frame(frames.HEADERS, frames.PRIORITY, 1, b"1234")], ErrorCodes.FRAME_SIZE_ERROR),
        ([Frame(frames.HEADERS, frames.PADDED, 1, b"\x05abcd")], ErrorCodes.PROTOCOL_ERROR),
        ([Frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff")], ErrorCodes.COMPRESSION_ERROR),
        ([Frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xbe")], ErrorCodes.COMPRESSION_ERROR),  # an empty table
        ([HEADERS] + [Frame(frames.CONTINUATION, 0, 1, b"")] * (MAX_FRAMES - 1), ErrorCodes.ENHANCE_YOUR_CALM),
    ],
)
def test_frames_that_make_no_block_end_the_connection(received: list[Frame], code: ErrorCodes) -> None:
    """RFC 9113, 4.3, 6.2 and 6.10; the last frame of each list is the one too many."""
    reader = HeaderBlockReader(Decoder())
    for frame in received[:-1]:
        assert reader.receive(frame) is None
    with pytest.raises(FrameRefused) as caught:
        reader.receive(received[-1])
    assert caught.value.code == code


def test_header_list_above_the_limit_is_refused() -> None:
    """A short block that refers to one long line many times does not become megabytes."""
    reader = HeaderBlockReader(Decoder(max_header_list_size=65_536))
    block = Encoder().encode([(b"x", b"v" * 3000)] * 30)
    assert len(block) < 4000
    with pytest.raises(FrameRefused) as caught:
        reader.receive(Frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM
