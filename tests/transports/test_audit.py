"""The audit stream of real requests: who was let in or turned away, and who changed what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yarl

from gateway.core.identity import TenantId
from gateway.core.revocation import Revoked
from gateway.store.tenants import RedisTenants
from gateway.telemetry import audit
from gateway.telemetry.audit import BURST
from gateway.telemetry.logging import AUDIT
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Answer, Client, eventually
from tests.transports.conftest import SignIn
from tests.transports.log_lines import Log

USER = "ada@example.com"
TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"


async def test_who_is_let_in_is_audited(running: Running, sign_in: SignIn, told: Log) -> None:
    """A session is told with its key, its user's hash, its token's id and the address; never the user or the token."""
    client = await sign_in(running, USER)
    (line,) = told.named("session.opened")
    assert (line["logger"], line["outcome"], line["actor"], line["address"]) == (AUDIT, "done", "key", "127.0.0.1")
    assert (line["tenant"], line["anonymous"]) == (running.tenant, False)
    assert line["key_id"] in running.secret_key
    assert line["token_id"]
    assert line["request_id"]
    await client.conversation()
    await eventually(lambda: told.named("request.ended", route="/v1/conversations"), "the request's end")
    assert line["user"] == told.named("request.ended", route="/v1/conversations")[0]["user"]
    assert USER not in json.dumps(told.lines)
    assert client.token not in json.dumps(told.lines)


async def test_who_is_turned_away_is_audited(running: Running, sign_in: SignIn, told: Log) -> None:
    """A bad credential, an origin that is not listed and a key in a token's place are told by code and address."""
    client = await sign_in(running, USER)
    await client.call("GET", "/v1/conversations", Authorization=f"Bearer {client.token}x")
    await client.call("GET", "/v1/conversations", Origin="https://evil.example")
    await client.call("GET", "/v1/conversations", Authorization=f"Bearer {running.secret_key}")
    await client.call("POST", "/v1/sessions", {"user_id": USER}, Authorization=f"Bearer {running.secret_key}x")
    async with running.http.ws_connect(f"{running.url}/v1/ws", protocols=("hyperleap.chat.v1", "hgt.nonsense")) as ws:
        while not ws.closed:
            await ws.receive(timeout=5)
    refused = told.named("access.refused", outcome="refused", actor="anybody", address="127.0.0.1")
    assert [(line["code"], line["route"]) for line in refused] == [
        ("credential_invalid", "/v1/conversations"),
        ("origin_not_allowed", "/v1/conversations"),
        ("forbidden", "/v1/conversations"),
        ("credential_invalid", "/v1/sessions"),
        ("credential_invalid", "/v1/ws"),
    ]
    assert "evil.example" not in json.dumps(refused)


async def test_flood_of_refusals_is_counted(running: Running, told: Log) -> None:
    """A stranger who tries credentials gets a few lines, and one that says how many more there were."""
    for _ in range(BURST + 30):
        await Client(running, {"Authorization": "Bearer nonsense"}).call("GET", "/v1/conversations")
    assert len(told.named("access.refused")) == BURST
    audit.flush()  # as when the gateway ends, or ten seconds have gone by
    (counted,) = [line for line in told.named("access.refused") if "held_back" in line]
    assert (counted["held_back"], counted["code"]) == (30, "credential_invalid")
    assert "request_id" not in counted


async def test_who_loses_access_is_audited(running: Running, sign_in: SignIn, told: Log) -> None:
    """A revocation is told once by who made it, and each connection that it ends."""
    client = await sign_in(running, USER)
    desk_user = running.gateway.auth.user_hash(next(iter(running.gateway.auth.tenants)), USER)
    async with client.socket() as socket:
        await socket.reply("ping")
        answer = await revoke(running)
        assert answer == desk_user
        await socket.closed()
    (revoked,) = told.named("access.revoked")
    assert (revoked["what"], revoked["id"], revoked["tenant"]) == ("user", desk_user, running.tenant)
    (ended,) = told.named("access.ended")
    assert (ended["code"], ended["user"]) == ("revoked", desk_user)
    assert told.named("access.refused") == []


async def revoke(running: Running) -> str:
    """Take back what the user was given, as the admin API does; return the hash."""
    auth = running.gateway.auth
    tenant = next(iter(auth.tenants))
    user = auth.user_hash(tenant, USER)
    await auth.revocations.revoke(Revoked.USER, tenant, user)
    return user


async def test_changes_by_the_admin_api_are_audited(
    start_gateway: StartGateway, stored_tenants: RedisTenants, tmp_path: Path, told: Log
) -> None:
    """Who made which tenant, key or revocation, from where, in which request; and who tried without the token."""
    token = tmp_path / "admin-token"
    token.write_text(TOKEN, "utf-8")
    token.chmod(0o600)
    running = await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token)})

    async def call(method: str, path: str, body: Any = None, shown: str = TOKEN) -> Answer:
        async with running.http.request(
            method,
            f"{running.internal_url}/admin/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {shown}", "x-request-id": f"{method}-{path.replace('/', '.')}"},
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    await call("PUT", "/tenants/acme", {"personas": {"default": {"persona_id": PERSONA_ID}}})
    made = (await call("POST", "/tenants/acme/keys", {"kind": "secret", "label": "l"})).body
    rotated = (await call("POST", f"/tenants/acme/keys/{made['id']}/rotate", {"overlap_s": 5})).body
    await call("POST", "/tenants/acme/users/revoke", {"user_id": USER})
    await call("DELETE", f"/tenants/acme/keys/{rotated['id']}")
    await call("POST", "/tenants/acme/revoke")
    await call("POST", "/tenants/acme/restore")
    await call("DELETE", "/tenants/acme")
    await call("GET", "/tenants", shown="guess")
    done = [line for line in told.lines if line["logger"] == AUDIT and line["actor"] == "admin"]
    assert {(line["address"], line["outcome"]) for line in done} == {("127.0.0.1", "done")}
    assert [line["event"] for line in done] == [
        "tenant.put",
        "key.created",
        "key.created",
        "key.rotated",
        "access.revoked",
        "key.revoked",
        "access.revoked",
        "access.revoked",
        "access.restored",
        "key.revoked",
        "access.revoked",
        "tenant.removed",
        "access.revoked",
        "access.restored",
    ]
    assert {line["tenant"] for line in done} == {"acme"}
    assert done[0]["request_id"] == "PUT-.tenants.acme"
    assert (done[3]["key_id"], done[3]["new_key_id"]) == (made["id"], rotated["id"])
    (guess,) = told.named("access.refused")
    assert (guess["actor"], guess["code"], guess["route"]) == ("anybody", "credential_invalid", "/admin/v1/tenants")
    text = told.text
    for secret in (TOKEN, made["secret"].rpartition(".")[2], rotated["secret"].rpartition(".")[2], USER):
        assert secret not in text


async def test_change_whose_caller_leaves_is_made_whole_and_audited(
    start_gateway: StartGateway, stored_tenants: RedisTenants, tmp_path: Path, told: Log
) -> None:
    """Who hangs up while the store is slow leaves no change half done, and none that nobody is told of."""
    token = tmp_path / "admin-token"
    token.write_text(TOKEN, "utf-8")
    token.chmod(0o600)
    running = await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token)})
    url, tenant = yarl.URL(running.internal_url), running.tenant

    async def leave(path: str, body: bytes, after_s: float) -> None:
        """Send a call while the store takes no writes for a moment, and leave within that."""
        await running.gateway.redis.call("CLIENT", "PAUSE", 60, "WRITE")
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.sleep(after_s)
        writer.transport.abort()

    calls = 20
    for number in range(calls):  # at any moment: before the change has begun, in its middle, and just before its end
        await leave(f"/admin/v1/tenants/{tenant}/keys", b'{"label":"left"}', number / calls * 0.06)

    async def settled() -> bool:
        ended = told.named("request.ended", route="/admin/v1/tenants/{tenant}/keys")
        made = [key.id for key in await running.gateway.auth.keys.list(TenantId(tenant)) if key.label == "left"]
        audited = [line["key_id"] for line in told.named("key.created", actor="admin", outcome="done")]
        return len(ended) == calls and sorted(made) == sorted(audited) and len(made) > calls / 4

    await until(settled)
    assert {line["tenant"] for line in told.named("key.created", actor="admin")} == {tenant}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.05)
