"""Usage on the wire: exact amounts, one table for programs and spreadsheets, and no cell that does anything."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.usage import Span, Tally
from gateway.protocol.usage import amount, columns, record_members, report_members, row_members, to_csv, to_jsonl
from gateway.protocol.usage_answers import UsageRecord, UsageReport
from tests.core.test_usage import ACME, BEGINS, settlement

SPAN = Span(BEGINS, BEGINS + timedelta(days=1), UTC)


@given(st.integers(0, 2**60))
def test_amount_is_exact(micros: int) -> None:
    """The decimal that people read is the whole number that programs read."""
    units, _, part = str(amount(micros)).partition(".")
    assert (len(part), int(units) * 10**6 + int(part)) == (6, micros)
    assert amount(None) is None


def test_report_and_record_are_as_described() -> None:
    """What is written can be read by its type, and has all of its members."""
    tally = Tally(SPAN, ("day", "persona", "key"))
    tally.add(ACME, [settlement(cost_micros=370, currency="EUR"), settlement()])
    report = msgspec.convert(report_members(tally), UsageReport)
    assert [(row.day, row.turns, row.cost_micros, row.currency) for row in report.data] == [
        ("2026-10-20", 1, 370, "EUR"),
        ("2026-10-20", 1, None, None),
    ]
    assert datetime.fromisoformat(report.from_) == SPAN.begins
    record = record_members(ACME, settlement(turn_id="0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"))
    assert record.keys() == {field.encode_name for field in msgspec.structs.fields(UsageRecord)}
    assert msgspec.convert(record, UsageRecord).tenant == "acme"


def test_tables_of_both_kinds_say_the_same() -> None:
    """A line of JSON and a line of CSV hold the same group, the cost in units in the one that people open."""
    tally = Tally(SPAN, ("tenant",))
    tally.add(ACME, [settlement(cost_micros=2_500_001, currency="EUR"), settlement()])
    rows = [row_members(tally.by, row) for row in tally.rows()]
    lines = [msgspec.json.decode(line) for line in to_jsonl(rows).splitlines()]
    table = list(csv.DictReader(io.StringIO(to_csv(columns(tally.by), rows).decode(), newline="")))
    assert [line["cost_micros"] for line in lines] == [2_500_001, None]
    assert [row["cost"] for row in table] == ["2.500001", ""]
    for line, row in zip(lines, table, strict=True):
        assert {name: "" if value is None else str(value) for name, value in line.items() if name != "cost_micros"} == {
            name: value for name, value in row.items() if name != "cost"
        }


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")', "\uff1d1"]
)
def test_cell_that_a_spreadsheet_would_run_is_text(text: str) -> None:
    """What a vendor or a tenant has named is never a formula; what is quoted stays one cell."""
    record = record_members(ACME, settlement(reason=text, persona=text))
    (row,) = csv.DictReader(io.StringIO(to_csv(columns(None), [record]).decode(), newline=""))
    assert row["reason"] == row["persona"] == f"'{text}"


@given(st.text(max_size=20))
def test_cell_is_what_was_written(text: str) -> None:
    """Commas, quotes and line breaks included."""
    record = record_members(ACME, settlement(reason=text))
    (row,) = csv.DictReader(io.StringIO(to_csv(columns(None), [record]).decode(), newline=""))
    assert row["reason"] in (text, f"'{text}")


def test_header_is_written_once_for_several_pages() -> None:
    """Pages that are put one after the other are one table."""
    record = record_members(ACME, settlement())
    pages = to_csv(columns(None), [record]) + to_csv(columns(None), [record], head=False)
    assert [line.startswith(b"tenant,") for line in pages.splitlines()] == [True, False, False]
