"""A way to a server that can go deaf: connections stay open, and what the server publishes does not arrive."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit


class Relay:
    """Passes bytes between clients and a server on a unix socket, until a subscriber's way is made deaf.

    As with a server that was left behind by a failover, or a network that forgot a flow: both ends of a connection
    believe in it, and nothing comes.
    """

    def __init__(self, server_url: str) -> None:
        self._path = urlsplit(server_url).path
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribers: list[asyncio.Event] = []  # set while the subscriber hears
        self.url = ""

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def subscribers(self) -> int:
        """How many connections have subscribed to something so far."""
        return len(self._subscribers)

    def deafen(self) -> None:
        """Let nothing more through to those who have subscribed so far; later connections are not touched."""
        for hears in self._subscribers:
            hears.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._path)
        hears = asyncio.Event()
        hears.set()
        up = asyncio.ensure_future(self._up(reader, server_writer, hears))
        down = asyncio.ensure_future(self._down(server_reader, writer, hears))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for end in (writer, server_writer):
                end.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hears: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if b"SUBSCRIBE" in data:
                    self._subscribers.append(hears)
                writer.write(data)
                await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hears: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if hears.is_set():
                    writer.write(data)
                    await writer.drain()
