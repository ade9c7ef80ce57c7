"""A tenant's own sign-in, from its issuer's real key set to a chat: rotation under load, an issuer that is away."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest

from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.issuer import AUDIENCE, ISSUER, IssuerServer, SigningKey, serve
from tests.transports.client import Client, check_log
from tests.transports.test_secrets import log

__all__ = ["log"]  # the fixture

TOML = """
[tenants.{tenant}]
origins = ["https://app.example"]
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
[tenants.{tenant}.personas.default]
persona_id = "{persona}"
[tenants.{tenant}.issuers.login]
issuer = "{issuer}"
audience = "{audience}"
jwks_url = "{url}"
"""


@pytest.fixture
async def issuer() -> AsyncIterator[IssuerServer]:
    async with serve() as server:
        yield server


@pytest.fixture
async def running(start_gateway: StartGateway, issuer: IssuerServer, request: pytest.FixtureRequest) -> Running:
    """A gateway whose tenant accepts the issuer's tokens."""
    tenant = f"t-{abs(hash(request.node.nodeid)) % 10**10}"
    return await start_gateway(
        toml=TOML.format(tenant=tenant, persona=PERSONA_ID, issuer=ISSUER, audience=AUDIENCE, url=issuer.url)
    )


def signed_in(running: Running, token: str) -> Client:
    return Client(running, {"Authorization": f"Bearer {token}"})


async def test_issuers_token_chats_over_both_transports(running: Running, issuer: IssuerServer) -> None:
    """Who signed in at the tenant's issuer needs no session: the token opens HTTP, SSE, WebSocket and tickets."""
    client = signed_in(running, issuer.token())
    conversation = await client.conversation()
    ending = check_log(await client.complete(conversation, "Hi #tokens=3"))
    async with client.socket() as socket:
        reply = await socket.reply("subscribe", turn_id=ending.turn_id)
        assert reply["event"] == "ack"
        assert check_log(await socket.ending(ending.turn_id)).name == "turn.completed"
    by_session = Client(running, await running.user("ada"))
    assert (await by_session.call("GET", f"/v1/conversations/{conversation}")).status == 200
    stranger = signed_in(running, issuer.token(sub="bob"))
    assert (await stranger.call("GET", f"/v1/conversations/{conversation}")).status == 404
    path = f"/v1/turns/{ending.turn_id}/events"
    ticket = (await client.call("POST", "/v1/tickets", {"path": path})).body["ticket"]
    assert (await Client(running, {}).call("GET", f"{path}?ticket={ticket}")).status == 200
    assert issuer.fetches == 1


async def test_issuers_keys_rotate_under_load(running: Running, issuer: IssuerServer) -> None:
    """While hundreds of requests run the issuer changes its keys: whoever has a published key's token gets in.

    A token of a key that appeared within the cooldown may be asked to come again; none is called invalid.
    """
    running.gateway.key_sets._rules = type(running.gateway.key_sets._rules)(cooldown_s=0.2)
    tokens = [issuer.token()]
    over = False
    seen: dict[int, int] = {}
    retried = 0

    async def ask() -> None:
        nonlocal retried
        while not over:
            client = signed_in(running, tokens[-1])
            answer = await client.call("GET", "/v1/conversations")
            if answer.status == 503:
                assert answer.body["code"] == "issuer_unavailable"
                assert int(answer.headers["Retry-After"]) >= 1
                retried += 1
                await asyncio.sleep(0.05)
                continue
            seen[answer.status] = seen.get(answer.status, 0) + 1

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    for algorithm in ("RS256", "EdDSA", "ES256", "RS256"):
        await asyncio.sleep(0.15)
        issuer.keys = [*issuer.keys[-1:], SigningKey(algorithm)]
        tokens.append(issuer.token())
        before = sum(seen.values())
        async with asyncio.timeout(10):
            while sum(seen.values()) < before + 60:
                await asyncio.sleep(0.01)
    over = True
    await asyncio.gather(*asking)
    assert set(seen) == {200}
    assert sum(seen.values()) > 240
    assert issuer.fetches <= 6


async def test_issuer_that_is_away_keeps_nobody_out_whose_key_is_known(running: Running, issuer: IssuerServer) -> None:
    """Known keys go on proving; an unknown one cannot be checked, which is told as such and not as a bad token."""
    known, token = signed_in(running, issuer.token()), issuer.token()
    assert (await known.call("GET", "/v1/conversations")).status == 200
    issuer.fault = "500"
    running.gateway.key_sets._rules = type(running.gateway.key_sets._rules)(fresh_s=0.0, cooldown_s=0.0)
    for _ in range(3):
        assert (await signed_in(running, token).call("GET", "/v1/conversations")).status == 200
    new = signed_in(running, issuer.token(SigningKey()))
    answer = await new.call("GET", "/v1/conversations")
    assert (answer.status, answer.body["code"]) == (503, "issuer_unavailable")
    async with new.socket() as socket:
        assert (await socket.closed()).code == 1013


async def test_issuers_tokens_that_are_refused_are_in_no_log(
    running: Running, issuer: IssuerServer, log: io.StringIO
) -> None:
    """Whatever is wrong with a token, the log and the answer hold nothing of it."""
    head, body, signature = issuer.token().split(".")
    shown = [
        issuer.token(exp=1, iat=0),
        issuer.token(nbf=2**33),
        issuer.token(aud="another"),
        issuer.token(iss="https://login.evil.example"),
        issuer.token(SigningKey("RS256")),
        issuer.token(sub="canary-user@example.com"),
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        issuer.token(note="x" * 4000),
    ]
    for token in shown:
        answer = await signed_in(running, token).call("GET", "/v1/conversations")
        assert answer.status in (200, 401, 503)
        assert token.split(".")[1] not in answer.raw.decode()
    logged = log.getvalue()
    assert "request.ended" in logged
    for token in shown:
        for piece in token.split(".")[1:]:
            assert piece not in logged
    assert "canary-user" not in logged
