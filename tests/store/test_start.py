"""Starting a turn in one step: its limits and its claim, both or neither."""

from __future__ import annotations

import asyncio
import time
import uuid

import msgspec
import pytest

from gateway.core.conversation import ConversationId
from gateway.core.events import Begun, Claim, Entry, Heading
from gateway.core.identity import TenantId
from gateway.core.limits import COMPLETION_UNKNOWN, Ask, Decision, Kind, Rule, Work
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Keys
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, OWNER, QUESTION, Bench

HOUR_US = 3_600_000_000  # slow enough for nothing to come back while a test runs


def rules(limit: int = 5) -> list[Rule]:
    """Return a rule of every kind, of which each would refuse the one more."""
    ends_us = int((time.time() + 3600) * 1e6)
    return [
        Rule("user", "rm:turn:user", Kind.RATE, limit, HOUR_US),
        Rule("tokens", "t:user", Kind.TOKENS, limit * COMPLETION_UNKNOWN, HOUR_US),
        Rule("slots", "s:user", Kind.SLOTS, limit, 0),
        Rule("budget", f"b:user:{ends_us}", Kind.BUDGET, limit * COMPLETION_UNKNOWN, ends_us),
    ]


def ask(heading: Heading, under: list[Rule]) -> Ask:
    until_us = max((rule.period_us for rule in under if rule.kind is Kind.BUDGET), default=0)
    return Ask(heading.turn_id, under, Work(heading.conversation_id, heading.persona, 0), 0, until_us)


async def start(bench: Bench, heading: Heading, under: list[Rule]) -> Begun:
    return await bench.log.start(bench.tenant, heading, ask(heading, under))


async def written(bench: Bench, before: set[bytes]) -> set[str]:
    """Return the kinds of the tenant's keys that came to be since."""
    now = set(await bench.store.call("KEYS", f"{bench.keys.prefix}*"))
    return {key.decode().removeprefix(bench.keys.prefix).split(":")[0] for key in now - before}


async def of_tenant(bench: Bench) -> set[bytes]:
    return set(await bench.store.call("KEYS", f"{bench.keys.prefix}*"))


async def test_start_does_what_admitting_and_claiming_do(make_bench: MakeBench, tenant: TenantId) -> None:
    """One step leaves behind, and answers, what the two leave and answer one after the other."""
    at_once, stepwise = make_bench(), make_bench()
    stepwise.tenant, stepwise.keys = TenantId(f"{tenant}-2"), Keys(TenantId(f"{tenant}-2"))
    under = rules()
    seen = []
    for bench in (at_once, stepwise):
        await bench.cache()
        heading = bench.heading(key="k")
        if bench is at_once:
            decision, claim = await start(bench, heading, under)
        else:
            decision = await RedisLimiter(bench.store).admit(bench.tenant, ask(heading, under))
            claim = await bench.log.claim(bench.tenant, heading)
        assert decision is not None
        assert claim is not None
        assert claim.turn_id == heading.turn_id
        turn = await bench.store.call("HGETALL", bench.keys.turn(heading.turn_id))
        record = await bench.log.record(bench.tenant, heading.turn_id)
        assert record is not None
        seen.append(
            {
                "decision": (decision.refused, decision.tokens, [quota.remaining for quota in decision.quotas]),
                "claim": claim[2:],
                "turn": set(turn),
                "record": (record.state, record.epoch, record.leased, record.messages_before),
                "log": len(await bench.all(heading.turn_id)),
                "question": (await bench.cached()).messages[0].content,
                "slots": await bench.store.call("ZCARD", bench.keys.limit("s:user")),
                "spent": await bench.store.call("GET", bench.keys.limit(under[3].key)),
                "repeat": (await bench.log.claim(bench.tenant, bench.heading(key="k"))).outcome,
            }
        )
    assert seen[0] == seen[1]
    assert seen[0]["decision"] == (None, COMPLETION_UNKNOWN, [4, 4 * COMPLETION_UNKNOWN, 4, 4 * COMPLETION_UNKNOWN])


@pytest.mark.parametrize("tight", range(4))
async def test_start_refused_by_a_limit_writes_nothing(bench: Bench, tight: int) -> None:
    """Whichever limit refuses, the conversation is free, nothing is charged, and the limit is named."""
    plenty, none_left = rules(100), rules(1)
    under = [*plenty[:tight], none_left[tight], *plenty[tight + 1 :]]
    taken = await RedisLimiter(bench.store).admit(bench.tenant, ask(bench.heading(), [under[tight]]))
    assert taken.refused is None
    before = await of_tenant(bench)
    decision, claim = await start(bench, bench.heading(), under)
    assert claim is None
    assert decision is not None
    assert decision.refused == under[tight]
    assert decision.wait_us > 0
    assert await written(bench, before) == set()
    assert (await bench.cached()).active_turn_id is None


async def test_start_of_a_repeat_is_answered_whatever_the_limits_say(bench: Bench) -> None:
    """An idempotency key leads back to its turn, or says that the message was another's, and costs nothing."""
    under = rules(1)
    heading = bench.heading(key="k")
    assert (await start(bench, heading, under)).claim == Claim("started", heading.turn_id, 1)
    before = await of_tenant(bench)
    assert await start(bench, bench.heading(key="k"), under) == Begun(None, Claim("repeated", heading.turn_id, 0))
    other = bench.heading(key="k", body="b2")
    assert await start(bench, other, under) == Begun(None, Claim("mismatched", heading.turn_id, 0))
    assert await written(bench, before) == set()


@pytest.mark.parametrize("obstacle", ["busy", "orphaned", "unknown", "another's", "another persona's"])
async def test_start_that_the_conversation_refuses_charges_nothing(make_bench: MakeBench, obstacle: str) -> None:
    """A conversation that cannot be claimed leaves every count where it was, and the decision says so."""
    bench = make_bench(lease_s=0.01 if obstacle == "orphaned" else 30.0)
    owner = OWNER if obstacle != "another's" else type(OWNER)("somebody")
    if obstacle != "unknown":
        await bench.cache(owner=owner, persona="other" if obstacle == "another persona's" else "default")
    if obstacle in ("busy", "orphaned"):
        turn = await bench.turn()
        if obstacle == "orphaned":
            await bench.until_orphaned(turn)
    before = await of_tenant(bench)
    decision, claim = await start(bench, bench.heading(), rules())
    assert claim is not None
    assert claim.outcome == (obstacle if obstacle in ("busy", "orphaned") else "unknown")
    assert decision is not None
    assert decision.refused is None
    assert [quota.remaining for quota in decision.quotas] == [5, 5 * COMPLETION_UNKNOWN, 5, 5 * COMPLETION_UNKNOWN]
    assert await written(bench, before) == set()


async def test_start_on_another_day_than_thought_writes_nothing(bench: Bench) -> None:
    """Budgets whose period is over decide nothing: the asker is told what time it is, and asks again."""
    heading = bench.heading()
    before = await of_tenant(bench)
    decision, claim = await bench.log.start(bench.tenant, heading, ask(heading, rules())._replace(until_us=1))
    assert claim is None
    assert decision is not None
    assert decision.stale
    assert abs(decision.now_us / 1000 - await bench.now_ms()) < 10_000
    assert await written(bench, before) == set()


async def test_start_of_a_hundred_at_once_begins_exactly_the_limit(make_bench: MakeBench) -> None:
    """100 conversations under a limit of 5 get 5 turns and 5 charges; the others stay as they were."""
    benches = [make_bench() for _ in range(100)]
    await asyncio.gather(*(bench.cache() for bench in benches))
    under = rules()
    begun = await asyncio.gather(*(start(bench, bench.heading(), under) for bench in benches))
    assert sum(one.claim is not None for one in begun) == 5
    active = [(await bench.cached()).active_turn_id for bench in benches]
    assert sum(turn is not None for turn in active) == 5
    assert await benches[0].store.call("ZCARD", benches[0].keys.limit("s:user")) == 5


async def test_start_of_a_hundred_in_one_conversation_charges_one(bench: Bench) -> None:
    """However many are asked for at once, one turn runs, and it alone is charged."""
    begun = await asyncio.gather(*(start(bench, bench.heading(), rules(1000)) for _ in range(100)))
    outcomes = [one.claim.outcome for one in begun if one.claim is not None]
    assert sorted(outcomes) == ["busy"] * 99 + ["started"]
    assert await bench.store.call("ZCARD", bench.keys.limit("s:user")) == 1


async def test_start_sent_again_begins_and_charges_once(bench: Bench) -> None:
    """The same turn asked for again gets the same decision, and finds the conversation taken, by itself."""
    heading = bench.heading()
    under = rules()
    first = await start(bench, heading, under)
    again = await start(bench, heading, under)
    assert again.decision == first.decision
    assert again.claim is not None
    assert (again.claim.outcome, again.claim.turn_id) == ("busy", heading.turn_id)
    probe = await RedisLimiter(bench.store).admit(bench.tenant, ask(bench.heading(), under))
    assert isinstance(probe, Decision)
    assert [quota.remaining for quota in probe.quotas] == [3, 3 * COMPLETION_UNKNOWN, 3, 3 * COMPLETION_UNKNOWN]


async def test_release_of_a_start_gives_back_claim_and_charge(bench: Bench) -> None:
    """What a start has done whose answer was lost can be undone whole."""
    heading = bench.heading(key="k")
    under = rules()
    await start(bench, heading, under)
    await bench.log.release(bench.tenant, heading)
    assert (await bench.cached()).active_turn_id is None
    assert await bench.store.call("ZCARD", bench.keys.limit("s:user")) == 0
    assert await bench.log.repeated(bench.tenant, OWNER, bench.conversation, "k") is None
    fresh = await start(bench, bench.heading(key="k"), under)
    assert fresh.claim is not None
    assert (fresh.claim.outcome, fresh.claim.ordinal) == ("started", 1)


@pytest.mark.parametrize("at_once", [True, False])
async def test_start_of_what_is_in_no_list_makes_its_conversation(make_bench: MakeBench, at_once: bool) -> None:
    """What only holds a prompt's run comes with its turn, is found by its id alone, and is there for another turn."""
    bench = make_bench()
    await bench.cache()
    listed = await bench.conversations.list(bench.tenant, OWNER, None, 10)
    bench.conversation = ConversationId(str(uuid.uuid4()))
    question = msgspec.structs.replace(QUESTION, created_at="2026-01-02T03:04:05Z")
    for ordinal in (1, 2):
        heading = msgspec.structs.replace(bench.heading(), listed=False, message=question)
        claim: Claim | None
        if at_once:
            claim = (await start(bench, heading, rules())).claim
        else:
            claim = await bench.log.claim(bench.tenant, heading)
        assert claim is not None
        assert (claim.outcome, claim.ordinal) == ("started", ordinal)
        await bench.finish(heading.turn_id, Entry(2, COMPLETED))
    record = await bench.cached()
    assert (record.owner, record.persona, record.created_at) == (OWNER, "default", question.created_at)
    assert await bench.conversations.list(bench.tenant, OWNER, None, 10) == listed
    assert await bench.store.call("TTL", bench.keys.conversation(bench.conversation)) > 0


async def test_start_of_what_is_in_no_list_leaves_nothing_where_it_is_refused_or_undone(make_bench: MakeBench) -> None:
    """A limit's refusal makes no conversation, and a start that is undone takes its conversation with it."""
    bench = make_bench()
    heading = msgspec.structs.replace(bench.heading(), listed=False)
    full = rules(1)
    await RedisLimiter(bench.store).admit(bench.tenant, ask(bench.heading(), full))
    before = await of_tenant(bench)
    assert (await start(bench, heading, full)).claim is None
    assert await written(bench, before) == set()
    before = await of_tenant(bench)
    begun = await start(bench, heading, rules(5)[:1])
    assert begun.claim is not None
    assert "conv" in await written(bench, before)
    await bench.log.release(bench.tenant, heading)
    assert "conv" not in await written(bench, before)
