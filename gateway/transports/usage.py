"""HTTP door to a tenant's own usage, for its backend; and how any usage report is asked for and written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence, Set
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import MultiMapping

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.usage import Tally
from gateway.protocol.native import encode_json
from gateway.protocol.usage import (
    MEDIA,
    Format,
    columns,
    page_members,
    record_members,
    report_members,
    row_members,
    to_csv,
    to_jsonl,
)
from gateway.services.usage import RECORDS_MAX, Asked, Page, UsageService
from gateway.transports.edge import EDGE, bearer

BY_TURN: Final = "turn"
CURSOR_HEADER: Final = "x-next-cursor"  # where the body has no place for it
PARAMETERS: Final = frozenset({"from", "to", "by", "timezone", "format", "cursor", "limit"})
_ACCEPTED: Final[dict[str, Format]] = {
    **{media: name for name, media in MEDIA.items()},
    "application/x-ndjson": "jsonl",
    "application/x-jsonlines": "jsonl",
}

routes = web.RouteTableDef()


@routes.get("/v1/usage")
async def tell(request: web.Request) -> web.Response:
    """Tell a tenant what it used, to whoever shows its secret key."""
    edge = request.app[EDGE]
    tenant = await edge.sessions.backend(bearer(request))
    check_parameters(request, PARAMETERS)
    return await answer(request, edge.usage, [tenant.id])


def check_parameters(request: web.Request, known: Set[str]) -> None:
    """Raise GatewayError (unknown_field, invalid_value) for a query that asks for what nobody knows, or twice."""
    query: MultiMapping[str] = request.query
    for name in query:
        if name not in known:
            raise GatewayError(Code.UNKNOWN_FIELD, f"The query may have {', '.join(sorted(known))}.", field=name[:64])
        if len(query.getall(name)) > 1:
            raise GatewayError(Code.INVALID_VALUE, "It is given more than once.", field=name)


async def answer(request: web.Request, usage: UsageService, tenants: Sequence[TenantId]) -> web.Response:
    """Answer what the query asks for of some tenants; raises GatewayError."""
    query = request.query
    form = _format(request)
    asked = Asked(
        from_=query.get("from") or None,
        to=query.get("to") or None,
        by=query.get("by") or None,
        timezone=query.get("timezone") or None,
    )
    headers: dict[str, str] = {}
    if asked.by == BY_TURN:
        page = await usage.records(tenants, asked, query.get("cursor") or None, _limit(query.get("limit")))
        if page.cursor is not None and form != "json":
            headers[CURSOR_HEADER] = page.cursor
        body = await asyncio.to_thread(_records, page, form)
    else:
        for name in ("cursor", "limit"):
            if name in query:
                raise GatewayError(Code.INVALID_VALUE, f"{name} is for by={BY_TURN}; sums are told whole.", field=name)
        body = await asyncio.to_thread(_report, await usage.report(tenants, asked), form)
    return web.Response(
        body=body,
        content_type=MEDIA[form],
        charset="utf-8" if form == "csv" else None,
        headers={hdrs.CACHE_CONTROL: "no-store", hdrs.VARY: hdrs.ACCEPT, **headers},
    )


def _report(tally: Tally, form: Format) -> bytes:
    if form == "json":
        return encode_json(report_members(tally))
    rows: Iterator[dict[str, Any]] = (row_members(tally.by, row) for row in tally.rows())
    return to_jsonl(rows) if form == "jsonl" else to_csv(columns(tally.by), rows)


def _records(page: Page, form: Format) -> bytes:
    if form == "json":
        return encode_json(page_members(page.span, page.records, page.cursor))
    rows = (record_members(tenant, one) for tenant, one in page.records)
    return to_jsonl(rows) if form == "jsonl" else to_csv(columns(None), rows)


def _format(request: web.Request) -> Format:
    """Return the format that is asked for by name, else the first of ``Accept`` that is known, else JSON."""
    named = request.query.get("format")
    if named:
        for form in MEDIA:
            if named == form:
                return form
        raise GatewayError(Code.INVALID_VALUE, f"It is none of {', '.join(MEDIA)}.", field="format")
    for one in request.headers.get(hdrs.ACCEPT, "").split(","):
        accepted = _ACCEPTED.get(one.partition(";")[0].strip().lower())
        if accepted is not None:
            return accepted
    return "json"


def _limit(text: str | None) -> int:
    if not text:
        return RECORDS_MAX
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise GatewayError(Code.INVALID_VALUE, f"limit lies between 1 and {RECORDS_MAX}.", field="limit")
    return int(text)
