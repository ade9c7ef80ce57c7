"""Usage on the wire: sums and settlements as JSON, as lines of JSON, and as CSV in which no cell is run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from gateway.core.identity import TenantId
from gateway.core.ledger import Settlement
from gateway.core.prices import DECIMALS_MAX, MICROS
from gateway.core.usage import Dimension, Row, Span, Tally

Format = Literal["json", "csv", "jsonl"]
MEDIA: Final[Mapping[Format, str]] = {
    "json": "application/json",
    "csv": "text/csv",
    "jsonl": "application/jsonl",
}

# In this order; ``cost`` stands for ``cost_micros`` where people read.
COUNTS: Final = ("turns", "moderations", "completed", "stopped", "failed", "estimated")
TOKENS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
RECORD: Final = (
    *("tenant", "turn_id", "conversation_id", "user", "persona", "state", "reason", "message_id"),
    *(*TOKENS, "source", "duration_s", "first_token_s", "ended_at", "vendor_key", "cost_micros", "currency"),
)

# What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection).
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_line: Final = msgspec.json.Encoder()


def row_members(by: Sequence[Dimension], row: Row) -> dict[str, Any]:
    """Return a group as the members of a JSON object."""
    sums = row.sums
    return {
        **dict(zip(by, row.values, strict=False)),
        **{name: getattr(sums, name) for name in (*COUNTS, *TOKENS, "cost_micros")},
        "currency": row.currency,
    }


def report_members(tally: Tally) -> dict[str, Any]:
    """Return a report as the members of a JSON object."""
    return {
        "report": "sums",
        **span_members(tally.span),
        "by": list(tally.by),
        "data": [row_members(tally.by, row) for row in tally.rows()],
        "total": [row_members((), row) for row in tally.total()],
    }


def page_members(span: Span, records: Iterable[tuple[TenantId, Settlement]], next_cursor: str | None) -> dict[str, Any]:
    """Return a page of settlements as the members of a JSON object."""
    data = [record_members(tenant, one) for tenant, one in records]
    return {"report": "turns", **span_members(span), "data": data, "next_cursor": next_cursor}


def span_members(span: Span) -> dict[str, str]:
    """Return a range as it was understood."""
    return {
        "from": span.begins.isoformat(timespec="milliseconds"),
        "to": span.ends.isoformat(timespec="milliseconds"),
        "timezone": str(span.zone),
    }


def record_members(tenant: TenantId, one: Settlement) -> dict[str, Any]:
    """Return a settlement as the members of a JSON object, null where nothing is known."""
    return {
        "tenant": tenant,
        "turn_id": one.turn_id,
        "conversation_id": one.conversation_id or None,
        "user": one.owner,
        "persona": one.persona or None,
        "state": one.state,
        "reason": one.reason,
        "message_id": one.message_id,
        "prompt_tokens": one.prompt_tokens,
        "completion_tokens": one.completion_tokens,
        "total_tokens": one.total_tokens,
        "source": one.source,
        "duration_s": one.duration_s,
        "first_token_s": one.first_token_s,
        "ended_at": one.ended_at,
        "vendor_key": one.vendor_key,
        "cost_micros": one.cost_micros,
        "currency": one.currency,
    }


def columns(by: Sequence[Dimension] | None) -> tuple[str, ...]:
    """Return the header of a table of groups, or (None) of settlements."""
    names = RECORD if by is None else (*by, *COUNTS, *TOKENS, "cost_micros", "currency")
    return tuple("cost" if name == "cost_micros" else name for name in names)


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Write one JSON object a line."""
    return b"".join(_line.encode(row) + b"\n" for row in rows)


def to_csv(header: Sequence[str], rows: Iterable[Mapping[str, Any]], *, head: bool = True) -> bytes:
    """Write rows as CSV (RFC 4180), costs in the currency's unit; ``head``: with the header before them.

    A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers are never text.
    """
    page = io.StringIO(newline="")
    writer = csv.writer(page, lineterminator="\r\n")
    if head:
        writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(amount(row["cost_micros"]) if name == "cost" else row[name]) for name in header])
    return page.getvalue().encode()


def amount(micros: int | None) -> str | None:
    """Return millionths of a unit as a decimal number of units, exact."""
    if micros is None:
        return None
    units, part = divmod(micros, MICROS)
    return f"{units}.{part:0{DECIMALS_MAX}}"


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
