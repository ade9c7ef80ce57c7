"""``keys`` and ``tokens``: who may use the gateway, from the command line.

They never ask. They end with 0, with 1 when something could not be done, with 2 when they were called wrongly.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.access_words import Duration, print_json, print_table, tell_key, when
from gateway.commands import CONFIG, REDIS_URL, load_settings, perform
from gateway.core.keys import KeyKind, KeyState
from gateway.services.facts import key_facts, revocation_facts

if TYPE_CHECKING:
    from gateway.services.desk import Desk

Work = Callable[..., Awaitable[None]]

TENANT = click.option("--tenant", help="The tenant; not needed where there is only one.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def keys() -> None:
    """List, create, revoke and rotate a tenant's keys."""


@click.group()
def tokens() -> None:
    """Mint a session token, or take tokens back."""


def at_desk(work: Work) -> Callable[..., None]:
    """Run a command at the desk that its settings lead to."""

    @CONFIG
    @REDIS_URL
    @wraps(work)
    def command(config: Path | None, redis_url: str | None, **arguments: Any) -> None:
        from gateway.desk import open_desk
        from gateway.telemetry import audit

        settings = load_settings(
            config, os.environ, {"redis.url": redis_url, "logging.level": "error"}, vendor_key=False
        )

        async def at_open_desk() -> None:
            async with open_desk(settings) as desk:
                with audit.acting("cli", name=login()):
                    await work(desk, **arguments)

        perform(at_open_desk())

    return command


def login() -> str:
    """Return who runs this, for the audit stream; a container may not know its user's name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


# --- keys -------------------------------------------------------------------------------------------------------------


@keys.command("list")
@TENANT
@click.option(
    "--all", "ended_too", is_flag=True, help="Those too that were revoked or have expired (kept for 30 days)."
)
@JSON
@at_desk
async def list_keys(desk: Desk, tenant: str | None, ended_too: bool, as_json: bool) -> None:
    """List keys by what they begin with.

    The rest of a key is known to nobody but who has it.
    """
    named = [desk.tenant(tenant)] if tenant is not None else list(desk.tenants)
    now_s = time.time()
    records = [record for name in named for record in await desk.auth.keys.list(name)]
    shown = [record for record in records if ended_too or record.state(now_s) is KeyState.ACTIVE]
    if as_json:
        print_json([key_facts(record, now_s) for record in shown])
        return
    print_table(
        ("KEY", "KIND", "LABEL", "CREATED (UTC)", "EXPIRES (UTC)", "STATE"),
        [
            (
                f"{record.prefix}.…{record.ending}",
                record.kind,
                record.label,
                record.created_at[:16].replace("T", " "),
                when(record.expires_at_s) or "never",
                record.state(now_s),
            )
            for record in shown
        ],
        "No keys." if len(records) == len(shown) else "No keys that work; --all shows those that have ended.",
    )


@keys.command("create")
@TENANT
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in KeyKind]),
    default=KeyKind.SECRET.value,
    show_default=True,
    help="secret: for your backend; publishable: for pages of listed origins; app: for native apps.",
)
@click.option("--label", required=True, help="What the key is for, 1 to 64 characters.")
@click.option("--expires-in", type=Duration(), help="When it ends by itself, such as 90d; otherwise never.")
@JSON
@at_desk
async def create_key(
    desk: Desk, tenant: str | None, kind: str, label: str, expires_in: float | None, as_json: bool
) -> None:
    """Create a key and print it, for once."""
    minted = await desk.auth.keys.mint(desk.tenant(tenant), KeyKind(kind), label, ttl_s=expires_in)
    tell_key(minted.key, minted.record, as_json)


@keys.command("revoke")
@click.argument("key")
@TENANT
@JSON
@at_desk
async def revoke_key(desk: Desk, key: str, tenant: str | None, as_json: bool) -> None:
    """Revoke a key and end its sessions.

    KEY is its id, or what it begins with, as `keys list` shows it.
    """
    record = await desk.key(key, tenant)
    await desk.revoke_key(record.tenant, record.id)
    if as_json:
        print_json({"key": record.prefix, "state": KeyState.REVOKED})
    else:
        click.echo(f"Revoked {record.prefix} ({record.kind}, {record.label}); its sessions end within 2 s.")


@keys.command("rotate")
@click.argument("key")
@TENANT
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old key works on.")
@JSON
@at_desk
async def rotate_key(desk: Desk, key: str, tenant: str | None, overlap: float, as_json: bool) -> None:
    """Replace a key by a new one.

    KEY ends after the overlap; sessions that it opened go on.
    """
    old = await desk.key(key, tenant)
    minted = await desk.auth.keys.rotate(old.tenant, old.id, overlap_s=overlap)
    tell_key(minted.key, minted.record, as_json)
    if not as_json:
        click.echo(f"{old.prefix} works until {when(time.time() + overlap)} UTC.", err=True)


# --- tokens -----------------------------------------------------------------------------------------------------------


@tokens.command("mint")
@TENANT
@click.option("--user", required=True, help="The user's id, 1 to 256 characters.")
@click.option("--ttl", type=Duration(), help="How long it lives, such as 15m.")
@click.option("--persona", "personas", multiple=True, help="Only this persona; may be given more than once.")
@click.option("--origin", "origins", multiple=True, help="Only from this origin; may be given more than once.")
@click.option("--requests-per-min", type=int, help="A tighter limit than the tenant's, of each kind of request.")
@click.option("--tokens-per-min", type=int, help="A tighter limit than the tenant's.")
@click.option("--concurrent-turns", type=int, help="A tighter limit than the tenant's.")
@click.option("--single-use", is_flag=True, help="Good for one request or one socket.")
@JSON
@at_desk
async def mint_token(
    desk: Desk,
    tenant: str | None,
    user: str,
    ttl: float | None,
    personas: Sequence[str],
    origins: Sequence[str],
    single_use: bool,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Mint a session token for a user.

    As POST /v1/sessions does with a secret key.
    """
    session = desk.sessions.for_user(
        desk.tenant(tenant),
        user_id=user,
        ttl_s=int(ttl) if ttl is not None else None,
        personas=list(personas) or None,
        origins=list(origins) or None,
        limits={name: value for name, value in limits.items() if value is not None},
        single_use=single_use,
    )
    if as_json:
        print_json({"token": session.token, "token_id": session.token_id, "expires_at": session.expires_at})
        return
    click.echo(session.token)
    click.echo(f"Its id is {session.token_id}; it ends at {session.expires_at}.", err=True)


@tokens.command("revoke")
@TENANT
@click.option("--id", "token_id", help="One token, by its id (token_id, the claim jti).")
@click.option("--user", help="All that this user was given so far; what he is given later works.")
@click.option("--token", type=click.File("r"), help="One session token, read from a file, or from - (standard input).")
@JSON
@at_desk
async def revoke_token(
    desk: Desk, tenant: str | None, token_id: str | None, user: str | None, token: Any, as_json: bool
) -> None:
    """Take tokens back.

    Their streams and sockets end within 2 s, and their turns stop.
    """
    if sum(given is not None for given in (token_id, user, token)) != 1:
        raise click.UsageError("Give one of --id, --user and --token.")
    if token is not None:
        name, token_id = desk.token_id(token.read().strip())
    else:
        name = desk.tenant(tenant)
    if user is not None:
        revocation = await desk.revoke_user(name, user)
    else:
        revocation = await desk.revoke_token(name, token_id or "")
    if as_json:
        print_json(revocation_facts(revocation))
    elif user is not None:
        click.echo(f"Revoked what {user} was given in {name} until now.")
    else:
        click.echo(f"Revoked token {token_id} of {name}.")
