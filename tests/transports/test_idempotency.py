"""Idempotency keys: sending the same again, for whatever reason, sends it to the vendor once."""

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


# --- conversations ------------------------------------------------------------------------------------------------


async def test_idempotency_key_of_a_conversation_sent_again_returns_it_on_any_worker(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The repeat of a creation gets the first one's answer, byte for byte, here, elsewhere, and after a turn."""
    running = await start_gateway()
    client = await sign_in(running)
    elsewhere = Client(await start_gateway(simulator=running.simulator, tenant=running.tenant), client.headers)
    body = {"persona": "default", "replacements": {"name": "Zoë"}, "metadata": {"page": "pricing", "n": 1}}
    first = await client.call("POST", "/v1/conversations", body, Idempotency_Key="k1")
    await client.complete(first.body["id"], "Hi #tokens=1")
    for user in (client, elsewhere):
        again = await user.call("POST", "/v1/conversations", dict(reversed(body.items())), Idempotency_Key="k1")
        assert (again.status, again.raw, again.headers["Location"]) == (201, first.raw, first.headers["Location"])
    assert len((await client.call("GET", "/v1/conversations")).body["data"]) == 1


async def test_idempotency_key_of_a_conversation_sent_at_once_everywhere_creates_one(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Simultaneous sends over two workers are one conversation; without a key each is its own."""
    running = await start_gateway()
    client = await sign_in(running)
    elsewhere = Client(await start_gateway(simulator=running.simulator, tenant=running.tenant), client.headers)
    sends = [user.call("POST", "/v1/conversations", {}, Idempotency_Key="k1") for user in (client, elsewhere) * 10]
    answers = await asyncio.gather(*sends)
    assert {answer.status for answer in answers} == {201}
    assert len({answer.raw for answer in answers}) == 1
    assert len((await client.call("GET", "/v1/conversations")).body["data"]) == 1
    answers = await asyncio.gather(*(client.call("POST", "/v1/conversations", {}) for _ in range(3)))
    assert len({answer.body["id"] for answer in answers}) == 3


async def test_idempotency_key_of_a_conversation_with_another_body_is_422(client: Client) -> None:
    """A key that was used with another persona or metadata is refused."""
    assert (await client.call("POST", "/v1/conversations", {}, Idempotency_Key="k1")).status == 201
    for body in ({"persona": "other"}, {"metadata": {"a": 1}}, {"replacements": {"name": "x"}}):
        answer = await client.call("POST", "/v1/conversations", body, Idempotency_Key="k1")
        assert (answer.status, answer.body["code"]) == (422, "idempotency_mismatch")
        assert answer.body["field"] == "Idempotency-Key"
    spelled_out = {"persona": "default", "metadata": {}, "replacements": {}}
    assert (await client.call("POST", "/v1/conversations", spelled_out, Idempotency_Key="k1")).status == 201


async def test_idempotency_key_of_a_conversation_of_no_or_too_many_characters_is_refused(client: Client) -> None:
    """The form of a key is the same for conversations as for turns."""
    for key, status in (("", 422), ("k" * 256, 422), ("k" * 255, 201)):
        answer = await client.call("POST", "/v1/conversations", {}, Idempotency_Key=key)
        assert answer.status == status, key
        if status != 201:
            assert (answer.body["code"], answer.body["field"]) == ("invalid_value", "Idempotency-Key")
    assert len((await client.call("GET", "/v1/conversations")).body["data"]) == 1
