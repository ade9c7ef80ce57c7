"""Logs of real requests: what begins and ends is told once each, with its ids."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.options import LoggingSettings
from gateway.store.tenants import RedisTenants
from gateway.telemetry.logging import configure
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn
from tests.transports.log_lines import Line, Log

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
USER = "ada@example.com"
TURNS = "/v1/conversations/{conversation_id}/turns"


async def end_of(told: Log, **facts: object) -> Line:
    """Wait for the line of the only request's end with these facts."""
    await eventually(lambda: told.named("request.ended", **facts), "the request's end")
    (line,) = told.named("request.ended", **facts)
    return line


async def test_turn_and_its_request_are_told_at_both_ends(running: Running, sign_in: SignIn, told: Log) -> None:
    """Four lines: each with tenant, user, turn and one trace id, and at the end the outcome, tokens and times."""
    client = await sign_in(running, USER)
    conversation = await client.conversation()
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "r-1"}
    async with client.ask(conversation, "Hi #tokens=5", **headers) as reader:
        ending = (await reader.rest())[-1]
    await eventually(lambda: told.named("request.ended", route=TURNS), "the request's end")
    lines = [line for line in told.lines if line.get("request_id") == "r-1"]
    assert [line["event"] for line in lines] == ["request.started", "turn.started", "turn.ended", "request.ended"]
    assert {line["trace_id"] for line in lines} == {TRACE}
    begun, started, ended, over = lines
    assert (begun["method"], begun["route"]) == ("POST", TURNS)
    assert (over["status"], over["turn_id"], over["tenant"]) == (200, reader.turn_id, running.tenant)
    assert over["duration_s"] >= 0
    for line in (started, ended):
        assert (line["turn_id"], line["conversation_id"], line["persona"]) == (reader.turn_id, conversation, "default")
        assert (line["tenant"], line["user"]) == (running.tenant, over["user"])
    usage = ending.data["usage"]
    assert (ended["state"], ended["reason"], ended["usage_source"]) == ("completed", "stop", "reported")
    assert (ended["prompt_tokens"], ended["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 <= ended["first_token_s"] <= ended["duration_s"]
    assert USER not in json.dumps(lines)


async def test_failure_is_told_by_its_code(running: Running, sign_in: SignIn, told: Log) -> None:
    """A request that is refused and a turn that breaks say why, in the words of the error table."""
    client = await sign_in(running)
    conversation = await client.conversation()
    await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": ""})
    await client.complete(conversation, "Hi #fault=cut:3")
    (refused,) = told.named("request.ended", route=TURNS, status=422)
    assert refused["code"] == "message_empty"
    (broken,) = told.named("turn.ended")
    assert (broken["state"], broken["reason"]) == ("failed", "upstream_truncated")


async def test_request_with_a_key_is_told_with_its_tenant(running: Running, told: Log) -> None:
    """Once a key is proved its tenant is told, also of a refusal; nobody's word for it is, and no part of a key."""
    guess = running.secret_key[:-4] + ("AAAA" if running.secret_key[-4:] != "AAAA" else "BBBB")
    for key, user, status in (
        (running.secret_key, USER, 201),
        (running.secret_key, None, 422),  # no user is named
        (guess, USER, 401),
    ):
        answer = await Client(running, {"Authorization": f"Bearer {key}"}).call(
            "POST", "/v1/sessions", {"user_id": user} if user else {}
        )
        assert answer.status == status
        line = await end_of(told, route="/v1/sessions", status=status)
        assert (line["tenant"], line["user"]) == (None if status == 401 else running.tenant, None)
    asked = {"Authorization": f"Bearer {running.secret_key}"}
    async with running.http.get(f"{running.url}/v1/usage?from=2999-01-01", headers=asked) as refused:
        assert refused.status == 422
    assert (await end_of(told, route="/v1/usage"))["tenant"] == running.tenant
    for secret in (USER, running.secret_key.rpartition(".")[2], guess.rpartition(".")[2]):
        assert secret not in told.text


async def test_admin_request_is_told_with_the_tenant_of_its_path(
    start_gateway: StartGateway, stored_tenants: RedisTenants, tmp_path: Path, told: Log
) -> None:
    """A path's tenant is told where there is or was one, of who shows the token: a name that is none's never is."""
    token = tmp_path / "admin-token"
    token.write_text("0123456789abcdef0123456789abcdef-of-an-operator", "utf-8")
    token.chmod(0o600)
    running = await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token)})
    table = {"personas": {"default": {"persona_id": PERSONA_ID}}}
    asked: list[tuple[str, str, object, str, int, str | None]] = [
        ("PUT", "/tenants/logged", table, token.read_text(), 201, "logged"),
        ("GET", "/tenants/logged/keys", None, token.read_text(), 200, "logged"),
        ("DELETE", "/tenants/logged/keys/abcdefgh", None, token.read_text(), 404, "logged"),
        ("GET", "/tenants/logged/keys", None, "guess", 401, None),
        ("GET", "/tenants/nobody/keys", None, token.read_text(), 404, None),
        ("GET", "/tenants", None, token.read_text(), 200, None),
        ("DELETE", "/tenants/logged", None, token.read_text(), 204, "logged"),
    ]
    for number, (method, path, body, shown, status, tenant) in enumerate(asked):
        headers = {"Authorization": f"Bearer {shown}", "x-request-id": f"admin-{number}"}
        url = f"{running.internal_url}/admin/v1{path}"
        async with running.http.request(method, url, json=body, headers=headers) as answer:
            assert answer.status == status, (method, path, await answer.text())
        line = await end_of(told, request_id=f"admin-{number}")
        assert (line["tenant"], line["user"]) == (tenant, None), (method, path)


async def test_socket_is_told_at_both_ends(running: Running, sign_in: SignIn, told: Log) -> None:
    """A socket's user at its opening; at its end how it closed and what came over it."""
    client = await sign_in(running, USER)
    conversation = await client.conversation()
    async with client.socket() as socket:
        await socket.reply("ping")
        started = await socket.reply("turn.start", conversation_id=conversation, message="Hi #tokens=2")
        await socket.ending(started["data"]["turn_id"])
    await eventually(lambda: told.named("socket.closed"), "the socket's end")
    (opened,), (closed,) = told.named("socket.opened"), told.named("socket.closed")
    assert opened["request_id"] == closed["request_id"]
    assert opened["trace_id"] == closed["trace_id"]
    assert (opened["tenant"], opened["user"]) == (closed["tenant"], closed["user"])
    assert (closed["commands"], closed["turns"], closed["close_code"]) == (2, 1, 1000)
    assert USER not in json.dumps(told.lines)


async def test_beginnings_can_be_left_out(running: Running, sign_in: SignIn, told: Log) -> None:
    """With ``GATEWAY_LOG_STARTS=false`` only ends are told, which have all the facts."""
    configure(LoggingSettings(format="json", starts=False), stream=told.stream)
    client = await sign_in(running)
    await client.complete(await client.conversation(), "Hi #tokens=2")
    await eventually(lambda: told.named("request.ended", route=TURNS), "the request's end")
    told_of = {line["event"] for line in told.lines if line["event"].startswith(("request.", "turn.", "socket."))}
    assert told_of == {"turn.ended", "request.ended"}


async def test_probes_and_scrapes_are_not_logged(running: Running, told: Log) -> None:
    """What asks every few seconds whether the gateway is well leaves no line."""
    for path in ("/livez", "/readyz", "/metrics"):
        async with running.http.get(running.internal_url + path) as response:
            assert response.status == 200
    async with running.http.get(running.url + "/v1/conversations") as response:
        assert response.status == 401
    await eventually(lambda: told.named("request.ended"), "the end of the request that is none of them")
    routes = {line["route"] for line in told.lines if line["event"].startswith("request.")}
    assert routes == {"/v1/conversations"}
