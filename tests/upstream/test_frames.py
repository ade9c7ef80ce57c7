"""The frame splitter: any split of the bytes gives the same frames."""

import itertools

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, RstStreamFrame, WindowUpdateFrame
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream import frames
from gateway.upstream.frames import Frame, FrameRefused, FrameSplitter


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


FRAMES = st.builds(
    raw_frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60)
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 600), max_size=12))
def test_split_at_any_byte_yields_same_frames(parts: list[bytes], cuts: list[int]) -> None:
    """However the bytes arrive, every frame comes out once, whole and in order."""
    data = b"".join(parts)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = FrameSplitter(60)
    got = [f for a, b in itertools.pairwise(edges) for f in splitter.feed(data[a:b])]
    assert len(got) == len(parts)
    for frame, raw in zip(got, parts, strict=True):
        assert frame.kind == raw[3]
        assert frame.flags == raw[4]
        assert frame.stream_id == int.from_bytes(raw[5:9], "big") & 0x7FFFFFFF
        assert frame.payload == raw[9:]
        assert frame.raw == raw[:5] + frame.stream_id.to_bytes(4, "big") + raw[9:]


def test_frame_above_the_limit_is_refused_at_its_header() -> None:
    """The frames before it come out first; its payload is not waited for."""
    whole = raw_frame(0, 0, 1, b"0123456789")
    got = iter(FrameSplitter(10).feed(whole + raw_frame(0, 0, 1, b"0123456789a")[:9]))
    assert next(got) == Frame(0, 0, 1, b"0123456789")
    with pytest.raises(FrameRefused) as caught:
        next(got)
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


def test_own_frames_are_what_hyperframe_writes() -> None:
    """The frames that are written by hand match the reference."""
    assert frames.window_update(7, 70_000) == WindowUpdateFrame(7, window_increment=70_000).serialize()
    assert frames.rst_stream(7, 8) == RstStreamFrame(7, error_code=8).serialize()
    assert frames.data(9, b"", end_stream=True) == DataFrame(9, flags=["END_STREAM"]).serialize()
    long = b"d" * 16_000
    assert frames.data(2**31 - 1, memoryview(long), end_stream=False) == DataFrame(2**31 - 1, data=long).serialize()


@pytest.mark.parametrize("size", [0, 1, 10, 11, 20, 21, 35])
@pytest.mark.parametrize("end_stream", [True, False])
def test_header_block_of_any_length_is_written_in_frames_that_fit(size: int, end_stream: bool) -> None:
    """One HEADERS frame with END_STREAM or not, CONTINUATIONs as needed, END_HEADERS on the last alone."""
    block = bytes(range(size))
    written = frames.headers(5, block, end_stream=end_stream, max_payload_bytes=10)
    got = list(FrameSplitter(10).feed(written))
    assert b"".join(frame.payload for frame in got) == block
    assert [frame.kind for frame in got] == [frames.HEADERS] + [frames.CONTINUATION] * (len(got) - 1)
    assert {frame.stream_id for frame in got} == {5}
    assert [bool(frame.flags & frames.END_HEADERS) for frame in got] == [False] * (len(got) - 1) + [True]
    assert [bool(frame.flags & frames.END_STREAM) for frame in got] == [end_stream] + [False] * (len(got) - 1)


@given(st.binary(max_size=300), st.none() | st.integers(0, 255))
def test_padding_is_taken_off(data: bytes, padding: int | None) -> None:
    """What hyperframe pads comes out as it was."""
    frame = DataFrame(1, data=data, **({} if padding is None else {"flags": ["PADDED"], "pad_length": padding}))
    (got,) = FrameSplitter(1000).feed(frame.serialize())
    assert got.unpadded() == data


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", ErrorCodes.FRAME_SIZE_ERROR),
        (b"\x01", ErrorCodes.PROTOCOL_ERROR),
        (b"\x04abc", ErrorCodes.PROTOCOL_ERROR),
    ],
)
def test_padding_longer_than_its_frame_is_refused(payload: bytes, code: ErrorCodes) -> None:
    """RFC 9113, 6.1: a connection error."""
    with pytest.raises(FrameRefused) as caught:
        Frame(frames.DATA, frames.PADDED, 1, payload).unpadded()
    assert caught.value.code == code
