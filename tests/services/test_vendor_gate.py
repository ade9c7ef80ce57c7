"""Turns wait for room with the vendor instead of failing, and nobody asks a vendor that wants to be left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import TurnCompleted, TurnFailed, TurnQueued, TurnStopped
from gateway.core.gate import State
from gateway.core.identity import Disconnect, DisconnectPolicy
from gateway.core.plan import Plan, ScopeLimits, StoreAway
from gateway.core.turn import AnswerItem, ChatReceiver, StopReason, TurnId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.services.key_gate import GateRules
from gateway.services.owned_turn import UNUSED
from gateway.services.turn import coarse, coarse_s
from gateway.services.vendor_copy import Asked
from gateway.store.embedded import EmbeddedValkey
from gateway.store.gate import key_of_gate
from tests.services.conftest import SetStage
from tests.services.stage import PlayedChat, PlayedVendor, Reading, Stage, until
from tests.telemetry.told import told

ONE = PlanLimit(per_min=1)
PERIOD_US = 300_000  # of "a minute" where a test waits for one
BUDGETS = Plan(
    tenant=ScopeLimits(requests_per_min=10**6, tokens_per_day=10**6, concurrent_turns=100),
    user=ScopeLimits(requests_per_min=10**6, tokens_per_min=10**6, concurrent_turns=100),
)


class PromptVendor(PlayedVendor):
    """Answers each message at once, and writes down when it came."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_s: list[float] = []

    async def open_chat(
        self, conversation_id: ConversationId, message: str, receiver: ChatReceiver, *, key: KeyLabel
    ) -> PlayedChat:
        self.sent_s.append(time.monotonic())
        chat = await super().open_chat(conversation_id, message, receiver, key=key)
        asyncio.get_running_loop().call_soon(chat.complete, "Hello")
        return chat


async def let_in(stage: Stage, conversation: ConversationId) -> TurnId:
    """Start a turn as soon as the gate does not refuse it."""
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(GatewayError):
                return (await stage.start(conversation)).turn_id
            await asyncio.sleep(0.01)


async def full(stage: Stage, waiting: int = 1, **limits: int) -> tuple[list[ConversationId], TurnId]:
    """Use a key's room up with one turn, and return conversations whose turns will wait."""
    conversations = [await stage.conversation() for _ in range(waiting + 1)]
    stage.plan_limit = PlanLimit(**(limits or {"per_min": 1}))
    first = await stage.start(conversations.pop())
    await stage.vendor.chat()
    return conversations, first.turn_id


async def queued(stage: Stage, conversation: ConversationId, message: str = "Hi") -> tuple[TurnId, Reading]:
    """Start a turn that must wait, and wait until a reader is told so."""
    started = await stage.start(conversation, message)
    reading = await stage.read(started.turn_id)
    await until(lambda: "turn.queued" in reading.names)
    return started.turn_id, reading


async def gate_keys(stage: Stage) -> set[str]:
    """Return what the store still has of the stage's gate, but for the passes and what is kept of those that left."""
    at = key_of_gate(stage.key)
    names = {key.decode().removeprefix(at) for key in await stage.store.call("KEYS", f"{at}*")}
    return {name for name in names if not name.startswith(":of:")} - {":min", ":hour", ":workers"}


async def books(stage: Stage) -> dict[bytes, object]:
    """Return every count of the tenant's limits, without when its bucket was looked at last."""
    counts: dict[bytes, object] = {}
    for key in await stage.store.call("KEYS", f"hg:{{{stage.tenant.id}}}:lim:*"):
        if b":lim:of:" in key or key.endswith(b":lim:open"):
            continue
        kind = (await stage.store.call("TYPE", key)).decode()
        if kind == "zset":
            counts[key] = await stage.store.call("ZCARD", key)
        elif b":lim:d:" in key:
            counts[key] = await stage.store.call("GET", key)
    return {key: count for key, count in counts.items() if count not in (0, b"0")}


# --- waiting ------------------------------------------------------------------------------------------------------


async def test_turn_without_room_waits_is_told_its_place_and_answers(set_stage: SetStage) -> None:
    """A turn beyond the plan's limit begins, tells where it stands, and is sent and answered when there is room."""
    stage = set_stage(minute_us=PERIOD_US)
    (conversation,), _ = await full(stage)
    turn, reading = await queued(stage, conversation)
    assert reading.names == ["turn.started", "turn.queued"]
    assert reading.events[-1] == TurnQueued(1, 1.0)
    chat = await stage.vendor.chat(1)
    chat.complete("Hello")
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert reading.positions[-1] == 1 + 1 + 1 + len("Hello") + 1
    later = await stage.read(turn)
    assert await later.ended() == ending
    assert later.names == reading.names
    assert await gate_keys(stage) == set()


async def test_turn_that_waits_is_told_of_its_new_place(set_stage: SetStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that changes is told again, roughly and as an event of the log; one that does not is not."""
    monkeypatch.setattr("gateway.services.key_gate.PLACES_S", 0.05)
    monkeypatch.setattr("gateway.services.key_gate.LOOK_S", 0.05)
    monkeypatch.setattr("gateway.services.turn.QUEUED_EVERY_S", 0.05)
    stage = set_stage(minute_us=PERIOD_US)
    conversations, _ = await full(stage, 6)
    readings = [(await queued(stage, conversation))[1] for conversation in conversations]
    last = readings[-1]
    for number in range(1, 7):
        (await stage.vendor.chat(number)).complete("Hello")
    await last.ended()
    places = [event.position for event in last.events if isinstance(event, TurnQueued)]
    assert places[0] == 10  # the sixth
    assert places == sorted(places, reverse=True)
    assert {1, 2, 5} & set(places)
    events = [event for event in last.events if isinstance(event, TurnQueued)]
    assert all(one != other for one, other in pairwise(events))


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_stop_of_a_turn_that_waits_leaves_the_queue_at_once(elsewhere: bool, set_stage: SetStage) -> None:
    """A stop, from any worker, ends the wait: nothing is sent, nothing counted, and nobody waits behind it."""
    stage = set_stage(plan=BUDGETS)
    other = set_stage(tenant=stage.tenant.id, vendor_key=stage.key) if elsewhere else stage
    await stage.hears()
    (conversation,), _ = await full(stage)
    before = await books(stage)
    turn, reading = await queued(stage, conversation)
    await other.turns.stop(stage.user(), turn, StopReason.USER)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    assert (ending.reason, ending.text, ending.usage) == (StopReason.USER, "", UNUSED)
    await until(lambda: stage.turns.running == 1)
    assert len(stage.vendor.chats) == 1
    assert await books(stage) == before
    await empties(stage)


@pytest.mark.parametrize("why", ["revoked", "nobody reads", "shutdown"])
async def test_turn_that_waits_ends_as_any_other(why: str, set_stage: SetStage) -> None:
    """Revocation, a disconnect rule and the end of the worker reach a turn that has not been sent yet."""
    stage = set_stage(disconnect=Disconnect(policy=DisconnectPolicy.STOP), after_disconnect="finishes")
    (conversation,), _ = await full(stage)
    turn, reading = await queued(stage, conversation)
    match why:
        case "revoked":
            stage.turns.revoked = lambda _: True
            stage.turns.stop_revoked()
            reason = StopReason.REVOKED
        case "nobody reads":
            reading.task.cancel()
            reason = StopReason.DISCONNECT
        case _:
            await stage.turns.aclose(grace_s=0, successors=True)
            reason = StopReason.SHUTDOWN  # handing it over would leave a turn whose answer nobody will ever find
    await until(lambda: stage.roster.find(turn) is None)
    ending = (await stage.log.read(stage.tenant.id, turn, 0, 100))[-1].event
    assert isinstance(ending, TurnStopped)
    assert (ending.reason, ending.usage) == (reason, UNUSED)
    assert len(stage.vendor.chats) == 1
    await empties(stage)


async def test_wait_that_is_over_fails_the_turn_and_costs_nothing(set_stage: SetStage) -> None:
    """Who found no room until his time was up is told so, may try again, and pays nothing."""
    stage = set_stage(plan=BUDGETS, minute_us=500_000, gate_rules=GateRules(wait_s=0.8))
    conversations, _ = await full(stage, 1)
    before = await books(stage)
    _, reading = await queued(stage, conversations[0])
    await stage.store.call("HSET", key_of_gate(stage.key), "held", int(time.time() * 1e6) + 10**9)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.error.retryable, ending.usage) == (Code.UPSTREAM_OVERLOADED, True, UNUSED)
    assert ending.error.retry_after_s is not None
    assert len(stage.vendor.chats) == 1
    assert await books(stage) == before
    await stage.store.call("HDEL", key_of_gate(stage.key), "held")
    await empties(stage)


@pytest.mark.parametrize("why", ["full", "late", "open"])
async def test_turn_that_finds_no_place_is_refused_before_it_begins(why: str, set_stage: SetStage) -> None:
    """A full queue, too long a wait, an open breaker: 503 with when to come back, no turn, and the books as before."""
    stage = set_stage(plan=BUDGETS, queue_max=2, gate_rules=GateRules(wait_s=30.0 if why == "late" else 600.0))
    conversations, _ = await full(stage, 2)
    if why == "full":
        await queued(stage, conversations[0])
    elif why == "open":
        stage.plan_limit = PlanLimit()
        await stage.store.call("HSET", key_of_gate(stage.key), "open", int(time.time() * 1e6) + 10**7, "rest", 10**7)
        stage.gate.changed(stage.key, State.OPEN)
    before = await books(stage)
    with pytest.raises(GatewayError) as refused:
        await stage.start(conversations[1])
    assert (refused.value.code, refused.value.wire.http) == (Code.UPSTREAM_OVERLOADED, 503)
    assert refused.value.retry_after_s is not None
    lower, upper = {"full": (61, 190), "late": (50, 70), "open": (9, 12)}[why]
    assert lower <= refused.value.retry_after_s <= upper
    assert await books(stage) == before
    assert (await stage.transcript(conversations[1])) == []
    assert stage.turns.running == (2 if why == "full" else 1)


async def test_turn_refused_for_its_conversation_gives_its_room_back(set_stage: SetStage) -> None:
    """A message to a conversation that is busy is refused, and neither passes nor waits."""
    stage = set_stage()
    conversations = [await stage.conversation() for _ in range(2)]
    await stage.start(conversations[0])
    stage.plan_limit = PlanLimit(per_min=1)
    for _ in range(3):
        with pytest.raises(GatewayError) as refused:
            await stage.start(conversations[0])
        assert refused.value.code is Code.TURN_ACTIVE
        await until(lambda: not next(iter(stage.gate._keys.values()))._tasks)
    reading = await stage.read((await stage.start(conversations[1])).turn_id)
    await stage.vendor.chat(1)
    assert "turn.queued" not in reading.names


async def test_message_that_could_not_be_sent_gives_its_room_back(set_stage: SetStage) -> None:
    """No connection to Hyperleap: it counted nothing, and neither does the gate."""
    stage = set_stage()
    conversations = [await stage.conversation() for _ in range(2)]
    stage.plan_limit = PlanLimit(per_hour=1, per_min=1)
    stage.vendor.refusal = GatewayError(Code.UPSTREAM_UNAVAILABLE)
    assert isinstance(await (await stage.read((await stage.start(conversations[0])).turn_id)).ended(), TurnFailed)
    stage.vendor.refusal = None
    for name in (":hour", ":min"):
        async with asyncio.timeout(2):
            while await stage.store.call("EXISTS", key_of_gate(stage.key) + name):
                await asyncio.sleep(0.01)
    await stage.start(conversations[1])
    await stage.vendor.chat()


async def test_tenant_with_many_waiting_delays_another_by_one_turn(set_stage: SetStage) -> None:
    """Over three workers, the one turn of a tenant is sent after at most one of another's hundreds that came before."""
    many = set_stage(minute_us=PERIOD_US, queue_max=2000, gate_rules=GateRules(wait_s=1000))
    helper = set_stage(
        tenant=many.tenant.id,
        vendor=many.vendor,
        vendor_key=many.key,
        minute_us=PERIOD_US,
        queue_max=2000,
        gate_rules=GateRules(wait_s=1000),
    )
    few = set_stage(
        vendor=many.vendor,
        vendor_key=many.key,
        minute_us=PERIOD_US,
        queue_max=2000,
        gate_rules=GateRules(wait_s=1000),
    )
    mine = await few.conversation()
    conversations = [await many.conversation() for _ in range(200)]
    for stage in (many, helper, few):
        stage.plan_limit = ONE
        await stage.hears()
    for number, conversation in enumerate(conversations):
        await (many, helper)[number % 2].start(conversation, "theirs")
    sent = len(many.vendor.chats)
    await few.start(mine, "mine")
    await until(lambda: any(chat.message == "mine" for chat in many.vendor.chats))
    position = next(number for number, chat in enumerate(many.vendor.chats) if chat.message == "mine")
    assert position <= sent + 1


async def test_queue_over_three_workers_never_sends_more_than_the_limit(set_stage: SetStage) -> None:
    """Sixty turns of three workers under a limit of 5: all are answered, and no window has more than 5 of them."""
    period_us, limit = 250_000, 5
    vendor = PromptVendor()
    first = set_stage(vendor=vendor, minute_us=period_us)
    stages = [first] + [
        set_stage(tenant=first.tenant.id, vendor=vendor, vendor_key=first.key, minute_us=period_us) for _ in range(2)
    ]
    conversations = [await first.conversation() for _ in range(60)]
    for stage in stages:
        stage.plan_limit = PlanLimit(per_min=limit)
        await stage.hears()
    begun_s = time.monotonic()
    turns = [
        (await stages[number % 3].start(conversation)).turn_id for number, conversation in enumerate(conversations)
    ]
    async with asyncio.timeout(20):
        while len(vendor.sent_s) < 60:
            await asyncio.sleep(0.02)
    assert time.monotonic() - begun_s < 2.5 * period_us / 1e6 * 60 / limit  # and the limit is used
    # On the store's clock, since the ways from the grant to the vendor differ.
    passed_us = sorted([int(await first.store.call("GET", f"{key_of_gate(first.key)}:of:{turn}")) for turn in turns])
    for earlier, later in zip(passed_us, passed_us[limit:], strict=False):
        assert later - earlier >= period_us


# --- the vendor's word --------------------------------------------------------------------------------------------


async def test_retry_after_is_kept_by_all_workers(set_stage: SetStage) -> None:
    """What Hyperleap tells one worker (429, come back later) holds for every worker, limit or no limit."""
    one = set_stage()
    two = set_stage(tenant=one.tenant.id, vendor=one.vendor, vendor_key=one.key)
    conversations = [await one.conversation() for _ in range(4)]
    await one.hears()
    await two.hears()
    for number, error in enumerate(
        [
            GatewayError(Code.UPSTREAM_RATE_LIMITED, vendor_status=429, retry_after_s=0.7),
            GatewayError(Code.UPSTREAM_ERROR, vendor_status=503, retry_after_s=0.7),
        ]
    ):
        refused = await one.read((await one.start(conversations[2 * number])).turn_id)
        chat = await one.vendor.chat(2 * number)
        held_s = time.monotonic()
        chat.end(error)
        ending = await refused.ended()
        assert isinstance(ending, TurnFailed)
        assert ending.usage == UNUSED
        await until(lambda: not two.gate._key(two.key).free)
        _, reading = await queued(two, conversations[2 * number + 1])
        (await one.vendor.chat(2 * number + 1)).complete("Hello")
        assert time.monotonic() - held_s >= 0.7
        assert isinstance(await reading.ended(), TurnCompleted)


async def test_breaker_opens_probes_with_one_turn_of_two_workers_and_closes(set_stage: SetStage) -> None:
    """After five failures nobody is sent; after the rest exactly one turn is; when it is answered, all are again."""
    rules = GateRules(failures_max=5, rest_s=0.4, rest_max_s=1.0)
    one = set_stage(gate_rules=rules)
    two = set_stage(tenant=one.tenant.id, vendor=one.vendor, vendor_key=one.key, gate_rules=rules)
    conversations = [await one.conversation() for _ in range(12)]
    await one.hears()
    await two.hears()

    async def fail(count: int) -> None:
        for conversation in conversations[:count]:
            number = len(one.vendor.chats)
            reading = await one.read((await one.start(conversation)).turn_id)
            chat = await one.vendor.chat(number)
            chat.end(GatewayError(Code.UPSTREAM_ERROR, vendor_status=500))
            await reading.ended()

    async def probe() -> int:
        """Ask with every conversation at both workers until one is sent; return how many were sent."""
        sent = len(one.vendor.chats)
        async with asyncio.timeout(5):
            while len(one.vendor.chats) == sent:
                asks = [(one, two)[n % 2].start(conversation) for n, conversation in enumerate(conversations)]
                for result in await asyncio.gather(*asks, return_exceptions=True):
                    if isinstance(result, GatewayError):
                        assert result.code in (Code.UPSTREAM_OVERLOADED, Code.TURN_ACTIVE)
                    else:
                        assert not isinstance(result, BaseException), result
                await asyncio.sleep(0.02)
        return len(one.vendor.chats) - sent

    await fail(4)
    one_ok = await one.start(conversations[0])
    (await one.vendor.chat(4)).complete("Hello")  # an answer between: not five in a row
    await (await one.read(one_ok.turn_id)).ended()
    await fail(5)
    opened_s = time.monotonic()
    await until(lambda: not two.gate._key(two.key).free)
    assert await probe() == 1
    assert time.monotonic() - opened_s >= 0.3
    for stage in (one, two):
        assert await told(stage.metrics, "gateway_vendor_breaker_open") == 1
    one.vendor.chats[-1].end(GatewayError(Code.UPSTREAM_TIMEOUT))
    failed_s = time.monotonic()
    await until(lambda: one.turns.running + two.turns.running == 0)
    assert await probe() == 1
    assert time.monotonic() - failed_s >= 0.7  # twice the rest
    one.vendor.chats[-1].say("Hello")  # its first word is enough
    for stage in (one, two):
        async with asyncio.timeout(2):
            while True:
                try:
                    passage = await stage.gate.enter(stage.tenant, os.urandom(8).hex())
                except GatewayError:
                    await asyncio.sleep(0.01)
                else:
                    break
        assert not passage.probe
        passage.leave()
        assert stage.gate._key(stage.key).free
        assert await told(stage.metrics, "gateway_vendor_breaker_open") == 0
        assert await told(stage.metrics, "gateway_vendor_breaker_openings_total") == 1  # no probe that fails


@pytest.mark.parametrize("harmless", ["stopped", "rejected", "cut off late"])
async def test_breaker_does_not_open_for_what_is_no_failure_of_the_vendor(harmless: str, set_stage: SetStage) -> None:
    """A user's stop, a refused message and an answer that breaks off in the middle say nothing of its health."""
    stage = set_stage(gate_rules=GateRules(failures_max=2))
    for number in range(4):
        started = await stage.start(await stage.conversation())
        reading = await stage.read(started.turn_id)
        chat = await stage.vendor.chat(number)
        match harmless:
            case "stopped":
                await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
            case "rejected":
                chat.end(GatewayError(Code.UPSTREAM_REJECTED, vendor_status=400))
            case _:
                chat.say(AnswerItem("Hel", role="assistant"))
                chat.end(GatewayError(Code.UPSTREAM_RESET))
        await reading.ended()
    assert stage.gate._key(stage.key).free


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_probe_that_says_nothing_makes_way_for_another(end: str, set_stage: SetStage) -> None:
    """A probe whose user stops it, or whose worker is gone, keeps nobody out for long."""
    rules = GateRules(failures_max=1, rest_s=0.1, rest_max_s=60)
    one = set_stage(gate_rules=rules)
    two = set_stage(tenant=one.tenant.id, vendor=one.vendor, vendor_key=one.key, gate_rules=rules)
    conversations = [await one.conversation() for _ in range(3)]
    await two.hears()
    await one.start(conversations[0])
    (await one.vendor.chat()).end(GatewayError(Code.UPSTREAM_UNAVAILABLE))
    await until(lambda: not two.gate._key(two.key).free)
    probe = await let_in(one, conversations[1])
    await one.vendor.chat(1)
    if end == "stopped":
        await one.turns.stop(one.user(), probe, StopReason.USER)
    else:
        watch = one.gate._key(one.key)._looking
        assert watch is not None
        watch.cancel()  # as far as the store can see the worker is gone
        await one.store.call("ZADD", f"{key_of_gate(one.key)}:workers", "XX", 1, one.worker)
    await let_in(two, conversations[2])
    await one.vendor.chat(2)


async def test_key_without_limit_costs_no_call_to_the_store(set_stage: SetStage) -> None:
    """Where no limit is set and nothing is in force, the store is not asked about the gate at all."""
    stage = set_stage()
    for number in range(3):
        started = await stage.start(await stage.conversation())
        (await stage.vendor.chat(number)).complete("Hello")
        await (await stage.read(started.turn_id)).ended()
    assert await stage.store.call("KEYS", f"{key_of_gate(stage.key)}*") == []


async def test_ring_of_keys_is_used_where_there_is_room(set_stage: SetStage) -> None:
    """A turn takes the key that has room, of those that work; where none has it waits for the first that will."""
    stage = set_stage(plan_limit=PlanLimit(per_min=1))
    one, two, away = (KeyLabel(f"{stage.key}-{number}") for number in range(3))
    for label in (one, two):
        stage.give_key(label)
    tenant = dataclasses.replace(stage.tenant, vendor_keys=(one, two, away))
    passages = [await stage.gate.enter(tenant, f"turn-{number}") for number in range(2)]
    assert {passage.key for passage in passages} == {one, two}
    assert [passage.passed for passage in passages] == [True, True]
    first = passages[0].key
    # Longer before the other than two questions can lie apart: each is told its wait at its own moment.
    passed_us = int(await stage.store.call("LINDEX", f"{key_of_gate(first)}:min", 0))
    await stage.store.call("LSET", f"{key_of_gate(first)}:min", 0, passed_us - 10**6)
    third = await stage.gate.enter(tenant, "turn-3")
    assert (third.passed, third.key) == (False, first)  # it passed first, so it has room first
    await stage.store.call("HSET", key_of_gate(first), "open", int(time.time() * 1e6) + 10**6, "rest", 10**6)
    fourth = await stage.gate.enter(tenant, "turn-4")
    assert (fourth.passed, fourth.key) == (False, passages[1].key)  # not where nobody is let in
    for passage in (*passages, third, fourth):
        passage.leave()


# --- other calls --------------------------------------------------------------------------------------------------


async def test_creation_without_room_waits_for_it(set_stage: SetStage) -> None:
    """Every call counts: a conversation that is created when the room is used up is there a little later."""
    stage = set_stage(minute_us=PERIOD_US)
    await full(stage)
    begun_s = time.monotonic()
    assert await stage.conversation()
    assert time.monotonic() - begun_s > 0.1
    assert await gate_keys(stage) == set()


async def test_creation_that_cannot_wait_so_long_is_refused(set_stage: SetStage) -> None:
    """With no room within the bound nothing is asked of Hyperleap, and the caller knows when to come back."""
    stage = set_stage(gate_rules=GateRules(wait_s=5))
    await full(stage)
    created = len(stage.vendor.created)
    with pytest.raises(GatewayError) as refused:
        await stage.conversation()
    assert refused.value.code is Code.UPSTREAM_OVERLOADED
    assert (refused.value.retry_after_s or 0) > 50
    assert len(stage.vendor.created) == created


async def test_read_in_the_background_takes_no_room_from_turns(set_stage: SetStage) -> None:
    """Looking for a lost answer or its tokens happens when there is room, and never waits in the queue."""
    stage = set_stage()
    (conversation,), _ = await full(stage)
    copies = stage.accounting._copies
    with pytest.raises(GatewayError) as refused:
        await copies.answer(stage.tenant, conversation, Asked(None, "Hi", None, 0))
    assert refused.value.code is Code.UPSTREAM_OVERLOADED
    assert stage.vendor.reads == 0
    stage.plan_limit = PlanLimit(per_min=5)
    assert await copies.answer(stage.tenant, conversation, Asked(None, "Hi", None, 0)) is None
    assert stage.vendor.reads == 1


async def test_call_that_is_given_up_leaves_nothing_behind(set_stage: SetStage) -> None:
    """A call that is cancelled while it waits is out of the queue, whenever that happens."""
    stage = set_stage()
    await full(stage)
    for pause_s in (0.0, 0.0005, 0.002, 0.02):
        calls = [asyncio.ensure_future(waiting_call(stage)) for _ in range(20)]
        await asyncio.sleep(pause_s)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await empties(stage)


async def waiting_call(stage: Stage) -> None:
    async with stage.gate.call(stage.tenant):
        raise AssertionError("there is no room")


# --- without the store, without the worker ------------------------------------------------------------------------


@pytest.fixture
async def own_store(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    """A store that a test may stop; asked for before the stage, so that it ends after it."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    yield server
    await server.aclose()


@pytest.mark.parametrize("back", [True, False])
async def test_turn_that_waits_while_the_store_is_away(
    back: bool, own_store: EmbeddedValkey, set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits on until the store is back, or its time is up; then it says what was missing."""
    monkeypatch.setattr("gateway.services.owned_turn.FINISH_ATTEMPTS", 2)
    monkeypatch.setattr("gateway.services.owned_turn.FINISH_PAUSE_S", 0.05)
    rules = GateRules(wait_s=30.0 if back else 1.0)
    stage = set_stage(own_store.url, store_timeout_s=0.1, minute_us=900_000, gate_rules=rules)
    (conversation,), _ = await full(stage)
    _, reading = await queued(stage, conversation)
    assert own_store._process is not None
    os.kill(own_store._process.pid, signal.SIGSTOP)
    try:
        await until(lambda: stage.gate._key(stage.key)._away)
        if not back:
            ending = await reading.ended()
            assert isinstance(ending, TurnFailed)
            assert (ending.error.code, ending.usage) == (Code.STORE_UNAVAILABLE, UNUSED)
            return
    finally:
        os.kill(own_store._process.pid, signal.SIGCONT)
    (await stage.vendor.chat(1)).complete("Hello")
    assert isinstance(await reading.ended(), TurnCompleted)


async def test_queue_that_the_store_has_lost_is_joined_again(set_stage: SetStage) -> None:
    """A failover that forgot who waits is told by those who do; nobody is lost, nobody sent twice."""
    stage = set_stage(minute_us=PERIOD_US)
    conversations, _ = await full(stage, 3)
    readings = [(await queued(stage, conversation))[1] for conversation in conversations]
    keys = await stage.store.call("KEYS", f"{key_of_gate(stage.key)}*")
    await stage.store.call("DEL", *keys)
    for number in range(1, 4):
        (await stage.vendor.chat(number)).complete("Hello")
    for reading in readings:
        assert isinstance(await reading.ended(), TurnCompleted)
    assert len(stage.vendor.chats) == 4


@pytest.mark.parametrize("policy", list(StoreAway))
async def test_creation_without_the_store_goes_by_this_workers_share(
    policy: StoreAway, own_store: EmbeddedValkey, set_stage: SetStage
) -> None:
    """``open`` lets a worker create under its share of the limit; ``closed`` refuses."""
    plan = Plan(tenant=ScopeLimits(requests_per_min=10**6), user=ScopeLimits(), store_away=policy, away_share=0.25)
    stage = set_stage(own_store.url, store_timeout_s=0.1, plan=plan, plan_limit=PlanLimit(per_min=12))
    assert own_store._process is not None
    os.kill(own_store._process.pid, signal.SIGSTOP)
    codes: list[str] = []
    tasks = []
    try:
        for _ in range(5):
            task = asyncio.ensure_future(stage.conversation())
            sent = len(stage.vendor.created)
            await until(lambda task=task, sent=sent: task.done() or len(stage.vendor.created) > sent)  # type: ignore[misc]  # a default that mypy cannot infer
            tasks.append(task)
            codes.append(task.exception().code if task.done() and task.exception() else "created")  # type: ignore[union-attr]  # it is there
    finally:
        os.kill(own_store._process.pid, signal.SIGCONT)
    await asyncio.gather(*tasks, return_exceptions=True)
    if policy is StoreAway.OPEN:
        assert codes == ["created"] * 3 + [Code.UPSTREAM_OVERLOADED] * 2
    else:
        assert set(codes) == {Code.STORE_UNAVAILABLE}


async def test_kill_of_a_worker_whose_turns_wait_fails_them_and_frees_their_places(
    set_stage: SetStage, store_url: str
) -> None:
    """What was never sent is said to have failed, at no cost and without a look at Hyperleap; its place is free."""
    stage = set_stage(lease_s=1.0, heartbeat_s=0.3, gate_rules=GateRules(wait_s=1000))
    conversations = [await stage.conversation() for _ in range(5)]
    arguments = [store_url, stage.tenant.id, stage.key, *conversations[:4]]
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.services.doomed_waiting", *arguments), stdout=asyncio.subprocess.PIPE
    )
    assert doomed.stdout is not None
    async with asyncio.timeout(20):
        turns = [TurnId((await doomed.stdout.readline()).decode().strip()) for _ in range(4)]
    waiting = turns[1:]  # the first had room
    stage.plan_limit = PlanLimit(per_min=1)
    mine, _ = await queued(stage, conversations[4])
    doomed.kill()
    await doomed.wait()

    for turn in waiting:
        await stage.until_unleased(turn)
        assert await stage.recovery.recover(stage.tenant.id, turn)
        ending = await (await stage.read(turn)).ended()
        assert isinstance(ending, TurnFailed)
        assert (ending.error.code, ending.error.retryable, ending.usage) == (Code.WORKER_LOST, True, UNUSED)
    assert stage.vendor.reads == 0
    async with asyncio.timeout(10):
        while await stage.store.call("HKEYS", f"{key_of_gate(stage.key)}:waiting") != [mine.encode()]:
            await asyncio.sleep(0.05)


async def empties(stage: Stage) -> None:
    """Wait until the store has nothing left of a queue."""
    async with asyncio.timeout(3):
        while await gate_keys(stage):
            await asyncio.sleep(0.01)


def test_coarse_rounds_up_to_one_two_and_five() -> None:
    """Places and waits are told in steps that a person would use."""
    assert [coarse(n) for n in (0, 1, 2, 3, 5, 6, 10, 11, 21, 50, 51, 101, 1000, 1001)] == [
        *(1, 1, 2, 5, 5, 10, 10, 20, 50, 50, 100, 200, 1000, 2000)
    ]
    assert [coarse_s(s) for s in (0.0, 0.3, 1.0, 1.01, 5.5, 10.0, 10.1, 60.9, 89.0)] == [
        *(1.0, 1.0, 1.0, 2.0, 10.0, 10.0, 20.0, 70.0, 90.0)
    ]
