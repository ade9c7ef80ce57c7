"""Limits through a turn's whole life: slots come back, what is charged is what is settled, budgets cut answers off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import TextDelta, TurnCompleted, TurnStopped
from gateway.core.identity import Principal, TenantId
from gateway.core.ledger import Settlement
from gateway.core.limits import COMPLETION_UNKNOWN, SLOT_LEASE_US
from gateway.core.plan import Plan, ScopeLimits, StoreAway, calendar
from gateway.core.prices import Price, PriceTable
from gateway.core.turn import StopReason, TurnId, Usage
from gateway.core.vendor_keys import PlanLimit
from gateway.services import starts as starts_module
from gateway.services.admission import TOLD, Told
from gateway.services.allowance import CHUNK_TOKENS
from gateway.services.starts import Started
from gateway.services.usage import Asked, UsageService
from gateway.store.embedded import EmbeddedValkey
from gateway.store.redis import Keys
from tests.services.billing import BillingVendor
from tests.services.conftest import SetStage
from tests.services.doomed import PLAN, SLOTS
from tests.services.stage import ADDRESS, PlayedChat, Stage, until
from tests.telemetry.told import told

BACK_S = 10.0  # within which a slot is free again, whatever became of its holder


async def refused(work: object) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work  # type: ignore[misc]  # any awaitable
    return error.value


async def spent(stage: Stage, scope: str) -> int:
    """Return what a scope's budget of the month has been charged."""
    month = calendar(time.time_ns() // 1000, stage.tenant.plan.zone).month
    return int(await stage.store.call("GET", Keys(stage.tenant.id).limit(f"m:{month}:{scope}")) or 0)


def _charges(stage: Stage) -> str:
    return Keys(stage.tenant.id).charge("*")


async def held(stage: Stage, scope: str = "tenant") -> int:
    return int(await stage.store.call("ZCARD", Keys(stage.tenant.id).limit(f"s:{scope}")))


async def settled(stage: Stage) -> list[Settlement]:
    found: list[Settlement] = []
    cursor: str | None = None
    while page := await stage.ledger.settled(stage.tenant.id, cursor, 500):
        found += [settlement for _, settlement in page]
        cursor = page[-1][0]
    return found


# --- whose limits hold ---------------------------------------------------------------------------------------------


async def admitted(stage: Stage, principal: Principal, times: int) -> int:
    """Return how many of some requests pass."""
    passed = 0
    for _ in range(times):
        with contextlib.suppress(GatewayError):
            await stage.admission.admit(principal, "score", ADDRESS)
            passed += 1
    return passed


async def test_session_with_limits_of_its_own_has_the_lower_of_each(set_stage: SetStage) -> None:
    """A session's limits tighten the plan's, count what the user's other sessions used, and loosen nothing."""
    stage = set_stage(plan=Plan(user=ScopeLimits(requests_per_min=5)))
    user = stage.user()
    tight = replace(user, limits=ScopeLimits(requests_per_min=2, tokens_per_min=1000))
    loose = replace(user, limits=ScopeLimits(requests_per_min=50))
    assert await admitted(stage, tight, 3) == 2
    error = await refused(stage.admission.admit(tight, "score", ADDRESS))
    assert error.extra == {"limit": "user_requests_per_min"}
    assert await admitted(stage, user, 2) == 2
    assert await admitted(stage, loose, 3) == 1
    assert await admitted(stage, stage.user("u2"), 6) == 5


async def test_session_may_be_limited_in_what_its_plan_does_not_limit(set_stage: SetStage) -> None:
    """Tokens a minute and slots of a session hold where the tenant's users have no such limit."""
    stage = set_stage(plan=Plan(user=ScopeLimits()))
    tight = replace(stage.user(), limits=ScopeLimits(tokens_per_min=5000, concurrent_turns=1))
    first, second = [await stage.conversation(tight) for _ in range(2)]
    told = Told()
    TOLD.set(told)
    turn_id = (await stage.start(first, principal=tight)).turn_id
    assert [quota.rule.name for quota in told.quotas] == [
        "tenant_requests_per_min",
        "user_tokens_per_min",
        "user_concurrent_turns",
    ]
    error = await refused(stage.start(second, principal=tight))
    assert error.extra == {"limit": "user_concurrent_turns"}
    await stage.turns.stop(tight, turn_id, StopReason.USER)


async def test_sessions_with_limits_of_their_own_share_their_tenants_table(set_stage: SetStage) -> None:
    """However many sessions differ in their limits, the tenant's plan is laid out once."""
    stage = set_stage()
    await admitted(stage, stage.user(), 1)
    table = stage.admission._tables[stage.tenant.id]
    for number in range(1, 4):
        await admitted(stage, replace(stage.user(), limits=ScopeLimits(requests_per_min=number)), 1)
    assert stage.admission._tables[stage.tenant.id] is table


async def test_users_of_an_app_have_the_tightest_limits(set_stage: SetStage) -> None:
    """By an app key holds the lower of app and anonymous, under the name of its own."""
    plan = Plan(anonymous=ScopeLimits(requests_per_min=4), app=ScopeLimits(requests_per_min=2))
    stage = set_stage(plan=plan)
    visitor = replace(stage.user("v"), anonymous=True)
    app = replace(stage.user("a"), anonymous=True, app=True)
    assert [await admitted(stage, who, 6) for who in (visitor, app, stage.user())] == [4, 2, 6]
    error = await refused(stage.admission.admit(app, "score", ADDRESS))
    assert error.extra == {"limit": "app_requests_per_min"}
    assert error.detail.startswith("The limit of this visitor on")


# --- what is charged is what is settled ---------------------------------------------------------------------------


class Storm:
    """Turns on two workers that share a tenant and a vendor, begun, cancelled, stopped and handed over at random."""

    def __init__(self, stages: list[Stage], random: Random) -> None:
        self.stages = stages
        self.random = random
        self.questions: dict[TurnId, str] = {}
        self.fates: Counter[str] = Counter()

    async def run(self, turns: int, conversations: int) -> None:
        sweeping = asyncio.ensure_future(self._sweep())
        try:
            await asyncio.gather(*(self._talk(number, turns // conversations) for number in range(conversations)))
            async with asyncio.timeout(30):
                one = self.stages[0]
                while await one.store.call("ZCARD", Keys(one.tenant.id).unsettled()):
                    await asyncio.sleep(0.02)
        finally:
            sweeping.cancel()

    async def _talk(self, number: int, turns: int) -> None:
        user = self.stages[0].user(f"u{number % 7}")
        conversation = await self.stages[0].conversation(user)
        for _ in range(turns):
            await self._turn(user, conversation)

    async def _turn(self, user: Principal, conversation: ConversationId) -> None:
        random = self.random
        stage = random.choice(self.stages)
        question = f"{uuid.uuid4()} " * random.randrange(1, 5)
        starting = asyncio.ensure_future(stage.start(conversation, question, principal=user))
        fate = random.choice(["leave", "stop", "stop", "hand over", "busy", "end", "end"])
        self.fates[fate] += 1
        if fate == "leave":
            await asyncio.sleep(random.random() * 0.004)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self.questions[(await starting).turn_id] = question
            await asyncio.sleep(0.01)  # what was being started when its caller left is started all the same
        else:
            turn_id = (await starting).turn_id
            self.questions[turn_id] = question
            if fate == "busy":
                others = [str(uuid.uuid4()) for _ in self.stages]
                outcomes = await asyncio.gather(
                    *(
                        one.start(conversation, other, principal=user)
                        for one, other in zip(self.stages, others, strict=True)
                    ),
                    return_exceptions=True,
                )
                for outcome, other in zip(outcomes, others, strict=True):
                    if isinstance(outcome, Started):  # the first had ended by then
                        self.questions[outcome.turn_id] = other
            await asyncio.sleep(random.random() * 0.02)
            turn = stage.turns.find(turn_id)
            if fate == "hand over" and turn is not None:
                turn.hand_over()
        async with asyncio.timeout(20):
            while True:
                record = await stage.cache.head(stage.tenant.id, conversation)
                if record is not None and record.active_turn_id is None and not stage.turns._starting:
                    return
                if record is not None and record.active_turn_id is not None:
                    active = TurnId(record.active_turn_id)
                    self.questions.setdefault(active, question)
                    with contextlib.suppress(GatewayError):
                        await random.choice(self.stages).turns.stop(user, active, StopReason.USER)
                await asyncio.sleep(0.01)

    async def _sweep(self) -> None:
        while True:
            for stage in self.stages:
                await stage.recovery.sweep(stage.tenant)
                await stage.accounting.sweep(stage.tenant)
                await stage.admission.sweep(stage.tenant)
            await asyncio.sleep(0.03)


@pytest.mark.timeout(180)
async def test_charged_tokens_equal_settled_tokens_over_a_thousand_random_turns(set_stage: SetStage) -> None:
    """However turns end, each is settled once, budgets and reports hold the sum, known figures are the bill's."""
    random = Random(20261121)
    vendor = BillingVendor(random)
    amount = 10**12
    plan = Plan(
        tenant=ScopeLimits(tokens_per_month=amount, tokens_per_day=amount, concurrent_turns=10**6),
        user=ScopeLimits(tokens_per_month=amount, tokens_per_min=10**8, requests_per_min=10**6, concurrent_turns=10**6),
        persona=ScopeLimits(tokens_per_month=amount),
    )
    price = Price(currency="EUR", prompt_micros=1_234_567, completion_micros=9_876_543, turn_micros=11)
    options: dict[str, Any] = {"vendor": vendor, "plan": plan, "prices": PriceTable(general=price)}
    first = set_stage(**options)
    stages = [first, set_stage(tenant=first.tenant.id, **options)]
    storm = Storm(stages, random)
    await storm.run(turns=1000, conversations=50)
    settlements = await settled(first)
    assert len(settlements) == len({one.turn_id for one in settlements})
    assert {one.turn_id for one in settlements} >= storm.questions.keys()
    assert len(settlements) > 900
    sources = Counter(one.source for one in settlements)
    assert min(sources[source] for source in ("reported", "read_back", "estimated")) > 30, sources
    assert min(storm.fates.values()) > 50
    for one in settlements:
        known = one.message_id or storm.questions.get(one.turn_id)
        if one.source in ("reported", "read_back") and known is not None:
            assert one.total_tokens == vendor.bill[known]
    total = sum(one.total_tokens for one in settlements)
    cost = sum(price.cost_micros(one.prompt_tokens, one.completion_tokens) for one in settlements)
    usage = UsageService(first.ledger, {first.tenant.id: first.tenant}, keep_s=1000)
    begins = (datetime.now(UTC) - timedelta(seconds=900)).isoformat()
    for by in ("", "outcome", "hour,user,source", "persona,key,outcome,day"):
        rows = (await usage.report([first.tenant.id], Asked(from_=begins, by=by))).rows()
        assert sum(row.sums.turns for row in rows) == len(settlements)
        assert sum(row.sums.total_tokens for row in rows) == total
        assert sum(row.sums.cost_micros or 0 for row in rows) == cost
    assert await spent(first, "tenant") == total
    assert await spent(first, "persona:default") == total
    by_user = Counter[str]()
    for one in settlements:
        by_user[one.owner] += one.total_tokens
    assert {owner: await spent(first, f"user:{owner}") for owner in by_user} == dict(by_user)
    charges = [await first.store.call("PTTL", key) for key in await first.store.call("KEYS", _charges(first))]
    assert 0 < max(charges) <= 600_000  # none can change any more
    assert await held(first) == 0
    assert await first.store.call("ZCARD", Keys(first.tenant.id).open_charges()) == 0


async def test_settlement_that_is_read_back_charges_the_difference(set_stage: SetStage) -> None:
    """A stopped turn is charged its estimate, then what the vendor's copy says."""
    stage = set_stage(plan=Plan(tenant=ScopeLimits(tokens_per_month=10**6)), settle_after_s=0.2)
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    chat = await stage.vendor.chat()
    assert await spent(stage, "tenant") == 1 + COMPLETION_UNKNOWN
    chat.say("Hello you")
    await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    await until(lambda: stage.turns.running == 0)
    assert await spent(stage, "tenant") == 1 + 3
    messages = stage.vendor.conversations[conversation].messages
    messages.append(Message("assistant", "Hello you", "m-1", prompt_tokens=40, completion_tokens=50, total_tokens=90))
    async with asyncio.timeout(5):
        while await spent(stage, "tenant") != 90:
            await stage.accounting.sweep(stage.tenant)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("step", ["start", "claim"])
async def test_turn_whose_claim_had_no_answer_is_not_charged(
    set_stage: SetStage, monkeypatch: pytest.MonkeyPatch, step: str, written: bool
) -> None:
    """Whether the claim came to be or not, what the refused turn was charged comes back, and its slot at once."""
    monkeypatch.setattr(starts_module, "RELEASE_PAUSE_S", 0.01)
    tenant = ScopeLimits(tokens_per_month=10**6, concurrent_turns=1, requests_per_min=9)
    plan = Plan(tenant=tenant, user=ScopeLimits())
    limited = PlanLimit(per_hour=100) if step == "claim" else PlanLimit()  # then the gate is asked in between
    stage = set_stage(plan=plan, plan_limit=limited)
    conversation = await stage.conversation()
    write = getattr(stage.log, step)

    async def unheard(*arguments: Any) -> None:
        if written:
            await write(*arguments)
        raise GatewayError(Code.STORE_UNAVAILABLE)

    async def away(*_: object) -> None:
        raise GatewayError(Code.STORE_UNAVAILABLE)

    monkeypatch.setattr(stage.log, step, unheard)
    monkeypatch.setattr(stage.limiter, "undo", away)  # so it is left to the release, which is tried again for long
    assert (await refused(stage.start(conversation))).code is Code.STORE_UNAVAILABLE
    monkeypatch.undo()
    async with asyncio.timeout(5):
        while stage.turns._starting:
            await asyncio.sleep(0.01)
    assert (await spent(stage, "tenant"), await held(stage)) == (0, 0)
    told = Told()
    TOLD.set(told)
    await stage.start(conversation)
    assert [quota.remaining for quota in told.quotas] == [8, 0, 10**6 - 1 - COMPLETION_UNKNOWN]


# --- slots --------------------------------------------------------------------------------------------------------


async def test_slots_under_random_cancels_all_come_back(set_stage: SetStage) -> None:
    """Callers that leave, stops, failures and conversations that are busy leak no slot: at the end all are free."""
    random = Random(7)
    vendor = BillingVendor(random)
    plan = Plan(tenant=ScopeLimits(concurrent_turns=8), user=ScopeLimits(concurrent_turns=3))
    stage = set_stage(vendor=vendor, plan=plan)
    conversations = [(user := stage.user(f"u{number % 5}"), await stage.conversation(user)) for number in range(12)]
    running = Counter[str]()

    async def once() -> None:
        user, conversation = random.choice(conversations)
        starting = asyncio.ensure_future(stage.start(conversation, principal=user))
        if random.random() < 0.4:
            asyncio.get_running_loop().call_later(random.random() * 0.005, starting.cancel)
        try:
            turn_id = (await starting).turn_id
        except (GatewayError, asyncio.CancelledError) as error:
            running[getattr(error, "code", "cancelled")] += 1
            return
        running["began"] += 1
        assert stage.turns.running <= 8
        await asyncio.sleep(random.random() * 0.02)
        with contextlib.suppress(GatewayError):
            await stage.turns.stop(user, turn_id, StopReason.USER)

    await asyncio.gather(*(once() for _ in range(30)))
    for _ in range(20):
        await asyncio.gather(*(once() for _ in range(20)))
    assert min(running[what] for what in ("began", "cancelled", Code.RATE_LIMITED, Code.TURN_ACTIVE)) > 5, running
    for turn in stage.roster.all():
        turn.stop(StopReason.USER)
    await stage.turns.ended()
    assert [await held(stage, scope) for scope in ("tenant", *(f"user:hash-of-u{n}" for n in range(5)))] == [0] * 6
    starts = [await stage.start(conversation, principal=user) for user, conversation in conversations[:5]]
    assert len(starts) == 5


@pytest.mark.timeout(60)
async def test_slots_of_a_worker_that_was_killed_are_back_within_ten_seconds(
    set_stage: SetStage, store_url: str
) -> None:
    """kill -9 while all slots are held: the limit holds until the leases run out, and then all of them are free."""
    stage = set_stage(plan=PLAN)
    conversations = [await stage.conversation() for _ in range(2 * SLOTS)]
    command = ["-m", "tests.services.doomed", store_url, stage.tenant.id, *conversations[:SLOTS]]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        for _ in range(SLOTS):
            assert await asyncio.wait_for(process.stdout.readline(), 20)
        held_until_s = time.monotonic() + 2 * SLOT_LEASE_US / 1e6 / 3
        while time.monotonic() < held_until_s:  # longer than it would take if nobody renewed them
            assert (await refused(stage.start(conversations[-1]))).extra == {"limit": "tenant_concurrent_turns"}
            await asyncio.sleep(0.5)
    finally:
        process.kill()
        await process.wait()
    killed_s = time.monotonic()
    for conversation in conversations[SLOTS:]:
        while True:
            assert time.monotonic() - killed_s < BACK_S
            with contextlib.suppress(GatewayError):
                await stage.start(conversation)
                break
            await asyncio.sleep(0.1)
    assert time.monotonic() - killed_s > 1.0  # they were not simply forgotten
    assert (await refused(stage.start(conversations[0]))).code in (Code.RATE_LIMITED, Code.TURN_ACTIVE)


async def test_slot_is_renewed_while_its_turn_runs(set_stage: SetStage) -> None:
    """A turn that runs longer than a lease keeps its slot, and a rescued one needs none."""
    stage = set_stage(plan=Plan(tenant=ScopeLimits(concurrent_turns=1)), slot_lease_us=200_000)
    first, second = await stage.conversation(), await stage.conversation()
    started = await stage.start(first)
    chat = await stage.vendor.chat()
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        assert (await refused(stage.start(second))).code is Code.RATE_LIMITED
        await asyncio.sleep(0.03)
    turn = stage.turns.find(started.turn_id)
    assert turn is not None
    chat.complete("done")
    await turn.ended()
    assert not (await stage.start(second)).repeated


# --- budgets ------------------------------------------------------------------------------------------------------


async def say_until_stopped(chat: PlayedChat, text: str, most: int) -> int:
    """Send deltas one by one until the turn is cancelled; return how many were taken."""
    for number in range(most):
        if chat.cancelled:
            return number
        chat.say(text)
        await asyncio.sleep(0.001)
    raise AssertionError("never stopped")


@pytest.mark.parametrize(("text", "tokens"), [("abcd", 1), ("a", 1), ("abcd" * 5, 5)])
async def test_budget_used_up_in_mid_answer_stops_it_within_twenty_events(
    set_stage: SetStage, text: str, tokens: int
) -> None:
    """The answer gets the budget's last token and no event after that; the upstream is cancelled."""
    stage = set_stage(plan=Plan(user=ScopeLimits(tokens_per_month=3000)))
    conversation = await stage.conversation()
    started = await stage.start(conversation, "Hi")
    reading = await stage.read(started.turn_id)
    events = await say_until_stopped(await stage.vendor.chat(), text, 5000)
    ending = await reading.ended()
    shown = sum(isinstance(event, TextDelta) for event in reading.events)
    assert events - 20 <= shown <= events  # what the vendor had sent meanwhile is nobody's
    assert 0 <= shown * tokens - (3000 - 1) < tokens
    assert isinstance(ending, TurnStopped)
    assert ending.reason is StopReason.BUDGET
    assert ending.text == text * shown
    assert ending.usage == Usage(1, shown * tokens, 1 + shown * tokens, "estimated")
    error = await refused(stage.start(conversation, "Hi"))
    assert error.extra == {"limit": "user_tokens_per_month"}


async def test_budget_in_one_piece_of_many_events_is_cut_inside_it(set_stage: SetStage) -> None:
    """A vendor that sends everything at once gets no more through than one that sends it piece by piece."""
    stage = set_stage(plan=Plan(user=ScopeLimits(tokens_per_month=500)))
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    (await stage.vendor.chat()).say(*["abcd"] * 4000)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    assert len(ending.text) // 4 == 499  # and one token of the prompt


async def test_budget_is_shared_by_answers_that_run_at_once(set_stage: SetStage) -> None:
    """Four answers at once get together what is there, to the last token."""
    stage = set_stage(plan=Plan(tenant=ScopeLimits(tokens_per_month=9000)))
    readings = []
    for number in range(4):
        started = await stage.start(await stage.conversation())
        readings.append(await stage.read(started.turn_id))
        await stage.vendor.chat(number)
    await asyncio.gather(*(say_until_stopped(chat, "abcd", 9000) for chat in stage.vendor.chats))
    endings = [await reading.ended() for reading in readings]
    assert {type(ending) for ending in endings} == {TurnStopped}
    assert sum(ending.usage.total_tokens for ending in endings) == 9000


async def test_budget_that_suffices_costs_a_call_a_thousand_tokens(set_stage: SetStage) -> None:
    """No call an event: an answer of 5,000 tokens asks a handful of times, a short one never."""
    stage = set_stage(plan=Plan(tenant=ScopeLimits(tokens_per_month=10**9)))
    calls = 0
    extend = stage.limiter.extend

    async def counted(tenant: TenantId, request_id: str, tokens: int) -> int:
        nonlocal calls
        calls += 1
        return await extend(tenant, request_id, tokens)

    stage.limiter.extend = counted  # type: ignore[method-assign]  # for this test
    conversation = await stage.conversation()
    for number, (tokens, most) in enumerate([(700, 0), (5000, 5000 // CHUNK_TOKENS + 1)]):
        started = await stage.start(conversation)
        reading = await stage.read(started.turn_id)
        chat = await stage.vendor.chat(number)
        chat.complete(*["abcd"] * tokens)  # all at once: fast is no reason to be cut off
        assert isinstance(await reading.ended(), TurnCompleted)
        assert calls <= most
        await until(lambda: stage.turns.running == 0)


@pytest.mark.parametrize("away", list(StoreAway))
async def test_budget_while_the_store_is_away_follows_the_tenants_rule(
    set_stage: SetStage, tmp_path: Path, away: StoreAway
) -> None:
    """``closed``: the answer ends with what was reserved; ``open``: it goes on."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    try:
        plan = Plan(tenant=ScopeLimits(tokens_per_month=10**6), store_away=away)
        stage = set_stage(server.url, plan=plan, store_timeout_s=0.2)
        await stage.start(await stage.conversation())
        chat = await stage.vendor.chat()
        await server.aclose()
        for _ in range(COMPLETION_UNKNOWN + 400):
            chat.say("abcd")
            await asyncio.sleep(0)
        assert chat.cancelled is (away is StoreAway.CLOSED)
        await server.open()
        if not chat.cancelled:
            chat.complete()
        await until(lambda: stage.turns.running == 0)
        await stage.store.call("PING")
    finally:
        await server.aclose()


async def test_budget_of_a_new_day_is_found_by_the_stores_clock(set_stage: SetStage) -> None:
    """A worker that believes it is yesterday is told otherwise, and charges today."""
    stage = set_stage(plan=Plan(tenant=ScopeLimits(tokens_per_day=5000, tokens_per_month=10**6)))
    yesterday = calendar(time.time_ns() // 1000 - 86_400_000_000, stage.tenant.plan.zone)
    stage.admission._calendars[stage.tenant.id] = yesterday
    await stage.start(await stage.conversation())
    assert stage.admission._calendars[stage.tenant.id].day_begins_us == yesterday.day_ends_us
    assert await spent(stage, "tenant") > 0
    stale = Keys(stage.tenant.id).limit(f"d:{yesterday.day}:tenant")
    assert await stage.store.call("EXISTS", stale) == 0


# --- the store is away --------------------------------------------------------------------------------------------


async def test_store_away_is_refused_or_counted_here_as_the_plan_says(set_stage: SetStage, tmp_path: Path) -> None:
    """``closed`` refuses at once; ``open`` lets a worker's share through. A turn needs the store in any case."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    user = ScopeLimits(requests_per_min=20)
    stages = {
        away: set_stage(
            server.url, plan=Plan(user=user, store_away=away, away_share=0.25), store_timeout_s=0.2, call_timeout_s=1.0
        )
        for away in StoreAway
    }
    conversation = await stages[StoreAway.OPEN].conversation()
    await server.aclose()
    closed, opened = stages[StoreAway.CLOSED], stages[StoreAway.OPEN]
    begun_s = time.monotonic()
    for _ in range(5):
        assert (await refused(closed.admission.admit(closed.user(), "create", ADDRESS))).code is Code.STORE_UNAVAILABLE
    for _ in range(5):
        await opened.admission.admit(opened.user(), "create", ADDRESS)
    error = await refused(opened.admission.admit(opened.user(), "create", ADDRESS))
    assert (error.code, error.extra) == (Code.RATE_LIMITED, {"limit": "user_requests_per_min"})
    assert time.monotonic() - begun_s < 3 * 0.2 + 1.0  # the breaker is open after the first
    assert await told(opened.metrics, "gateway_limit_decisions_alone_total", tenant=opened.tenant.id) == 6
    assert await told(closed.metrics, "gateway_limit_decisions_alone_total") == 0
    assert (await refused(opened.start(conversation))).code is Code.STORE_UNAVAILABLE
    assert opened.vendor.chats == []
