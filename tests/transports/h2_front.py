"""A proxy that speaks HTTP/2 to clients and HTTP/1.1 to a gateway, as what stands before one in production does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import ClientError, ClientSession, ClientTimeout
from h2.errors import ErrorCodes

from gateway.simulator.bill import State
from gateway.simulator.connection import Connection
from gateway.simulator.exchange import Exchange

HOP: frozenset[str] = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


@contextlib.asynccontextmanager
async def h2_front(url: str) -> AsyncIterator[str]:
    """Serve HTTP/2 without TLS for a gateway at ``url``; yields its own URL. Each chunk is passed on as it comes."""
    tasks: set[asyncio.Task[None]] = set()
    connections: set[Connection] = set()
    async with ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False) as http:

        async def relay(exchange: Exchange) -> None:
            headers = {name: value for name, value in exchange.headers.items() if not name.startswith(":")}
            try:
                async with http.request(
                    exchange.method, url + exchange.path, data=bytes(exchange.body), headers=headers
                ) as response:
                    told = [(name.lower(), value) for name, value in response.headers.items()]
                    exchange.start(response.status, [one for one in told if one[0] not in HOP])
                    async for data, _ in response.content.iter_chunks():
                        exchange.write(data)
            except ClientError:
                exchange.reset(ErrorCodes.INTERNAL_ERROR)
            else:
                exchange.end()

        def handle(exchange: Exchange) -> None:
            task = asyncio.get_running_loop().create_task(relay(exchange))

            def leave(_: int | None) -> None:
                task.cancel()

            exchange.on_gone = leave
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(handle, State(), connections, 100), "127.0.0.1", 0)
        try:
            yield f"h2c://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in tuple(connections):
                connection.abort()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
