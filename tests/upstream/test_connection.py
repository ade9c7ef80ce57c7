"""One connection: streams, resets, GOAWAY, flow control both ways, PING."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, WindowUpdateFrame

from gateway.upstream.errors import (
    ConnectionLost,
    GoneAway,
    PingTimedOut,
    ProtocolViolated,
    ReceiverRaised,
    StreamReset,
)
from gateway.upstream.observer import CloseReason, SilentObserver
from gateway.upstream.pool import Pool, PoolSettings
from tests.upstream.peer import PATIENCE_S, Exchange, Handler, Link, Peer, answer_hello
from tests.upstream.recorder import Recorder

SETTINGS = PoolSettings(connect_timeout_s=PATIENCE_S)


class Counts(SilentObserver):
    """Counts what the connection reports."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[CloseReason] = []
        self.streams = 0
        self.resets: list[tuple[int, bool]] = []
        self.goaways: list[int] = []
        self.changed = asyncio.Event()

    def connection_opened(self) -> None:
        self.opened += 1

    def connection_closed(self, reason: CloseReason) -> None:
        self.closed.append(reason)
        self.changed.set()

    def stream_opened(self) -> None:
        self.streams += 1

    def stream_closed(self) -> None:
        self.streams -= 1

    def stream_reset(self, code: int, *, by_peer: bool) -> None:
        self.resets.append((code, by_peer))

    def goaway_received(self, code: int) -> None:
        self.goaways.append(code)
        self.changed.set()


@contextlib.asynccontextmanager
async def serving(
    handler: Handler = answer_hello,
    *,
    settings: PoolSettings = SETTINGS,
    limit: int = 100,
    window: int = 65_535,
    tls: bool = True,
    credits: bool = True,
    observer: Counts | None = None,
) -> AsyncIterator[tuple[Peer, Pool]]:
    """A server and a pool to it."""
    offered = {SettingCodes.MAX_CONCURRENT_STREAMS: limit, SettingCodes.INITIAL_WINDOW_SIZE: window}
    async with Peer(handler, settings=offered, tls=tls, credits=credits) as peer:
        pool = Pool(peer.url, settings=settings, ssl_context=peer.client_tls, observer=observer)
        try:
            yield peer, pool
            assert [error for link in peer.links for error in link.errors] == []
        finally:
            await pool.aclose()


class Gate:
    """A handler that answers, sends one item and holds the stream until let go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond()
        await exchange.send(b"first")
        await self.open.wait()
        await exchange.send(b"last", end=True)


async def silence(exchange: Exchange) -> None:
    """Take the request and say nothing."""
    await exchange.until_complete()


@pytest.mark.parametrize("tls", [True, False])
async def test_request_over_tls_and_h2c_gets_its_answer(tls: bool) -> None:
    """Both schemes carry method, path, headers and body up, and status, headers and body down."""
    async with serving(tls=tls) as (peer, pool):
        answer = await Recorder().open(pool, path="/a?b=c", headers=[(b"X-One", b"1")], body=b"question")
        assert await answer.until_closed() is None
        assert (answer.status, answer.headers, answer.body) == (200, [(b"content-type", b"text/plain")], b"hello")
        (exchange,) = peer.exchanges
        assert exchange.headers == {
            b":method": b"POST",
            b":scheme": b"https" if tls else b"http",
            b":authority": f"localhost:{peer.port}".encode(),
            b":path": b"/a?b=c",
            b"x-one": b"1",
        }
        assert exchange.body == b"question"


async def test_connection_announces_its_windows_and_no_push() -> None:
    """SETTINGS say 65,535 a stream, no push, 16 KiB frames; the connection window is 16 MiB at once."""
    async with serving() as (peer, pool):
        await (await Recorder().open(pool)).until_closed()
        (link,) = peer.links
        seen = link.h2.remote_settings
        assert (seen.initial_window_size, seen.enable_push, seen.max_frame_size) == (65_535, 0, 16_384)
        assert link.h2.outbound_flow_control_window + len(b"hello") == 16 * 1024 * 1024


async def test_socket_has_nodelay() -> None:
    """Small frames are not held back by Nagle's algorithm."""
    async with serving() as (_, pool):
        await (await Recorder().open(pool)).until_closed()
        transport = pool._connections[0].transport
        assert transport is not None
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_cancel_in_mid_body_resets_the_stream_at_once() -> None:
    """The server sees RST_STREAM(CANCEL), its stream is gone, and no callback follows."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        answer.cancel()
        answer.cancel()
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL
        assert peer.links[0].open_ids == set()
        assert pool.facts.streams == 0
        await (await Recorder().open(pool)).until_answered()
        assert answer.endings == []


async def test_cancel_before_headers_resets_the_stream_at_once() -> None:
    """Leaving while the vendor still thinks is seen by it as well."""
    async with serving(silence) as (peer, pool):
        answer = await Recorder().open(pool)
        await peer.until(lambda: bool(peer.exchanges) and peer.exchanges[0].is_complete)
        answer.cancel()
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL
        assert answer.endings == []


async def test_cancel_in_the_tick_of_opening_still_resets() -> None:
    """A stream that is left before its HEADERS were flushed leaves nothing open on the server."""
    async with serving() as (peer, pool):
        await (await Recorder().open(pool)).until_closed()
        answer = await Recorder().open(pool)
        answer.cancel()
        await peer.until(lambda: len(peer.exchanges) == 2 and peer.exchanges[1].reset_code == ErrorCodes.CANCEL)


async def test_many_cancels_in_a_row_leave_a_healthy_connection() -> None:
    """250 cancelled streams, half of them before headers, use one connection and leave none open."""
    gate = Gate()

    async def handler(exchange: Exchange) -> None:
        if exchange.headers[b":path"] == b"/quiet":
            await silence(exchange)
        elif exchange.headers[b":path"] == b"/hello":
            await answer_hello(exchange)
        else:
            await gate(exchange)

    async with serving(handler) as (peer, pool):
        for turn in range(250):
            answer = await Recorder().open(pool, path="/quiet" if turn % 2 else "/chat")
            if turn % 2 == 0:
                await answer.until_bytes(5)
            answer.cancel()
        last = await Recorder().open(pool, path="/hello")
        assert await last.until_closed() is None
        assert len(peer.links) == 1
        assert peer.links[0].open_ids == set()


@pytest.mark.parametrize("limit", [3, 100])
async def test_requests_in_a_row_are_forgotten_and_leave_the_header_table_empty(limit: int) -> None:
    """After 200 requests no stream is kept or counted against the peer, whose table holds nothing of ours."""
    async with serving(settings=replace(SETTINGS, max_connections=1), limit=limit) as (peer, pool):
        for turn in range(0, 200, 5):
            answers = [Recorder() for _ in range(5)]
            await asyncio.gather(*(answer.open(pool, path=f"/{turn}/{n}") for n, answer in enumerate(answers)))
            for answer in answers:
                assert await answer.until_closed() is None
        assert len(peer.links) == 1
        assert [exchange.headers[b":path"] for exchange in peer.exchanges[-1:]] == [b"/195/4"]
        session = pool._connections[0].session
        assert (session.streams, session._left, session._unwritten) == ({}, {}, [])
        table = peer.links[0].h2.decoder.header_table
        assert (table.maxsize, len(table.dynamic_entries)) == (0, 0)


async def test_header_table_of_the_peer_may_change_its_size() -> None:
    """A peer that lowers SETTINGS_HEADER_TABLE_SIZE insists on hearing of it (RFC 7541, 4.2); ours is at 0 already."""
    sizes: list[int] = []

    async def handler(exchange: Exchange) -> None:
        sizes.append(exchange.link.h2.decoder.max_allowed_table_size)
        await answer_hello(exchange)
        exchange.link.change_settings({SettingCodes.HEADER_TABLE_SIZE: 100 * len(sizes)})

    async with serving(handler) as (peer, pool):
        for _ in range(3):
            answer = await Recorder().open(pool, headers=[(b"x-plain", b"seen")])
            assert await answer.until_closed() is None
            await peer.until(lambda: peer.links[0].h2.decoder.max_allowed_table_size == 100 * len(sizes))
        assert sizes == [4096, 100, 200]


async def test_late_data_of_a_cancelled_stream_gets_no_reset_each_and_no_window_leaks() -> None:
    """What is under way when we leave is dropped silently, and its connection credit returned."""
    resumed = asyncio.Event()
    settings = replace(SETTINGS, connection_window_bytes=65_535)

    async def handler(exchange: Exchange) -> None:
        if exchange.headers[b":path"] == b"/hello":
            await answer_hello(exchange)
            return
        exchange.respond()
        await exchange.send(b"x")
        await resumed.wait()
        for _ in range(50):  # as if they had crossed our reset
            exchange.link.send_frame(DataFrame(exchange.stream_id, data=b"y" * 1000))
            exchange.link.h2.outbound_flow_control_window -= 1000

    counts = Counts()
    async with serving(handler, settings=settings, observer=counts) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(1)
        answer.cancel()
        resumed.set()
        (link,) = peer.links
        await peer.until(lambda: resumed.is_set() and link.h2.outbound_flow_control_window < 65_535)
        assert await (await Recorder().open(pool, path="/hello")).until_closed() is None
        await peer.until(
            lambda: link.h2.outbound_flow_control_window == 65_535 - pool._connections[0].session.uncredited_bytes
        )
        assert counts.resets == [(ErrorCodes.CANCEL, False)]
        assert link.resets == [ErrorCodes.CANCEL]


async def test_reset_by_the_peer_fails_that_stream_only() -> None:
    """RST_STREAM carries its code to one receiver; a neighbour goes on, what came before stays."""
    gate = Gate()

    async def handler(exchange: Exchange) -> None:
        if exchange.headers[b":path"] == b"/bad":
            exchange.respond()
            await exchange.send(b"part")
            exchange.reset(ErrorCodes.INTERNAL_ERROR)
        else:
            await gate(exchange)

    async with serving(handler) as (peer, pool):
        good, bad = await Recorder().open(pool), await Recorder().open(pool, path="/bad")
        error = await bad.until_closed()
        assert isinstance(error, StreamReset)
        assert (error.code, error.processed, bad.body) == (ErrorCodes.INTERNAL_ERROR, True, b"part")
        gate.open.set()
        assert await good.until_closed() is None
        assert len(peer.links) == 1


async def test_graceful_goaway_lets_streams_finish_and_sends_new_ones_elsewhere() -> None:
    """20 streams in flight end cleanly after GOAWAY; the next request opens a second connection; the first closes."""
    gate, counts = Gate(), Counts()
    async with serving(gate, observer=counts) as (peer, pool):
        answers = [await Recorder().open(pool) for _ in range(20)]
        for answer in answers:
            await answer.until_bytes(5)
        peer.links[0].goaway(last_id=39)
        await asyncio.wait_for(counts.changed.wait(), PATIENCE_S)
        late = await Recorder().open(pool)
        await late.until_bytes(5)
        assert [len(link.exchanges) for link in peer.links] == [20, 1]
        assert (pool.facts.connections, pool.facts.draining, pool.facts.streams) == (1, 1, 21)
        gate.open.set()
        for answer in [*answers, late]:
            assert await answer.until_closed() is None
            assert answer.body == b"firstlast"
        await peer.until(lambda: peer.links[0].is_lost)
        assert pool.facts.draining == 0
        assert counts.goaways == [0]
        assert counts.closed == [CloseReason.GOAWAY]


async def test_goaway_in_two_steps_lets_streams_finish() -> None:
    """A shutdown notice with the highest id, then the real one (RFC 9113, 6.8), harms no stream."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        peer.links[0].goaway(last_id=2**31 - 1)
        peer.links[0].goaway(last_id=1)
        gate.open.set()
        assert await answer.until_closed() is None
        assert answer.body == b"firstlast"


async def test_streams_above_the_last_id_are_sent_again_on_another_connection() -> None:
    """The peer never acts on them, so the caller sees nothing but the answer."""
    gate = Gate()

    async def handler(exchange: Exchange) -> None:
        if exchange.link is exchange.link.peer.links[0] and exchange.stream_id > 1:
            return
        await gate(exchange)

    async with serving(handler) as (peer, pool):
        answers = [await Recorder().open(pool) for _ in range(3)]
        await answers[0].until_bytes(5)
        await peer.until(lambda: len(peer.exchanges) == 3)
        peer.links[0].goaway(last_id=1)
        for answer in answers:
            await answer.until_bytes(5)
        gate.open.set()
        assert [await answer.until_closed() for answer in answers] == [None] * 3
        assert len(peer.links[1].exchanges) == 2


async def test_stream_above_the_last_id_with_an_answer_begun_fails_unprocessed() -> None:
    """A receiver that has had headers must not get a second answer; the error still says it may be sent again."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        peer.links[0].goaway(last_id=0)
        error = await answer.until_closed()
        assert isinstance(error, GoneAway)
        assert not error.processed
        assert len(peer.exchanges) == 1


async def test_connection_cut_fails_every_stream_as_perhaps_processed() -> None:
    """Without GOAWAY nobody knows what the peer did; nothing is sent again."""
    async with serving(silence) as (peer, pool):
        answers = [await Recorder().open(pool) for _ in range(3)]
        await peer.until(lambda: len(peer.exchanges) == 3)
        peer.links[0].cut()
        for answer in answers:
            error = await answer.until_closed()
            assert isinstance(error, ConnectionLost)
            assert error.processed
        assert len(peer.exchanges) == 3


async def test_connection_cut_before_headers_were_written_sends_the_request_again() -> None:
    """A request that never left this process may be sent again, and is."""
    async with serving() as (peer, pool):
        await (await Recorder().open(pool)).until_closed()
        transport = pool._connections[0].transport
        assert transport is not None
        transport.abort()  # connection_lost is due in the next tick, before the flush
        answer = await Recorder().open(pool)
        assert await answer.until_closed() is None
        assert len(peer.links) == 2


async def test_goaway_with_an_error_then_a_cut_names_the_reason() -> None:
    """The streams up to the last id learn why their connection went."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        peer.links[0].goaway(last_id=1, code=ErrorCodes.ENHANCE_YOUR_CALM)
        assert peer.links[0].transport is not None
        peer.links[0].transport.close()
        error = await answer.until_closed()
        assert isinstance(error, ConnectionLost)
        assert "ENHANCE_YOUR_CALM" in str(error)


async def test_stalled_receivers_hold_one_window_each_and_stall_nobody_else() -> None:
    """40 receivers that consume nothing cost 64 KiB each; a live stream gets megabytes meanwhile."""
    size = 3_000_000

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond()
        await exchange.send(b"z" * size, end=True)

    settings = replace(SETTINGS, connection_window_bytes=1024 * 1024)  # less than what the stalled ones hold
    async with serving(handler, settings=settings) as (peer, pool):
        stalled = [await Recorder(stalls=True).open(pool) for _ in range(40)]
        for answer in stalled:
            await answer.until_bytes(65_535)
        live = await Recorder().open(pool)
        assert await live.until_closed() is None
        assert live.received_bytes == size
        assert {answer.received_bytes for answer in stalled} == {65_535}
        assert len(peer.links) == 1
        stalled[0].catch_up()
        assert await stalled[0].until_closed() is None
        assert stalled[0].received_bytes == size


@pytest.mark.parametrize("pad", [None, 0, 200])
async def test_padding_and_content_length_leak_no_window(pad: int | None) -> None:
    """Padding counts for flow control but is nobody's data; several windows' worth passes."""
    size = 300_000

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond(headers=[("content-length", str(size))])
        for begin in range(0, size, 1000):
            while exchange.link.h2.local_flow_control_window(exchange.stream_id) < 1300:
                seen = exchange.link.h2.local_flow_control_window(exchange.stream_id)
                await exchange.link.until(
                    lambda: exchange.link.h2.local_flow_control_window(exchange.stream_id) > seen  # noqa: B023 - awaited in this round
                )
            await exchange.send(b"p" * 1000, end=begin + 1000 == size, pad=pad)

    settings = replace(SETTINGS, connection_window_bytes=100_000)
    async with serving(handler, settings=settings) as (peer, pool):
        answer = await Recorder().open(pool)
        assert await answer.until_closed() is None
        assert answer.received_bytes == size
        (link,) = peer.links
        await peer.until(
            lambda: link.h2.outbound_flow_control_window == 100_000 - pool._connections[0].session.uncredited_bytes
        )


async def test_credit_that_falls_due_at_the_last_frame_is_let_go() -> None:
    """With a content-length, half a window may be full just as the stream closes; the answer is whole all the same."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond(headers=[("content-length", "40000")])
        await exchange.send(b"c" * 40_000, end=True)

    async with serving(handler) as (_, pool):
        answer = await Recorder().open(pool)
        assert await answer.until_closed() is None
        assert answer.received_bytes == 40_000


@pytest.mark.parametrize("sent", [b"short", b"much too long a body"])
async def test_content_length_mismatch_fails_that_stream_only(sent: bytes) -> None:
    """A malformed answer is a stream error (RFC 9113, 8.1.1): its neighbours live on."""
    gate = Gate()

    async def handler(exchange: Exchange) -> None:
        if exchange.headers[b":path"] != b"/bad":
            await gate(exchange)
            return
        await exchange.until_complete()
        exchange.respond(headers=[("content-length", "10")])
        await exchange.send(sent, end=True)

    async with serving(handler) as (peer, pool):
        good, bad = await Recorder().open(pool), await Recorder().open(pool, path="/bad")
        await good.until_bytes(5)
        assert isinstance(await bad.until_closed(), ProtocolViolated)
        gate.open.set()
        assert await good.until_closed() is None
        assert len(peer.links) == 1


async def test_interim_answers_and_trailers_do_not_reach_the_receiver() -> None:
    """A 103 before and trailers after leave one status, one body, one end."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond(103, [("link", "</x>")])
        exchange.respond(200)
        await exchange.send(b"body")
        exchange.link.h2.send_headers(exchange.stream_id, [("x-checksum", "1")], end_stream=True)
        exchange.link.flush()

    async with serving(handler) as (_, pool):
        answer = await Recorder().open(pool)
        assert await answer.until_closed() is None
        assert (answer.status, answer.body) == (200, b"body")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_answer_without_body_ends(method: str) -> None:
    """END_STREAM on HEADERS is an end; a HEAD's content-length promises nothing."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [("content-length", "500")] if method == "HEAD" else [], end=True)

    async with serving(handler) as (_, pool):
        answer = await Recorder().open(pool, method=method, body=b"")
        assert await answer.until_closed() is None
        assert (answer.status, answer.chunks) == (200, [])


async def test_large_headers_use_continuation_both_ways() -> None:
    """40 KB of headers up and down arrive whole."""
    long = "v" * 40_000

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond(headers=[("x-long", exchange.headers[b"x-long"].decode())])
        await exchange.send(b"ok", end=True)

    async with serving(handler) as (_, pool):
        answer = await Recorder().open(pool, headers=[(b"x-long", long.encode())])
        assert await answer.until_closed() is None
        assert answer.headers == [(b"x-long", long.encode())]


@pytest.mark.parametrize("window", [0, 1, 1000, 65_535, 4_000_000])
async def test_large_body_goes_up_through_windows_of_any_size(window: int) -> None:
    """1 MiB arrives whole, also when the window starts at 0 and is changed by SETTINGS on the way."""
    body = bytes(range(256)) * (4096 if window > 1 else 8)

    async def handler(exchange: Exchange) -> None:
        if window == 0:
            exchange.link.change_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5000})
        await exchange.until_complete()
        exchange.respond()
        await exchange.send(b"ok", end=True)

    async with serving(handler, window=window) as (peer, pool):
        answers = [await Recorder().open(pool, body=body) for _ in range(3)]
        assert [await answer.until_closed() for answer in answers] == [None] * 3
        assert all(exchange.body == body for exchange in peer.exchanges)


async def test_upload_obeys_a_window_lowered_below_what_was_sent() -> None:
    """A negative window stops the upload and kills nothing; raising it again lets it finish."""
    body = b"u" * 200_000

    async def handler(exchange: Exchange) -> None:
        link, h2 = exchange.link, exchange.link.h2
        await link.until(lambda: len(exchange.body) == 50_000)
        link.change_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        link.ping(b"lowered!")
        await link.until(lambda: link.pongs == [b"lowered!"])
        assert len(exchange.body) == 50_000
        h2.increment_flow_control_window(1_000_000)
        h2.increment_flow_control_window(1_000_000, exchange.stream_id)
        link.flush()
        await exchange.until_complete()
        exchange.respond(end=True)

    async with serving(handler, window=50_000, credits=False) as (peer, pool):
        answer = await Recorder().open(pool, body=body)
        assert await answer.until_closed() is None
        assert peer.exchanges[0].body == body


async def test_upload_to_a_peer_that_does_not_read_is_bounded_and_can_be_cancelled() -> None:
    """With the socket full, no more of the body is turned into frames; leaving frees the stream."""
    body = b"w" * 16_000_000

    async with serving(silence, window=2**31 - 1, tls=False) as (peer, pool):
        await Recorder().open(pool, body=b"")
        await peer.until(lambda: len(peer.exchanges) == 1)
        (link,) = peer.links
        assert link.transport is not None
        link.h2.increment_flow_control_window(2**30)
        link.flush()
        link.ping(b"windows!")
        await peer.until(lambda: link.pongs == [b"windows!"])
        link.transport.pause_reading()
        answer = await Recorder().open(pool, body=body)
        transport = pool._connections[0].transport
        assert transport is not None
        for _ in range(200):
            await asyncio.sleep(0)
        assert answer.stream is not None
        assert len(answer.stream.unsent) > 0
        assert transport.get_write_buffer_size() < 1_000_000
        answer.cancel()
        assert pool.facts.streams == 1
        link.transport.resume_reading()
        await peer.until(lambda: len(peer.exchanges) == 2 and peer.exchanges[1].reset_code == ErrorCodes.CANCEL)


async def test_answer_complete_before_the_upload_ends_the_stream() -> None:
    """A peer that answers without reading the request to its end frees the slot (RFC 9113, 8.1)."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(413)
        await exchange.send(b"too large", end=True)

    async with serving(handler, credits=False) as (peer, pool):
        answer = await Recorder().open(pool, body=b"u" * 1_000_000)
        assert await answer.until_closed() is None
        assert (answer.status, answer.body) == (413, b"too large")
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL
        assert pool.facts.streams == 0


async def test_lowered_stream_limit_hangs_nobody() -> None:
    """With 30 in flight and the limit lowered to 5, those finish and 10 more are served after them."""
    gate = Gate()
    settings = replace(SETTINGS, max_connections=1)
    async with serving(gate, settings=settings, limit=50) as (peer, pool):
        answers = [await Recorder().open(pool) for _ in range(30)]
        for answer in answers:
            await answer.until_bytes(5)
        (link,) = peer.links
        link.change_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 5})
        link.ping(b"lowered!")
        await peer.until(lambda: link.pongs == [b"lowered!"])
        late = [Recorder() for _ in range(10)]
        opening = [asyncio.create_task(recorder.open(pool)) for recorder in late]
        await asyncio.sleep(0)
        assert pool.facts.queued == 10
        gate.open.set()
        await asyncio.gather(*opening)
        for answer in answers + late:
            assert await answer.until_closed() is None
        assert len(peer.links) == 1


async def test_raised_stream_limit_serves_the_queue_at_once() -> None:
    """A limit of 0 makes requests wait; SETTINGS that raise it let them go."""
    async with serving(limit=0) as (peer, pool):
        late = Recorder()
        opening = asyncio.create_task(late.open(pool))
        await peer.until(lambda: bool(peer.links))
        peer.links[0].ping(b"settled!")
        await peer.until(lambda: peer.links[0].pongs == [b"settled!"])
        assert (pool.facts.connections, pool.facts.queued) == (1, 1)
        peer.links[0].change_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        await opening
        assert await late.until_closed() is None
        assert len(peer.links) == 1


async def test_ping_of_the_server_is_answered() -> None:
    """Also on an idle connection."""
    async with serving() as (peer, pool):
        await (await Recorder().open(pool)).until_closed()
        peer.links[0].ping(b"12345678")
        await peer.until(lambda: peer.links[0].pongs == [b"12345678"])


@pytest.mark.parametrize("is_busy", [True, False])
async def test_dead_peer_is_found_by_ping(is_busy: bool) -> None:
    """A peer that answers no PING loses the connection; open streams fail clearly; the next request gets a new one."""
    settings = replace(SETTINGS, ping_interval_s=0.05, ping_timeout_s=0.1)
    counts, gate = Counts(), Gate()
    async with serving(gate, settings=settings, observer=counts) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        if not is_busy:
            gate.open.set()
            assert await answer.until_closed() is None
            answer.endings.clear()
        peer.links[0].is_deaf = True
        await asyncio.wait_for(counts.changed.wait(), PATIENCE_S)
        assert counts.closed == [CloseReason.PING_TIMEOUT]
        if is_busy:
            error = await answer.until_closed()
            assert isinstance(error, PingTimedOut)
            assert error.processed
        gate.open.set()
        assert await (await Recorder().open(pool)).until_closed() is None


async def test_live_peer_keeps_its_connection_through_many_pings() -> None:
    """Silence alone is not death: a peer that answers PINGs keeps its quiet stream."""
    settings = replace(SETTINGS, ping_interval_s=0.02, ping_timeout_s=PATIENCE_S)
    gate, counts = Gate(), Counts()
    async with serving(gate, settings=settings, observer=counts) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        await peer.until(lambda: peer.links[0].pings >= 5)
        gate.open.set()
        assert await answer.until_closed() is None
        assert counts.closed == []


async def test_idle_connection_is_closed_with_goaway() -> None:
    """After the idle time the server is told, and the next request connects anew."""
    counts = Counts()
    async with serving(settings=replace(SETTINGS, idle_timeout_s=0.05), observer=counts) as (peer, pool):
        await (await Recorder().open(pool)).until_closed()
        await peer.until(lambda: peer.links[0].is_lost)
        assert peer.links[0].goaways == [0]
        assert counts.closed == [CloseReason.IDLE]
        assert await (await Recorder().open(pool)).until_closed() is None
        assert len(peer.links) == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x05\x06\x00\x00\x00\x00\x00short",  # PING of 5 bytes
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # DATA of 16 MiB
        b"\x00\x00\x01\x00\x00\x00\x00\x00\x63x",  # DATA on an idle stream
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff",  # HEADERS that HPACK cannot read
        b"\x00\x00\x00\x09\x04\x00\x00\x00\x01",  # CONTINUATION out of the blue
        b"\x00\x00\x04\x07\x00\x00\x00\x00\x00bad!",  # GOAWAY of 4 bytes
        b"\x00\x00\x08\x07\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00",  # GOAWAY on a stream
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # WINDOW_UPDATE by 0
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x00\x00",  # WINDOW_UPDATE by 0, on a stream
        b"\x00\x00\x03\x08\x00\x00\x00\x00\x01\x00\x00\x01",  # WINDOW_UPDATE of 3 bytes
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x63\x00\x00\x00\x01",  # WINDOW_UPDATE on an idle stream
        b"\x00\x00\x04\x03\x00\x00\x00\x00\x02\x00\x00\x00\x00",  # RST_STREAM on a stream of the peer's
        b"\x00\x00\x05\x05\x04\x00\x00\x00\x01\x00\x00\x00\x02\x88",  # PUSH_PROMISE
        b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x02x",  # DATA with more padding than there is room
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x7f\xff\x00\x00"  # WINDOW_UPDATE up to the highest window, then
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff",  # SETTINGS that open it further
        b"\x00\x00\x00\x01\x00\x00\x00\x00\x01" + b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",  # PING amid headers
    ],
)
async def test_broken_frames_fail_the_connection_cleanly(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The peer gets GOAWAY, the streams one clear error, the log nothing from asyncio."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        with caplog.at_level(logging.WARNING):
            peer.links[0].send_raw(garbage)
            error = await answer.until_closed()
            await peer.until(lambda: peer.links[0].is_lost)
        assert isinstance(error, ProtocolViolated)
        assert error.processed
        assert len(peer.links[0].goaways) == 1
        assert peer.links[0].goaways[0] != 0
        ours = ("asyncio", "gateway")  # the thread of another test's exporter may have words of its own
        assert [one for one in caplog.records if one.name.startswith(ours)] == []
        gate.open.set()
        assert await (await Recorder().open(pool)).until_closed() is None


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (HeadersFrame(3, data=b"\x88", flags=["END_HEADERS"]), ErrorCodes.PROTOCOL_ERROR),  # a second head
        (HeadersFrame(3, data=b"\x10\x01X\x01y", flags=["END_HEADERS", "END_STREAM"]), ErrorCodes.PROTOCOL_ERROR),
        (WindowUpdateFrame(3, window_increment=2**31 - 1), ErrorCodes.FLOW_CONTROL_ERROR),
    ],
)
async def test_broken_frames_of_a_stream_fail_that_stream_only(frame: Frame, code: ErrorCodes) -> None:
    """What the RFC calls an error of the stream (8.1.1, 6.9.1) costs its neighbours nothing."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        good, bad = await Recorder().open(pool), await Recorder().open(pool)
        await good.until_bytes(5)
        await bad.until_bytes(5)
        peer.links[0].send_frame(frame)
        error = await bad.until_closed()
        assert isinstance(error, ProtocolViolated)
        assert error.processed
        assert await peer.exchanges[1].until_reset() == code
        gate.open.set()
        assert await good.until_closed() is None
        assert (len(peer.links), peer.links[0].goaways) == (1, [])


async def test_body_before_headers_fails_that_stream_only() -> None:
    """An answer begins with its headers (RFC 9113, 8.1)."""
    gate = Gate()

    async def handler(exchange: Exchange) -> None:
        if exchange.headers[b":path"] != b"/bad":
            await gate(exchange)
            return
        await exchange.until_complete()
        exchange.link.send_frame(DataFrame(exchange.stream_id, data=b"early"))

    async with serving(handler) as (peer, pool):
        good, bad = await Recorder().open(pool), await Recorder().open(pool, path="/bad")
        await good.until_bytes(5)
        assert isinstance(await bad.until_closed(), ProtocolViolated)
        assert await peer.exchanges[1].until_reset() == ErrorCodes.PROTOCOL_ERROR
        gate.open.set()
        assert await good.until_closed() is None


async def test_unknown_frames_are_ignored() -> None:
    """Extensions, and a WINDOW_UPDATE for a stream that is gone, disturb nothing."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        gone = await Recorder().open(pool)
        await gone.until_bytes(5)
        gone.cancel()
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        peer.links[0].send_raw(b"\x00\x00\x06\xfa\x00\x00\x00\x00\x00grease")
        peer.links[0].send_frame(WindowUpdateFrame(1, window_increment=10))
        gate.open.set()
        assert await answer.until_closed() is None


@pytest.mark.parametrize("whole", [True, False])
async def test_peer_that_overruns_a_window_is_refused(whole: bool) -> None:
    """More than a stream's window ends the stream, more than the connection's ends the connection."""
    go = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.respond()
        await exchange.send(b"x")
        await go.wait()
        for _ in range(5):
            exchange.link.send_frame(DataFrame(exchange.stream_id, data=b"y" * 16_000))

    window = 1024 * 1024 if whole else 65_535
    settings = replace(SETTINGS, stream_window_bytes=window, connection_window_bytes=65_535 if whole else 10**7)
    async with serving(handler, settings=settings) as (peer, pool):
        answer = await Recorder(stalls=True).open(pool)
        await answer.until_bytes(1)
        if whole:
            pool._connections[0].session._return_credit = lambda: None  # type: ignore[method-assign]  # for this test
        go.set()
        error = await answer.until_closed()
        assert isinstance(error, ProtocolViolated)
        assert answer.received_bytes <= 65_535
        if whole:
            await peer.until(lambda: peer.links[0].goaways == [ErrorCodes.FLOW_CONTROL_ERROR])
        else:
            assert await peer.exchanges[0].until_reset() == ErrorCodes.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("where", ["headers_received", "data_received", "stream_ended"])
async def test_receiver_that_raises_costs_its_own_stream_only(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A fault in one caller's callback resets that stream and leaves the neighbours alone."""
    gate = Gate()

    class Faulty(Recorder):
        def __getattribute__(self, name: str) -> object:
            if name == where:
                raise ZeroDivisionError
            return super().__getattribute__(name)

    async with serving(gate) as (peer, pool):
        good = await Recorder().open(pool)
        bad = await Faulty().open(pool)
        await good.until_bytes(5)
        if where != "stream_ended":
            assert isinstance(await bad.until_closed(), ReceiverRaised)
            assert await peer.exchanges[1].until_reset() == ErrorCodes.CANCEL
        gate.open.set()
        assert await good.until_closed() is None
        await peer.until(lambda: pool.facts.streams == 0)
        assert "a receiver raised" in caplog.text


async def test_receiver_may_cancel_from_its_own_callback() -> None:
    """Cancelling amid delivery stops it there, whatever else came in the same read."""

    class Leaver(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.cancel()

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        exchange.respond()
        h2 = exchange.link.h2
        h2.send_data(exchange.stream_id, b"one")
        h2.send_data(exchange.stream_id, b"two")
        h2.send_data(exchange.stream_id, b"three", end_stream=True)
        exchange.link.flush()

    async with serving(handler) as (_, pool):
        leaver = Leaver()
        await leaver.open(pool)
        await leaver.until_bytes(3)
        assert await (await Recorder().open(pool)).until_closed() is None
        assert (leaver.chunks, leaver.endings) == ([b"one"], [])


async def test_observer_counts_balance() -> None:
    """Every stream opened is closed, whichever way it ends."""
    gate, counts = Gate(), Counts()
    async with serving(gate, observer=counts) as (peer, pool):
        cancelled, cut = await Recorder().open(pool), await Recorder().open(pool)
        await cut.until_bytes(5)
        assert counts.streams == 2
        cancelled.cancel()
        peer.links[0].cut()
        await cut.until_closed()
        gate.open.set()
        await (await Recorder().open(pool)).until_closed()
        assert (counts.streams, counts.opened, counts.closed) == (0, 2, [CloseReason.LOST])


def test_goaway_frames_of_the_script_are_what_h2_would_send() -> None:
    """The script's raw GOAWAY is the RFC's."""
    assert GoAwayFrame(0, last_stream_id=5, error_code=2).serialize()[9:] == b"\0\0\0\x05\0\0\0\x02"


async def test_link_sees_the_clients_goaway_on_aclose() -> None:
    """Closing the pool resets what is open and says goodbye."""
    gate = Gate()
    async with serving(gate) as (peer, pool):
        answer = await Recorder().open(pool)
        await answer.until_bytes(5)
        await pool.aclose()
        assert answer.endings
        await peer.until(lambda: peer.links[0].is_lost)
        link: Link = peer.links[0]
        assert (peer.exchanges[0].reset_code, link.goaways) == (ErrorCodes.CANCEL, [0])
