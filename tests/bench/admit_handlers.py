"""The handlers that ``admit`` compares: one that answers at once, and the same one with a decision before its answer.

``python -m tests.bench.admit_handlers REDIS_URL``.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from gateway.store.redis import Redis
from tests.bench.admit import ASKERS
from tests.bench.relay import announce, runner


async def serve(url: str) -> None:
    redis = Redis(url, timeout_s=5.0, connections=16)
    askers = {name: make(redis) for name, make in ASKERS.items()}

    async def plain(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def deciding(request: web.Request) -> web.Response:
        await askers[request.match_info["plan"]].ask()
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/plain", plain)
    app.router.add_get("/{plan}", deciding)
    site_runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await site_runner.setup()
    try:
        await web.TCPSite(site_runner, "127.0.0.1", 0, backlog=1024).start()
        announce(site_runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await site_runner.cleanup()
        await redis.aclose()


if __name__ == "__main__":
    runner(serve(sys.argv[1]))
