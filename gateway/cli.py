"""The command line: ``serve``, ``demo``, ``check``, ``keys``, ``tokens``, ``tenants``, ``ledger``, ``usage``, …"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gateway import __version__
from gateway.access import keys, tokens
from gateway.chat.command import chat
from gateway.commands import CONFIG, REDIS_URL, load_settings, perform
from gateway.ledger_commands import ledger
from gateway.simulator.command import simulate
from gateway.tenant_commands import tenants
from gateway.usage_command import usage

if TYPE_CHECKING:
    from gateway.lifecycle import OnReady
    from gateway.settings import Settings

PORT = click.option("--port", type=click.IntRange(0, 65535), help="Public port; 0 picks a free one.")
INTERNAL_PORT = click.option(
    "--internal-port", type=click.IntRange(0, 65535), help="Internal port; 0 picks a free one."
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Worker processes under a supervisor; SIGHUP replaces them one by one (GATEWAY_WORKERS).",
)
ENV_FILE = click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write URLs and fresh keys there as shell variables once the gateway is ready.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hyperleap-gateway")
def main() -> None:
    """Hyperleap chat for browsers and apps, with the API key kept on the server."""


@main.command()
@CONFIG
@PORT
@INTERNAL_PORT
@REDIS_URL
@ENV_FILE
@WORKERS
def serve(
    config: Path | None,
    port: int | None,
    internal_port: int | None,
    redis_url: str | None,
    env_file: Path | None,
    workers: int | None,
) -> None:
    """Run a gateway in front of Hyperleap.

    Needs HYPERLEAP_API_KEY (or HYPERLEAP_API_KEY_FILE) and, without a [tenants] table, HYPERLEAP_PERSONA_ID.
    """
    from gateway import lifecycle

    given = Given(config, os.environ, _overrides(port, internal_port, redis_url, workers))
    settings = load_settings(*given)

    async def on_ready(ready: lifecycle.Ready) -> None:
        if env_file is not None:
            lifecycle.write_env_file(env_file, lifecycle.env_facts(ready))
        click.echo(f"hyperleap-gateway {__version__} on {ready.url} (internal: {ready.internal_url})")
        if env_file is not None:
            click.echo(f"URLs and keys are in {env_file}")
            return
        for minted in ready.keys:
            click.echo(f"\nKeys of tenant {minted.tenant}, shown this once:")
            click.echo(f"  secret key       {minted.secret_key}")
            click.echo(f"  publishable key  {minted.publishable_key}")

    perform(_serve(settings, given, on_ready, fresh_keys=env_file is not None))


@main.command()
@CONFIG
@PORT
@INTERNAL_PORT
@REDIS_URL
@ENV_FILE
@WORKERS
@click.option("--rate", type=click.FloatRange(0), help="Items a second that the stand-in streams.")
@click.option("--fault", "faults", multiple=True, help="Make the stand-in misbehave; see `simulate --list-faults`.")
def demo(
    config: Path | None,
    port: int | None,
    internal_port: int | None,
    redis_url: str | None,
    env_file: Path | None,
    workers: int | None,
    rate: float | None,
    faults: tuple[str, ...],
) -> None:
    """Try it all on this machine: a stand-in Hyperleap, a store, the gateway and a chat page."""
    from gateway import demo as parts
    from gateway.core.vendor_keys import DEFAULT_KEY

    arguments = (*(() if rate is None else ("--rate", str(rate))), *(f"--fault={fault}" for fault in faults))
    # A key for the real Hyperleap that happens to be set is left alone: the demo never calls out.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLEAP_")}
    overrides = _overrides(port, internal_port, redis_url, workers)
    base = load_settings(config, environ, overrides | {"upstream.persona_id": parts.PERSONA_ID}, vendor_key=False)
    data_dir = base.server.data_dir / "demo"

    async def run() -> None:
        async with parts.simulator(data_dir, arguments) as stand_in:
            given = Given(
                config,
                environ,
                overrides
                | {
                    "server.data_dir": data_dir,
                    "upstream.base_url": stand_in.url,
                    "upstream.ca_file": stand_in.ca_file,
                    "upstream.api_key": stand_in.api_key,
                    "default_tenant.vendor_keys": (DEFAULT_KEY,),
                    "upstream.persona_id": parts.PERSONA_ID,
                    "default_tenant.anonymous": True,
                    **parts.UNLIMITED,
                },
            )
            await _serve(
                load_settings(*given),
                given,
                lambda ready: parts.show(ready, stand_in, env_file),
                made_secrets=True,
                fresh_keys=True,
            )

    perform(run())


@main.command()
@CONFIG
@REDIS_URL
@click.option("--all", "every", is_flag=True, help="Print settings at their defaults too.")
@click.option("--production", is_flag=True, help="Name what is unsafe or missing where real users come.")
@click.option("--streams", type=click.IntRange(1, 1_000_000), default=1000, help="Streams a worker is to hold [1000].")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="With --production.")
def check(config: Path | None, redis_url: str | None, every: bool, production: bool, streams: int, form: str) -> None:
    """Validate the settings and print them without secrets; try Redis, the ledger's database and the upstream.

    Settings at their defaults are left out.

    With --production it looks at much more, and prints what does not hold instead of the settings; its status is 1
    when something is unsafe or does not work.
    """
    from rich.console import Console
    from rich.table import Table

    from gateway import check as checks
    from gateway.parts import upstream_client, vendor_key_ring
    from gateway.production import report
    from gateway.production.checklist import judge
    from gateway.production.finding import Finding
    from gateway.production.survey import survey
    from gateway.sections import SettingsError
    from gateway.settings import CONFIG_ENV, Settings

    settings = load_settings(config, os.environ, _overrides(None, None, redis_url, None), vendor_key=False)
    try:
        keys = checks.check_keys(settings)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    written = config or (Path(os.environ[CONFIG_ENV]) if os.environ.get(CONFIG_ENV) else None)

    async def run() -> tuple[list[checks.Finding], list[Finding]]:
        client = upstream_client(settings, vendor_key_ring(settings), None)
        try:
            ledger = await checks.check_ledger(settings)
            works = [
                *keys,
                checks.check_tenants(settings),
                checks.check_secrets(settings),
                await checks.check_store(settings),
                *([ledger] if ledger is not None else []),
                await checks.check_upstream(client, settings.upstream.base_url),
            ]
            unsound = judge(await survey(settings, client, config=written, streams=streams)) if production else []
            return works, unsound
        finally:
            await client.aclose()

    findings, unsound = perform(run())
    if production:
        click.echo((report.as_json if form == "json" else report.as_text)(findings, unsound))
        if report.fails(findings, unsound):
            sys.exit(1)
        return
    console = Console(highlight=False)
    usual = set() if every else {*_flat(Settings().effective(), "")}
    rows = _flat(settings.effective(), "")
    told = [row for row in rows if row not in usual and (every or row[1] != "–")]
    table = Table("setting", "value", title="Effective settings", title_justify="left", box=None)
    for key, value in told:
        table.add_row(key, value)
    if told:
        console.print(table)
    if len(told) < len(rows):
        console.print(f"{len(rows) - len(told)} settings are at their defaults; --all shows them.")
    console.print()
    for finding in findings:
        console.print(
            f"{'ok  ' if finding.ok else 'FAIL'}  {finding.subject}: {finding.words}", markup=False, soft_wrap=True
        )
    if not all(finding.ok for finding in findings):
        sys.exit(1)


for group in (keys, tokens, tenants, ledger, usage, simulate, chat):
    main.add_command(group)


@main.command(hidden=True)
@click.option("--control-fd", type=int, required=True)
def worker(control_fd: int) -> None:
    """One worker of ``serve --workers``, which tells it all it needs over the control line."""
    from gateway import worker as process

    if not perform(process.run(control_fd)):
        sys.exit(1)


class Given(NamedTuple):
    """Where settings come from; supervised workers load them from there again."""

    config: Path | None
    environ: Mapping[str, str]
    overrides: dict[str, object]


async def _serve(
    settings: Settings,
    given: Given,
    on_ready: OnReady,
    *,
    made_secrets: bool = False,
    fresh_keys: bool = False,
) -> None:
    """Serve in this process, or in as many as the settings say."""
    from gateway import lifecycle, supervisor

    workers = settings.server.workers
    if workers is None:
        await lifecycle.serve(settings, on_ready=on_ready, made_secrets=made_secrets, fresh_keys=fresh_keys)
    else:
        await supervisor.serve(
            settings,
            workers=workers,
            **given._asdict(),
            on_ready=on_ready,
            made_secrets=made_secrets,
            fresh_keys=fresh_keys,
        )


def _overrides(
    port: int | None, internal_port: int | None, redis_url: str | None, workers: int | None
) -> dict[str, object]:
    return {
        "server.port": port,
        "server.internal_port": internal_port,
        "server.workers": workers,
        "redis.url": redis_url,
    }


def _flat(tree: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            rows.append((prefix + name, str(value).lower()))
        else:
            rows.append((prefix + name, "–" if value in (None, [], {}) else str(value)))
    return rows
