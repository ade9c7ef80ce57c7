"""The console at ``/admin`` of the internal port: static files that hold nothing, and ask the admin API for the rest.

Anybody who reaches the port may load it; what it shows it gets with the admin token that its user types in. The token
is sent in a header, which no other page can make a browser do: there is no cookie, and the answers carry no CORS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.transports.middleware import identify, problem_response
from gateway.transports.packed import PackedFiles, packed_answer
from gateway.transports.page import CONTENT_TYPES
from gateway.transports.page import ROOT as PAGE

ROOT: Final = (Path(__file__).parent.parent / "console").resolve()
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
# Names are looked up here, never joined to a path: whatever a request asks for, only these files can be opened.
FILES: Final = {
    path.relative_to(ROOT).as_posix(): path
    for path in ROOT.rglob("*")
    if path.suffix in CONTENT_TYPES and path.is_file()
} | {name: PAGE / name for name in ("dom.js", "icon.svg")}  # as the chat page has them
PACKED: Final = PackedFiles(FILES)

routes = web.RouteTableDef()


@routes.get("/admin")
@routes.get("/admin/")
async def index(request: web.Request) -> web.StreamResponse:
    return await _file(request, "index.html")


@routes.get("/admin/page/{path:.+}")
async def static(request: web.Request) -> web.StreamResponse:
    return await _file(request, request.match_info["path"])


async def _file(request: web.Request, name: str) -> web.StreamResponse:
    packed = await PACKED.get(name)
    if packed is None:
        response = problem_response(request, GatewayError(Code.NOT_FOUND))
    else:
        response = packed_answer(
            request,
            packed,
            {
                hdrs.CONTENT_TYPE: CONTENT_TYPES[FILES[name].suffix],
                hdrs.CACHE_CONTROL: "no-cache",  # asked for again each time (a 304), so that all are of one version
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
            },
        )
    identify(request, response)
    return response
