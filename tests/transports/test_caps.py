"""Limits at the doors: who is refused by which, what every answer tells of them, and that a refusal charges nothing."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, metric
from tests.transports.conftest import SignIn

ORIGIN = "https://app.example"
SHORT = "Hi #tokens=1 #rate=0"


async def limited(start_gateway: StartGateway, limits: str, *, name: str | None = None, **options: Any) -> Running:
    """Start a gateway for a tenant with limits, each line as under ``[tenants.x.limits]``."""
    tenant = name or f"t-{uuid.uuid4().hex[:12]}"
    toml = f"""
[tenants.{tenant}]
origins = ["{ORIGIN}"]
anonymous = true
[tenants.{tenant}.limits]
{limits}
[tenants.{tenant}.personas.default]
persona_id = "{PERSONA_ID}"
"""
    return await start_gateway(toml=toml, **options)


async def statuses(client: Client, conversation: str, count: int) -> list[int]:
    path = f"/v1/conversations/{conversation}/turns"
    return [(await client.call("POST", path, {"message": SHORT})).status for _ in range(count)]


async def visitor(running: Running, **headers: str) -> Client:
    """Open an anonymous session."""
    authorization = {"Authorization": f"Bearer {running.publishable_key}", "Origin": ORIGIN, **headers}
    async with running.http.post(f"{running.url}/v1/sessions", json={}, headers=authorization) as response:
        assert response.status == 201, await response.text()
        token = (await response.json())["token"]
    return Client(running, {"Authorization": f"Bearer {token}", "Origin": ORIGIN, **headers})


async def test_limit_of_user_refuses_with_retry_after_and_leaves_others_alone(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The fourth turn of a user with a limit of three is 429 with Retry-After; the next user is not affected."""
    running = await limited(start_gateway, "user = { requests_per_min = 3 }")
    client, other = await sign_in(running), await sign_in(running, "u2")
    conversation = await client.conversation()
    assert await statuses(client, conversation, 3) == [200, 200, 200]
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"})
    assert (answer.status, answer.body["code"], answer.body["limit"]) == (429, "rate_limited", "user_requests_per_min")
    assert 15 <= int(answer.headers["Retry-After"]) <= 23
    assert await statuses(other, await other.conversation(), 3) == [200, 200, 200]
    labels = {"tenant": running.tenant, "limit": "user_requests_per_min", "decision": "refused"}
    assert await metric(running, "gateway_limit_decisions_total", **labels) == 1
    assert len(running.simulator.bill) == 6


async def test_limit_of_tenant_holds_for_all_users_together(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The tenant's limit counts every user's turns."""
    running = await limited(start_gateway, "tenant = { requests_per_min = 4 }")
    one, two = await sign_in(running), await sign_in(running, "u2")
    mine, yours = await one.conversation(), await two.conversation()
    assert await statuses(one, mine, 2) + await statuses(two, yours, 3) == [200, 200, 200, 200, 429]


async def test_limit_of_address_holds_for_visitors_of_one_network(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Visitors behind one /24 share a count, as trusted proxies tell it; whoever signed in has none."""
    running = await limited(
        start_gateway, "address = { requests_per_min = 3 }", environ={"GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8"}
    )
    one = await visitor(running, **{"X-Forwarded-For": "6.6.6.6, 198.51.100.1"})
    two = await visitor(running, **{"X-Forwarded-For": "7.7.7.7, 198.51.100.200"})
    far = await visitor(running, **{"X-Forwarded-For": "198.51.100.1, 203.0.113.5"})
    user = await sign_in(running)
    user.headers["X-Forwarded-For"] = "198.51.100.1"
    mine, yours = await one.conversation(), await two.conversation()
    assert await statuses(one, mine, 2) + await statuses(two, yours, 1) == [200, 200, 200]
    answer = await two.call("POST", f"/v1/conversations/{yours}/turns", {"message": "Hi"})
    assert (answer.status, answer.body["limit"]) == (429, "address_requests_per_min")
    assert await statuses(far, await far.conversation(), 1) == [200]
    assert await statuses(user, await user.conversation(), 4) == [200] * 4


async def test_visitors_who_guess_ids_are_held_back_by_their_address(start_gateway: StartGateway) -> None:
    """A new session for each guess helps nobody: what conversations of others ask Hyperleap is counted by network."""
    running = await limited(start_gateway, "address = { requests_per_min = 3 }")
    guests = [await visitor(running) for _ in range(3)]
    before = running.simulator.state.requests
    reads = [await guest.call("GET", f"/v1/conversations/{uuid.uuid4()}") for guest in guests]
    turns = [await guest.call("POST", f"/v1/conversations/{uuid.uuid4()}/turns", {"message": "Hi"}) for guest in guests]
    assert [answer.status for answer in reads] == [404] * 3
    assert [(answer.status, answer.body["limit"]) for answer in turns] == [(429, "address_requests_per_min")] * 3
    assert running.simulator.state.requests == before + 3


async def test_forwarded_address_of_a_stranger_counts_nothing(start_gateway: StartGateway) -> None:
    """Without trusted proxies a visitor cannot be somebody else by writing a header."""
    running = await limited(start_gateway, "address = { requests_per_min = 2 }")
    clients = [await visitor(running, **{"X-Forwarded-For": f"198.51.{number}.1"}) for number in range(2)]
    conversations = [await client.conversation() for client in clients]
    results = [await statuses(client, one, 2) for client, one in zip(clients, conversations, strict=True)]
    assert results == [[200, 200], [429, 429]]


async def test_limit_of_visitors_is_their_own(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Anonymous users have tighter limits than those who signed in."""
    running = await limited(start_gateway, "anonymous = { requests_per_min = 1 }")
    guest, user = await visitor(running), await sign_in(running)
    conversation = await guest.conversation()
    assert await statuses(guest, conversation, 2) == [200, 429]
    assert await statuses(user, await user.conversation(), 2) == [200, 200]


async def test_limit_that_refuses_charges_no_other(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Ten refused turns of one user take nothing from the tenant's limit."""
    running = await limited(start_gateway, "tenant = { requests_per_min = 5 }\nuser = { requests_per_min = 2 }")
    one, two, three = [await sign_in(running, user) for user in ("a", "b", "c")]
    assert await statuses(one, await one.conversation(), 12) == [200] * 2 + [429] * 10
    assert await statuses(two, await two.conversation(), 3) == [200, 200, 429]
    assert await statuses(three, await three.conversation(), 2) == [200, 429]


async def test_limit_under_simultaneous_turns_lets_exactly_as_many_through(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Of forty turns at once with a limit of five exactly five begin."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    running = await limited(start_gateway, "user = { requests_per_min = 0, concurrent_turns = 0 }", name=name)
    client = await sign_in(running)
    conversations = [await client.conversation() for _ in range(40)]
    strict = await limited(start_gateway, "tenant = { concurrent_turns = 5 }", name=name)
    strict_client = Client(strict, client.headers)
    message = {"message": "Hi #tokens=200 #rate=20"}
    answers = await asyncio.gather(
        *(
            strict_client.call("POST", f"/v1/conversations/{one}/turns", message, Prefer="respond-async")
            for one in conversations
        )
    )
    assert sorted(answer.status for answer in answers) == [202] * 5 + [429] * 35


async def test_refused_turn_leaves_its_idempotency_key_free_and_a_repeat_is_never_refused(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A repeat starts nothing and is answered whatever the limits say; a key that a limit refused may be used again."""
    running = await limited(start_gateway, "user = { requests_per_s = 1 }")
    client = await sign_in(running)
    path = f"/v1/conversations/{await client.conversation()}/turns"
    first = await client.call("POST", path, {"message": SHORT}, **{"Idempotency-Key": "a"})
    second = await client.call("POST", path, {"message": SHORT}, **{"Idempotency-Key": "b"})
    repeat = await client.call("POST", path, {"message": SHORT}, **{"Idempotency-Key": "a"})
    assert (first.status, second.status, repeat.status) == (200, 429, 200)
    assert repeat.body["turn_id"] == first.body["turn_id"]
    async with asyncio.timeout(5):
        while second.status == 429:
            await asyncio.sleep(0.1)
            second = await client.call("POST", path, {"message": "Other #tokens=1"}, **{"Idempotency-Key": "b"})
    assert second.status == 200


async def test_turn_that_finds_its_conversation_busy_is_not_charged(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A claim that fails gives everything back: request, tokens and slot."""
    running = await limited(
        start_gateway, "user = { requests_per_min = 3, tokens_per_day = 100000, concurrent_turns = 2 }"
    )
    client = await sign_in(running)
    path = f"/v1/conversations/{await client.conversation()}/turns"
    begun = await client.call("POST", path, {"message": "Hi #tokens=400 #rate=20"}, Prefer="respond-async")
    busy = [await client.call("POST", path, {"message": "Hi"}) for _ in range(5)]
    assert [answer.status for answer in busy] == [409] * 5
    await client.call("POST", f"/v1/turns/{begun.body['turn_id']}/stop")
    async with asyncio.timeout(5):
        while (again := await client.call("POST", path, {"message": SHORT})).status == 409:
            await asyncio.sleep(0.02)
    assert again.status == 200
    assert _left(again.headers)["user_requests_per_min"] == 1
    assert _left(again.headers)["user_concurrent_turns"] == 1


async def test_limits_are_told_on_every_answer_that_could_be_limited(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """RateLimit and its policy name each limit; the widespread headers tell the tightest; page script may read them."""
    running = await limited(
        start_gateway,
        "tenant = { requests_per_min = 0 }\n"
        "user = { requests_per_min = 5, concurrent_turns = 3, tokens_per_min = 9000, tokens_per_month = 5000 }",
    )
    client = await sign_in(running)
    client.headers["Origin"] = ORIGIN
    created = await client.call("POST", "/v1/conversations", {})
    assert created.headers["RateLimit-Policy"] == '"user_requests_per_min";q=5;w=60'
    assert created.headers["RateLimit"] == '"user_requests_per_min";r=4;t=12'
    path = f"/v1/conversations/{created.body['id']}/turns"
    for accept in ("text/event-stream", "application/json"):
        async with running.http.post(
            running.url + path, json={"message": SHORT}, headers={**client.headers, "Accept": accept}
        ) as answer:
            await answer.read()
            assert answer.status == 200
        headers = answer.headers
    assert headers["RateLimit-Policy"] == (
        '"user_requests_per_min";q=5;w=60, "user_tokens_per_min";q=9000;w=60;qu="tokens", '
        '"user_concurrent_turns";q=3;qu="concurrent-requests", "user_tokens_per_month";q=5000;qu="tokens"'
    )
    assert re.fullmatch(
        r'"user_requests_per_min";r=3;t=24, "user_tokens_per_min";r=\d+;t=\d+, '
        r'"user_concurrent_turns";r=2;t=0, "user_tokens_per_month";r=\d+;t=\d+',
        headers["RateLimit"],
    )
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("5", "3")
    assert headers["x-ratelimit-reset-requests"] == "24s"
    assert headers["x-ratelimit-limit-tokens"] == "5000"
    assert int(headers["x-ratelimit-remaining-tokens"]) == _left(headers)["user_tokens_per_month"] > 3500
    exposed = {name.strip() for name in headers["Access-Control-Expose-Headers"].split(",")}
    told = {name.lower() for name in headers if "ratelimit" in name.lower()}
    assert len(told) == 8
    assert told <= exposed
    await statuses(client, created.body["id"], 3)
    refused = await client.call("POST", path, {"message": SHORT})
    assert refused.status == 429
    assert _left(refused.headers)["user_requests_per_min"] == 0
    waits_s = dict(re.findall(r'"(\w+)";r=\d+;t=(\d+)', refused.headers["RateLimit"]))
    assert int(refused.headers["Retry-After"]) >= int(waits_s["user_requests_per_min"])
    listed = await client.call("GET", "/v1/conversations")
    assert "RateLimit" not in listed.headers  # nothing is counted there, and no earlier answer shows through


async def test_limits_over_websocket_are_in_the_first_frame_and_in_errors(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """``turn.started`` tells the socket that started the turn where its limits stand, an ``error`` why and how long."""
    running = await limited(start_gateway, "user = { requests_per_min = 1, concurrent_turns = 0 }")
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message=SHORT)
        turn_id = reply["data"]["turn_id"]
        frame = await socket.until(lambda frame: "id" in frame)
        assert frame["event"] == "turn.started"
        own = {"name": "user_requests_per_min", "limit": 1, "remaining": 0, "reset_s": 60}
        assert own in frame["limits"]
        await socket.ending(turn_id)
        refused = await socket.reply("turn.start", conversation_id=conversation, message="Hi")
        assert (refused["event"], refused["data"]["code"]) == ("error", "rate_limited")
        assert refused["data"]["limit"] == "user_requests_per_min"
        assert 0 < refused["data"]["retry_after_s"] <= 66
        assert own["name"] in {limit["name"] for limit in refused["data"]["limits"]}
    async with client.socket() as other:
        await other.reply("subscribe", turn_id=turn_id)
        await other.ending(turn_id)
        assert not any("limits" in frame for frame in other.frames)


async def test_limit_of_bad_turns_is_not_charged(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What is refused for its content costs no turn."""
    running = await limited(start_gateway, "user = { requests_per_min = 1 }")
    client = await sign_in(running)
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    for body in ({"message": ""}, {"message": "x" * 32_001}, {"text": "Hi"}):
        assert (await client.call("POST", path, body)).status in (413, 422)
    assert await statuses(client, conversation, 1) == [200]


@pytest.mark.parametrize("period", ["day", "month"])
async def test_budget_that_runs_out_in_mid_answer_cuts_it_off(
    start_gateway: StartGateway, sign_in: SignIn, period: str
) -> None:
    """The answer is stopped within twenty events, the upstream stream with it; then no turn begins."""
    running = await limited(start_gateway, f"user = {{ tokens_per_{period} = 300 }}")
    client = await sign_in(running)
    path = f"/v1/conversations/{await client.conversation()}/turns"
    answer = await client.call("POST", path, {"message": "Hi #tokens=5000 #rate=500"})
    assert (answer.status, answer.body["event"], answer.body["reason"]) == (200, "turn.stopped", "budget")
    (billed,) = running.simulator.bill
    assert billed.outcome == "cancelled"
    assert 300 <= answer.body["usage"]["total_tokens"] <= billed.prompt_tokens + billed.completion_tokens <= 320
    assert _left(answer.headers)[f"user_tokens_per_{period}"] == 0
    again = await client.call("POST", path, {"message": "Hi"})
    assert (again.status, again.body["limit"]) == (429, f"user_tokens_per_{period}")
    assert int(again.headers["Retry-After"]) >= 1


def _left(headers: Any) -> dict[str, int]:
    return {name: int(left) for name, left in re.findall(r'"(\w+)";r=(\d+)', headers["RateLimit"])}
