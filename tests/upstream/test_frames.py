"""The frame splitter: any split of the bytes gives the same frames."""

import itertools

import pytest
from hyperframe.frame import DataFrame, WindowUpdateFrame
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.frames import Frame, FrameSplitter, FrameTooLong, end_of_stream, window_update


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
    assert [frame.raw for frame in got] == parts
    for frame in got:
        assert frame.kind == frame.raw[3]
        assert frame.flags == frame.raw[4]
        assert frame.stream_id == int.from_bytes(frame.raw[5:9], "big") & 0x7FFFFFFF


def test_frame_above_the_limit_is_refused_at_its_header() -> None:
    """The frames before it come out first; its payload is not waited for."""
    whole = raw_frame(0, 0, 1, b"0123456789")
    frames = FrameSplitter(10).feed(whole + raw_frame(0, 0, 1, b"0123456789a")[:9])
    assert next(frames) == Frame(0, 0, 1, whole)
    with pytest.raises(FrameTooLong):
        next(frames)


def test_own_frames_are_what_hyperframe_writes() -> None:
    """The two frames that are written by hand match the reference."""
    assert window_update(7, 70_000) == WindowUpdateFrame(7, window_increment=70_000).serialize()
    assert end_of_stream(9) == DataFrame(9, flags=["END_STREAM"]).serialize()
