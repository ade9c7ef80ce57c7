"""The reference pages at ``/docs`` and the API's description at ``/openapi.json``.

Pages are Markdown beside the code, and one is made of the description. They are turned into HTML when they are first
asked for, which takes some milliseconds, and then kept, also compressed. Nothing on them is from elsewhere, and no
script runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.protocol.native import encode_json
from gateway.transports.openapi.document import document
from gateway.transports.openapi.http_page import http_page
from gateway.transports.openapi.operation import Door
from gateway.transports.packed import Packed, packed_answer

ROOT: Final = Path(__file__).parent.parent / "docs"
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# Names are looked up here, never joined to a path: whatever a request asks for, only these files can be opened.
FILES: Final = {path.stem: path for path in sorted(ROOT.glob("*.md"))}
HTTP: Final = "http"  # the page that is made of the description
# Where a reader looks for what; pages that are named nowhere come under the last.
SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Begin": ("first-stream", "add-a-tenant", "architecture"),
    "Doors": (HTTP, "websocket", "openai", "ui", "hyperleap"),
    "Run": (
        *("production", "behind-a-proxy", "scale-out", "drain-and-roll", "redis", "rotate-a-key"),
        *("monitoring", "runbook", "logs", "tracing", "usage", "usage-page", "postgres"),
    ),
    "How it behaves": ("access", "limits", "tenants", "failures", "event-log", "threat-model"),
    "Look up": ("settings", "metrics", "errors"),
}
STYLE: Final = ROOT / "style.css"

routes = web.RouteTableDef()


class Reference:
    """The pages of one application, made of its doors' entries and of the files."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self.doors = doors
        self._document: Mapping[str, Any] | None = None
        self._made: dict[str, Packed] = {}

    async def description(self) -> Packed:
        """Return the OpenAPI document."""
        return await self._once("description", lambda: encode_json(self._described()))

    async def source(self, name: str) -> Packed:
        """Return a page as Markdown; raises GatewayError(not_found)."""
        if name != HTTP and name not in FILES:
            raise GatewayError(Code.NOT_FOUND)
        return await self._once(f"{name}.md", lambda: self._markdown(name).encode())

    async def page(self, name: str) -> Packed:
        """Return a page as HTML; raises GatewayError(not_found)."""
        if name != HTTP and name not in FILES:
            raise GatewayError(Code.NOT_FOUND)
        return await self._once(name, lambda: self._html(name))

    async def style(self) -> Packed:
        """Return the style sheet of all pages."""
        return await self._once(STYLE.name, STYLE.read_bytes)

    async def index(self) -> Packed:
        """Return the list of pages as HTML."""
        return await self._once("", lambda: self._html(None))

    async def _once(self, name: str, make: Callable[[], bytes]) -> Packed:
        if name not in self._made:  # two who ask at once make it twice, which is no harm
            self._made[name] = await asyncio.to_thread(lambda: Packed.of(make()))
        return self._made[name]

    def _described(self) -> Mapping[str, Any]:
        if self._document is None:
            self._document = document(self.doors)
        return self._document

    def _markdown(self, name: str) -> str:
        return http_page(self._described()) if name == HTTP else FILES[name].read_text("utf-8")

    def _html(self, name: str | None) -> bytes:
        from gateway.transports.rendering import listed, rendered, title_of  # a start need not wait for Markdown

        groups = {
            section: {one: title_of(self._markdown(one)) for one in names} for section, names in _sections().items()
        }
        text = self._markdown(name) if name is not None else listed(groups)
        return rendered(text, groups, name).encode()


def _sections() -> dict[str, list[str]]:
    """Return the names of all pages by section."""
    present = {HTTP, *FILES}
    found = {section: [name for name in names if name in present] for section, names in SECTIONS.items()}
    *_, last = found
    found[last] += sorted(present - {name for names in SECTIONS.values() for name in names})
    return {section: names for section, names in found.items() if names}


REFERENCE: Final = web.AppKey("reference", Reference)


@routes.get("/openapi.json")
async def describe(request: web.Request) -> web.Response:
    """Answer the API's description."""
    return _answer(request, await request.app[REFERENCE].description(), "application/json")


@routes.get("/docs")
async def index(request: web.Request) -> web.Response:
    """List the pages."""
    return _answer(request, await request.app[REFERENCE].index(), "text/html")


@routes.get("/docs/")
async def index_elsewhere(_: web.Request) -> web.Response:
    """Lead to the list of pages, which many write with a slash."""
    return web.Response(status=308, headers={hdrs.LOCATION: "/docs"})


@routes.get("/docs/style.css")
async def style(request: web.Request) -> web.Response:
    return _answer(request, await request.app[REFERENCE].style(), "text/css")


@routes.get("/docs/{name:[a-z0-9-]+}.md")
async def source(request: web.Request) -> web.Response:
    """Answer a page as it is kept."""
    return _answer(request, await request.app[REFERENCE].source(request.match_info["name"]), "text/markdown")


@routes.get("/docs/{name:[a-z0-9-]+}")
async def page(request: web.Request) -> web.Response:
    return _answer(request, await request.app[REFERENCE].page(request.match_info["name"]), "text/html")


def _answer(request: web.Request, packed: Packed, content_type: str) -> web.Response:
    return packed_answer(
        request,
        packed,
        {
            hdrs.CONTENT_TYPE: f"{content_type}; charset=utf-8" if content_type.startswith("text/") else content_type,
            hdrs.CACHE_CONTROL: "no-cache",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
        },
    )
