"""The pool: spreading streams, queueing with a deadline, connecting, retrying what the peer never saw."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from gateway.upstream.errors import (
    ConnectFailed,
    ConnectTimedOut,
    InvalidRequest,
    NoHttp2,
    PoolClosed,
    QueueFull,
    QueueTimedOut,
    StreamReset,
    TlsFailed,
    UpstreamError,
)
from gateway.upstream.observer import SilentObserver
from gateway.upstream.pool import Pool, PoolFacts, PoolSettings
from tests.upstream.peer import PATIENCE_S, Exchange, Handler, Peer, answer_hello
from tests.upstream.recorder import Recorder

SETTINGS = PoolSettings(connect_timeout_s=PATIENCE_S, backoff_min_s=0.02, backoff_max_s=0.1)
SOON_S = 0.1  # a deadline that has to pass


async def hold(exchange: Exchange) -> None:
    """Answer, and keep the stream open for good."""
    await exchange.until_complete()
    exchange.respond()
    await exchange.send(b"first")


@contextlib.asynccontextmanager
async def serving(
    handler: Handler = answer_hello, *, settings: PoolSettings = SETTINGS, limit: int = 100
) -> AsyncIterator[tuple[Peer, Pool]]:
    async with Peer(handler, settings={SettingCodes.MAX_CONCURRENT_STREAMS: limit}) as peer:
        pool = Pool(peer.url, settings=settings, ssl_context=peer.client_tls)
        try:
            yield peer, pool
            assert [error for link in peer.links for error in link.errors] == []
        finally:
            await pool.aclose()


@contextlib.asynccontextmanager
async def mute_listener() -> AsyncIterator[int]:
    """A port that accepts and says nothing."""
    async with Peer(tls=False, greets=False) as peer:
        yield peer.port


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_burst_of_250_opens_three_connections() -> None:
    """With 100 streams a connection, a cold burst opens as many connections as it needs, at once."""
    async with serving(hold) as (peer, pool):
        answers = [Recorder() for _ in range(250)]
        await asyncio.gather(*(answer.open(pool) for answer in answers))
        for answer in answers:
            await answer.until_bytes(5)
        assert sorted(len(link.exchanges) for link in peer.links) == [50, 100, 100]
        assert pool.facts == PoolFacts(connections=3, draining=0, connecting=0, streams=250, queued=0)


async def test_limit_of_the_peer_is_never_exceeded() -> None:
    """With a limit of 3 and a cap of 2 connections, six run at once, and all 40 are answered in turn."""
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        assert len(exchange.link.open_ids) <= 3
        await exchange.until_complete()
        await gate.wait()
        exchange.respond()
        await exchange.send(exchange.headers[b":path"], end=True)

    async with serving(handler, settings=replace(SETTINGS, max_connections=2), limit=3) as (peer, pool):
        answers = [Recorder() for _ in range(40)]
        opening = [asyncio.create_task(a.open(pool, path=f"/{i}")) for i, a in enumerate(answers)]
        await peer.until(lambda: len(peer.exchanges) == 6)
        assert (pool.facts.streams, pool.facts.queued) == (6, 34)
        gate.set()
        await asyncio.gather(*opening)
        assert [await answer.until_closed() for answer in answers] == [None] * 40
        assert [answer.body for answer in answers] == [b"/%d" % i for i in range(40)]
        assert len(peer.links) == 2


async def test_queue_is_first_come_first_served() -> None:
    """A newcomer does not overtake those that wait."""
    async with serving(settings=replace(SETTINGS, max_connections=1), limit=1) as (peer, pool):
        answers = [Recorder() for _ in range(10)]
        await asyncio.gather(*(answer.open(pool, path=f"/{i}") for i, answer in enumerate(answers)))
        await answers[-1].until_closed()
        assert [e.headers[b":path"] for e in peer.exchanges] == [b"/%d" % i for i in range(10)]


async def test_queue_deadline_passes_with_its_own_error() -> None:
    """With every stream taken, waiting ends at the request's deadline; the request was never sent."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1), limit=1) as (peer, pool):
        first = await Recorder().open(pool)
        await first.until_bytes(5)
        with pytest.raises(QueueTimedOut) as caught:
            await Recorder().open(pool, deadline_s=SOON_S)
        assert not caught.value.processed
        assert pool.facts.queued == 0
        first.cancel()
        await (await Recorder().open(pool)).until_bytes(5)
        assert len(peer.exchanges) == 2


async def test_full_queue_refuses_at_once() -> None:
    """Waiting requests hold memory, so their number is bounded."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1, max_queued=2), limit=1) as (_, pool):
        await Recorder().open(pool)
        waiting = [asyncio.create_task(Recorder().open(pool, deadline_s=SOON_S)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await Recorder().open(pool)
        assert all(isinstance(e, QueueTimedOut) for e in await asyncio.gather(*waiting, return_exceptions=True))


async def test_cancelling_while_queued_leaks_no_slot() -> None:
    """Whoever leaves the queue is forgotten; the freed slot goes to the one behind."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1), limit=1) as (peer, pool):
        first = await Recorder().open(pool)
        await first.until_bytes(5)
        leaving = asyncio.create_task(Recorder().open(pool, path="/left"))
        staying = asyncio.create_task(Recorder().open(pool, path="/stays"))
        await asyncio.sleep(0)
        assert pool.facts.queued == 2
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        first.cancel()
        await (await staying).until_bytes(5)
        assert [e.headers[b":path"] for e in peer.exchanges] == [b"/chat", b"/stays"]
        assert (pool.facts.streams, pool.facts.queued) == (1, 0)


async def test_cancelling_in_the_tick_of_the_grant_leaks_no_slot() -> None:
    """A task cancelled after a slot was promised to it, and before it woke, gives it to the one behind."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1), limit=1) as (_, pool):
        first = await Recorder().open(pool)
        await first.until_bytes(5)
        waiting = asyncio.create_task(Recorder().open(pool))
        await asyncio.sleep(0)
        behind = asyncio.create_task(Recorder().open(pool, path="/behind"))
        await asyncio.sleep(0)
        first.cancel()  # promises the slot to the waiting one, whose task has not run yet
        assert (pool.facts.streams, pool.facts.queued) == (0, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (await behind).cancel()
        assert (pool.facts.streams, pool.facts.queued) == (0, 0)
        await (await Recorder().open(pool)).until_bytes(5)


async def test_connection_that_dies_between_grant_and_use_is_not_used() -> None:
    """A promised slot on a connection that just went away is sought again elsewhere."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1), limit=1) as (peer, pool):
        first = await Recorder().open(pool)
        await first.until_bytes(5)
        waiting = asyncio.create_task(Recorder().open(pool))
        await asyncio.sleep(0)
        transport = pool._connections[0].transport
        assert transport is not None
        first.cancel()
        pool._connections[0].connection_lost(None)
        transport.abort()
        await (await waiting).until_bytes(5)
        assert (len(peer.links), pool.facts.streams) == (2, 1)


async def test_no_callback_comes_before_the_opening_task_has_its_stream() -> None:
    """Also when a burst keeps the loop so busy that answers are there before the waiting tasks run."""

    class Early(Recorder):
        is_early = False

        def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
            self.is_early = self.stream is None
            super().headers_received(status, headers)

    async with serving(settings=replace(SETTINGS, max_connections=2), limit=20) as (_, pool):
        answers = [Early() for _ in range(120)]
        loop = asyncio.get_running_loop()

        def busy() -> None:
            if pool.facts.queued:
                time.sleep(0.002)
                loop.call_soon(busy)

        opening = [asyncio.create_task(answer.open(pool)) for answer in answers]
        loop.call_soon(busy)
        await asyncio.gather(*opening)
        assert [await answer.until_closed() for answer in answers] == [None] * 120
        assert not any(answer.is_early for answer in answers)


async def test_cancelling_while_connecting_leaks_nothing() -> None:
    """The connection that was on its way is kept for the next request, the cancelled one is never sent."""
    async with serving() as (peer, pool):
        leaving = asyncio.create_task(Recorder().open(pool))
        await asyncio.sleep(0)
        assert pool.facts.connecting == 1
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await (await Recorder().open(pool)).until_closed() is None
        assert (len(peer.links), len(peer.exchanges)) == (1, 1)


async def test_many_random_leavers_leak_no_slot() -> None:
    """After 300 requests of which most leave at odd moments, every slot is free and the rest were answered."""
    async with serving(settings=replace(SETTINGS, max_connections=2), limit=5) as (peer, pool):

        async def visit(number: int) -> UpstreamError | None:
            answer = Recorder()
            await answer.open(pool)
            if number % 3 == 0:
                answer.cancel()
                return None
            return await answer.until_closed()

        tasks = [asyncio.create_task(visit(number)) for number in range(300)]
        for number, task in enumerate(tasks):
            if number % 3 == 1:
                await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert (pool.facts.streams, pool.facts.queued) == (0, 0)
        assert await (await Recorder().open(pool)).until_closed() is None
        assert all(link.open_ids == set() for link in peer.links)


async def test_refused_stream_is_sent_again_unseen() -> None:
    """REFUSED_STREAM means that nothing was done: the pool tries again and the receiver gets the one answer."""
    refusals = 2

    async def handler(exchange: Exchange) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            exchange.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await answer_hello(exchange)

    async with serving(handler) as (peer, pool):
        answer = await Recorder().open(pool, body=b"again")
        assert await answer.until_closed() is None
        assert answer.body == b"hello"
        assert len(peer.exchanges) == 3
        assert peer.exchanges[2].body == b"again"


async def test_stream_refused_every_time_fails_unprocessed() -> None:
    """Attempts are bounded; the error says that the request may still be sent elsewhere."""

    async def handler(exchange: Exchange) -> None:
        exchange.reset(ErrorCodes.REFUSED_STREAM)

    async with serving(handler) as (peer, pool):
        error = await (await Recorder().open(pool)).until_closed()
        assert isinstance(error, StreamReset)
        assert (error.code, error.processed) == (ErrorCodes.REFUSED_STREAM, False)
        assert len(peer.exchanges) == SETTINGS.max_attempts


@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM])
async def test_stream_reset_otherwise_is_not_sent_again(code: ErrorCodes) -> None:
    """Only REFUSED_STREAM proves that the vendor did nothing."""

    async def handler(exchange: Exchange) -> None:
        exchange.reset(code)

    async with serving(handler) as (peer, pool):
        error = await (await Recorder().open(pool)).until_closed()
        assert isinstance(error, StreamReset)
        assert error.processed
        assert len(peer.exchanges) == 1


async def test_cancel_while_the_request_waits_for_its_next_attempt() -> None:
    """A stream between two attempts can be left like any other."""

    async def handler(exchange: Exchange) -> None:
        exchange.link.goaway(last_id=0)

    async with serving(handler) as (peer, pool):
        answer = await Recorder().open(pool)
        await peer.until(lambda: bool(peer.links) and peer.links[0].is_lost)
        answer.cancel()
        assert (pool.facts.queued, pool.facts.streams) == (0, 0)
        assert answer.endings == []


async def test_refused_connection_fails_at_once_and_then_backs_off() -> None:
    """Nobody listening is told within the deadline; the next request waits for the back-off, not for ever."""
    pool = Pool(f"h2c://127.0.0.1:{closed_port()}", settings=replace(SETTINGS, backoff_min_s=0.05))
    loop = asyncio.get_running_loop()
    with pytest.raises(ConnectFailed) as caught:
        await Recorder().open(pool)
    assert not caught.value.processed
    begun_s = loop.time()
    with pytest.raises(ConnectFailed):
        await Recorder().open(pool, deadline_s=0.001)  # the next try lies beyond this deadline
    assert loop.time() - begun_s < 0.03
    with pytest.raises(ConnectFailed):
        await Recorder().open(pool)
    assert loop.time() - begun_s > 0.03
    await pool.aclose()


async def test_peer_that_comes_back_is_used_after_the_back_off() -> None:
    """A request made while the peer is away succeeds when the peer returns within its deadline."""
    ca = trustme.CA()
    async with Peer(ca=ca) as peer:
        pool = Pool(peer.url, settings=SETTINGS, ssl_context=peer.client_tls)
        port = peer.port
        await peer.stop()
        with pytest.raises(ConnectFailed):
            await Recorder().open(pool)
        again = Peer(ca=ca)
        again.port = port
        async with again:
            assert await (await Recorder().open(pool)).until_closed() is None
            await pool.aclose()


@pytest.mark.parametrize("scheme", ["https", "h2c"])
async def test_silent_peer_meets_the_connect_deadline(scheme: str) -> None:
    """A peer that accepts and says nothing, in TLS or before SETTINGS, fails with ConnectTimedOut."""
    async with mute_listener() as port:
        pool = Pool(f"{scheme}://127.0.0.1:{port}", settings=replace(SETTINGS, connect_timeout_s=SOON_S))
        with pytest.raises(ConnectTimedOut):
            await Recorder().open(pool)
        assert pool.facts == PoolFacts(0, 0, 0, 0, 0)
        await pool.aclose()


async def test_deadline_while_connecting_is_a_connect_timeout() -> None:
    """A request's own deadline may be shorter than the connect deadline."""
    async with mute_listener() as port:
        pool = Pool(f"h2c://127.0.0.1:{port}", settings=SETTINGS)
        with pytest.raises(ConnectTimedOut):
            await Recorder().open(pool, deadline_s=SOON_S)
        assert pool.facts.connecting == 1
        await pool.aclose()
        assert pool.facts.connecting == 0


@pytest.mark.parametrize("alpn", [["http/1.1"], []])
async def test_peer_without_h2_is_named_as_such(alpn: list[str]) -> None:
    """A peer that picks another protocol, refuses h2 or knows no ALPN gets an error of its own class."""
    async with Peer(alpn=alpn, greets=False) as peer:
        pool = Pool(peer.url, settings=SETTINGS, ssl_context=peer.client_tls)
        with pytest.raises(NoHttp2):
            await Recorder().open(pool)
        with pytest.raises(NoHttp2):
            await pool.probe()
        await pool.aclose()


async def test_http1_answer_on_h2c_is_named_as_such() -> None:
    """Prior knowledge that is wrong gets the same clear error."""
    async with Peer(tls=False, greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as peer:
        pool = Pool(peer.url, settings=SETTINGS)
        with pytest.raises(NoHttp2):
            await Recorder().open(pool)
        await pool.aclose()


async def test_peer_that_hangs_up_before_settings_fails_the_connect() -> None:
    """A connection that dies before it is ready is a connect failure, so the request may be sent again."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    pool = Pool(f"h2c://127.0.0.1:{server.sockets[0].getsockname()[1]}", settings=SETTINGS)
    with pytest.raises(ConnectFailed) as caught:
        await Recorder().open(pool)
    assert not caught.value.processed
    await pool.aclose()
    server.close()


async def test_untrusted_certificate_is_named_as_such() -> None:
    """Without the private CA the handshake fails with TlsFailed."""
    async with Peer() as peer:
        pool = Pool(peer.url, settings=SETTINGS)
        with pytest.raises(TlsFailed, match="not trusted"):
            await Recorder().open(pool)
        await pool.aclose()


async def test_private_ca_file_is_trusted_on_top_of_the_systems(tmp_path: Path) -> None:
    """A CA file is enough to reach a peer with a private certificate."""
    async with Peer() as peer:
        peer.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        pool = Pool(peer.url, settings=SETTINGS, ca_file=tmp_path / "ca.pem")
        assert pool._tls is not None
        assert len(pool._tls.get_ca_certs()) > len(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ca_certs())
        assert await (await Recorder().open(pool)).until_closed() is None
        await pool.aclose()


async def test_probe_tells_facts_and_spends_no_request() -> None:
    """`check` learns TLS, ALPN and the peer's limits from the handshake and SETTINGS alone."""
    async with serving(limit=42) as (peer, pool):
        facts = await pool.probe()
        assert (facts.tls_version, facts.alpn, facts.max_concurrent_streams) == ("TLSv1.3", "h2", 42)
        assert facts.address == f"127.0.0.1:{peer.port}"
        await peer.until(lambda: peer.links[0].is_lost)
        assert (peer.exchanges, peer.links[0].goaways) == ([], [0])
        assert pool.facts.connections == 0


async def test_peer_that_wants_no_streams_now_is_not_flooded_with_connections() -> None:
    """A limit of 0 makes requests wait until their deadline on one connection."""
    async with serving(limit=0) as (peer, pool):
        waiting = [Recorder().open(pool, deadline_s=SOON_S) for _ in range(20)]
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in errors} == {QueueTimedOut}
        assert len(peer.links) == 1


async def test_aclose_fails_what_waits_and_what_runs() -> None:
    """Everyone is told; afterwards the pool refuses."""
    async with serving(hold, settings=replace(SETTINGS, max_connections=1), limit=1) as (peer, pool):
        running = await Recorder().open(pool)
        await running.until_bytes(5)
        waiting = asyncio.create_task(Recorder().open(pool))
        await asyncio.sleep(0)
        await pool.aclose()
        error = await running.until_closed()
        assert isinstance(error, PoolClosed)
        assert error.processed
        with pytest.raises(PoolClosed):
            await waiting
        with pytest.raises(PoolClosed):
            await Recorder().open(pool)
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL
        assert pool.facts == PoolFacts(0, 0, 0, 0, 0)


async def test_aclose_is_bounded_when_the_peer_does_not_say_goodbye() -> None:
    """A peer that stopped reading cannot hold up a shutdown."""
    settings = replace(SETTINGS, close_timeout_s=0.1)
    async with serving(hold, settings=settings) as (peer, pool):
        await (await Recorder().open(pool)).until_bytes(5)
        transport = peer.links[0].transport
        assert transport is not None
        transport.pause_reading()
        async with asyncio.timeout(PATIENCE_S):
            await pool.aclose()
        assert pool.facts.connections == 0


async def test_aclose_ends_connects_under_way() -> None:
    """No task survives the pool."""
    async with mute_listener() as port:
        pool = Pool(f"h2c://127.0.0.1:{port}", settings=SETTINGS)
        waiting = asyncio.create_task(Recorder().open(pool))
        await asyncio.sleep(0)
        await pool.aclose()
        with pytest.raises(PoolClosed):
            await waiting
        assert {task for task in asyncio.all_tasks() if task.get_name() == "upstream-connect"} == set()


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("get", "/", []),
        ("GET", "nowhere", []),
        ("GET", "/a b", []),
        ("GET", "/a\r\nx: y", []),
        ("GET", "/ü", []),
        ("GET", "/", [(b"x", b"a\r\nb: c")]),
        ("GET", "/", [(b"x", b"a\x00")]),
        ("GET", "/", [(b"x", b" padded ")]),
        ("GET", "/", [(b"x y", b"1")]),
        ("GET", "/", [(b":path", b"/other")]),
        ("GET", "/", [(b"", b"1")]),
        ("GET", "/", [(b"Connection", b"close")]),
        ("GET", "/", [(b"transfer-encoding", b"chunked")]),
    ],
)
async def test_unsound_request_is_refused_before_anything_is_sent(
    method: str, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    """Smuggling does not even open a connection, and the error shows no value."""
    pool = Pool("h2c://127.0.0.1:1")
    with pytest.raises(InvalidRequest) as caught:
        await Recorder().open(pool, method=method, path=path, headers=headers)
    assert not caught.value.processed
    assert "b: c" not in str(caught.value)
    assert pool.facts.connecting == 0


async def test_secret_headers_stay_out_of_the_compression_table() -> None:
    """The vendor key arrives each time and is kept by no table; test_header_blocks has how it is marked."""
    async with serving() as (peer, pool):
        for _ in range(2):
            answer = await Recorder().open(pool, headers=[(b"X-HL-API-Key", b"hunter2"), (b"x-plain", b"seen")])
            await answer.until_closed()
        assert list(peer.links[0].h2.decoder.header_table.dynamic_entries) == []
        assert peer.exchanges[1].headers[b"x-plain"] == b"seen"
        assert peer.exchanges[1].headers[b"x-hl-api-key"] == b"hunter2"


async def test_observer_is_told_of_failed_connects_by_class() -> None:
    """Metrics can tell a refused connection from a bad certificate."""

    class Failures(SilentObserver):
        def __init__(self) -> None:
            self.names: list[str] = []

        def connect_failed(self, error: str) -> None:
            self.names.append(error)

    failures = Failures()
    async with Peer() as peer:
        pool = Pool(peer.url, settings=SETTINGS, observer=failures)
        with pytest.raises(TlsFailed):
            await Recorder().open(pool)
        await pool.aclose()
    assert failures.names == ["TlsFailed"]
