"""The chat page at ``/``, and the client and the widget that other sites load: static files, the page under a strict
content security policy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.transports.packed import PackedFiles, packed_answer

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
    ".ts": "text/plain; charset=utf-8",  # types to read and to save; no browser runs them
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Names are looked up here, never joined to a path: whatever a request asks for, only these files can be opened.
FILES: Final = {
    path.relative_to(ROOT).as_posix(): path
    for path in ROOT.rglob("*")
    if path.suffix in CONTENT_TYPES and path.is_file()
}
PACKED: Final = PackedFiles(FILES)

SHARED: Final = frozenset({".js", ".ts"})  # what pages of any origin may load, as a module or under COEP
EMBEDDED: Final = {f"/{name}": f"embed/{name}" for name in ("client.js", "client.d.ts", "widget.js")}

routes = web.RouteTableDef()


@routes.get("/")
async def index(request: web.Request) -> web.StreamResponse:
    return await _file(request, "index.html")


@routes.get("/client.js")
@routes.get("/client.d.ts")
@routes.get("/widget.js")
async def embedded(request: web.Request) -> web.StreamResponse:
    return await _file(request, EMBEDDED[request.path])


@routes.get("/page/{path:.+}")
async def static(request: web.Request) -> web.StreamResponse:
    return await _file(request, request.match_info["path"])


async def _file(request: web.Request, name: str) -> web.Response:
    packed = await PACKED.get(name)
    if packed is None:
        raise GatewayError(Code.NOT_FOUND)
    suffix = FILES[name].suffix
    shared = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    return packed_answer(
        request,
        packed,
        {
            hdrs.CONTENT_TYPE: CONTENT_TYPES[suffix],
            hdrs.CACHE_CONTROL: "no-cache",  # asked for again each time (a 304): widget and client are of one version
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            **(shared if suffix in SHARED else {}),
        },
    )
