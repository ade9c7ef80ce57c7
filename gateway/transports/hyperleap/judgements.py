"""The drop-in's moderations, and the reports for the tenant's backend."""

from __future__ import annotations

from functools import partial
from typing import Final

from aiohttp import web

from gateway.core.operations import Report, RunKind
from gateway.protocol.hyperleap_door import AuditReport, FeedbackReport, Moderate, plain
from gateway.transports.edge import address_of, json_answer, read_body
from gateway.transports.hyperleap.door import BASE, SERVICES, backend, caller, path_id

REPORTS: Final[dict[Report, type[AuditReport] | type[FeedbackReport]]] = {
    Report.AUDIT_CONVERSATIONS: AuditReport,
    Report.AUDIT_PROMPT_RUNS: AuditReport,
    Report.FEEDBACK_CONVERSATIONS: FeedbackReport,
    Report.FEEDBACK_PROMPT_RUNS: AuditReport,
}


async def moderate(request: web.Request) -> web.Response:
    principal = await caller(request)
    body = await read_body(request, Moderate)
    moderations = request.app[SERVICES].moderations
    return json_answer(await moderations.moderate(principal, body.input, address=address_of(request)))


async def report(request: web.Request, of: Report) -> web.Response:
    principal = await backend(request)
    body = await read_body(request, REPORTS[of])
    reports = request.app[SERVICES].reports
    return json_answer(await reports.report(principal, of, plain(body), address=address_of(request)))


async def details(request: web.Request, kind: RunKind) -> web.Response:
    principal = await backend(request)
    run_id = path_id(request, "run_id")
    reports = request.app[SERVICES].reports
    return json_answer(await reports.details(principal, kind, run_id, address=address_of(request)))


def routes() -> list[web.RouteDef]:
    """Return the routes."""
    return [
        web.post(f"{BASE}moderations", moderate),
        *(web.post(f"{BASE}{of}", partial(report, of=of)) for of in Report),
        *(web.get(f"{BASE}{kind}/{{run_id}}", partial(details, kind=kind)) for kind in RunKind),
    ]
