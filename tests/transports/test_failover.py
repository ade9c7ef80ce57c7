"""Whole gateways on a Redis under Sentinel and on a Cluster: a master lost in mid-answer costs no reader an event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.core.ledger import Settlement
from gateway.simulator.answers import answer as said
from gateway.store.ledger import RedisLedger
from tests.conftest import Running, StartGateway
from tests.store.topologies import FAILOVER_MAX_S, cluster_setup, sentinel_setup
from tests.transports.client import Answer, Client, Event, check_log, eventually
from tests.transports.conftest import SignIn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

MESSAGE = "Hi #tokens=400 #rate=40"  # ten seconds: across the whole failover
REFUSED_SOON_S = 2.5  # the store's one short timeout, and what else a request costs
TURNS = 4


async def read_on(client: Client, turn: str, transport: str) -> list[Event]:
    """Read a turn to its end as a good client does: one that is cut off comes back with its cursor."""
    kept: list[Event] = []
    async with asyncio.timeout(60):
        while not kept or not kept[-1].name.startswith("turn.") or kept[-1].name == "turn.started":
            cursor = kept[-1].id if kept else None
            if transport == "sse":
                async with client.follow(turn, cursor) as reader:
                    kept += [event for event in await reader.rest() if event.id]
            else:
                async with client.socket() as socket:
                    await socket.reply("subscribe", turn_id=turn, **({"after": cursor} if cursor else {}))
                    kept += await socket.ending(turn)
    return kept


async def ask_again_and_again(client: Client, conversation: str, until: asyncio.Event) -> list[tuple[float, Answer]]:
    """Try to start turns until told to stop; return how long each answer took, and the answer."""
    answers = []
    while not until.is_set():
        begun_s = time.monotonic()
        path = f"/v1/conversations/{conversation}/turns"
        answer = await client.call("POST", path, {"message": "Hi #tokens=1 #rate=0"})
        answers.append((time.monotonic() - begun_s, answer))
        await asyncio.sleep(0.1)
    return answers


async def settled(running: Running, tenant: str, count: int) -> list[Settlement]:
    ledger = RedisLedger(running.gateway.redis, ttl_s=100, retries_s=())
    known = running.gateway.auth.tenants
    tenant_id = next(name for name in known if name == tenant)
    found: list[Settlement] = []

    async def all_of_them() -> bool:
        found[:] = [one for _, one in await ledger.settled(tenant_id, None, 1000)]
        return len(found) >= count

    await eventually(all_of_them, "every turn to be settled", within_s=20)
    return found


def check_answers(logs: Sequence[Sequence[Event]]) -> None:
    for log in logs:
        ending = check_log(log)
        assert (ending.name, ending.data["text"]) == ("turn.completed", said(MESSAGE).text)


def check_refusals(answers: Sequence[tuple[float, Answer]]) -> None:
    """Each was answered or refused soon, and the last ones were answered."""
    assert {answer.status for _, answer in answers} <= {200, 503}
    assert {answer.body["code"] for _, answer in answers if answer.status == 503} == {"store_unavailable"}
    assert max(took_s for took_s, _ in answers) < REFUSED_SOON_S
    assert answers[-1][1].status == 200


async def test_sentinel_master_killed_in_mid_answer_loses_nothing(
    tmp_path: Path, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """All readers get every event once; new turns are refused soon and then taken; everything is settled once."""
    async with sentinel_setup(tmp_path / "redis") as setup:
        first = await start_gateway(redis_url=setup.url)
        second = await start_gateway(redis_url=setup.url, simulator=first.simulator, tenant=first.tenant)
        client = await sign_in(first)
        elsewhere = Client(second, client.headers)
        conversations = [await client.conversation() for _ in range(TURNS)]
        spare = await client.conversation()
        turns = [await client.start(conversation, MESSAGE) for conversation in conversations]
        readers = [
            asyncio.create_task(read_on(where, turn, transport))
            for turn in turns
            for where in (client, elsewhere)
            for transport in ("sse", "websocket")
        ]
        await asyncio.sleep(1)  # in mid-answer
        over = asyncio.Event()
        await setup.kill_master()
        asking = asyncio.create_task(ask_again_and_again(client, spare, over))
        logs = await asyncio.gather(*readers)
        over.set()
        answers = await asking
        check_answers(logs)
        check_refusals(answers)
        started = sum(answer.status == 200 for _, answer in answers)
        found = await settled(first, first.tenant, TURNS + started)
        ids = [one.turn_id for one in found]
        assert len(ids) == len(set(ids))
        assert set(turns) <= set(ids)
        for turn, conversation in zip(turns, conversations, strict=True):
            (run,) = first.simulator.bill.of(conversation)
            assert next(one for one in found if one.turn_id == turn).completion_tokens == run.completion_tokens
            for where in (client, elsewhere):
                check_answers([await where.replay(turn)])
        assert sum(took_s for took_s, answer in answers if answer.status == 503) < FAILOVER_MAX_S


async def test_cluster_node_of_one_tenant_killed_leaves_the_others_alone(
    tmp_path: Path, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The tenant's readers lose nothing over its node's failover, and another tenant's turns notice nothing."""
    async with cluster_setup(tmp_path / "redis") as setup:
        hit, spared = setup.tenant_on(0), setup.tenant_on(1)
        first = await start_gateway(redis_url=setup.url, tenant=hit)
        second = await start_gateway(redis_url=setup.url, tenant=hit, simulator=first.simulator)
        other = await start_gateway(redis_url=setup.url, tenant=spared, simulator=first.simulator)
        client, neighbour = await sign_in(first), await sign_in(other)
        elsewhere = Client(second, client.headers)
        conversation = await client.conversation()
        spares = [await client.conversation(), await neighbour.conversation()]
        turn = await client.start(conversation, MESSAGE)
        theirs = await neighbour.start(await neighbour.conversation(), MESSAGE)
        readers = [
            asyncio.create_task(read_on(where, which, transport))
            for where, which in ((client, turn), (elsewhere, turn), (neighbour, theirs))
            for transport in ("sse", "websocket")
        ]
        await asyncio.sleep(1)  # in mid-answer
        over = asyncio.Event()
        await setup.kill_node_of(f"hg:{{{hit}}}:x")
        asking = [
            asyncio.create_task(ask_again_and_again(who, spare, over))
            for who, spare in zip((client, neighbour), spares, strict=True)
        ]
        logs = await asyncio.gather(*readers)
        over.set()
        own, others = [await task for task in asking]
        check_answers(logs)
        check_refusals(own)
        assert {answer.status for _, answer in others} == {200}
        found = await settled(first, hit, 1 + sum(answer.status == 200 for _, answer in own))
        ids = [one.turn_id for one in found]
        assert len(ids) == len(set(ids))
        assert turn in ids
        check_answers([await elsewhere.replay(turn)])
