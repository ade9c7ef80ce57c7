"""How the access commands read what they are given, and print what they found: tables for people, JSON for programs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.core.keys import KeyRecord, KeyState
from gateway.services.facts import key_facts

if TYPE_CHECKING:
    from gateway.core.identity import TenantId
    from gateway.services.desk import Desk

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """``90d``, ``24h``, ``15m`` or ``30s``; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+)([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write 90d, 24h, 15m or 30s", param, ctx)
        return float(int(match[1]) * UNITS[match[2] or "s"])


async def tenant_facts(desk: Desk, name: TenantId) -> dict[str, Any]:
    """What is shown of a tenant, and how many keys it has that work."""
    now_s = time.time()
    records = await desk.auth.keys.list(name)
    return {**desk.facts(name), "keys": sum(record.state(now_s) is KeyState.ACTIVE for record in records)}


def tell_key(key: str, record: KeyRecord, as_json: bool) -> None:
    """Print a new key alone on standard output, so that it can be piped to where it belongs."""
    if as_json:
        print_json({"secret": key, **key_facts(record, time.time())})
        return
    click.echo(key)
    ends = f"ends {when(record.expires_at_s)} UTC" if record.expires_at_s is not None else "has no end"
    click.echo(
        f"Keep it: it is shown this once. Kind {record.kind}, tenant {record.tenant}, label {record.label}; it {ends}.",
        err=True,
    )


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], none: str) -> None:
    """Print rows in columns, as wide as they are: never cut, so that what is copied from them is whole."""
    if not rows:
        click.echo(none, err=True)
        return
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def when(at_s: float | None) -> str:
    return "" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")
