"""How the access commands read what they are given, and print what they found: tables for people, JSON for programs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.core.keys import KeyRecord, KeyState
from gateway.core.plan import SCOPES, ScopeLimits
from gateway.services.clock import iso

if TYPE_CHECKING:
    from gateway.desk import Desk

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """``90d``, ``24h``, ``15m`` or ``30s``; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+)([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write 90d, 24h, 15m or 30s", param, ctx)
        return float(int(match[1]) * UNITS[match[2] or "s"])


async def tenant_facts(desk: Desk, name: Any) -> dict[str, Any]:
    """What is shown of a tenant."""
    tenant, now_s = desk.tenants[name], time.time()
    records = await desk.auth.keys.list(name)
    return {
        "tenant": str(name),
        "state": "revoked" if desk.auth.tenant_revoked(name) else "active",
        "personas": sorted(tenant.personas),
        "origins": sorted(tenant.origins),
        "anonymous": tenant.anonymous,
        "limits": {scope: limits for scope in SCOPES if (limits := _set(tenant.plan.of(scope)))},
        "disconnect": str(tenant.disconnect.policy),
        "issuers": [issuer.issuer for issuer in tenant.issuers],
        "keys": sum(record.state(now_s) is KeyState.ACTIVE for record in records),
    }


def _set(limits: ScopeLimits) -> dict[str, int]:
    return {name: value for name, value in asdict(limits).items() if value}


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


def key_facts(record: KeyRecord, now_s: float) -> dict[str, Any]:
    return {
        "key": record.prefix,
        "id": record.id,
        "tenant": record.tenant,
        "kind": record.kind,
        "label": record.label,
        "ending": record.ending,
        "state": record.state(now_s),
        "created_at": record.created_at,
        "expires_at": stamp(record.expires_at_s),
        "revoked_at": stamp(record.revoked_at_s),
    }


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


def stamp(at_s: float | None) -> str | None:
    return None if at_s is None else iso(at_s)
