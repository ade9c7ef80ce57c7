"""httpx over the pool: requests, streaming, timeouts, errors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from gateway.upstream.errors import UpstreamError
from gateway.upstream.pool import Pool, PoolSettings
from gateway.upstream.transport import ERRORS, Http2Transport, to_httpx
from tests.upstream.peer import PATIENCE_S, Exchange, Handler, Peer, answer_hello

SETTINGS = PoolSettings(connect_timeout_s=PATIENCE_S)
SOON_S = 0.1


@contextlib.asynccontextmanager
async def client_of(
    handler: Handler = answer_hello,
    *,
    timeout: httpx.Timeout | None = None,
    settings: PoolSettings = SETTINGS,
    limit: int = 100,
    window: int = 65_535,
    credits: bool = True,
) -> AsyncIterator[tuple[Peer, httpx.AsyncClient]]:
    offered = {SettingCodes.MAX_CONCURRENT_STREAMS: limit, SettingCodes.INITIAL_WINDOW_SIZE: window}
    async with Peer(handler, settings=offered, credits=credits) as peer:
        transport = Http2Transport(Pool(peer.url, settings=settings, ssl_context=peer.client_tls), owns_pool=True)
        async with httpx.AsyncClient(transport=transport, base_url=peer.url, timeout=timeout or PATIENCE_S) as client:
            yield peer, client


def kinds_of_error(root: type[UpstreamError]) -> set[type[UpstreamError]]:
    return {root}.union(*(kinds_of_error(kind) for kind in root.__subclasses__()))


def test_every_upstream_error_has_its_httpx_face() -> None:
    """An error without a line in the table fails here, not in production."""
    assert set(ERRORS) == kinds_of_error(UpstreamError)


def test_mapped_error_keeps_its_cause_and_request() -> None:
    """Callers can ask the cause whether the vendor may have seen the request."""
    request = httpx.Request("GET", "https://localhost/")
    for kind in ERRORS:
        error = kind("why", code=8) if kind.__name__ == "StreamReset" else kind("why")  # type: ignore[call-arg]  # of this kind
        face = to_httpx(error, request)
        assert str(face) == "why"
        assert face.request is request


async def test_request_and_answer_pass_whole() -> None:
    """Path, query, JSON body and headers go up; hop-by-hop headers do not; the answer is HTTP/2."""
    async with client_of() as (peer, client):
        answer = await client.post(
            "/v1/x?y=%20z", json={"a": 1}, headers={"X-Test": "1", "TE": "trailers", "Connection": "close"}
        )
        assert (answer.status_code, answer.text, answer.http_version) == (200, "hello", "HTTP/2")
        (exchange,) = peer.exchanges
        assert exchange.headers[b":path"] == b"/v1/x?y=%20z"
        assert exchange.body == b'{"a":1}'
        assert exchange.headers[b"content-length"] == b"7"
        assert exchange.headers[b"x-test"] == b"1"
        assert not {b"host", b"te", b"connection"} & set(exchange.headers)


async def test_answer_streams_as_it_comes() -> None:
    """A chunk is readable before the next one is sent."""
    turn = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.respond()
        for part in (b"one", b"two"):
            await exchange.send(part)
            await turn.wait()
            turn.clear()
        await exchange.send(end=True)

    async with client_of(handler) as (_, client), client.stream("GET", "/") as answer:
        got = []
        async for chunk in answer.aiter_raw():
            got.append(chunk)
            turn.set()
        assert got == [b"one", b"two"]


async def test_large_answer_passes_the_window_many_times() -> None:
    """Reading returns the credit."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond()
        await exchange.send(b"d" * 1_000_000, end=True)

    async with client_of(handler) as (_, client):
        assert len((await client.get("/")).content) == 1_000_000


async def test_leaving_a_stream_resets_it() -> None:
    """Closing the response early is RST_STREAM(CANCEL)."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond()
        await exchange.send(b"first")

    async with client_of(handler) as (peer, client):
        async with client.stream("GET", "/") as answer:
            async for _ in answer.aiter_raw():
                break
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL


async def test_cancelled_task_resets_its_stream() -> None:
    """Also before any answer."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()

    async with client_of(handler) as (peer, client):
        task = asyncio.create_task(client.get("/"))
        await peer.until(lambda: bool(peer.exchanges))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL


@pytest.mark.parametrize("with_headers", [True, False])
async def test_read_timeout_resets_the_stream(with_headers: bool) -> None:
    """Silence before the headers or between chunks is ReadTimeout, and the server learns of it."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        if with_headers:
            exchange.respond()
            await exchange.send(b"part")

    timeout = httpx.Timeout(PATIENCE_S, read=SOON_S)
    async with client_of(handler, timeout=timeout) as (peer, client):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL


async def test_write_timeout_when_the_peer_takes_no_more() -> None:
    """An upload without progress is WriteTimeout."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()

    timeout = httpx.Timeout(PATIENCE_S, write=SOON_S)
    async with client_of(handler, timeout=timeout, window=10, credits=False) as (peer, client):
        with pytest.raises(httpx.WriteTimeout):
            await client.post("/", content=b"u" * 100)
        assert await peer.exchanges[0].until_reset() == ErrorCodes.CANCEL


async def test_pool_timeout_when_every_stream_is_taken() -> None:
    """Waiting for a stream is bounded by httpx's pool timeout."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()

    timeout = httpx.Timeout(PATIENCE_S, pool=SOON_S)
    settings = replace(SETTINGS, max_connections=1)
    async with client_of(handler, timeout=timeout, settings=settings, limit=1) as (peer, client):
        first = asyncio.create_task(client.get("/", timeout=PATIENCE_S))
        await peer.until(lambda: len(peer.exchanges) == 1)
        with pytest.raises(httpx.PoolTimeout):
            await client.get("/")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_connect_timeout_is_honoured() -> None:
    """With no connection yet, httpx's connect timeout bounds the wait."""
    timeout = httpx.Timeout(PATIENCE_S, connect=SOON_S)
    async with Peer(tls=False, greets=False) as mute:
        transport = Http2Transport(Pool(mute.url, settings=SETTINGS), owns_pool=True)
        async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(mute.url)


async def test_reset_and_cut_become_httpx_errors_with_their_cause() -> None:
    """The cause is the pool's own error, with `processed`."""

    async def handler(exchange: Exchange) -> None:
        await exchange.until_complete()
        if exchange.headers[b":path"] == b"/reset":
            exchange.reset()
            return
        exchange.respond()
        await exchange.send(b"part")
        exchange.link.cut()

    async with client_of(handler) as (_, client):
        with pytest.raises(httpx.RemoteProtocolError) as reset:
            await client.get("/reset")
        with pytest.raises(httpx.ReadError) as cut:
            await client.get("/cut")
    for caught in (reset, cut):
        assert isinstance(caught.value.__cause__, UpstreamError)
        assert caught.value.__cause__.processed


async def test_another_origin_is_refused() -> None:
    """The key in the headers goes to its own origin only, also after a redirect."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(302, [("location", "https://elsewhere.example/")], end=True)

    async with client_of(handler) as (_, client):
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("https://localhost:1/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("/", follow_redirects=True)


async def test_h2c_origin_is_reached_by_either_name() -> None:
    """httpx users may write http:// for the pool's h2c://."""
    async with Peer(tls=False) as peer:
        transport = Http2Transport(Pool(peer.url, settings=SETTINGS), owns_pool=True)
        async with httpx.AsyncClient(transport=transport) as client:
            for scheme in ("h2c", "http"):
                assert (await client.get(f"{scheme}://localhost:{peer.port}/")).text == "hello"


async def test_header_that_smuggles_is_a_local_error() -> None:
    """httpx lets CR and LF through in bytes; the pool does not."""
    async with client_of() as (peer, client):
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/", headers=[(b"x", b"a\r\nb: c")])
        assert peer.exchanges == []
