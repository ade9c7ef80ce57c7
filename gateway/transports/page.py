"""The chat page at ``/``: static files under a strict content security policy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError

ROOT: Final = (Path(__file__).parent.parent / "page").resolve()
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Names are looked up here, never joined to a path: whatever a request asks for, only these files can be opened.
FILES: Final = {
    path.relative_to(ROOT).as_posix(): path
    for path in ROOT.rglob("*")
    if path.suffix in CONTENT_TYPES and path.is_file()
}

routes = web.RouteTableDef()


@routes.get("/")
async def index(request: web.Request) -> web.StreamResponse:
    return _file("index.html")


@routes.get("/page/{path:.+}")
async def static(request: web.Request) -> web.StreamResponse:
    return _file(request.match_info["path"])


def _file(name: str) -> web.FileResponse:
    path = FILES.get(name)
    if path is None:
        raise GatewayError(Code.NOT_FOUND)
    return web.FileResponse(
        path,
        headers={
            hdrs.CONTENT_TYPE: CONTENT_TYPES[path.suffix],
            hdrs.CACHE_CONTROL: "no-cache",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )
