"""A proxy that cuts streams in mid-answer, as networks do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

STREAMS = (b"GET /v1/ws", b"text/event-stream")  # of a request's head
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Cutter:
    """Passes bytes between clients and a gateway; the streams that ask first are cut after so many bytes each.

    ``sockets=False`` lets no WebSocket through, as some proxies do.
    """

    def __init__(self, gateway_url: str, cuts: tuple[int, ...] = (), *, sockets: bool = True) -> None:
        parts = urlsplit(gateway_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._gateway = (parts.hostname, parts.port)
        self._sockets = sockets
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._cuts = list(cuts)
        self.cut = 0  # streams so far
        self.streams = 0
        self.url = ""

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._gateway)
        except OSError:
            writer.transport.abort()
            return
        room: list[int] = []  # what a stream on this connection may still bring down, once there is one
        up = asyncio.ensure_future(self._up(reader, writer, server_writer, room))
        down = asyncio.ensure_future(self._down(server_reader, writer, room))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for end in (writer, server_writer):
                end.close() if down.done() and not down.cancelled() and not room else end.transport.abort()

    async def _up(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
        room: list[int],
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if any(mark in data for mark in STREAMS):
                    self.streams += 1
                    if data.startswith(STREAMS[0]) and not self._sockets:
                        client.write(FORBIDDEN)
                        return await client.drain()
                    if self._cuts:
                        room[:] = [self._cuts.pop(0)]
                writer.write(data)
                await writer.drain()
        return None

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: list[int]) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if room:
                    data, room[0] = data[: room[0]], room[0] - len(data)
                writer.write(data)
                await writer.drain()
                if room and room[0] <= 0:
                    self.cut += 1
                    return
