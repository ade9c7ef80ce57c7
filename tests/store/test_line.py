"""The wire of a connection: what a server may do to it between two batches and in the middle of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
from redis.exceptions import ConnectionError as ConnectionLost

from gateway.core.errors import Code, GatewayError
from gateway.store.redis import Redis

TIMEOUT_S = 0.2


class Between:
    """Passes bytes between clients and a server on a unix socket, and does as it is told meanwhile."""

    def __init__(self, server_url: str) -> None:
        self.url = ""
        self.deaf = False  # later connections are accepted, and that is all
        self.asked = 0
        self.clients: list[asyncio.StreamWriter] = []
        self.cut_after: int | None = None  # bytes of the next answer, before the connection is closed
        self._path = urlsplit(server_url).path
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        if not self.deaf:
            task = asyncio.get_running_loop().create_task(self._pass(reader, writer))
            self._tasks.add(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._path)
        try:
            while data := await reader.read(65_536):
                self.asked += 1
                server_writer.write(data)
                answer = await server_reader.read(65_536)
                writer.write(answer[: self.cut_after])
                if self.cut_after is not None:
                    self.cut_after = None
                    break
        except OSError:
            return
        finally:
            server_writer.transport.abort()
            writer.close()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self.clients:
            client.transport.abort()


@asynccontextmanager
async def between(server_url: str) -> AsyncIterator[Between]:
    """Stand between clients and a server."""
    relay = Between(server_url)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.end()


async def refused(store: Redis) -> GatewayError:
    """Make a call that is refused because the store is away."""
    with pytest.raises(GatewayError) as error:
        await store.call("PING")
    assert error.value.code is Code.STORE_UNAVAILABLE
    return error.value


async def test_line_told_what_nobody_asked_for_is_not_used_again(store_url: str) -> None:
    """Bytes that no command of ours has asked for never become the answer to the next one."""
    async with between(store_url) as relay:
        store = Redis(relay.url, timeout_s=TIMEOUT_S, connections=1)
        assert await store.call("ECHO", "1") == b"1"
        for stray in (b"+stray\r\n", b"$5\r\nstr"):  # a whole reply, and one that goes on with whatever comes next
            relay.clients[-1].write(stray)
            await relay.clients[-1].drain()
            await asyncio.sleep(0.05)  # until it has arrived: nothing of ours tells that it has
            assert await store.call("ECHO", "2") == b"2"
        assert len(relay.clients) == 3
        assert store.healthy_s() == float("inf")
        await store.aclose()


async def test_line_cut_in_the_middle_of_an_answer_refuses_and_sends_nothing_twice(store_url: str) -> None:
    """Half an answer is none: the call is refused, and the server was asked once."""
    async with between(store_url) as relay:
        store = Redis(relay.url, timeout_s=TIMEOUT_S, connections=1)
        assert await store.call("ECHO", "1") == b"1"
        asked, relay.cut_after = relay.asked, 3
        error = await refused(store)
        assert isinstance(error.__cause__, ConnectionLost)
        assert relay.asked == asked + 1
        assert await store.call("ECHO", "2") == b"2"
        await store.aclose()


async def test_line_that_cannot_be_opened_in_time_leaves_its_place(store_url: str) -> None:
    """However often connecting ran into the timeout, there is room for a connection as soon as one can be made."""
    async with between(store_url) as relay:
        relay.deaf = True
        store = Redis(relay.url, timeout_s=TIMEOUT_S, connections=1)
        for _ in range(3):
            await asyncio.gather(*(refused(store) for _ in range(3)))
        relay.deaf = False
        async with asyncio.timeout(5):
            while True:
                with suppress(GatewayError):
                    assert await store.call("ECHO", "1") == b"1"
                    break
                await asyncio.sleep(0.01)
        await store.aclose()


async def test_line_of_a_deadline_that_is_past_leaves_its_place(store_url: str) -> None:
    """A call whose time was over before it could be sent is refused, and holds nothing for ever."""
    store = Redis(store_url, timeout_s=TIMEOUT_S, connections=1)
    store._timeout_s = -1.0
    for _ in range(3):
        await refused(store)
    store._timeout_s = TIMEOUT_S
    async with asyncio.timeout(5):
        while True:
            with suppress(GatewayError):
                assert await store.call("ECHO", "1") == b"1"
                break
            await asyncio.sleep(0.01)
    await store.aclose()
