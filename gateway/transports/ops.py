"""The internal port: metrics, liveness and readiness. Never to be reached from outside."""

from __future__ import annotations

from typing import Final, Protocol

from aiohttp import hdrs, web

from gateway.telemetry.metrics import Metrics
from gateway.transports.edge import json_answer

METRICS: Final = web.AppKey("metrics", Metrics)


class Readiness(Protocol):
    """Tells every check by name: ``ok``, or why new work should go elsewhere."""

    async def readiness(self) -> dict[str, str]: ...


READINESS: Final[web.AppKey[Readiness]] = web.AppKey("readiness", Readiness)

routes = web.RouteTableDef()


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    body, content_type = await request.app[METRICS].exposition(request.headers.get(hdrs.ACCEPT, ""))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


@routes.get("/livez")
async def livez(_: web.Request) -> web.Response:
    """The loop turns. Says nothing of Redis or the vendor: restarting this process would mend neither."""
    return json_answer({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Whether new work may come here: 503 while draining or while the store does not answer. Never calls the vendor."""
    checks = await request.app[READINESS].readiness()
    ready = all(state == "ok" for state in checks.values())
    return json_answer({"status": "ok" if ready else "unready", "checks": checks}, status=200 if ready else 503)
