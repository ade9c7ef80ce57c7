"""Caps: so many turns a minute for the tenant, for each user, for each address; a refusal charges nothing."""

from __future__ import annotations

import asyncio

from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, metric
from tests.transports.conftest import SignIn

PLENTY = 100_000


async def capped(
    start_gateway: StartGateway, name: str, *, tenant: int = PLENTY, user: int = PLENTY, address: int = PLENTY
) -> Running:
    return await start_gateway(
        toml=(
            f"[tenants.{name}]\n"
            f"turns_per_min = {{ tenant = {tenant}, user = {user}, address = {address} }}\n"
            f'[tenants.{name}.personas.default]\npersona_id = "{PERSONA_ID}"\n'
        )
    )


async def statuses(client: Client, conversation: str, count: int) -> list[int]:
    path = f"/v1/conversations/{conversation}/turns"
    return [(await client.call("POST", path, {"message": "Hi #tokens=1 #rate=0"})).status for _ in range(count)]


async def test_cap_of_user_refuses_with_retry_after_and_leaves_others_alone(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The fourth turn of a user with a cap of three is 429 with Retry-After; the next user is not affected."""
    running = await capped(start_gateway, "cap-user", user=3)
    client, other = await sign_in(running), await sign_in(running, "u2")
    conversation = await client.conversation()
    assert await statuses(client, conversation, 3) == [200, 200, 200]
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"})
    assert (answer.status, answer.body["code"], answer.body["limit"]) == (429, "rate_limited", "user")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert answer.body["retry_after_s"] <= 20
    assert await statuses(other, await other.conversation(), 3) == [200, 200, 200]
    assert await metric(running, "gateway_limit_refusals_total", tenant="cap-user", limit="user") == 1
    assert len(running.simulator.bill) == 6


async def test_cap_of_tenant_holds_for_all_users_together(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The tenant's cap counts every user's turns."""
    running = await capped(start_gateway, "cap-tenant", tenant=4)
    one, two = await sign_in(running), await sign_in(running, "u2")
    mine, yours = await one.conversation(), await two.conversation()
    assert await statuses(one, mine, 2) + await statuses(two, yours, 3) == [200, 200, 200, 200, 429]


async def test_cap_of_address_holds_for_all_users_behind_it(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The address's cap counts whoever comes from it, and says so."""
    running = await capped(start_gateway, "cap-address", address=3)
    one, two = await sign_in(running), await sign_in(running, "u2")
    mine, yours = await one.conversation(), await two.conversation()
    assert await statuses(one, mine, 2) + await statuses(two, yours, 1) == [200, 200, 200]
    answer = await two.call("POST", f"/v1/conversations/{yours}/turns", {"message": "Hi"})
    assert (answer.status, answer.body["limit"]) == (429, "address")


async def test_cap_that_refuses_charges_no_other_cap(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Ten refused turns of one user take nothing from the tenant's cap."""
    running = await capped(start_gateway, "cap-charge", tenant=5, user=2)
    one, two, three = [await sign_in(running, user) for user in ("a", "b", "c")]
    assert await statuses(one, await one.conversation(), 12) == [200] * 2 + [429] * 10
    assert await statuses(two, await two.conversation(), 3) == [200, 200, 429]
    assert await statuses(three, await three.conversation(), 2) == [200, 429]


async def test_cap_under_simultaneous_turns_lets_exactly_as_many_through(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Of forty turns at once with a cap of five exactly five begin."""
    running = await capped(start_gateway, "cap-race", user=PLENTY, tenant=PLENTY)
    client = await sign_in(running)
    conversations = [await client.conversation() for _ in range(40)]
    strict = await capped(start_gateway, "cap-race", tenant=5)  # the same tenant with another cap on turns
    strict_client = Client(strict, client.headers)
    answers = await asyncio.gather(
        *(
            strict_client.call("POST", f"/v1/conversations/{one}/turns", {"message": "Hi"}, Prefer="respond-async")
            for one in conversations
        )
    )
    assert sorted(answer.status for answer in answers) == [202] * 5 + [429] * 35


async def test_cap_over_websocket_is_told_in_an_error_frame(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The same cap holds over WebSocket, and the frame says when to come back."""
    running = await capped(start_gateway, "cap-socket", user=1)
    client = await sign_in(running)
    conversation = await client.conversation()
    await statuses(client, conversation, 1)
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi")
    assert (reply["event"], reply["data"]["code"], reply["data"]["limit"]) == ("error", "rate_limited", "user")
    assert 0 < reply["data"]["retry_after_s"] <= 60


async def test_cap_of_bad_turns_is_not_charged(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What is refused for its content costs no turn."""
    running = await capped(start_gateway, "cap-bad", user=1)
    client = await sign_in(running)
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    for body in ({"message": ""}, {"message": "x" * 32_001}, {"text": "Hi"}):
        assert (await client.call("POST", path, body)).status in (413, 422)
    assert await statuses(client, conversation, 1) == [200]
