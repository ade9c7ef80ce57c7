"""``usage``: what tenants used and what it cost, from the command line. It ends as the commands of ``access`` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from gateway.access import at_desk
from gateway.access_words import print_json
from gateway.core.errors import Code, GatewayError
from gateway.core.prices import MICROS
from gateway.core.usage import DIMENSIONS, TIMES
from gateway.protocol.usage import (
    columns,
    record_members,
    report_members,
    row_members,
    to_csv,
    to_jsonl,
)
from gateway.services.usage import RECORDS_MAX, Asked

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.core.identity import TenantId
    from gateway.core.usage import Row, Sums, Tally
    from gateway.services.desk import Desk

BY_TURN: Final = "turn"
DAYS: Final = 7  # today among them, unless told otherwise
WIDTH: Final = 80  # where there is no terminal to fit
NAME_WIDTH: Final = 8  # of a column, at least, where names are longer
GAP: Final = 2  # between columns
CALLED_WRONGLY: Final = frozenset({Code.MISSING_FIELD, Code.INVALID_VALUE})


@click.command()
@click.option("--tenant", help="Only this tenant; all unless given.")
@click.option("--from", "from_", metavar="WHEN", help=f"A date, or a moment with an offset; unless given, {DAYS} days.")
@click.option("--to", metavar="WHEN", help="The last date, or the moment before which it ends; now unless given.")
@click.option("--by", default="day,persona", show_default=True, help=f"{', '.join(DIMENSIONS)}; or turn, for each.")
@click.option("--timezone", help="Zone of dates, days and hours; the tenant's unless given, or UTC for all.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl", "json"]),
    default="table",
    show_default=True,
    help="json is one document with the totals; csv and jsonl are rows.",
)
@at_desk
async def usage(
    desk: Desk, tenant: str | None, from_: str | None, to: str | None, by: str, timezone: str | None, form: str
) -> None:
    """Show what tenants used, and what it cost.

    Sums of the settled turns, from the ledger in the store, by days and personas unless told otherwise. WHEN is a
    date (2026-11-22), which is the whole day, or a moment (2026-11-22T10:00:00+01:00).
    """
    first_day = datetime.now(UTC) - timedelta(days=DAYS - 1)
    asked = Asked(from_=from_ or f"{first_day:%Y-%m-%d}", to=to, by=by, timezone=timezone)
    try:
        tenants = await desk.usage.tenants(tenant)
        if by == BY_TURN:
            await _print_turns(desk, tenants, asked, form)
            return
        tally = await desk.usage.report(tenants, asked)
    except GatewayError as error:
        if error.code in CALLED_WRONGLY and error.field:
            raise click.UsageError(f"--{error.field}: {error.detail}") from None
        raise click.ClickException(error.detail) from None
    match form:
        case "json":
            print_json(report_members(tally))
        case "jsonl":
            _write(to_jsonl(row_members(tally.by, row) for row in tally.rows()))
        case "csv":
            _write(to_csv(columns(tally.by), (row_members(tally.by, row) for row in tally.rows())))
        case _:
            _print_table(tally)


async def _print_turns(desk: Desk, tenants: Sequence[TenantId], asked: Asked, form: str) -> None:
    """Print settlement by settlement, page after page, so that no number of them is too many."""
    if form not in ("csv", "jsonl"):
        raise click.UsageError("--by turn has too many columns for a table; add --format csv or --format jsonl.")
    cursor: str | None = None
    head = True
    while head or cursor is not None:
        page = await desk.usage.records(tenants, asked, cursor, RECORDS_MAX)
        rows = [record_members(tenant, one) for tenant, one in page.records]
        _write(to_csv(columns(None), rows, head=head) if form == "csv" else to_jsonl(rows))
        head, cursor = False, page.cursor


def _write(page: bytes) -> None:
    click.echo(page, nl=False)


def _print_table(tally: Tally) -> None:
    """Print sums for people; numbers stay whole, and names break where the terminal is narrow."""
    from rich.console import Console
    from rich.table import Table

    rows, totals = tally.rows(), tally.total()
    if not rows:
        click.echo("Nothing was settled in this range.", err=True)
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    span = tally.span
    table = Table(
        title=f"{span.begins:%Y-%m-%d %H:%M} to {span.ends:%Y-%m-%d %H:%M}, {span.zone}",
        title_justify="left",
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
    )
    for dimension in tally.by or ("",):
        table.add_column(dimension.upper(), overflow="fold", no_wrap=dimension in TIMES)
    for figure in ("TURNS", "FAILED", "IN", "OUT", "COST"):
        table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)  # the cost's currency
    for row in rows:
        _add(table, [value if value is not None else "–" for value in row.values] or [""], row)
    if tally.by:
        table.add_section()
        for row in totals:
            _add(table, ["total", *[""] * (len(tally.by) - 1)], row)
    console.width = max(console.width, _fit(table))
    console.print(table)
    _print_notes([row.sums for row in totals])


def _fit(table: Table) -> int:
    """Let nothing but long names be broken, and those into pieces that can be read; return the width that it takes."""
    for column in table.columns:
        natural = max(len(str(cell)) for cell in (column.header, *column.cells))
        column.min_width = natural if column.no_wrap else min(natural, NAME_WIDTH)
    return sum((column.min_width or 0) + GAP for column in table.columns) - GAP


def _add(table: Table, names: Sequence[str], row: Row) -> None:
    sums = row.sums
    table.add_row(
        *names,
        f"{sums.turns:,}",
        f"{sums.failed:,}",
        f"{sums.prompt_tokens:,}",
        f"{sums.completion_tokens:,}",
        _shown(sums.cost_micros) if sums.cost_micros is not None else "–",
        row.currency or "",
    )


def _shown(cost_micros: int) -> str:
    """Return a cost to the ten-thousandth, for people; the other formats have all of it."""
    units, part = divmod(cost_micros + 50, MICROS)
    return f"{units:,}.{part // 100:04}"


def _print_notes(totals: Sequence[Sums]) -> None:
    """Say on standard error what the sums do not show."""
    estimated = sum(sums.estimated for sums in totals)
    settled = sum(sums.turns + sums.moderations for sums in totals)
    if moderations := sum(sums.moderations for sums in totals):
        click.echo(f"{moderations:,} moderations are counted beside the turns, with their tokens.", err=True)
    if estimated:
        click.echo(f"The tokens of {estimated:,} of {settled:,} are estimated.", err=True)
    if unpriced := sum(sums.turns + sums.moderations for sums in totals if sums.cost_micros is None):
        click.echo(f"{unpriced:,} of {settled:,} were settled without a price.", err=True)
