"""The admin API, on the internal port: tenants of the store, keys, and what is taken back. For operators' programs.

It is there where an admin token is given, and answers 404 to all where none is. No page of another origin can use it:
answers carry no CORS. A change that has begun is made whole and audited, whether or not its caller waits for it, and
what a call does not know is refused: it might mean another change than the one that is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.core.addresses import client_address
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TENANT_ID, TenantId
from gateway.core.keys import KeyKind
from gateway.protocol.admin import CreateKey, RevokeToken, RevokeUser, RotateKey
from gateway.services.desk import Desk
from gateway.services.facts import key_facts, revocation_facts
from gateway.services.keys import MintedKey
from gateway.telemetry import audit
from gateway.transports.admin_relay import RELAYED_FOR
from gateway.transports.edge import ADDRESS, EDGE, Edge, address_of, bearer, json_answer, read_body
from gateway.transports.middleware import identify, observe, refuse

PREFIX: Final = "/admin/v1"
DESK: Final[web.AppKey[Desk]] = web.AppKey("desk", Desk)
_TOKEN: Final[web.AppKey[bytes | None]] = web.AppKey("admin_token", bytes)  # a digest of it
_UNDER_WAY: Final[web.AppKey[set[asyncio.Task[web.StreamResponse]]]] = web.AppKey("changes", set)
_KEY_ID: Final = re.compile(r"[a-z0-9]{8,32}", re.ASCII)
_ASKING: Final = ("/usage", "/turns")  # paths that end like this read their queries themselves
_BODIES: Final = ("/keys", "/rotate", "/users/revoke", "/tokens/revoke")  # POSTs to paths that end like this have one

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()


def app(
    edge: Edge,
    desk: Desk,
    token: bytes | None,
    *,
    rooms: Sequence[web.RouteTableDef] = (routes,),
    prefix: str = PREFIX,
) -> web.Application:
    """Build the application to be put under ``prefix``; without a token nothing is found there.

    ``rooms`` are its routes, those of other modules among them, which find there what the caller puts under their keys.
    """
    made = web.Application(middlewares=[observe, refuse, guard], client_max_size=edge.rules.body_max_bytes)
    made[EDGE] = edge
    made[DESK] = desk
    made[_TOKEN] = hashlib.sha256(token).digest() if token is not None else None
    made[_UNDER_WAY] = set()
    made.cleanup_ctx.append(_finish)
    made.on_response_prepare.append(_identify)
    for room in rooms:
        made.add_routes(room)
    edge.metrics.know_routes(f"{prefix}{resource.canonical}" for resource in made.router.resources())
    return made


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who shows the admin token. Raises GatewayError: not_found, credential_missing, credential_invalid."""
    digest = request.app[_TOKEN]
    if digest is None:
        raise GatewayError(Code.NOT_FOUND)
    if (relayed_for := request.headers.get(RELAYED_FOR)) and not request.remote:  # over the supervisor's own socket
        request[ADDRESS] = client_address(relayed_for, (), ())
    shown = bearer(request).encode(errors="surrogateescape")
    if not hmac.compare_digest(hashlib.sha256(shown).digest(), digest):
        raise GatewayError(Code.CREDENTIAL_INVALID)
    with audit.acting("admin", address=address_of(request)):
        await _check_known(request)
        if request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
            return await handler(request)
        return await _whole(request, handler)


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that takes none."""


async def _check_known(request: web.Request) -> None:
    """Refuse what the call would pass over; raises GatewayError(unknown_field) and what reading a body raises."""
    if request.match_info.http_exception is not None:
        return  # there is no such call
    if request.query and not (request.method == hdrs.METH_GET and request.path.endswith(_ASKING)):
        field = next(iter(request.query))
        raise GatewayError(Code.UNKNOWN_FIELD, "This call has no parameters in its query.", field=field[:64])
    takes = request.method == hdrs.METH_PUT or (request.method == hdrs.METH_POST and request.path.endswith(_BODIES))
    if request.body_exists and not takes and await request.read():
        await read_body(request, _Nothing)


async def _whole(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Make a change to its end, though its caller may leave in the middle of it."""
    task = asyncio.ensure_future(handler(request))
    under_way = request.app[_UNDER_WAY]
    under_way.add(task)
    task.add_done_callback(under_way.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell_fault)
        raise


def _tell_fault(task: asyncio.Task[web.StreamResponse]) -> None:
    """Log a fault of ours that nobody is left to be answered."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, GatewayError):
        logger.error("admin.crashed", exc_info=error)


async def _finish(made: web.Application) -> AsyncIterator[None]:
    yield
    await asyncio.gather(*made[_UNDER_WAY], return_exceptions=True)


async def _identify(request: web.Request, response: web.StreamResponse) -> None:
    identify(request, response)


# --- tenants ----------------------------------------------------------------------------------------------------------


@routes.get("/tenants")
async def list_tenants(request: web.Request) -> web.Response:
    """List the tenants in force, and those of the store that cannot be read."""
    desk = request.app[DESK]
    await desk.enrolment.load()
    return json_answer(
        {"data": [desk.facts(name) for name in sorted(desk.tenants)], "unreadable": desk.enrolment.unreadable}
    )


@routes.get("/tenants/{tenant}")
async def show_tenant(request: web.Request) -> web.Response:
    """Show a tenant, and the table that would make it."""
    name = await tenant_of(request)
    return _shown(request.app[DESK], name)


@routes.put("/tenants/{tenant}")
async def put_tenant(request: web.Request) -> web.Response:
    """Make a tenant, or another one of it, from a table as it would stand in TOML, without its name."""
    table: dict[str, Any] = await read_body(request, dict)
    desk, name = request.app[DESK], TenantId(request.match_info["tenant"])
    added = await desk.put_tenant(name, table)
    return _shown(desk, name, status=201 if added else 200)


@routes.delete("/tenants/{tenant}")
async def delete_tenant(request: web.Request) -> web.Response:
    """Delete a tenant of the store, its keys and its sessions."""
    await request.app[DESK].delete_tenant(TenantId(request.match_info["tenant"]))
    return web.Response(status=204)


@routes.post("/tenants/{tenant}/revoke")
async def revoke_tenant(request: web.Request) -> web.Response:
    """Shut a tenant out until it is let in again."""
    name = await tenant_of(request)
    return json_answer(revocation_facts(await request.app[DESK].revoke_tenant(name)))


@routes.post("/tenants/{tenant}/restore")
async def restore_tenant(request: web.Request) -> web.Response:
    """Let a tenant in again."""
    name = await tenant_of(request)
    restored = await request.app[DESK].restore_tenant(name)
    return json_answer({"tenant": name, "restored": restored})


# --- keys -------------------------------------------------------------------------------------------------------------


@routes.get("/tenants/{tenant}/keys")
async def list_keys(request: web.Request) -> web.Response:
    """List a tenant's keys, those too that ended within the last 30 days."""
    name, now_s = await tenant_of(request), time.time()
    records = await request.app[DESK].auth.keys.list(name)
    return json_answer({"data": [key_facts(record, now_s) for record in records]})


@routes.post("/tenants/{tenant}/keys")
async def create_key(request: web.Request) -> web.Response:
    """Make a key and show it, for once."""
    name = await tenant_of(request)
    body = await read_body(request, CreateKey)
    keys = request.app[DESK].auth.keys
    return _minted(await keys.mint(name, KeyKind(body.kind), body.label, ttl_s=body.ttl_s))


@routes.post("/tenants/{tenant}/keys/{key_id}/rotate")
async def rotate_key(request: web.Request) -> web.Response:
    """Make a key in another's place, which works on for the overlap; show the new one, for once."""
    name, key_id = await tenant_of(request), _key_id(request)
    body = await read_body(request, RotateKey)
    return _minted(await request.app[DESK].auth.keys.rotate(name, key_id, overlap_s=body.overlap_s))


@routes.delete("/tenants/{tenant}/keys/{key_id}")
async def revoke_key(request: web.Request) -> web.Response:
    """End a key and the sessions that it opened."""
    await request.app[DESK].revoke_key(await tenant_of(request), _key_id(request))
    return web.Response(status=204)


# --- users and tokens -------------------------------------------------------------------------------------------------


@routes.post("/tenants/{tenant}/users/revoke")
async def revoke_user(request: web.Request) -> web.Response:
    """End what a user was given so far; what is given later works."""
    name = await tenant_of(request)
    body = await read_body(request, RevokeUser)
    return json_answer(revocation_facts(await request.app[DESK].revoke_user(name, body.user_id)))


@routes.post("/tokens/revoke")
async def revoke_token(request: web.Request) -> web.Response:
    """End one session token."""
    desk, body = request.app[DESK], await read_body(request, RevokeToken)
    try:
        name, token_id = desk.token_id(body.token)
    except GatewayError:  # 401 would speak of the operator's own
        raise GatewayError(
            Code.INVALID_VALUE, "This is no session token of this gateway, or it has expired.", field="token"
        ) from None
    return json_answer(revocation_facts(await desk.revoke_token(name, token_id)))


async def tenant_of(request: web.Request) -> TenantId:
    """Return the tenant that a path names; raises GatewayError(not_found)."""
    name = request.match_info["tenant"]
    if not TENANT_ID.fullmatch(name):
        raise GatewayError(Code.NOT_FOUND)
    return await request.app[DESK].find(name)


def _key_id(request: web.Request) -> str:
    key_id = request.match_info["key_id"]
    if not _KEY_ID.fullmatch(key_id):
        raise GatewayError(Code.NOT_FOUND, "There is no such key.")
    return key_id


def _shown(desk: Desk, name: TenantId, *, status: int = 200) -> web.Response:
    return json_answer({**desk.facts(name), "settings": desk.table(name)}, status=status)


def _minted(minted: MintedKey) -> web.Response:
    facts = {"secret": minted.key, **key_facts(minted.record, time.time())}
    return json_answer(facts, status=201, headers={hdrs.CACHE_CONTROL: "no-store"})
