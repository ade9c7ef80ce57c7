"""The contract of the limiter: all rules of a request in one step, all charged or none, on the store's clock."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Literal, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId, UserHash
from gateway.core.ledger import Settlement, Source
from gateway.core.limit_books import Books
from gateway.core.limits import COMPLETION_UNKNOWN, Ask, Decision, Kind, Rule, Slot, Work
from gateway.core.turn import TurnId, TurnState
from gateway.store.limiter import EXTEND, RENEW, UNDO, RedisLimiter
from gateway.store.redis import Keys, Redis, Script
from tests.store.conftest import OpenRedis

SETTLE = Script("settle_charge", with_=("charges",))
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US


def rate(name: str, limit: int, period_us: int = MINUTE_US) -> Rule:
    return Rule(name, f"rm:turn:{name}", Kind.RATE, limit, period_us)


def tokens(limit: int, period_us: int = MINUTE_US) -> Rule:
    return Rule("tokens", "t:user", Kind.TOKENS, limit, period_us)


def slots(limit: int) -> Rule:
    return Rule("slots", "s:user", Kind.SLOTS, limit, 0)


def budget(limit: int, ends_us: int) -> Rule:
    return Rule("budget", f"b:user:{ends_us}", Kind.BUDGET, limit, ends_us)


def ask(*rules: Rule, id: str | None = None, message_tokens: int = 0) -> Ask:
    work = Work("c-1", "default", message_tokens) if any(rule.kind is not Kind.RATE for rule in rules) else None
    until_us = min((rule.period_us for rule in rules if rule.kind is Kind.BUDGET), default=0)
    return Ask(id or uuid.uuid4().hex, rules, work, 0, until_us)


def soon_us(seconds: float = 3600) -> int:
    return int((time.time() + seconds) * 1e6)


def settlement(
    turn_id: str, total: int, source: Source = "reported", completion: int = 0, prompt: int = 0
) -> Settlement:
    return Settlement(
        turn_id=TurnId(turn_id),
        conversation_id=ConversationId("c-1"),
        owner=UserHash("u"),
        persona="default",
        state=TurnState.COMPLETED,
        reason="stop",
        message_id=None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        source=source,
        duration_s=1.0,
        ended_at="",
    )


async def settle(store: Redis, tenant: TenantId, one: Settlement) -> int:
    arguments = (one.turn_id, msgspec.json.encode(one))
    return int(await store.run(SETTLE, (Keys(tenant).charge(one.turn_id),), arguments))


@pytest.mark.parametrize("rule", [rate("user", 5), slots(5), budget(5 * COMPLETION_UNKNOWN, soon_us())])
async def test_admit_of_a_hundred_at_once_gives_exactly_the_limit(
    open_redis: OpenRedis, tenant: TenantId, rule: Rule
) -> None:
    """100 concurrent takes of a limit of 5, over three clients, give exactly 5, of whatever kind it is."""
    workers = [RedisLimiter(open_redis()) for _ in range(3)]
    decisions = await asyncio.gather(*(workers[turn % 3].admit(tenant, ask(rule)) for turn in range(100)))
    assert sum(decision.refused is None for decision in decisions) == 5
    assert {decision.refused for decision in decisions} == {None, rule}


async def test_admit_again_by_the_same_id_charges_once(open_redis: OpenRedis, tenant: TenantId) -> None:
    """A request that is sent again, at once and over another client, gets the same answer and is charged once."""
    one, two = (RedisLimiter(open_redis()) for _ in range(2))
    request = ask(rate("user", 5), tokens(10_000), slots(5), id="same")
    answers = await asyncio.gather(*(limiter.admit(tenant, request) for limiter in (one, two) * 10))
    assert len(set(answers)) == 1
    other = await one.admit(tenant, ask(rate("user", 5), tokens(10_000), slots(5)))
    assert [quota.remaining for quota in other.quotas] == [3, 10_000 - 2 * COMPLETION_UNKNOWN, 3]


async def test_admit_refused_names_the_limit_and_the_wait(store: Redis, tenant: TenantId) -> None:
    """A refusal says which limit it was and how long until it admits; an admission has no wait."""
    limiter = RedisLimiter(store)
    rules = rate("tenant", 100), rate("user", 2)
    assert [(await limiter.admit(tenant, ask(*rules))).wait_us for _ in range(2)] == [0, 0]
    refused = await limiter.admit(tenant, ask(*rules))
    assert refused.refused == rules[1]
    assert 29_000_000 < refused.wait_us <= 30_000_000
    assert [quota.remaining for quota in refused.quotas] == [98, 0]


async def test_admit_refused_charges_none(store: Redis, tenant: TenantId) -> None:
    """What one limit refuses, no other is charged for: every other count is where it was."""
    limiter = RedisLimiter(store)
    rules = [rate("tenant", 3), tokens(10**6), slots(9), budget(10**6, soon_us()), rate("user", 1)]
    assert (await limiter.admit(tenant, ask(rules[-1]))).refused is None
    for _ in range(20):
        assert (await limiter.admit(tenant, ask(*rules))).refused == rules[-1]
    keys = Keys(tenant)
    for rule in rules[:-1]:
        assert await store.call("EXISTS", keys.limit(rule.key)) == 0
    assert await store.call("EXISTS", keys.open_charges()) == 0


async def test_admit_refused_by_several_tells_the_longest_wait(store: Redis, tenant: TenantId) -> None:
    """Who waits as long as told is not refused again by the other limit."""
    limiter = RedisLimiter(store)
    both = [rate("tenant", 1), rate("user", 1, HOUR_US)]
    assert (await limiter.admit(tenant, ask(*both))).refused is None
    assert (await limiter.admit(tenant, ask(*both))).refused == both[1]
    assert (await limiter.admit(tenant, ask(*reversed(both)))).refused == both[1]


async def test_admit_after_the_wait_admits_again(store: Redis, tenant: TenantId) -> None:
    """A used-up limit lets one through when its interval has passed, and the key is gone when it is full again."""
    limiter = RedisLimiter(store)
    small = rate("user", 2, 200_000)
    for _ in range(2):
        await limiter.admit(tenant, ask(small))
    refused = await limiter.admit(tenant, ask(small))
    assert refused.refused == small
    async with asyncio.timeout(2):
        while (await limiter.admit(tenant, ask(small))).refused is not None:
            await asyncio.sleep(refused.wait_us / 4e6)
        while await store.call("EXISTS", Keys(tenant).limit(small.key)):
            await asyncio.sleep(0.02)


async def test_admit_of_tenants_do_not_meet(store: Redis, tenant: TenantId) -> None:
    """One tenant's users use up nothing of another's."""
    limiter = RedisLimiter(store)
    await limiter.admit(tenant, ask(rate("user", 1)))
    assert (await limiter.admit(TenantId(f"{tenant}-2"), ask(rate("user", 1)))).refused is None


async def test_every_key_has_a_time_to_live(store: Redis, tenant: TenantId) -> None:
    """What limits remember goes by itself once it says nothing more, settled or not."""
    limiter = RedisLimiter(store)
    rules = rate("user", 10), tokens(10**6), slots(10), budget(10**6, soon_us())
    for number in range(9):
        await limiter.admit(tenant, ask(*rules, id=f"r{number}"))
        await settle(store, tenant, settlement(f"r{number}", 100, completion=50))
    await limiter.admit(tenant, ask(*rules, id="open"))
    await limiter.extend(tenant, "open", 5000)
    keys = await store.call("KEYS", f"hg:{{{tenant}}}:*")
    assert len(keys) == 4 + 10 + 4  # counts, charges; open charges, last prompt, completions and their percentile
    lives = {key: await store.call("PTTL", key) for key in keys}
    assert min(lives.values()) > 0, lives
    assert lives[Keys(tenant).limit("rm:turn:user").encode()] <= 60_001
    assert lives[Keys(tenant).limit("s:user").encode()] <= 66_000


async def test_estimate_is_unknown_first_and_learnt_from_settlements(store: Redis, tenant: TenantId) -> None:
    """1,024 for an answer until eight are known, then their 90th percentile; and the conversation's last prompt."""
    limiter = RedisLimiter(store)
    rule = tokens(10**7)
    for number in range(8):
        decision = await limiter.admit(tenant, ask(rule, id=f"r{number}", message_tokens=7))
        assert decision.tokens == (0 if number == 0 else 500) + 7 + COMPLETION_UNKNOWN
        await settle(store, tenant, settlement(f"r{number}", 600, completion=10 * (number + 1), prompt=500))
    decision = await limiter.admit(tenant, ask(rule, id="next", message_tokens=7))
    assert decision.tokens == 500 + 7 + 80
    await settle(store, tenant, settlement("next", 9, "estimated", completion=1, prompt=1))
    assert (await limiter.admit(tenant, ask(rule, message_tokens=7))).tokens == 500 + 7 + 80


async def test_settle_charges_the_figure_and_later_the_difference(store: Redis, tenant: TenantId) -> None:
    """Reserve, settle, settle again with other figures, at any of which repeats change nothing."""
    limiter = RedisLimiter(store)
    day = budget(10_000, soon_us())
    assert (await limiter.admit(tenant, ask(day, id="turn"))).quotas[0].remaining == 10_000 - COMPLETION_UNKNOWN
    spent = []
    for total in (300, 300, 5000, 40):
        await settle(store, tenant, settlement("turn", total, "estimated"))
        spent.append(int(await store.call("GET", Keys(tenant).limit(day.key))))
    assert spent == [300, 300, 5000, 40]
    assert await limiter.extend(tenant, "turn", 9000) == 40  # it has ended: what was on its way reserves nothing
    await limiter.undo(tenant, "turn")
    assert int(await store.call("GET", Keys(tenant).limit(day.key))) == 0


async def test_budget_gives_what_is_left_and_then_no_more(store: Redis, tenant: TenantId) -> None:
    """A turn is admitted while its prompt and a token of an answer fit; it reserves no more than there is."""
    limiter = RedisLimiter(store)
    day = budget(1500, soon_us())
    assert (await limiter.admit(tenant, ask(day, id="one", message_tokens=100))).tokens == 1124
    assert (await limiter.admit(tenant, ask(day, id="two", message_tokens=376))).refused == day
    assert (await limiter.admit(tenant, ask(day, id="three", message_tokens=375))).tokens == 376
    assert await limiter.extend(tenant, "one", 2000) == 1124
    await settle(store, tenant, settlement("three", 76))
    assert await limiter.extend(tenant, "one", 2000) == 1424
    assert await limiter.extend(tenant, "one", 1200) == 1424


async def test_budget_of_a_past_period_is_stale_and_charges_nothing(store: Redis, tenant: TenantId) -> None:
    """The store's clock says when a period is over, and what time it is for whoever must name the next."""
    limiter = RedisLimiter(store)
    over = budget(10_000, soon_us(-1))
    decision = await limiter.admit(tenant, ask(over, rate("user", 5)))
    assert decision.stale
    assert decision.now_us >= over.period_us
    assert await store.call("KEYS", f"hg:{{{tenant}}}:*") == []


async def test_slot_is_free_after_its_turn_and_after_its_lease(store: Redis, tenant: TenantId) -> None:
    """A slot goes back with its turn's ending; one whose owner is gone goes back when its lease is over."""
    limiter = RedisLimiter(store, slot_lease_us=300_000)
    rule = slots(1)
    assert (await limiter.admit(tenant, ask(rule, id="one"))).refused is None
    assert (await limiter.admit(tenant, ask(rule, id="two"))).refused == rule
    await settle(store, tenant, settlement("one", 5))
    assert (await limiter.admit(tenant, ask(rule, id="three"))).refused is None
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + 0.6:  # twice the lease, renewed all along
        await limiter.renew(tenant, [Slot(rule.key, "three"), Slot(rule.key, "one")])
        assert (await limiter.admit(tenant, ask(rule))).refused == rule
        await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        while (await limiter.admit(tenant, ask(rule))).refused is not None:
            await asyncio.sleep(0.02)


async def test_renew_of_an_ended_turn_takes_no_slot(store: Redis, tenant: TenantId) -> None:
    """A renewal that comes after the ending it raced with does not hold the slot any longer."""
    limiter = RedisLimiter(store)
    await limiter.admit(tenant, ask(slots(1), id="one"))
    await settle(store, tenant, settlement("one", 5))
    await limiter.renew(tenant, [Slot("s:user", "one")])
    assert (await limiter.admit(tenant, ask(slots(1)))).refused is None


async def test_renew_after_an_outage_takes_slots_again_that_the_store_lost(store: Redis, tenant: TenantId) -> None:
    """A failover that forgot who holds what is told by those who do."""
    limiter = RedisLimiter(store)
    await limiter.admit(tenant, ask(slots(1), id="one"))
    await store.call("DEL", Keys(tenant).limit("s:user"))
    await limiter.renew(tenant, [Slot("s:user", "one")])
    assert await store.call("ZCARD", Keys(tenant).limit("s:user")) == 0  # no outage was seen: it has ended
    store.note_failure()
    await limiter.renew(tenant, [Slot("s:user", "one")])
    assert (await limiter.admit(tenant, ask(slots(1)))).refused == slots(1)
    assert 0 < await store.call("PTTL", Keys(tenant).limit("s:user")) <= 66_000


async def test_sweep_gives_back_what_was_charged_for_turns_that_never_began(store: Redis, tenant: TenantId) -> None:
    """A worker that dies between charge and claim leaves no charge for long; a turn that runs keeps its own."""
    limiter = RedisLimiter(store)
    keys = Keys(tenant)
    day = budget(10_000, soon_us())
    for name in ("lost", "running"):
        await limiter.admit(tenant, ask(day, rate("user", 5), id=name))
    await store.call("HSET", keys.turn("running"), "state", "running")
    assert await limiter.sweep(tenant) == 0
    for name in ("lost", "running"):
        await store.call("ZADD", keys.open_charges(), 0, name)  # a minute later
    assert await limiter.sweep(tenant) == 1
    assert int(await store.call("GET", keys.limit(day.key))) == COMPLETION_UNKNOWN
    assert (await limiter.admit(tenant, ask(rate("user", 5)))).quotas[0].remaining == 3
    assert await store.call("ZRANGE", keys.open_charges(), 0, -1) == [b"running"]


# --- the script and the reference ---------------------------------------------------------------------------------


class Move(NamedTuple):
    """One thing that happens to the limits: to which request, under which rules, with which figure."""

    verb: Literal["admit", "admit", "settle", "extend", "undo", "renew"]
    number: int
    rules: frozenset[int]
    figure: int


def figures() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 50), st.integers(0, 4000), st.just(10**9))


MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from(["admit", "admit", "settle", "extend", "undo", "renew"]),
        st.integers(0, 5),
        st.frozensets(st.integers(0, 6), min_size=1),
        figures(),
    ),
    min_size=20,
    max_size=80,
)
LIMITS = st.tuples(*(st.integers(1, 9) for _ in range(3)), *(st.integers(1, 6000) for _ in range(3)))
PERIODS_US = st.tuples(st.integers(500, 30_000), st.integers(500, 60_000_000), st.integers(2_000, 90_000_000))
WORK = Kind.TOKENS, Kind.BUDGET, Kind.SLOTS


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # real time passes: no two runs of one example are the same
)
@given(LIMITS, PERIODS_US, MOVES)
def test_scripts_agree_with_the_books(
    any_store_url: str, limits: tuple[int, ...], periods: tuple[int, ...], moves: list[Move]
) -> None:
    """Whatever happens in whatever order, every answer of the scripts is what the reference says for that moment."""
    asyncio.run(_compare(any_store_url, limits, periods, moves))


async def _compare(url: str, limits: tuple[int, ...], periods: tuple[int, ...], moves: list[Move]) -> None:
    lease_us = 3_000  # short beside the time between two moves, so that leases, periods and buckets run out
    store = Redis(url, timeout_s=2.0, connections=1)
    limiter = RedisLimiter(store, slot_lease_us=lease_us)
    tenant = TenantId(f"t-{uuid.uuid4().hex[:12]}")
    keys, books = Keys(tenant), Books(lease_us=lease_us)
    ends_us = soon_us(periods[2] / 1e6)
    rules = [
        rate("a", limits[0], periods[0]),
        rate("b", limits[1]),
        slots(limits[2]),
        tokens(limits[3], periods[1]),
        budget(limits[4], ends_us),
        Rule("month", "b:tenant:m", Kind.BUDGET, limits[5], ends_us + HOUR_US),
        Rule("others", "s:tenant", Kind.SLOTS, limits[2], 0),  # refuses together with the first, for as long
    ]
    asked: dict[str, Ask] = {}  # the same id stands for the same request
    try:
        for move in moves:
            name = f"r{move.number}"
            match move.verb:
                case "admit":
                    chosen = [rules[number] for number in sorted(move.rules)]
                    request = asked.setdefault(name, ask(*chosen, id=name, message_tokens=min(move.figure, 100)))
                    said = await limiter.admit(tenant, request)
                    assert said == expected(books, request, said.now_us), move
                case "settle":
                    one = settlement(name, move.figure, completion=move.figure // 2, prompt=move.figure % 50)
                    now_us = await settle(store, tenant, one)
                    books.settle(
                        name,
                        now_us,
                        prompt=one.prompt_tokens,
                        completion=one.completion_tokens,
                        total=one.total_tokens,
                        known=True,
                        completed=True,
                    )
                case "extend":
                    reserved, now_us = await store.run(EXTEND, (keys.charge(name),), (name, move.figure))
                    wanted = books.extend(name, move.figure, now_us)
                    assert (move.figure if reserved < 0 else reserved) == wanted, move
                case "undo":
                    books.undo(name, await store.run(UNDO, (keys.charge(name),), (name,)))
                case "renew":
                    arguments = (lease_us, 0, 1, name)
                    now_us = await store.run(RENEW, (keys.limit("s:user"),), arguments)
                    books.renew("s:user", name, now_us)
    finally:
        await store.aclose()


def expected(books: Books, request: Ask, now_us: int) -> Decision:
    known = books.charges.get(request.id)
    return known.decision if known is not None else books.admit(request, now_us)


def test_scripts_hold_no_number_that_json_would_round() -> None:
    """Figures travel as MessagePack and as whole numbers: cjson keeps 14 digits, and a time has 16."""
    assert json.loads("1795312860327763") == 1795312860327763
    for name in ("admit", "charges", "extend_charge", "limits", "start"):
        assert b"cjson.encode" not in Script(name).source
