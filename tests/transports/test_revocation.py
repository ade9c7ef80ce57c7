"""Revocation kicks: what is running ends on every worker within 2 s and says why; what is new is refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.core.revocation import Revoked
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, Closed, Reader, eventually
from tests.transports.conftest import SignIn

NARROW_BYTES = 8192
WITHIN_S = 2.0  # the promise
ENDLESS = "Hi #tokens=3000 #rate=20"

Revoke = Callable[[Running, Client], Awaitable[None]]


def token_id(client: Client) -> str:
    claims = jwt.decode(client.token.removeprefix("hgt_"), options={"verify_signature": False})
    return str(claims["jti"])


async def by_token(running: Running, client: Client) -> None:
    await running.gateway.revocations.revoke(Revoked.TOKEN, TenantId(running.tenant), token_id(client))


async def by_key(running: Running, client: Client) -> None:
    key_id = running.secret_key.split(".")[1]
    await running.gateway.auth.keys.revoke(TenantId(running.tenant), key_id)
    await running.gateway.revocations.revoke(Revoked.KEY, TenantId(running.tenant), key_id)


async def by_user(running: Running, client: Client) -> None:
    user = running.gateway.auth.user_hash(TenantId(running.tenant), "u1")
    await running.gateway.revocations.revoke(Revoked.USER, TenantId(running.tenant), user)


async def by_tenant(running: Running, client: Client) -> None:
    await running.gateway.revocations.revoke(Revoked.TENANT, TenantId(running.tenant))


WAYS = [by_token, by_key, by_user, by_tenant]


@pytest.fixture
async def pair(start_gateway: StartGateway) -> tuple[Running, Running]:
    """Two workers of one gateway, which hear each other."""
    here = await start_gateway()
    there = await start_gateway(tenant=here.tenant, simulator=here.simulator)
    there.secret_key = here.secret_key
    for worker in (here, there):
        await eventually(lambda worker=worker: worker.gateway.inbox.hears, "the worker to hear")  # type: ignore[misc]  # a default that mypy cannot infer
    return here, there


async def ended(reader: Reader) -> list[str]:
    """Read to the end of the body; return the names of the last events."""
    return [event.name for event in await reader.rest()][-2:]


@pytest.mark.parametrize("revoke", WAYS)
async def test_revocation_ends_streams_and_sockets_on_every_worker(
    pair: tuple[Running, Running], sign_in: SignIn, revoke: Revoke
) -> None:
    """The reader's stream tells ``revoked`` and its body ends, the socket closes with 4503, the turn is stopped."""
    here, there = pair
    client = await sign_in(here)
    elsewhere = Client(there, client.headers)
    conversation = await client.conversation()
    async with elsewhere.socket() as socket, client.ask(conversation, ENDLESS) as reader:
        await reader.until("message.delta")
        await socket.reply("subscribe", turn_id=reader.turn_id)
        async with elsewhere.follow(reader.turn_id) as remote:
            await remote.until("message.delta")
            async with asyncio.timeout(WITHIN_S):
                await revoke(here, client)
                for stream in (reader, remote):
                    assert (await stream.rest())[-1].name == "stream.error"
                    assert stream.seen[-1].data["code"] == "revoked"
                    assert b"\n\nevent: stream.error\ndata:" in stream.raw  # no id, so no cursor moves
                assert await socket.closed() == Closed(4503, "revoked")
                await eventually(lambda: here.gateway.turns.running == 0, "the turn to stop")
    record = await here.gateway.turns._log.record(TenantId(here.tenant), reader.turn_id)  # type: ignore[arg-type]  # a plain id
    assert record is not None
    assert record.state == "stopped"
    for running in pair:
        again = await Client(running, client.headers).call("GET", "/v1/conversations")
        assert (again.status, again.body["code"]) == (401, "revoked")
        async with Client(running, client.headers).socket() as refused:
            assert await refused.closed() == Closed(4503, "revoked")


async def test_revocation_stops_the_turn_with_its_reason(pair: tuple[Running, Running], sign_in: SignIn) -> None:
    """A turn whose starter lost access ends as ``turn.stopped {revoked}``, and the upstream's stream is reset."""
    here, there = pair
    revoked, other = await sign_in(here), await sign_in(here)
    turn = await revoked.start(await revoked.conversation(), ENDLESS)
    async with Client(there, other.headers).follow(turn) as reader:  # the same user, another token
        await reader.until("message.delta")
        await by_token(there, revoked)
        ending = (await reader.rest())[-1]
        assert (ending.name, ending.data["reason"]) == ("turn.stopped", "revoked")
    assert (await other.call("GET", "/v1/conversations")).status == 200


@pytest.mark.parametrize("revoke", WAYS)
async def test_revocation_leaves_others_alone(pair: tuple[Running, Running], sign_in: SignIn, revoke: Revoke) -> None:
    """Whoever is not meant goes on: another user by another key, and a whole other tenant."""
    here, there = pair
    client = await sign_in(here)
    minted = await here.gateway.auth.keys.mint(TenantId(here.tenant), KeyKind.SECRET, "second")
    there.secret_key = minted.key
    bystander = await sign_in(there, "u2")
    conversation = await bystander.conversation()
    async with bystander.ask(conversation, "Hi #tokens=60 #rate=60") as reader, bystander.socket() as socket:
        await reader.until("message.delta")
        await revoke(here, client)
        refused = await client.call("GET", "/v1/conversations")
        assert (refused.status, refused.body["code"]) == (401, "revoked")
        if revoke is by_tenant:
            assert (await reader.rest())[-1].name == "stream.error"
        else:
            assert (await reader.rest())[-1].name == "turn.completed"
            assert (await socket.reply("ping"))["event"] == "pong"


async def test_revoked_user_can_be_given_a_new_token(pair: tuple[Running, Running], sign_in: SignIn) -> None:
    """Revoking a user ends what was issued so far; whether there is more is for whoever mints tokens to say."""
    here, there = pair
    old = await sign_in(here)
    await by_user(here, old)
    new = await sign_in(there)
    for running in pair:
        assert (await Client(running, new.headers).call("GET", "/v1/conversations")).status == 200
        assert (await Client(running, old.headers).call("GET", "/v1/conversations")).status == 401


async def test_revoked_key_and_tenant_open_no_sessions(pair: tuple[Running, Running], sign_in: SignIn) -> None:
    """Neither a revoked key nor any key of a revoked tenant mints tokens, until the tenant is let in again."""
    here, there = pair
    client = await sign_in(here)
    tenant = TenantId(here.tenant)
    key = {"Authorization": f"Bearer {here.secret_key}"}
    await by_tenant(there, client)
    await eventually(lambda: here.gateway.auth.revocations._set, "word to arrive")
    refused = await Client(here, key).call("POST", "/v1/sessions", {"user_id": "u1"})
    assert (refused.status, refused.body["code"]) == (401, "revoked")
    await there.gateway.revocations.lift(tenant)

    async def let_in() -> bool:
        return (await Client(here, key).call("POST", "/v1/sessions", {"user_id": "u1"})).status == 201

    await eventually(let_in, "the tenant to be let in", within_s=WITHIN_S)
    await by_key(there, client)

    async def refused_by_name() -> bool:
        answer = await Client(here, key).call("POST", "/v1/sessions", {"user_id": "u1"})
        return answer.status == 401 and answer.body["code"] == "revoked"

    await eventually(refused_by_name, "the key to be refused", within_s=WITHIN_S)


async def test_revocation_ends_a_request_that_waits_for_its_answer(running: Running, sign_in: SignIn) -> None:
    """A plain request that waits for the whole answer is told at once; it gets nothing of it."""
    client = await sign_in(running)
    conversation = await client.conversation()
    waiting = asyncio.create_task(client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": ENDLESS}))
    await eventually(lambda: running.gateway.turns.running == 1, "the turn to run")
    async with asyncio.timeout(WITHIN_S):
        await by_user(running, client)
        answer = await waiting
    assert (answer.status, answer.body["code"]) == (401, "revoked")


async def test_revocation_cuts_off_a_reader_that_does_not_read(running: Running, sign_in: SignIn) -> None:
    """A client that takes nothing more in is not waited for: its connection is gone within 2 s."""
    client = await sign_in(running)
    conversation = await client.conversation()
    host, port = running.url.removeprefix("http://").split(":")
    narrow = socket.socket()  # it and the gateway's end hold little, so that it falls behind at once
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BYTES)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
    body = '{"message": "Hi #tokens=200000 #rate=5000"}'
    head = (
        f"POST /v1/conversations/{conversation}/turns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
        f"Accept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    writer.write(head.encode())
    await reader.readline()
    edge = running.gateway.edge
    await eventually(lambda: len(edge.open) == 1, "the stream to be open")
    (stream,) = edge.open
    transport = stream._transport  # type: ignore[attr-defined]  # a private one
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW_BYTES)
    await eventually(lambda: transport.get_write_buffer_size() > 0, "the reader to be behind")
    async with asyncio.timeout(WITHIN_S):
        await by_user(running, client)
        await eventually(lambda: not edge.open, "the reader to be cut off")
    writer.close()


async def test_revocation_between_a_requests_proof_and_its_stream_ends_the_stream(
    running: Running, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word that was carried out just before a stream joined those that are open still ends it."""
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), ENDLESS)
    subscriptions = running.gateway.edge.subscriptions
    opened = subscriptions.open

    async def late(*arguments: Any) -> Any:
        subscription = await opened(*arguments)
        carried_out = asyncio.Event()
        running.gateway.revocations.on_change.append(carried_out.set)
        await by_token(running, client)
        await carried_out.wait()
        return subscription

    monkeypatch.setattr(subscriptions, "open", late)
    async with asyncio.timeout(WITHIN_S), client.follow(turn) as reader:
        assert (await reader.rest())[-1].data["code"] == "revoked"
