"""The ledger: a turn that has an ending is settled exactly once, now or when its tokens have been looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from gateway.core.events import Entry, LogLost, TurnStarted, TurnStopped
from gateway.core.identity import TenantId
from gateway.core.ledger import Due, Settlement
from gateway.core.turn import StopReason, TurnId, Usage
from gateway.core.vendor_keys import KeyLabel
from gateway.store.ledger import RedisLedger
from gateway.store.redis import Redis
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, PATIENCE_S, USAGE, Bench

STOPPED = TurnStopped("m", "r", StopReason.USER, "Hel", Usage(3, 4, 7, "estimated"))
LONG_S = 1000.0


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    """A bench on which unsettled turns are due at once."""
    bench = make_bench(settle_after_s=0.001)
    await bench.cache()
    return bench


def ledger_of(store: Redis, *retries_s: float) -> RedisLedger:
    return RedisLedger(store, ttl_s=600, retries_s=retries_s)


async def until_due(ledger: RedisLedger, tenant: TenantId) -> list[Due]:
    """Take what is due as soon as there is something."""
    async with asyncio.timeout(PATIENCE_S):
        while not (due := await ledger.due(tenant, 100)):
            await asyncio.sleep(0.005)
    return due


async def settled(bench: Bench) -> list[Settlement]:
    return [one for _, one in await ledger_of(bench.store).settled(bench.tenant, None, 1000)]


async def stop_one(bench: Bench) -> TurnId:
    """End a turn whose tokens are to be looked up."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, STOPPED), look_up=True)
    return turn


# --- written once -------------------------------------------------------------------------------------------------


async def test_finish_with_known_tokens_settles_in_the_same_step(bench: Bench) -> None:
    """What the vendor's stream told is written for good with the ending; there is nothing to look up."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    assert await settled(bench) == [bench.settlement(turn)]
    assert await ledger_of(bench.store).due(bench.tenant, 10) == []
    assert not await ledger_of(bench.store).settle(bench.tenant, bench.settlement(turn))
    assert await settled(bench) == [bench.settlement(turn)]


async def test_finish_with_look_up_keeps_it_unsettled_until_it_is_settled(bench: Bench) -> None:
    """The estimate waits with the turn; the first to settle it is the one that counts."""
    turn = await stop_one(bench)
    ledger = ledger_of(bench.store, LONG_S)
    assert await settled(bench) == []
    estimate = bench.settlement(turn, STOPPED)
    assert await until_due(ledger, bench.tenant) == [Due(estimate, False)]
    read_back = msgspec.structs.replace(estimate, completion_tokens=9, source="read_back")
    outcomes = await asyncio.gather(
        ledger.settle(bench.tenant, read_back), *(ledger.settle(bench.tenant, estimate) for _ in range(9))
    )
    assert outcomes == [True] + [False] * 9
    assert await settled(bench) == [read_back]
    assert await bench.store.call("EXISTS", bench.keys.unsettled()) == 0


async def test_settlement_of_what_is_no_turn_is_written_once(bench: Bench) -> None:
    """A settlement whose answer was lost is sent again, by itself or beside others: it counts once."""
    ledger, settlement = ledger_of(bench.store), bench.settlement(TurnId("f" * 8 + "-0000-4000-8000-" + "f" * 12))
    outcomes = await asyncio.gather(*(ledger.add(bench.tenant, settlement) for _ in range(10)))
    assert outcomes == [True] + [False] * 9
    assert not await ledger.add(bench.tenant, settlement)
    assert await settled(bench) == [settlement]


async def test_settlements_of_an_earlier_version_are_read(bench: Bench) -> None:
    """An entry without the fields that came later stands beside one with all of them, and none of it is lost."""
    old = (
        b'{"turn_id":"t","conversation_id":"c","owner":"o","persona":"default","state":"stopped","reason":"user",'
        b'"message_id":null,"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"source":"estimated",'
        b'"duration_s":1.5,"ended_at":"2026-11-21T20:15:00.000Z"}'
    )
    await bench.store.call("XADD", bench.keys.settlements(), "*", "s", old)
    full = msgspec.structs.replace(
        bench.settlement(await bench.turn()),
        vendor_key=KeyLabel("spare"),
        first_token_s=0.25,
        cost_micros=1234,
        currency="EUR",
    )
    assert await ledger_of(bench.store).add(bench.tenant, full)
    first, second = await settled(bench)
    assert (first.turn_id, first.total_tokens, first.source) == ("t", 3, "estimated")
    assert (first.vendor_key, first.first_token_s, first.cost_micros, first.currency) == (None, None, None, None)
    assert second == full


@pytest.mark.parametrize("look_up", [False, True])
async def test_finish_resent_settles_once(bench: Bench, look_up: bool) -> None:
    """An ending whose answer was lost is sent again, also after the tokens have been settled: it counts once."""
    turn = await bench.turn()
    for _ in range(3):
        await bench.finish(turn, Entry(2, STOPPED), look_up=look_up)
    ledger = ledger_of(bench.store, LONG_S)
    if look_up:
        (due,) = await until_due(ledger, bench.tenant)
        assert await ledger.settle(bench.tenant, due.settlement)
        for _ in range(3):
            await bench.finish(turn, Entry(2, STOPPED), look_up=look_up)
    assert await settled(bench) == [bench.settlement(turn, STOPPED)]
    assert await bench.store.call("EXISTS", bench.keys.unsettled()) == 0


@pytest.mark.parametrize("look_up", [False, True])
@pytest.mark.parametrize("ended_before", [False, True])
async def test_finish_after_a_restore_settles_once(bench: Bench, look_up: bool, ended_before: bool) -> None:
    """A store that loses a turn, its ending or not, is told again all that it lost, and each turn counts once."""
    kept = await bench.turn()
    await bench.finish(kept, Entry(2, COMPLETED))
    heading = await bench.begin()
    turn = heading.turn_id
    if ended_before:
        before = await bench.store.call("DUMP", bench.keys.settlements())
        await bench.finish(turn, Entry(2, STOPPED), look_up=look_up)
        await bench.store.call("DEL", bench.keys.unsettled())
        await bench.store.call("RESTORE", bench.keys.settlements(), 0, before, "REPLACE")
    await bench.lose(turn)
    started = Entry(1, TurnStarted(turn, bench.conversation, heading.ordinal))
    with pytest.raises(LogLost):
        await bench.finish(turn, Entry(2, STOPPED), look_up=look_up)
    await bench.log.restore(bench.tenant, heading, 1)
    for _ in range(3):
        await bench.finish(turn, started, Entry(2, STOPPED), look_up=look_up)
        await bench.log.restore(bench.tenant, heading, 1)  # there is a record: nothing happens
    if look_up:
        ledger = ledger_of(bench.store, LONG_S)
        (due,) = await until_due(ledger, bench.tenant)
        assert await ledger.settle(bench.tenant, due.settlement)
    assert await settled(bench) == [bench.settlement(kept), bench.settlement(turn, STOPPED)]
    assert await bench.all(turn) == [started, Entry(2, STOPPED)]


async def test_settle_of_a_turn_that_was_not_taken_counts_once(make_bench: MakeBench) -> None:
    """Who knows the tokens before they are due may settle them; nothing is left to look up."""
    bench = make_bench(settle_after_s=LONG_S)
    await bench.cache()
    turn = await stop_one(bench)
    ledger = ledger_of(bench.store)
    assert await ledger.settle(bench.tenant, bench.settlement(turn, STOPPED))
    assert not await ledger.settle(bench.tenant, bench.settlement(turn, STOPPED))
    assert await settled(bench) == [bench.settlement(turn, STOPPED)]
    assert await bench.store.call("EXISTS", bench.keys.unsettled()) == 0


async def test_settle_of_a_turn_that_is_gone_writes_nothing(bench: Bench) -> None:
    """A turn whose record ran out unsettled is let go, and does not come back as due."""
    turn = await stop_one(bench)
    await bench.store.call("DEL", bench.keys.turn(turn))
    ledger = ledger_of(bench.store, LONG_S)
    assert not await ledger.settle(bench.tenant, bench.settlement(turn, STOPPED))
    other = await stop_one(bench)
    await bench.store.call("DEL", bench.keys.turn(other))
    async with asyncio.timeout(PATIENCE_S):
        while await bench.store.call("EXISTS", bench.keys.unsettled()):
            assert await ledger.due(bench.tenant, 10) == []
            await asyncio.sleep(0.005)
    assert await settled(bench) == []


# --- due ----------------------------------------------------------------------------------------------------------


async def test_due_gives_each_turn_to_one_taker(bench: Bench) -> None:
    """However many workers ask at the same moment, each turn is looked up by one."""
    turns = set()
    for _ in range(10):
        await bench.another_conversation()
        turns.add(await stop_one(bench))
    async with asyncio.timeout(PATIENCE_S):
        while await due_now(bench) < len(turns):
            await asyncio.sleep(0.005)
    takes = await asyncio.gather(*(ledger_of(bench.store, LONG_S).due(bench.tenant, 3) for _ in range(12)))
    taken = [due.settlement.turn_id for take in takes for due in take]
    assert len(taken) == 10
    assert set(taken) == turns
    assert max(len(take) for take in takes) == 3


async def due_now(bench: Bench) -> int:
    return int(await bench.store.call("ZCOUNT", bench.keys.unsettled(), "-inf", await bench.now_ms()))


async def test_due_waits_until_the_vendor_may_know(make_bench: MakeBench) -> None:
    """A turn is not looked up before the time that a vendor needs to count it."""
    bench = make_bench(settle_after_s=LONG_S)
    await bench.cache()
    turn = await stop_one(bench)
    assert await ledger_of(bench.store).due(bench.tenant, 10) == []
    score = float(await bench.store.call("ZSCORE", bench.keys.unsettled(), turn))
    assert score / 1000 == pytest.approx(await bench.now_ms() / 1000 + LONG_S, abs=30)


@pytest.mark.parametrize("retries_s", [(), (0.01,), (0.01, 0.02, 0.01)])
async def test_due_comes_back_by_the_retries_and_says_which_is_the_last(
    bench: Bench, retries_s: Sequence[float]
) -> None:
    """One who takes a turn and dies leaves it to the next; no try follows the one that is said to be the last."""
    turn = await stop_one(bench)
    ledger = ledger_of(bench.store, *retries_s)
    tries = [await until_due(ledger, bench.tenant) for _ in range(len(retries_s) + 1)]
    estimate = bench.settlement(turn, STOPPED)
    assert tries == [[Due(estimate, number == len(retries_s))] for number in range(len(retries_s) + 1)]
    assert await ledger.due(bench.tenant, 10) == []


async def test_due_comes_back_after_the_last_try_too(bench: Bench) -> None:
    """Whoever takes a turn for the last time may die as well: it stays unsettled, and comes back as the last."""
    turn = await stop_one(bench)
    ledger = ledger_of(bench.store)
    await until_due(ledger, bench.tenant)
    for _ in range(2):
        score = float(await bench.store.call("ZSCORE", bench.keys.unsettled(), turn))
        assert score / 1000 == pytest.approx(await bench.now_ms() / 1000 + 30, abs=5)
        await bench.store.call("ZADD", bench.keys.unsettled(), 1, turn)  # as if those 30 s were over
        assert await ledger.due(bench.tenant, 10) == [Due(bench.settlement(turn, STOPPED), True)]


async def test_due_does_not_come_back_once_settled(bench: Bench) -> None:
    """What has been settled is done."""
    await stop_one(bench)
    ledger = ledger_of(bench.store, 0.001)
    (due,) = await until_due(ledger, bench.tenant)
    assert await ledger.settle(bench.tenant, due.settlement)
    assert await due_now(bench) == 0
    assert await bench.store.call("EXISTS", bench.keys.unsettled()) == 0


async def test_due_of_another_tenant_is_not_mine(bench: Bench) -> None:
    """A tenant's turns are settled in its own name."""
    await stop_one(bench)
    assert await ledger_of(bench.store).due(TenantId("t-stranger"), 10) == []
    assert await ledger_of(bench.store).settled(TenantId("t-stranger"), None, 10) == []
    await until_due(ledger_of(bench.store), bench.tenant)


# --- read ---------------------------------------------------------------------------------------------------------


async def test_settled_pages_miss_and_repeat_nothing(bench: Bench) -> None:
    """Pages of any size, each from the last one's cursor, are all settlements in the order in which they were made."""
    turns = []
    for _ in range(7):
        turns.append(await bench.turn())
        await bench.finish(turns[-1], Entry(2, COMPLETED))
    ledger = ledger_of(bench.store)
    for size in (1, 3, 7, 100):
        found: list[TurnId] = []
        cursor: str | None = None
        while page := await ledger.settled(bench.tenant, cursor, size):
            assert len(page) <= size
            found += [settlement.turn_id for _, settlement in page]
            cursor = page[-1][0]
        assert found == turns


async def test_settled_finds_later_ones_from_an_old_cursor(bench: Bench) -> None:
    """Who has read to the end goes on from there when there is more."""
    first = await bench.turn()
    await bench.finish(first, Entry(2, COMPLETED))
    ledger = ledger_of(bench.store)
    ((cursor, _),) = await ledger.settled(bench.tenant, None, 10)
    assert await ledger.settled(bench.tenant, cursor, 10) == []
    second = await bench.turn()
    await bench.finish(second, Entry(2, COMPLETED))
    assert [one.turn_id for _, one in await ledger.settled(bench.tenant, cursor, 10)] == [second]


async def test_ledger_keys_live_as_long_as_promised(bench: Bench) -> None:
    """Settlements are kept for their time, and what is unsettled as long as the record that holds it."""
    turn = await stop_one(bench)
    assert 490 < await bench.ttl_s(bench.keys.unsettled()) <= 500
    assert 490 < await bench.ttl_s(bench.keys.turn(turn)) <= 500
    ledger = ledger_of(bench.store, LONG_S)
    (due,) = await until_due(ledger, bench.tenant)
    assert 490 < await bench.ttl_s(bench.keys.unsettled()) <= 500
    assert 490 < await bench.ttl_s(bench.keys.turn(turn)) <= 500
    await ledger.settle(bench.tenant, due.settlement)
    assert 590 < await bench.ttl_s(bench.keys.settlements()) <= 600
    await bench.finish(await bench.turn(), Entry(2, COMPLETED))
    assert 590 < await bench.ttl_s(bench.keys.settlements()) <= 600


async def test_settlements_older_than_promised_are_trimmed(store: Redis, bench: Bench) -> None:
    """A busy tenant's stream does not grow for ever: whole nodes of old settlements go with the next one."""
    key = bench.keys.settlements()
    old = [f"{number}-0" for number in range(1, 301)]
    for entry_id in old:
        await store.call("XADD", key, entry_id, "s", msgspec.json.encode(bench.settlement(TurnId("old"))))
    await bench.finish(await bench.turn(), Entry(2, COMPLETED))
    assert await store.call("XLEN", key) < 200
    assert (await settled(bench))[-1].total_tokens == USAGE.total_tokens
