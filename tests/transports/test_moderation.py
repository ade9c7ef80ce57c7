"""Moderation before a turn: what is flagged is not sent, and what cannot be judged only where the tenant says so."""

from __future__ import annotations

import pytest

from gateway.core.identity import TenantId
from gateway.core.ledger import Settlement
from gateway.simulator.answers import answer as said
from gateway.store.ledger import RedisLedger
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, check_log, eventually, metric
from tests.transports.conftest import SignIn
from tests.transports.dropin import App, error_of, toml

FINE = "A bun #tokens=3"
BAD = "How do I build a bomb ?"


async def start(start_gateway: StartGateway, *, limits: str | None = None, lines: str = "") -> Running:
    """Start a gateway whose tenant has its messages judged."""
    switch = f"moderation.messages = true\n{lines}"
    return await start_gateway(toml=toml(lines=switch) if limits is None else toml(lines=switch, limits=limits))


async def ask(
    client: Client, message: str, conversation: str | None = None, **headers: str
) -> tuple[int, dict[str, object]]:
    conversation = conversation or await client.conversation()
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": message}, **headers)
    return answer.status, answer.body


async def settled(running: Running, count: int) -> list[Settlement]:
    ledger = RedisLedger(running.gateway.redis, ttl_s=1000, retries_s=())
    found: list[Settlement] = []

    async def there() -> bool:
        found[:] = [one for _, one in await ledger.settled(TenantId(running.tenant), None, 100)]
        return len(found) >= count

    await eventually(there, f"{count} settlements")
    return found


async def screened(running: Running, outcome: str) -> float:
    return await metric(running, "gateway_messages_screened_total", tenant=running.tenant, outcome=outcome)


async def test_message_that_is_fine_is_judged_and_answered(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """One call more is made, and settled beside the turn under the same user."""
    running = await start(start_gateway)
    client = await sign_in(running)
    conversation = await client.conversation()
    before = running.simulator.state.requests
    ending = check_log(await client.complete(conversation, FINE))
    assert (ending.name, ending.data["text"]) == ("turn.completed", said(FINE).text)
    assert running.simulator.state.requests - before == 2
    found = await settled(running, 2)
    assert sorted(one.reason for one in found) == ["moderation", "stop"]
    assert len({one.owner for one in found}) == 1
    assert await screened(running, "passed") == 1


async def test_moderation_costs_its_tokens_and_no_turn(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What a tenant pays for a turn it pays once, though its message was judged before."""
    prices = 'currency = "EUR", prompt_per_million = "1000", completion_per_million = "0", per_turn = "1"'
    running = await start(start_gateway, lines=f"prices = {{ {prices} }}\n")
    await (client := await sign_in(running)).complete(await client.conversation(), FINE)
    by_reason = {one.reason: one for one in await settled(running, 2)}
    judged, turn = by_reason["moderation"], by_reason["stop"]
    assert judged.cost_micros == 1000 * judged.prompt_tokens > 0
    assert turn.cost_micros == 1000 * turn.prompt_tokens + 1_000_000
    assert judged.vendor_key == turn.vendor_key == "default"


async def test_message_that_is_flagged_is_not_sent(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A code and the categories; no turn, no chat, no trace in the transcript, and only the moderation settled."""
    running = await start(start_gateway, limits="user = { tokens_per_min = 100_000, concurrent_turns = 1 }")
    client = await sign_in(running)
    conversation = await client.conversation()
    status, problem = await ask(client, BAD, conversation)
    assert (status, problem["code"], problem["field"]) == (422, "message_flagged", "message")
    assert problem["categories"] == ["violence"]
    assert running.simulator.bill.of(conversation) == []
    assert (await client.call("GET", f"/v1/conversations/{conversation}")).body["messages"] == []
    (one,) = await settled(running, 1)
    assert (one.reason, one.source) == ("moderation", "estimated")
    assert await screened(running, "flagged") == 1
    assert (await ask(client, FINE, conversation))[0] == 200  # its slot and the conversation are free
    assert {one.reason for one in await settled(running, 3)} == {"moderation", "stop"}


async def test_message_that_is_flagged_over_a_socket_is_told_there(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The command gets the error frame, and the socket goes on."""
    running = await start(start_gateway)
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.socket() as socket:
        refused = await socket.reply("turn.start", conversation_id=conversation, message=BAD)
        assert (refused["event"], refused["data"]["code"]) == ("error", "message_flagged")
        begun = await socket.reply("turn.start", conversation_id=conversation, message=FINE)
        assert (await socket.ending(begun["data"]["turn_id"]))[-1].name == "turn.completed"


async def test_every_door_is_judged(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Through the drop-in a message, and what is put into a prompt, are judged alike."""
    running = await start(start_gateway)
    client = await sign_in(running)
    conversation = await client.conversation()
    async with App(running, client.token) as app:
        chat = await app.call("PATCH", f"/conversations/{conversation}/chat", {"message": BAD})
        run = await app.run("a bomb")
    assert (chat.status_code, run.status_code) == (422, 422)
    assert error_of(chat)["code"] == "unprocessable_entity"
    assert list(running.simulator.bill) == []


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_client_is_told_the_categories(stream: bool, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Over chat completions and responses alike, as an answer with a status before any stream."""
    running = await start(start_gateway)
    client = await sign_in(running)
    chat = {"model": "default", "messages": [{"role": "user", "content": BAD}], "stream": stream}
    for path, body, param in (
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/responses", {"model": "default", "input": BAD, "stream": stream}, "input"),
    ):
        answer = await client.call("POST", path, body)
        told = answer.body["error"]
        assert (answer.status, told["code"], told["param"]) == (400, "message_flagged", param)
        assert told["categories"] == ["violence"]
    assert await screened(running, "flagged") == 2


@pytest.mark.parametrize("fault", ["503", "429", "400", "odd"])
async def test_message_that_cannot_be_judged_is_refused_unless_the_tenant_is_open(
    fault: str, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """``closed`` refuses with the cause, to be tried again; ``open`` sends it. Both are counted."""
    message = f"{FINE} #moderation={fault}"
    running = await start(start_gateway)
    client = await sign_in(running)
    conversation = await client.conversation()
    status, problem = await ask(client, message, conversation)
    assert (status, problem["code"]) == (503, "moderation_unavailable")
    causes = {"503": "upstream_error", "429": "upstream_rate_limited", "400": "upstream_rejected"}
    assert problem["cause"] == causes.get(fault, "upstream_malformed")
    assert running.simulator.bill.of(conversation) == []
    assert await screened(running, "unjudged_refused") == 1
    if fault in ("429", "503"):
        return  # that Hyperleap wants to be left in peace holds for the chat as well
    opened = await start(start_gateway, lines='moderation.when_unavailable = "open"\n')
    assert (await ask(await sign_in(opened), message))[0] == 200
    assert await screened(opened, "unjudged_sent") == 1
    assert (await ask(await sign_in(opened), BAD))[0] == 422


async def test_limit_that_is_used_up_is_no_way_round_the_judgement(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Where messages pass unjudged when Hyperleap fails, they do not when a user asks too fast."""
    running = await start(
        start_gateway, limits="user = { requests_per_min = 2 }", lines='moderation.when_unavailable = "open"\n'
    )
    client = await sign_in(running)
    conversation = await client.conversation()
    told = [await ask(client, BAD, conversation) for _ in range(4)]
    assert [problem["code"] for _, problem in told] == ["message_flagged"] * 2 + ["rate_limited"] * 2
    assert running.simulator.bill.of(conversation) == []


async def test_repeat_is_not_judged_again(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A message that is sent again under its key costs no second judgement; one that was flagged began nothing."""
    running = await start(start_gateway)
    client = await sign_in(running)
    conversation = await client.conversation()
    await ask(client, FINE, conversation, Idempotency_Key="k1")
    before = running.simulator.state.requests
    assert (await ask(client, FINE, conversation, Idempotency_Key="k1"))[0] == 200
    assert running.simulator.state.requests == before
    flagged = [(await ask(client, BAD, conversation, Idempotency_Key="k2"))[0] for _ in range(2)]
    assert flagged == [422, 422]
    assert (await ask(client, FINE, conversation, Idempotency_Key="k2"))[0] == 200


async def test_messages_are_not_judged_unless_the_tenant_wants_it(running: Running, client: Client) -> None:
    """Without the switch nothing is asked of moderation."""
    conversation = await client.conversation()
    before = running.simulator.state.requests
    assert (await ask(client, BAD, conversation))[0] == 200
    assert running.simulator.state.requests - before == 1
