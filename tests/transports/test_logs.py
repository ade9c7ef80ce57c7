"""Logs of real requests: what begins and ends is told once each, with its ids."""

from __future__ import annotations

import json

from gateway.options import LoggingSettings
from gateway.telemetry.logging import configure
from tests.conftest import Running
from tests.transports.client import eventually
from tests.transports.conftest import SignIn
from tests.transports.log_lines import Log

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
USER = "ada@example.com"
TURNS = "/v1/conversations/{conversation_id}/turns"


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
