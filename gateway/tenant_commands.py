"""``tenants``: the customers of the gateway, from the command line. They end as the commands of ``access`` do."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import click

from gateway.access import JSON, at_desk
from gateway.access_words import print_json, print_table, tenant_facts
from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId

if TYPE_CHECKING:
    from gateway.services.desk import Desk


@click.group()
def tenants() -> None:
    """Show, make and delete tenants, shut one out and let it in again."""


@tenants.command("list")
@JSON
@at_desk
async def list_tenants(desk: Desk, as_json: bool) -> None:
    """List the tenants of the store, and of the settings or the tenants file that this command sees."""
    facts = [await tenant_facts(desk, name) for name in desk.tenants]
    if as_json:
        print_json(facts)
        return
    print_table(
        ("TENANT", "SOURCE", "STATE", "PERSONAS", "ORIGINS", "ANONYMOUS", "KEYS"),
        [
            (
                each["tenant"],
                each["source"],
                each["state"],
                ", ".join(each["personas"]) or "–",
                str(len(each["origins"])),
                "yes" if each["anonymous"] else "no",
                str(each["keys"]),
            )
            for each in facts
        ],
        "No tenants.",
    )


@tenants.command("show")
@click.argument("tenant", required=False)
@JSON
@at_desk
async def show_tenant(desk: Desk, tenant: str | None, as_json: bool) -> None:
    """Show what a tenant may do."""
    facts = await tenant_facts(desk, desk.tenant(tenant))
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        match value:
            case dict():
                value = ", ".join(
                    f"{scope} {limit}={n}" for scope, limits in value.items() for limit, n in limits.items()
                )
            case list():
                value = ", ".join(map(str, value))
            case bool():
                value = "yes" if value else "no"
        click.echo(f"{name.replace('_', ' '):<16}{value if value not in ('', None) else '–'}")


@tenants.command("put")
@click.argument("tenant")
@click.argument("file", type=click.File("rb"))
@at_desk
async def put_tenant(desk: Desk, tenant: str, file: Any) -> None:
    """Make a tenant in the store, or another one of it.

    FILE is TOML, or - for standard input: what would stand below [tenants.TENANT], without that line.
    """
    try:
        table = tomllib.loads(file.read().decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"The file is not valid TOML: {error}") from None
    try:
        added = await desk.put_tenant(TenantId(tenant), table)
    except GatewayError as error:
        raise click.ClickException(
            f"{tenant}: {error.field}: {error.detail}" if error.field else error.detail
        ) from None
    click.echo(f"{tenant} is {'made' if added else 'changed'}; it holds within 2 s.")


@tenants.command("delete")
@click.argument("tenant")
@at_desk
async def delete_tenant(desk: Desk, tenant: str) -> None:
    """Delete a tenant of the store, its keys and its sessions.

    All that runs of it ends within 2 s, and another tenant of its name begins without keys.
    """
    await desk.delete_tenant(TenantId(tenant))
    click.echo(f"{tenant} is deleted.")


@tenants.command("revoke")
@click.argument("tenant")
@at_desk
async def revoke_tenant(desk: Desk, tenant: str) -> None:
    """Shut a tenant out.

    All that runs of it ends within 2 s, and nothing new is let in until `tenants restore`.
    """
    name = desk.tenant(tenant)
    await desk.revoke_tenant(name)
    click.echo(f"{name} is shut out. `hyperleap-gateway tenants restore {name}` lets it in again.")


@tenants.command("restore")
@click.argument("tenant")
@at_desk
async def restore_tenant(desk: Desk, tenant: str) -> None:
    """Let a tenant in again that was shut out."""
    name = desk.tenant(tenant)
    lifted = await desk.restore_tenant(name)
    click.echo(f"{name} is let in again." if lifted else f"{name} was not shut out.")
