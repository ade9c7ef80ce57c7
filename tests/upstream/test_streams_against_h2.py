"""The life of streams against plain h2: the same frames come to the same events, and to no milder verdict."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import h2.events as h2e
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import SettingsFrame
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.upstream import frames
from gateway.upstream.connection import Connection
from gateway.upstream.errors import StreamReset as StreamResetError
from gateway.upstream.errors import UpstreamError
from gateway.upstream.frames import Frame, FrameSplitter
from gateway.upstream.observer import SilentObserver
from gateway.upstream.origin import Origin, PoolSettings
from gateway.upstream.pool import Pool
from gateway.upstream.request import Headers, Request
from gateway.upstream.stream import Stream
from tests.upstream.wire import Owner, Wire

ORIGIN = Origin.parse("h2c://twin")
SETTINGS = PoolSettings()
UPLOADING = 5  # the stream whose body is not let out
OPENED = (1, 3, UPLOADING)
Event = tuple[int, str, object]


@dataclass
class Notes:
    """Writes down what the receiver of one stream is told."""

    stream_id: int
    log: list[Event]
    ending: UpstreamError | None = field(default=None, init=False)

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.log.append((self.stream_id, "head", (status, headers)))

    def data_received(self, data: bytes) -> None:
        self.log.append((self.stream_id, "data", data))

    def stream_ended(self) -> None:
        self.log.append((self.stream_id, "end", None))

    def stream_failed(self, error: UpstreamError) -> None:
        self.ending = error
        if isinstance(error, StreamResetError):
            self.log.append((self.stream_id, "reset", error.code))
        else:
            self.log.append((self.stream_id, "violated", None))


class Twins:
    """Ours and plain h2, each with the same three requests under way to the same peer."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.log: list[Event] = []
        self.reset_ids: set[int] = set()
        self.connection = Connection(tls=False, settings=SETTINGS, owner=Owner(), observer=SilentObserver())
        self.connection.connection_made(self.wire)
        self.h2 = H2Connection(H2Configuration(header_encoding=None))
        self.h2.local_settings[SettingCodes.ENABLE_PUSH] = 0
        self.h2.initiate_connection()
        greeting = SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: 10}).serialize()
        self.connection.data_received(greeting)
        self.h2.receive_data(greeting)
        self.h2.local_settings.acknowledge()
        self.connection.pause_writing()
        self.notes = {stream_id: Notes(stream_id, self.log) for stream_id in OPENED}
        pool = Pool(ORIGIN)
        for stream_id, notes in self.notes.items():
            body = b"b" * 20 if stream_id == UPLOADING else b""
            request = Request.build(ORIGIN, "POST", "/", Headers(b""), body)
            self.connection.open(Stream(pool, request, notes, deadline_s=0))
            lines = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "twin")]
            self.h2.send_headers(stream_id, lines, end_stream=not body)
        self.connection.flush()

    def receive(self, frame: bytes) -> tuple[list[Event], list[Event] | None]:
        """Give both the frame; returns what ours says and what h2 says, None for a connection error."""
        self.reset_ids |= {stream_id for stream_id, what, _ in self.log if what in ("reset", "violated")}
        self.log.clear()
        self.connection.data_received(frame)
        try:
            events = list(self._translated(self.h2.receive_data(frame)))
        except Exception:  # whatever it is that h2 raises, the connection is at its end
            return list(self.log), None
        return list(self.log), events

    def _translated(self, events: list[h2e.Event]) -> Iterator[Event]:
        for event in events:
            match event:
                case h2e.ResponseReceived(stream_id=stream_id, headers=[(_, status), *headers]):
                    yield stream_id, "head", (int(status), headers)
                case h2e.DataReceived(stream_id=stream_id, data=data):
                    if data:
                        yield stream_id, "data", data
                case h2e.StreamEnded(stream_id=stream_id):
                    yield stream_id, "end", None
                    if stream_id == UPLOADING:  # as ours does when the answer is complete and the request is not
                        self.h2.reset_stream(stream_id)
                case h2e.StreamReset(stream_id=stream_id, error_code=code, remote_reset=True):
                    yield stream_id, "reset", int(code or 0)
                case h2e.StreamReset(stream_id=stream_id):
                    yield stream_id, "violated", None
                case _:
                    pass


HEADS = st.sampled_from(
    [
        [(":status", "200")],
        [(":status", "200"), ("x-a", "1")],
        [(":status", "200"), ("content-length", "10")],
        [(":status", "103"), ("link", "x")],
        [("x-trailer", "1")],
        [(":status", "200"), ("Upper", "case")],
        [(":status", "200"), ("connection", "close")],
        [],
    ]
)
STREAM_IDS = st.sampled_from([*OPENED, *OPENED, *OPENED, 0, 2, 7])
FLAGS = st.sampled_from([0, 0, frames.END_STREAM])


def headers_frame(stream_id: int, lines: list[tuple[str, str]], flags: int) -> tuple[Frame, ...]:
    block = Encoder().encode(lines)
    half = len(block) // 2
    if len(block) > 20:
        return (
            Frame(frames.HEADERS, flags, stream_id, block[:half]),
            Frame(frames.CONTINUATION, frames.END_HEADERS, stream_id, block[half:]),
        )
    return (Frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, block),)


FRAMES = st.one_of(
    st.builds(headers_frame, STREAM_IDS, HEADS, FLAGS),
    st.builds(
        lambda stream_id, size, flags: (Frame(frames.DATA, flags, stream_id, b"d" * size),),
        STREAM_IDS,
        st.sampled_from([0, 1, 5, 10, 11]),
        FLAGS,
    ),
    st.builds(
        lambda stream_id, pad, data: (
            Frame(frames.DATA, frames.PADDED, stream_id, bytes([pad]) + data + b"\0" * (pad % 9)),
        ),
        STREAM_IDS,
        st.integers(0, 9),
        st.binary(max_size=5),
    ),
    st.builds(
        lambda stream_id, code: (Frame(frames.RST_STREAM, 0, stream_id, code.to_bytes(4, "big")),),
        STREAM_IDS,
        st.sampled_from([0, 2, 7, 8, 99]),
    ),
    st.builds(
        lambda stream_id, payload: (Frame(frames.WINDOW_UPDATE, 0, stream_id, payload),),
        STREAM_IDS,
        # The reserved bit stays 0: to h2 it is part of the number (RFC 9113, 6.9).
        st.sampled_from([by.to_bytes(4, "big") for by in (0, 1, 2**31 - 11, 2**31 - 1)]) | st.binary(max_size=3),
    ),
    st.builds(
        lambda kind, stream_id, payload: (Frame(kind, 0, stream_id, payload),),
        st.sampled_from([2, 3, 5, 6, 9, 10, 0xFA]),  # PRIORITY, PUSH_PROMISE, PING, ALTSVC and those of no known kind
        STREAM_IDS,
        st.binary(max_size=9),
    ),
)


@given(st.lists(FRAMES, max_size=14))
@example([headers_frame(1, [(":status", "200")], frames.END_STREAM), headers_frame(1, [("x-trailer", "1")], 1)])
@example([(Frame(3, 0, 1, b"\0\0\0\2"),), headers_frame(1, [(":status", "200")], 0)])
@example([headers_frame(5, [(":status", "413")], 1), headers_frame(5, [(":status", "200")], 0)])
@settings(max_examples=300, deadline=None)
def test_frames_of_any_order_come_to_the_events_of_h2(script: list[tuple[Frame, ...]]) -> None:
    """Open, ended, reset and idle streams; where h2 ends the connection, ours ends it or the stream with RST_STREAM."""

    async def play() -> None:
        twins = Twins()
        for frame in (frame for group in script for frame in group):
            twins.wire.sent.clear()
            ours, theirs = twins.receive(frame.raw)
            is_over = twins.connection.session.is_closed
            if ours == theirs and not is_over:
                continue
            sent = [f.kind for f in FrameSplitter(2**24).feed(bytes(twins.wire.sent))]
            if is_over:
                assert frames.GOAWAY in sent
                assert theirs is None or is_stricter_than_h2(frame)
            elif not ours:
                # h2 ends the connection over a 1xx that crossed a reset, which nobody is to blame for (5.1).
                assert theirs is None
                assert frame.kind in (frames.HEADERS, frames.CONTINUATION)
                assert frame.stream_id in twins.reset_ids
            else:
                # A malformed answer is an error of the stream (RFC 9113, 8.1.1).
                assert ours[-1] == (frame.stream_id, "violated", None)
                assert frames.RST_STREAM in sent
                # A head with a content-length that ends the stream is in order to h2.
                assert theirs is None or theirs == [*ours[:-1], (frame.stream_id, "end", None)]
            break
        twins.connection.abort()
        twins.connection.connection_lost(None)

    asyncio.run(play())


def is_stricter_than_h2(frame: Frame) -> bool:
    """h2 passes over RST_STREAM on an idle stream (RFC 9113, 6.4), and hears a promise to its end (6.6)."""
    is_idle = frame.stream_id not in OPENED
    return frame.kind == frames.PUSH_PROMISE or (frame.kind == frames.RST_STREAM and is_idle)
