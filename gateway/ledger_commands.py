"""``ledger``: the PostgreSQL that settlements are exported to, from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gateway.commands import CONFIG, load_settings, perform


@click.group()
def ledger() -> None:
    """Tend the PostgreSQL that settlements are exported to."""


@ledger.command()
@CONFIG
@click.option("--print", "only_print", is_flag=True, help="Print the SQL of an empty database's tables, for psql.")
def migrate(config: Path | None, only_print: bool) -> None:
    """Make the tables, or bring them to this version, as the role that GATEWAY_LEDGER_URL names.

    A gateway does so by itself where its role may. Where it may not, run this as one that may, before the gateway.
    """
    settings = load_settings(config, os.environ, {}, vendor_key=False)
    if only_print:
        from gateway.warehouse.statements import script

        click.echo(script(settings.ledger.schema), nl=False)
        return
    if settings.ledger.url is None and settings.ledger.url_file is None:
        raise click.ClickException("GATEWAY_LEDGER_URL: name the database")
    from gateway.core.warehouse import WarehouseError
    from gateway.sections import SettingsError
    from gateway.warehouse.target import Target

    target = Target(settings.ledger)

    async def run() -> list[str]:
        target.require()
        from gateway.warehouse.postgres import Postgres  # its driver is an extra

        warehouse = Postgres(target)
        try:
            await warehouse.inspect()
            return await warehouse.migrate()
        finally:
            await warehouse.aclose()

    try:
        steps = perform(run())
    except (SettingsError, WarehouseError) as error:
        raise click.ClickException(str(error)) from None
    for step in steps:
        click.echo(f"applied {step}")
    if not steps:
        click.echo("nothing to do")
