"""The baseline: a bare aiohttp relay. One handler loop passes the source's bytes to the client, and that is all.

``python -m tests.bench.relay SOURCE_URL``: ``POST /`` streams over HTTP, on ``GET /ws`` every text message is such a
request and every piece of the answer a message, the last one empty. No credential, no log, no parsing, no TLS: what
any gateway has on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.bench.process import fast_loop


async def serve(source_url: str) -> None:
    http = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))

    async def relay(request: web.Request) -> web.StreamResponse:
        async with http.post(source_url, data=await request.read()) as answer:
            response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def relay_socket(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for message in socket:
            async with http.post(source_url, data=message.data) as answer:
                async for piece in answer.content.iter_any():
                    await socket.send_frame(piece, message.type)
            await socket.send_frame(b"", message.type)
        return socket

    app = web.Application()
    app.router.add_post("/", relay)
    app.router.add_get("/ws", relay_socket)
    await listen(app, http)


async def listen(app: web.Application, http: ClientSession | None = None) -> None:
    """Serve until cancelled."""
    site_runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await site_runner.setup()
    try:
        await web.TCPSite(site_runner, "127.0.0.1", 0, backlog=1024).start()
        announce(site_runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await site_runner.cleanup()
        if http is not None:
            await http.close()


def announce(port: int) -> None:
    """Tell the benchmark where a part listens."""
    print(f"ready http://127.0.0.1:{port}", flush=True)


def runner(work: Coroutine[Any, Any, None]) -> None:
    """Run a part of the baseline until SIGTERM, on uvloop where it exists."""

    async def until_asked_to_end() -> None:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=fast_loop()) as loop_runner:
        loop_runner.run(until_asked_to_end())


if __name__ == "__main__":
    runner(serve(sys.argv[1]))
