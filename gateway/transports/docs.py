"""The reference pages at ``/docs``, as they are kept beside the code."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError

ROOT: Final = Path(__file__).parent.parent / "docs"

routes = web.RouteTableDef()


@routes.get("/docs")
async def index(_: web.Request) -> web.Response:
    """List the pages."""
    lines = [f"- [{path.stem}](/docs/{path.stem})" for path in sorted(ROOT.glob("*.md"))]
    return _page("# hyperleap-gateway\n\n" + "\n".join(lines) + "\n")


@routes.get("/docs/{name:[a-z0-9-]+}")
async def page(request: web.Request) -> web.Response:
    path = ROOT / f"{request.match_info['name']}.md"
    if not path.is_file():
        raise GatewayError(Code.NOT_FOUND)
    return _page(path.read_text("utf-8"))


def _page(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/markdown", headers={hdrs.CACHE_CONTROL: "no-cache"})
