"""The vendor's plan limit as users meet it: they wait in line and are told so, over any door, and nobody gets a 429."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from functools import partial

import pytest

from gateway.store.gate import RedisGate
from tests.conftest import StartGateway
from tests.transports.client import Client, check_log, eventually, metric
from tests.transports.conftest import SignIn

MINUTE_S = 1.0  # of the plan's limit, in the tests that wait for one


@pytest.fixture
def short_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate as it is, with another length of its minute."""
    monkeypatch.setattr("gateway.parts.RedisGate", partial(RedisGate, minute_us=int(MINUTE_S * 1e6)))


@pytest.mark.usefixtures("short_minute")
async def test_queued_turn_is_told_over_both_transports_and_replayed_by_cursor(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """``turn.queued`` reaches a stream and a socket on any worker, and a cursor on either side of it finds it."""
    first = await start_gateway(environ={"HYPERLEAP_PLAN_LIMIT": "1/min"})
    client = await sign_in(first)
    second = await start_gateway(
        simulator=first.simulator, tenant=first.tenant, environ={"HYPERLEAP_PLAN_LIMIT": "1/min"}
    )
    other = Client(second, client.headers)
    await eventually(lambda: first.gateway.inbox.hears and second.gateway.inbox.hears, "workers to hear each other")
    conversation = await client.conversation()
    async with other.socket() as socket, client.ask(conversation, "Hi #tokens=5") as reader:
        await socket.reply("subscribe", turn_id=reader.turn_id)
        queued = await reader.until("turn.queued")
        assert queued.data == {"position": 1, "wait_s": 1.0}
        events = await reader.rest()
        over_socket = await socket.ending(reader.turn_id)
    assert check_log(events).name == check_log(over_socket).name == "turn.completed"
    assert [event.name for event in events][:3] == ["turn.started", "turn.queued", "message.started"]
    assert over_socket[1] == events[1] == queued
    for here in (client, other):
        replayed = await here.replay(queued.turn_id, events[0].id)
        assert replayed[0] == queued
        check_log(replayed, after=1)
        check_log(await here.replay(queued.turn_id, queued.id), after=2)


async def test_turn_without_room_in_time_is_503_with_retry_after_over_every_door(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Who cannot be let wait so long is told before a turn begins: why, when to come back, and readable by a page."""
    running = await start_gateway(environ={"HYPERLEAP_PLAN_LIMIT": "2/min", "HYPERLEAP_QUEUE_WAIT_S": "5"})
    client = await sign_in(running)
    conversation = await client.conversation()
    await client.complete(conversation, "Hi #tokens=1")
    path = f"/v1/conversations/{conversation}/turns"
    answer = await client.call("POST", path, {"message": "Hi"}, Origin="https://app.example")
    assert (answer.status, answer.body["code"]) == (503, "upstream_overloaded")
    assert 50 <= int(answer.headers["Retry-After"]) <= 70
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi")
        assert (reply["event"], reply["data"]["code"]) == ("error", "upstream_overloaded")
        assert reply["data"]["retry_after_s"] > 50
    created = await client.call("POST", "/v1/conversations", {})
    assert (created.status, created.body["code"]) == (503, "upstream_overloaded")
    body = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    assert [message["content"] for message in body["messages"] if message["role"] == "user"] == ["Hi #tokens=1"]
    assert await metric(running, "gateway_vendor_refusals_total", key="default", reason="late") == 3


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_stop_of_a_queued_turn_from_another_worker_sends_nothing(
    transport: str, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A user who gives up while in line pays nothing, and Hyperleap never hears of it."""
    environ = {"HYPERLEAP_PLAN_LIMIT": "1/min"}
    first = await start_gateway(environ=environ)
    client = await sign_in(first)
    second = await start_gateway(simulator=first.simulator, tenant=first.tenant, environ=environ)
    other = Client(second, client.headers)
    await eventually(lambda: first.gateway.inbox.hears, "the worker to hear")
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi") as reader, other.socket() as socket:
        await reader.until("turn.queued")
        assert await metric(first, "gateway_vendor_waiting", key="default") == 1
        if transport == "http":
            assert (await other.stop(reader.turn_id)).status == 200
        else:
            await socket.reply("turn.stop", turn_id=reader.turn_id)
        ending = check_log(await reader.rest())
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "user")
    assert ending.data["usage"] == {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "source": "estimated",
    }
    assert first.simulator.bill.of(conversation) == []
    await eventually(lambda: nobody_waits(client), "the queue to be empty")


async def nobody_waits(client: Client) -> bool:
    gone = not await client.running.gateway.redis.call("EXISTS", "hg:{_vendor.default}:gate:waiting")
    return gone and await metric(client.running, "gateway_vendor_waiting", key="default") == 0


@pytest.mark.timeout(120)
async def test_three_workers_under_load_get_no_429_from_the_vendor(
    start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the plan's own limit, turns and creations of three workers all pass, and Hyperleap refuses none of them."""
    limit, period_s = 20, 1.0
    monkeypatch.setattr("gateway.parts.RedisGate", partial(RedisGate, minute_us=int((period_s + 0.6) * 1e6)))
    environ = {"HYPERLEAP_PLAN_LIMIT": f"{limit}/min"}
    stand_in = {"limit_per_minute": limit, "limit_period_s": period_s, "rate_per_s": 0.0}
    first = await start_gateway(simulator=stand_in, environ=environ)
    client = await sign_in(first)
    workers = [client]
    for _ in range(2):
        running = await start_gateway(simulator=first.simulator, tenant=first.tenant, environ=environ)
        workers.append(Client(running, client.headers))

    async def talk(number: int) -> str:
        worker = workers[number % 3]
        conversation = await worker.conversation()
        for _ in range(2):
            async with worker.ask(conversation, "Hi #tokens=1") as reader:
                assert check_log(await reader.rest(within_s=60)).name == "turn.completed"
        return conversation

    conversations = await asyncio.gather(*(talk(number) for number in range(40)))  # 120 calls: six periods of them
    for worker in workers:
        assert await metric(worker.running, "gateway_vendor_key_requests_total", outcome="limited") == 0
        assert await metric(worker.running, "gateway_vendor_holds_total") == 0
    sent_s = sorted(run.started_at_s for conversation in conversations for run in first.simulator.bill.of(conversation))
    assert len(sent_s) == 80
    for number, begun_s in enumerate(sent_s):
        assert bisect_left(sent_s, begun_s + period_s) - number <= limit


@pytest.mark.timeout(180)
async def test_tenant_with_a_thousand_waiting_delays_another_by_one_turn(
    start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a tenant's thousand turns wait at two workers, another's one turn is sent after one of them at most."""
    free = await start_gateway()  # a worker without a limit makes the conversations
    heavy = await sign_in(free)
    conversations = await asyncio.gather(*(heavy.conversation() for _ in range(1001)))
    monkeypatch.setattr("gateway.parts.RedisGate", partial(RedisGate, minute_us=300_000))
    environ = {"HYPERLEAP_PLAN_LIMIT": "1/min", "HYPERLEAP_QUEUE_MAX": "3000", "HYPERLEAP_QUEUE_WAIT_S": "1800"}
    workers = [
        Client(
            await start_gateway(simulator=free.simulator, tenant=free.tenant, environ=environ),
            heavy.headers,
        )
        for _ in range(2)
    ]
    other = await start_gateway(simulator=free.simulator)
    light_conversation = await (await sign_in(other, "u2")).conversation()
    limited = await start_gateway(simulator=free.simulator, tenant=other.tenant, environ=environ)
    light = await sign_in(limited, "u2")

    async def start(number: int) -> None:
        await workers[number % 2].start(conversations[number], "theirs #tokens=1")

    for batch in range(0, 1001, 50):
        await asyncio.gather(*(start(number) for number in range(batch, min(batch + 50, 1001))))
    waiting = await free.gateway.redis.call("HLEN", "hg:{_vendor.default}:gate:waiting")
    assert waiting > 900  # and the rest has been sent meanwhile
    before = sum(len(free.simulator.bill.of(conversation)) for conversation in conversations)
    async with light.ask(light_conversation, "mine #tokens=1") as reader:
        started = await reader.until("message.started")
        assert started
    (mine,) = free.simulator.bill.of(light_conversation)
    earlier = [
        run
        for conversation in conversations
        for run in free.simulator.bill.of(conversation)
        if run.started_at_s < mine.started_at_s
    ]
    assert len(earlier) <= before + 1 + 1  # one more may have been on its way when they were counted
