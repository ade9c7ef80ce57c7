"""What is settled against what the vendor billed: equal where the vendor told it, bounded where it is an estimate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.core.ledger import Settlement
from gateway.simulator.answers import PROMPT_OVERHEAD_TOKENS
from gateway.simulator.bill import ChatRun
from gateway.store.ledger import RedisLedger
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn

ANSWER = "Hi #tokens=30 #rate=150"
Ask = Callable[[Client, str], Awaitable[str]]


# Look-ups come within the second: the vendor's answers here take a quarter of one.
SOON = {"GATEWAY_LEDGER_LOOK_UP_S": "0.05,0.3,0.6"}


def completed(message: str) -> Ask:
    async def ask(client: Client, conversation: str) -> str:
        return (await client.complete(conversation, message))[0].turn_id

    return ask


def stopped(message: str, deltas: int) -> Ask:
    async def ask(client: Client, conversation: str) -> str:
        async with client.ask(conversation, message) as reader:
            if deltas:
                await reader.until("message.delta", deltas)
            else:
                await eventually(lambda: client.running.simulator.bill.of(conversation), "the vendor to hear of it")
            await client.stop(reader.turn_id)
            await reader.rest()
            return reader.turn_id

    return ask


REPORTED: dict[str, Ask] = {
    "completed": completed(ANSWER),
    "reported zero": completed(f"{ANSWER} #fault=zero-usage"),
    "broken after its end": completed(f"{ANSWER} #fault=cut-after-finish"),
}
REFUSED: dict[str, Ask] = {
    "500": completed(f"{ANSWER} #fault=500"),
    "502 without a body": completed(f"{ANSWER} #fault=empty-body-error:502"),
}
READ_BACK: dict[str, Ask] = {
    "not reported": completed(f"{ANSWER} #fault=no-usage"),
    "stopped": stopped(ANSWER, 5),
}
STOPPED_EARLY: dict[str, Ask] = {"stopped before the first token": stopped(f"{ANSWER} #delay=0.2", 0)}
CUT: dict[str, Ask] = {
    "cut off": completed(f"{ANSWER} #fault=cut:12"),
    "reset": completed(f"{ANSWER} #fault=reset:12"),
}


async def settle_all(running: Running, client: Client, asks: dict[str, Ask]) -> dict[str, tuple[Settlement, ChatRun]]:
    """Have all of these turns and wait until each is settled; return what was settled and what was billed."""
    conversations = {name: await client.conversation() for name in asks}
    turns = dict(
        zip(asks, await asyncio.gather(*(ask(client, conversations[name]) for name, ask in asks.items())), strict=True)
    )
    ledger = RedisLedger(running.gateway.redis, ttl_s=100, retries_s=())
    (tenant,) = running.gateway.auth.tenants.values()
    found: list[Settlement] = []

    async def settled() -> bool:
        await asyncio.gather(*(duty(tenant) for duty in running.gateway.sweeper._duties))
        found[:] = [one for _, one in await ledger.settled(tenant.id, None, 1000)]
        return not await running.gateway.redis.call("ZCARD", f"hg:{{{tenant.id}}}:usage:unsettled")

    await eventually(settled, "every turn to be settled")
    assert sorted(one.turn_id for one in found) == sorted(turns.values())
    by_turn: dict[str, Settlement] = {one.turn_id: one for one in found}
    return {
        name: (by_turn[turns[name]], running.simulator.bill.of(conversation)[-1])
        for name, conversation in conversations.items()
    }


def check_equal(settlement: Settlement, run: ChatRun) -> None:
    assert (settlement.prompt_tokens, settlement.completion_tokens) == (run.prompt_tokens, run.completion_tokens)


def check_bounded(settlement: Settlement, run: ChatRun) -> None:
    """The bound that `gateway.core.ledger` states; the stand-in's tokens have one to eight characters."""
    for estimate, billed in (
        (settlement.prompt_tokens, run.prompt_tokens - PROMPT_OVERHEAD_TOKENS),
        (settlement.completion_tokens, run.completion_tokens),
    ):
        assert billed / 4 <= estimate <= 2 * billed + 1


@pytest.mark.parametrize("habit", ["finish", "drop"])
async def test_settlement_is_what_the_vendor_billed(habit: str, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Reported and read back tokens are the vendor's to the token, refused messages cost nothing, estimates are near.

    Both of a vendor that finishes what nobody reads, which bills all of it, and of one that drops it.
    """
    running = await start_gateway(simulator={"on_disconnect": habit}, environ=SOON)
    client = await sign_in(running)
    settled = await settle_all(running, client, {**REPORTED, **REFUSED, **READ_BACK, **STOPPED_EARLY, **CUT})
    sources = {name: settlement.source for name, (settlement, _) in settled.items()}
    early = "read_back" if habit == "finish" else "estimated"
    assert sources == {
        **dict.fromkeys(REPORTED, "reported"),
        **dict.fromkeys(REFUSED, "estimated"),
        **dict.fromkeys(READ_BACK, "read_back"),
        **dict.fromkeys(STOPPED_EARLY, early),
        **dict.fromkeys(CUT, "estimated"),
    }
    for name, (settlement, run) in settled.items():
        if name == "reported zero":
            assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.total_tokens) == (0, 0, 0)
        elif name in REFUSED:
            assert settlement.total_tokens == run.completion_tokens == 0
        elif settlement.source == "estimated":
            check_bounded(settlement, run)
        else:
            check_equal(settlement, run)


@pytest.mark.parametrize("status", [429, 500])
async def test_settlement_of_a_refused_message_asks_the_vendor_nothing(
    status: int, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A message that was refused is settled in the step that ends its turn, without a look-up."""
    running = await start_gateway(environ=SOON)
    client = await sign_in(running)
    conversation = await client.conversation()
    before = running.simulator.state.requests
    await client.complete(conversation, f"{ANSWER} #fault={status}")
    assert await running.gateway.redis.call("EXISTS", f"hg:{{{running.tenant}}}:usage:unsettled") == 0
    assert await running.gateway.redis.call("XLEN", f"hg:{{{running.tenant}}}:usage:settled") == 1
    assert running.simulator.state.requests == before + 1


async def test_settlement_of_a_stopped_turn_stands_beside_the_next_turns(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A turn stopped before its first token and the one that follows at once are each settled with their own tokens."""
    running = await start_gateway(simulator={"on_disconnect": "drop"}, environ=SOON)
    client = await sign_in(running)

    conversation = await client.conversation()
    turn = await STOPPED_EARLY["stopped before the first token"](client, conversation)
    await client.complete(conversation, "And? #tokens=20 #rate=0")
    ledger = RedisLedger(running.gateway.redis, ttl_s=100, retries_s=())
    (tenant,) = running.gateway.auth.tenants.values()

    async def both() -> bool:
        await asyncio.gather(*(duty(tenant) for duty in running.gateway.sweeper._duties))
        return len(await ledger.settled(tenant.id, None, 10)) == 2

    await eventually(both, "both to be settled")
    found = {one.turn_id: one for _, one in await ledger.settled(tenant.id, None, 10)}
    first, second = running.simulator.bill.of(conversation)
    stopped_one = next(one for one in found.values() if one.turn_id == turn)
    other = next(one for one in found.values() if one.turn_id != turn)
    assert (
        (stopped_one.source, stopped_one.completion_tokens)
        == ("estimated", first.completion_tokens)
        == ("estimated", 0)
    )
    assert (other.source, other.completion_tokens) == ("reported", second.completion_tokens) == ("reported", 20)
