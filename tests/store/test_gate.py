"""The contract of the gate in the store: the rules of ``core.gate_books`` on its clock, over any number of workers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.core.gate import GRANTS_MAX, HOUR_US, MINUTE_US, PROBE_LOOK_US, Asker, Departure, Left, Outcome, State
from gateway.core.gate_books import GateBooks
from gateway.core.identity import TenantId, WorkerId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.store.gate import ENTER, LEAVE, LEFT, SERVE, TELL, RedisGate, key_of_gate
from gateway.store.redis import ALL, INBOX, Redis
from tests.store.conftest import OpenRedis

LONG_US = 3600 * 1_000_000
A, B = TenantId("a"), TenantId("b")


@pytest.fixture
async def label(store: Redis) -> AsyncIterator[KeyLabel]:
    """A vendor key that no other test shares."""
    label = KeyLabel(f"k-{uuid.uuid4().hex[:12]}")
    yield label
    keys = await store.call("KEYS", f"{key_of_gate(label)}*")
    assert [key for key in keys if await store.call("PTTL", key) < 0] == []


def gate(redis: Redis, per_min: int = 0, *, worker: str = "w1", queue_max: int = 100_000, **options: int) -> RedisGate:
    return RedisGate(
        redis, WorkerId(worker), lambda _: PlanLimit(None, per_min or None), queue_max=queue_max, **options
    )


def asker(id_: str, tenant: TenantId = A, *, weight: int = 1, wait_us: int = LONG_US) -> Asker:
    return Asker(id_, tenant, weight, wait_us)


async def test_a_hundred_at_once_over_three_workers_pass_exactly_the_limit(
    open_redis: OpenRedis, label: KeyLabel
) -> None:
    """100 calls at one moment over three clients under a plan of 5 a minute: 5 pass, and no more all minute."""
    workers = [gate(open_redis(), 5, worker=f"w{number}") for number in range(3)]
    answers = await asyncio.gather(
        *(workers[call % 3].enter(label, asker(f"c{call}", wait_us=0)) for call in range(100))
    )
    assert sum(answer.outcome is Outcome.PASSED for answer in answers) == 5
    assert 60_000_000 < max(answer.wait_us for answer in answers) <= MINUTE_US


async def test_no_window_holds_more_than_the_plan_over_three_workers(open_redis: OpenRedis, label: KeyLabel) -> None:
    """Three workers that ask as fast as they can for many periods: no window of one has more passes than the limit."""
    period_us, limit, passed = 150_000, 7, list[float]()
    workers = [
        gate(open_redis(), limit, worker=f"w{number}", minute_us=period_us, hour_us=HOUR_US) for number in range(3)
    ]
    until_s = time.monotonic() + 1.5

    async def press(one: RedisGate) -> None:
        while time.monotonic() < until_s:
            sent_s = time.monotonic()
            answer = await one.enter(label, asker(uuid.uuid4().hex, wait_us=0))
            if answer.outcome is Outcome.PASSED:
                passed.append(sent_s)

    await asyncio.gather(*(press(one) for one in workers for _ in range(4)))
    record = sorted(passed)
    assert len(record) >= 8 * limit  # and not much less: ten periods went by
    for first in range(len(record) - limit):
        # Passes are counted where they were decided, between sending and the answer; see MARGIN_US for the way there.
        assert record[first + limit] - record[first] > period_us / 1e6 - 0.05


async def test_what_is_left_of_the_plan_is_one_figure_for_all_workers(open_redis: OpenRedis, label: KeyLabel) -> None:
    """Each pass at any worker leaves one less at all of them, what is given back one more, and never below none."""
    one, two = (gate(open_redis(), 3, worker=f"w{number}") for number in range(2))
    assert await one.left(label) == Left(None, 3)
    for call, worker in enumerate((one, two, one)):
        assert (await worker.enter(label, asker(f"c{call}", wait_us=0))).outcome is Outcome.PASSED
        assert await one.left(label) == await two.left(label) == Left(None, 2 - call)
    await one.leave(label, "c2", unsent=True)
    assert (await two.left(label)).per_min == 1
    assert (await gate(open_redis(), 1).left(label)).per_min == 0  # a plan that has become smaller meanwhile


async def test_queue_moves_whoever_looks_and_tells_the_worker_of_each(open_redis: OpenRedis, label: KeyLabel) -> None:
    """A look by any worker lets all go that may, and each hears of his own by his worker's channel."""
    one, two = (open_redis() for _ in range(2))
    here, there = (gate(redis, 2, worker=name, minute_us=100_000) for redis, name in ((one, "here"), (two, "there")))
    pubsub = one.pubsub()
    await pubsub.subscribe(INBOX + "there")
    try:
        await asyncio.gather(*(here.enter(label, asker(f"x{number}")) for number in range(2)))
        assert (await there.enter(label, asker("b", B))).outcome is Outcome.WAITING
        assert (await here.enter(label, asker("a"))).position == 1  # of those with equal shares by name
        async with asyncio.timeout(2):
            while not (await here.serve(label, ["a"], places=True)).places[0].passed:
                await asyncio.sleep(0.01)
        message = None
        while message is None:
            await here.serve(label, [], places=False)  # b may be due a moment after a
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.05)
        assert msgspec.json.decode(message["data"]) == ["passed", label, "b", ""]
    finally:
        await pubsub.aclose()
    assert (await there.enter(label, asker("b", B))).outcome is Outcome.PASSED


async def test_waiters_of_a_dead_worker_leave_nothing_behind(open_redis: OpenRedis, label: KeyLabel) -> None:
    """A worker that looks no more is dropped after its lease with all who waited at it; nothing of them is left."""
    redis = open_redis()
    dead = gate(redis, 1, worker="dead", lease_us=150_000)
    alive = gate(redis, 1, worker="alive", lease_us=150_000)
    await dead.enter(label, asker("first"))
    for number in range(20):
        await dead.enter(label, asker(f"lost{number}", TenantId(f"t{number % 3}")))
    assert (await alive.enter(label, asker("mine", TenantId("z")))).position > 1
    async with asyncio.timeout(2):
        while (await alive.serve(label, ["mine"], places=True)).places[0].position != 1:
            await asyncio.sleep(0.02)
    assert await alive.leave(label, "lost3", unsent=False) is Departure.WAITING
    assert await alive.leave(label, "mine", unsent=False) is Departure.WAITING
    at = key_of_gate(label)
    left = {key.decode().removeprefix(at) for key in await redis.call("KEYS", f"{at}*")}
    assert {key for key in left if not key.startswith(":of:")} <= {":min", ":workers"}


async def test_hold_and_breaker_are_told_to_all_workers(open_redis: OpenRedis, label: KeyLabel) -> None:
    """Whoever the vendor refuses, all workers are told at once that something is in force."""
    redis = open_redis()
    one = gate(redis)
    pubsub = redis.pubsub()
    await pubsub.subscribe(ALL)
    try:
        await one.hold(label, 60_000_000)
        await one.trip(label, 5_000_000)
        heard: list[list[str]] = []
        async with asyncio.timeout(2):
            while len(heard) < 2:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
                with suppress(TypeError):
                    word = msgspec.json.decode(message["data"])
                    heard += [word] if word[1] == label else []
        assert heard == [["gate", label, "held"], ["gate", label, "open"]]
    finally:
        await pubsub.aclose()
    answer = await one.enter(label, asker("one"))
    assert (answer.outcome, answer.state) == (Outcome.OPEN, State.OPEN)
    assert 59_000_000 < answer.wait_us <= 60_000_000  # the hold is longer than the breaker's rest


async def test_gates_of_keys_do_not_meet(store: Redis, label: KeyLabel) -> None:
    """What one vendor key may send, and who waits for it, is no other key's."""
    one = gate(store, 1)
    other = KeyLabel(f"{label[:20]}-2")
    assert (await one.enter(label, asker("a"))).outcome is Outcome.PASSED
    assert (await one.enter(label, asker("b"))).outcome is Outcome.WAITING
    assert (await one.enter(other, asker("b"))).outcome is Outcome.PASSED


# --- the scripts and the reference --------------------------------------------------------------------------------


class Move(NamedTuple):
    verb: Literal["enter", "serve", "leave", "left", "hold", "trip", "judge"]
    number: int
    tenant: int
    worker: int
    figure: int
    flag: bool


MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from(["enter"] * 6 + ["serve", "serve", "leave", "leave", "left", "left", "hold", "trip", "judge"]),
        st.integers(0, 14),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from([0, 0, 900, 4_000, 30_000, LONG_US]),
        st.booleans(),
    ),
    min_size=20,
    max_size=90,
)
TENANTS = [(TenantId("a"), 1), (TenantId("b"), 3), (TenantId("c-c"), 7)]


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # real time passes: no two runs of one example are the same
)
@given(
    st.tuples(st.integers(0, 6), st.integers(0, 4)),
    st.tuples(st.integers(2_000, 40_000), st.integers(500, 9_000)),
    st.integers(1, 8),
    st.sampled_from([3_000, LONG_US]),
    MOVES,
)
def test_scripts_agree_with_the_books(
    any_store_url: str,
    limits: tuple[int, int],
    periods: tuple[int, int],
    queue_max: int,
    lease_us: int,
    moves: list[Move],
) -> None:
    """Whatever happens in whatever order, every answer of the scripts is what the reference says for that moment."""
    asyncio.run(
        _compare(any_store_url, PlanLimit(*(limit or None for limit in limits)), periods, queue_max, lease_us, moves)
    )


async def _compare(
    url: str, limit: PlanLimit, periods: tuple[int, int], queue_max: int, lease_us: int, moves: list[Move]
) -> None:
    store = Redis(url, timeout_s=2.0, connections=1)
    label = KeyLabel(f"k-{uuid.uuid4().hex[:12]}")
    keys = (key_of_gate(label),)
    books = GateBooks(limit, queue_max, lease_us, minute_us=periods[1], hour_us=periods[0])
    rules = (limit.per_hour or 0, periods[0], limit.per_min or 0, periods[1])
    shared = (INBOX, label, lease_us, *rules, GRANTS_MAX, PROBE_LOOK_US)
    try:
        for move in moves:
            id_, worker = f"r{move.number}", WorkerId(f"w{move.worker}")
            tenant, weight = TENANTS[move.tenant]
            match move.verb:
                case "enter":
                    own = (id_, worker, tenant, weight, move.figure, queue_max, 1_000_000)
                    outcome, *rest, now_us = await store.run(ENTER, keys, (*shared, *own))
                    wanted = books.enter(Asker(id_, tenant, weight, move.figure), worker, now_us)
                    said = (outcome.decode(), *rest[:2], bool(rest[2]), rest[3].decode())
                    assert said == tuple(wanted), move
                case "serve":
                    ids = [f"r{number}" for number in range(15)]
                    next_us, state, now_us, *found = await store.run(SERVE, keys, (*shared, worker, 1, *ids))
                    served = books.serve(worker, ids, now_us)
                    assert (next_us, state.decode()) == (served.next_us, served.state), move
                    places = [
                        (p.probe + p.passed or min(p.position, 0), max(p.position, 0), p.wait_us) for p in served.places
                    ]
                    assert list(zip(found[::3], found[1::3], found[2::3], strict=True)) == places, move
                case "leave":
                    departure, now_us = await store.run(LEAVE, keys, (*shared, id_, int(move.flag)))
                    assert departure.decode() == books.leave(id_, now_us, unsent=move.flag), move
                case "left":
                    per_hour, per_min, now_us = await store.run(LEFT, keys, shared)
                    left = tuple(-1 if count is None else count for count in books.left(now_us))
                    assert (per_hour, per_min) == left, move
                case "hold":
                    books.hold(
                        move.figure % 5_000, await store.run(TELL, keys, (*shared, ALL, "hold", move.figure % 5_000))
                    )
                case "trip":
                    books.trip(900, await store.run(TELL, keys, (*shared, ALL, "trip", 900)))
                case "judge":
                    id_ = books.probe[0] if books.probe is not None else id_
                    word = "alive" if move.flag else "dead"
                    now_us = await store.run(TELL, keys, (*shared, ALL, word, 4_000, id_))
                    books.judge(id_, now_us, alive=move.flag, rest_max_us=4_000)
    finally:
        await store.aclose()
