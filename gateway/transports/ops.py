"""The internal port: metrics, liveness and readiness. Never to be reached from outside."""

from __future__ import annotations

from typing import Final, Protocol

from aiohttp import hdrs, web

from gateway.telemetry.exposition import Scrape
from gateway.transports.edge import json_answer


class Scraped(Protocol):
    """Tells the metrics in the format that a scraper accepts."""

    async def scrape(self, accept: str, /) -> Scrape: ...


class Readiness(Protocol):
    """Tells whether new work may come here, and every check by name: ``ok``, or what is the matter."""

    async def readiness(self) -> tuple[bool, dict[str, str]]: ...


METRICS: Final[web.AppKey[Scraped]] = web.AppKey("metrics", Scraped)
READINESS: Final[web.AppKey[Readiness]] = web.AppKey("readiness", Readiness)

routes = web.RouteTableDef()


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.StreamResponse:
    """Tell the metrics piece by piece, as they are made and as the scraper takes them."""
    scrape = await request.app[METRICS].scrape(request.headers.get(hdrs.ACCEPT, ""))
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: scrape.content_type})
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        async for piece in scrape.pieces:
            await response.write(piece)
    await response.write_eof()
    return response


@routes.get("/livez")
async def livez(_: web.Request) -> web.Response:
    """The loop turns. Says nothing of Redis or the vendor: restarting this process would mend neither."""
    return json_answer({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Whether new work may come here: 503 while draining or while the store does not answer. Never calls the vendor."""
    ready, checks = await request.app[READINESS].readiness()
    return json_answer({"status": "ok" if ready else "unready", "checks": checks}, status=200 if ready else 503)
