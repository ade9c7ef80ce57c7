"""The native door's entry of usage reports."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import Code
from gateway.core.usage import DIMENSIONS
from gateway.protocol.usage import MEDIA
from gateway.protocol.usage_answers import UsagePage, UsageReport
from gateway.services.usage import RECORDS_MAX
from gateway.transports.openapi.operation import TEXT, Answer, Operation, Parameter

TELL_USAGE: Final = Operation(
    method="get",
    path="/v1/usage",
    id="tellUsage",
    summary="Read what the tenant used and what it cost",
    detail="For the tenant's backend: sums of all settled turns of all of its users, or with `by=turn` the turns "
    "themselves, page by page. A date is the whole day in the tenant's time zone ([usage](/docs/usage)).",
    credentials=("secret_key",),
    parameters=(
        Parameter("from", "query", "A date (`2026-11-22`), or a moment with an offset (RFC 3339). It must be given."),
        Parameter("to", "query", "The last date, or the moment before which it ends; now unless given."),
        Parameter(
            "by", "query", f"What to group by, with commas: {', '.join(f'`{d}`' for d in DIMENSIONS)}; or `turn`."
        ),
        Parameter("timezone", "query", "Another zone for dates, days and hours, such as `Europe/Berlin`."),
        Parameter("format", "query", f"One of {', '.join(f'`{f}`' for f in MEDIA)}, in place of `Accept`."),
        Parameter("cursor", "query", "With `by=turn`: `next_cursor` of the page before."),
        Parameter(
            "limit",
            "query",
            "With `by=turn`: the most that a page may hold.",
            {"type": "integer", "minimum": 1, "maximum": RECORDS_MAX, "default": RECORDS_MAX},
        ),
    ),
    answers={
        200: Answer(
            what="The sums, or a page of turns. As CSV or lines of JSON a page names the next one in a header.",
            media={
                MEDIA["json"]: UsageReport | UsagePage,
                MEDIA["csv"]: TEXT,
                MEDIA["jsonl"]: TEXT,
            },
            headers=("x-next-cursor",),
        )
    },
    errors=(
        Code.CREDENTIAL_MISSING,
        Code.CREDENTIAL_INVALID,
        Code.REVOKED,
        Code.FORBIDDEN,
        Code.UNKNOWN_FIELD,
        Code.MISSING_FIELD,
        Code.INVALID_VALUE,
        Code.INVALID_CURSOR,
        Code.RATE_LIMITED,
        Code.STORE_UNAVAILABLE,
    ),
)
