"""Slow readers: one that stops reading costs no memory, slows nobody, is let go in time and can come back."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket as sockets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from gateway.services.following import ENTRIES_MAX
from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, Event, Reader, Socket, check_log, eventually, metric
from tests.transports.conftest import SignIn

LONG = "Hi #tokens=3000 #rate=5000 #delay=0.2"  # far more than the narrow connection holds
NARROW_BYTES = 8192
HELD_BYTES = 262_144  # four times the high-water mark: what is written at once beyond it is one page
LAG = {"GATEWAY_STREAMS_READER_LAG_S": "0.5"}


def narrow_socket(info: Any) -> sockets.socket:
    connection = sockets.socket(info[0], info[1], info[2])
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, NARROW_BYTES)
    return connection


@pytest.fixture
async def narrow_http() -> AsyncIterator[ClientSession]:
    """A client whose receiver takes little unless it is read."""
    async with ClientSession(connector=TCPConnector(socket_factory=narrow_socket), read_bufsize=4096) as http:
        yield http


def through(http: ClientSession, client: Client) -> Client:
    return Client(dataclasses.replace(client.running, http=http), client.headers)


def transport_of(connection: Any) -> asyncio.WriteTransport:
    """The gateway's end of an open stream or socket."""
    transport: asyncio.WriteTransport = getattr(connection, "transport", None) or connection._transport
    return transport


async def only_reader(running: Running) -> asyncio.WriteTransport:
    """Wait for the one reader to be served, and make the system hold little for it."""
    await eventually(lambda: running.gateway.edge.open, "the reader to be served")
    (connection,) = running.gateway.edge.open
    await eventually(lambda: hasattr(connection, "transport") or hasattr(connection, "_transport"), "its transport")
    transport = transport_of(connection)
    transport.get_extra_info("socket").setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, NARROW_BYTES)
    return transport


async def read_until_cut(reader: Reader) -> list[Event]:
    """Read what still comes; an event without its end does not count."""
    try:
        return await reader.rest()
    except (ClientError, ConnectionError):
        return reader.seen


async def test_slow_reader_costs_nothing_slows_nobody_and_comes_back(
    start_gateway: StartGateway, sign_in: SignIn, narrow_http: ClientSession
) -> None:
    """A reader that stops reading is held no copies for and is cut; the others and the turn go on; it returns."""
    running = await start_gateway(environ=LAG)
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), LONG)
    async with through(narrow_http, client).follow(turn) as stuck:
        transport = await only_reader(running)
        other = asyncio.create_task(client.replay(turn))
        most = 0
        while not other.done():
            most = max(most, transport.get_write_buffer_size())
            await asyncio.wait([other], timeout=0.005)
        assert check_log(await other).data["text"] == said(LONG).text
        await eventually(lambda: not running.gateway.edge.open, "the stuck reader to be let go")
        assert 0 < most < HELD_BYTES
        assert await metric(running, "gateway_readers_lagged_total", transport="sse") == 1
        seen = await read_until_cut(stuck)
    assert 0 < len(seen) < 3000
    rest = await client.replay(turn, seen[-1].id)
    assert check_log([*seen, *rest]).data["text"] == said(LONG).text


async def test_slow_reader_on_another_worker_costs_nothing_slows_nobody_and_comes_back(
    start_gateway: StartGateway, sign_in: SignIn, narrow_http: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """The same where the turn runs elsewhere: no worker holds copies, nobody waits, and either takes it back."""
    owner = await start_gateway()
    client = await sign_in(owner)
    running = await start_gateway(simulator=owner.simulator, tenant=owner.tenant, environ=LAG)
    elsewhere = Client(running, client.headers)
    turn = await client.start(await client.conversation(), LONG)
    async with through(narrow_http, elsewhere).follow(turn) as stuck:
        transport = await only_reader(running)
        others = [asyncio.create_task(reader.replay(turn)) for reader in (client, elsewhere)]
        most = window = 0
        while not all(other.done() for other in others):
            most = max(most, transport.get_write_buffer_size())
            for remote in running.gateway.following._remotes.values():
                window = max(window, len(remote._shown))
            await asyncio.wait(others, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            assert check_log(await other).data["text"] == said(LONG).text
        await eventually(lambda: not running.gateway.edge.open, "the stuck reader to be let go")
        assert 0 < most < HELD_BYTES
        assert window <= ENTRIES_MAX
        assert await metric(running, "gateway_readers_lagged_total", transport="sse") == 1
        seen = await read_until_cut(stuck)
    assert 0 < len(seen) < 3000
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]  # to be let go is no crash
    for back in (client, elsewhere):
        rest = await back.replay(turn, seen[-1].id)
        assert check_log([*seen, *rest]).data["text"] == said(LONG).text
    assert running.gateway.following._remotes == {}


async def test_slow_reader_that_reads_on_in_time_gets_everything_once(
    start_gateway: StartGateway, sign_in: SignIn, narrow_http: ClientSession
) -> None:
    """A reader that pauses until the turn has ended, then reads on, is served the whole log over one connection."""
    running = await start_gateway()
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), LONG)
    async with through(narrow_http, client).follow(turn) as paused:
        transport = await only_reader(running)
        await eventually(lambda: running.gateway.turns.running == 0, "the turn to end without waiting for its reader")
        assert 0 < transport.get_write_buffer_size() < HELD_BYTES
        events = await paused.rest()
    assert check_log(events).data["text"] == said(LONG).text


async def test_slow_reader_gets_an_event_larger_than_the_lag_allowed(
    start_gateway: StartGateway, sign_in: SignIn, narrow_http: ClientSession
) -> None:
    """An ending that is larger than what may be unsent still reaches a reader that reads."""
    running = await start_gateway(environ={"GATEWAY_STREAMS_READER_LAG_BYTES": "20000"})
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), "Hi #tokens=4 #fault=huge-item:300000 #delay=0.2")
    async with through(narrow_http, client).follow(turn) as slow:
        await only_reader(running)
        events = await slow.rest()
    assert check_log(events).name == "turn.completed"
    assert len(events[-1].data["text"]) > 300_000


@pytest.mark.parametrize("returns", ["sse", "websocket"])
async def test_slow_reader_over_websocket_is_let_go_and_comes_back(
    returns: str, start_gateway: StartGateway, sign_in: SignIn, narrow_http: ClientSession
) -> None:
    """The same over WebSocket: the socket is cut, the turn goes on, and a cursor brings the rest over any door."""
    running = await start_gateway(environ=LAG)
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), LONG)
    async with through(narrow_http, client).socket() as stuck:
        transport = await only_reader(running)
        await stuck.reply("subscribe", turn_id=turn)
        await eventually(lambda: running.gateway.turns.running == 0, "the turn to end without waiting for its reader")
        assert transport.is_closing() or 0 < transport.get_write_buffer_size() < HELD_BYTES
        await eventually(lambda: not running.gateway.edge.open, "the socket to be let go")
        assert await metric(running, "gateway_readers_lagged_total", transport="websocket") == 1
        seen = await socket_until_cut(stuck, turn)
    assert 0 < len(seen) < 3000
    if returns == "sse":
        rest = await client.replay(turn, seen[-1].id)
    else:
        async with client.socket() as again:
            await again.reply("subscribe", turn_id=turn, after=seen[-1].id)
            rest = await again.ending(turn)
    assert check_log([*seen, *rest]).data["text"] == said(LONG).text


async def socket_until_cut(socket: Socket, turn: str) -> list[Event]:
    await socket.closed()
    return socket.events(turn)
