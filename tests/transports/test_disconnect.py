"""Leaving: what becomes of an answer that nobody reads is the tenant's rule, on one worker and on several."""

from __future__ import annotations

import pytest

from gateway.core.turn import TurnId
from tests.conftest import PERSONA_ID, StartGateway
from tests.transports.client import check_log, eventually
from tests.transports.conftest import SignIn

SOON_S = 0.2

TENANT = """
[tenants.{name}]
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.anonymous = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.address = {{ requests_per_min = 0 }}
disconnect = {{ {rule} }}
[tenants.{name}.personas.default]
persona_id = "{persona}"
"""


def tenant(name: str, rule: str) -> str:
    return TENANT.format(name=name, rule=rule, persona=PERSONA_ID)


@pytest.mark.parametrize("message", ["Hi #rate=40 #tokens=400", "Hi #delay=30", "Hi #fault=slow-headers:30"])
async def test_leaving_under_stop_resets_the_upstream_at_once(
    start_gateway: StartGateway, sign_in: SignIn, message: str
) -> None:
    """A client that leaves, in mid-answer or before the first token, costs the vendor nothing more."""
    running = await start_gateway(toml=tenant("leave-stop", 'policy = "stop"'))
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.ask(conversation, message) as reader:
        turn = reader.turn_id
        await eventually(lambda: running.simulator.bill.of(conversation), "the vendor to hear the message")
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset", within_s=SOON_S)
    ending = check_log(await client.replay(turn))
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "disconnect")


async def test_leaving_under_detach_ends_the_answer_after_the_grace(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Under ``detach`` the answer goes on for the grace, and ends with it when nobody has come back."""
    running = await start_gateway(toml=tenant("leave-detach", 'policy = "detach", grace_s = 0.3'))
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40 #tokens=4000") as reader:
        await reader.until("message.delta", 2)
        turn = reader.turn_id
        seen = len(running.simulator.bill.of(conversation))
    (run,) = running.simulator.bill.of(conversation)
    before = run.items_sent
    await eventually(lambda: run.saw_cancel, "the grace to be over", within_s=5)
    assert seen == 1
    assert run.items_sent > before
    assert check_log(await client.replay(turn)).data["reason"] == "disconnect"


async def test_coming_back_within_the_grace_keeps_the_answer(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A reader that returns in time finds the answer going on, and gets all of it."""
    running = await start_gateway(toml=tenant("leave-return", 'policy = "detach", grace_s = 1.0'))
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40 #tokens=60") as reader:
        last = await reader.until("message.delta", 2)
    async with client.follow(last.turn_id, last.id) as again:
        events = await again.rest()
    assert check_log(events, after=last.position).name == "turn.completed"


async def test_leaving_under_drain_completes_the_answer(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Under ``drain`` the answer goes on to its end, so that the vendor's own figures are learnt."""
    running = await start_gateway(toml=tenant("leave-drain", 'policy = "drain"'))
    client = await sign_in(running)
    async with client.ask(await client.conversation(), "Hi #rate=100 #tokens=40") as reader:
        await reader.until("message.delta")
        turn = reader.turn_id
    ending = check_log(await client.replay(turn))
    assert ending.name == "turn.completed"
    assert ending.data["usage"]["source"] == "reported"


async def test_reader_on_another_worker_keeps_the_answer_going(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The owner knows of readers elsewhere: its own last reader may leave without ending their answer."""
    toml = tenant("leave-other", 'policy = "stop"')
    first = await start_gateway(toml=toml)
    second = await start_gateway(toml=toml, simulator=first.simulator)
    here, there = await sign_in(first), await sign_in(second)
    conversation = await here.conversation()
    async with here.ask(conversation, "Hi #rate=40 #tokens=120") as owner_side:
        last = await owner_side.until("message.delta", 2)
        async with there.follow(last.turn_id, last.id) as follower:
            owned = first.gateway.turns.find(TurnId(owner_side.turn_id))
            assert owned is not None
            await eventually(lambda: owned.presence.readers == 2, "the owner to learn of the follower", within_s=5)
            owner_side.response.close()
            events = await follower.rest()
    assert check_log(events, after=last.position).name == "turn.completed"
