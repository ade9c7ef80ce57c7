"""Idempotency keys: sending the same message again, for whatever reason, sends it to the vendor once."""

from __future__ import annotations

import asyncio

from tests.conftest import Running, StartGateway
from tests.transports.client import Client, check_log
from tests.transports.conftest import SignIn


async def test_idempotency_key_sent_again_returns_the_same_turn_in_every_form(running: Running, client: Client) -> None:
    """During the turn and after it, streamed, waited for or left: one key is one turn and one paid answer."""
    conversation = await client.conversation()
    path, body = f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=10 #rate=60"}
    first = await client.call("POST", path, body, Idempotency_Key="k1", Prefer="respond-async")
    async with client.ask(conversation, body["message"], Idempotency_Key="k1") as reader:
        ending = check_log(await reader.rest())
    waited = await client.call("POST", path, body, Idempotency_Key="k1", Accept="application/json")
    left = await client.call("POST", path, body, Idempotency_Key="k1", Prefer="respond-async")
    assert first.body["turn_id"] == reader.turn_id == waited.body["turn_id"] == left.body["turn_id"]
    assert waited.body["text"] == ending.data["text"]
    assert len(running.simulator.bill.of(conversation)) == 1


async def test_idempotency_key_with_another_body_is_422(client: Client) -> None:
    """A key that was used with other words is refused, and the first turn is untouched."""
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    first = await client.call("POST", path, {"message": "Hi #tokens=2"}, Idempotency_Key="k1")
    again = await client.call("POST", path, {"message": "Ho #tokens=2"}, Idempotency_Key="k1")
    assert (first.status, again.status) == (200, 422)
    assert (again.body["code"], again.body["field"]) == ("idempotency_mismatch", "Idempotency-Key")


async def test_idempotency_key_sent_many_times_at_once_starts_one_turn(running: Running, client: Client) -> None:
    """Twenty simultaneous sends of one key give twenty answers of one turn."""
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    answers = await asyncio.gather(
        *(client.call("POST", path, {"message": "Hi #tokens=3"}, Idempotency_Key="k1") for _ in range(20))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["turn_id"] for answer in answers}) == 1
    assert len(running.simulator.bill.of(conversation)) == 1


async def test_idempotency_keys_of_other_conversations_and_users_are_others(
    running: Running, client: Client, sign_in: SignIn
) -> None:
    """A key belongs to one user and one conversation."""
    stranger = await sign_in(running, "u2")
    turns = set()
    for user, conversation in (
        (client, await client.conversation()),
        (client, await client.conversation()),
        (stranger, await stranger.conversation()),
    ):
        answer = await user.call(
            "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=1"}, Idempotency_Key="k1"
        )
        assert answer.status == 200
        turns.add(answer.body["turn_id"])
    assert len(turns) == 3


async def test_idempotency_key_survives_a_restart(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Another gateway over the same store knows the key."""
    first = await start_gateway()
    client = await sign_in(first)
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/turns"
    before = await client.call("POST", path, {"message": "Hi #tokens=2"}, Idempotency_Key="k1")
    second = Client(await start_gateway(simulator=first.simulator, tenant=first.tenant), client.headers)
    after = await second.call("POST", path, {"message": "Hi #tokens=2"}, Idempotency_Key="k1")
    assert after.body == before.body


async def test_idempotency_key_of_no_or_too_many_characters_is_refused(client: Client) -> None:
    """A key has 1 to 255 characters."""
    path = f"/v1/conversations/{await client.conversation()}/turns"
    for key, status in (("", 422), ("k" * 256, 422), ("k" * 255, 200)):
        answer = await client.call("POST", path, {"message": "Hi #tokens=1"}, Idempotency_Key=key)
        assert answer.status == status, key
        if status != 200:
            assert (answer.body["code"], answer.body["field"]) == ("invalid_value", "Idempotency-Key")
