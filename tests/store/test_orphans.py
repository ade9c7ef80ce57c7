"""Turns whose owner is gone: found by their lease or by name, taken over by one worker, and by nobody too early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from gateway.core.events import Append, Appended, Entry, Fenced, TextDelta
from gateway.core.identity import TenantId
from gateway.core.turn import StopReason, TurnId, TurnState
from gateway.store import event_log
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, PATIENCE_S, Bench, new_worker

LEASE_S = 0.05


@pytest.fixture
async def short(make_bench: MakeBench) -> Bench:
    """A bench whose leases run out while one waits."""
    bench = make_bench(lease_s=LEASE_S)
    await bench.cache()
    return bench


async def start_many(bench: Bench, count: int) -> list[TurnId]:
    """Start turns in as many conversations; the last one stays the bench's."""
    turns = []
    for _ in range(count):
        await bench.another_conversation()
        turns.append(await bench.turn())
    return turns


async def until_all_orphaned(bench: Bench, turns: Sequence[TurnId]) -> None:
    for turn in turns:
        await bench.until_orphaned(turn)


# --- found --------------------------------------------------------------------------------------------------------


async def test_orphans_are_those_whose_lease_ran_out(short: Bench) -> None:
    """A lost worker's turn is found, a living one's is not, and neither is another tenant's."""
    lost, living = await start_many(short, 2)
    keeper = short.log_of(short.worker)
    await until_all_orphaned(short, (lost, living))
    await keeper.append(short.tenant, [Append(living, 1, 1, ())])
    assert await keeper.orphans(short.tenant, None) == [lost]
    assert await keeper.orphans(short.tenant, None) == [lost]  # until somebody takes it
    assert await keeper.orphans(TenantId("t-stranger"), None) == []


async def test_orphans_of_a_dead_worker_are_found_before_their_lease_ran_out(bench: Bench) -> None:
    """A supervisor that saw a worker die need not wait; what others own is left out."""
    (mine,) = await start_many(bench, 1)
    other = bench.log_of(new_worker())
    await bench.another_conversation()
    theirs = bench.heading()
    await other.claim(bench.tenant, theirs)
    assert await other.orphans(bench.tenant, None) == []
    assert await other.orphans(bench.tenant, bench.worker) == [mine]
    assert await bench.log.orphans(bench.tenant, other.worker) == [theirs.turn_id]
    assert await bench.log.orphans(bench.tenant, new_worker()) == []


async def test_orphans_drops_what_has_ended_from_the_running_turns(short: Bench) -> None:
    """A turn whose ending or record came to the store without this is looked at once and no more."""
    ended, vanished, lost = await start_many(short, 3)
    await until_all_orphaned(short, (ended, vanished, lost))
    await short.store.call("HSET", short.keys.turn(ended), "state", TurnState.COMPLETED)
    await short.store.call("DEL", short.keys.turn(vanished))
    assert await short.log.orphans(short.tenant, None) == [lost]
    assert await short.store.call("ZRANGE", short.keys.running(), 0, -1) == [lost.encode()]


async def test_finish_takes_the_turn_off_the_running_ones(bench: Bench) -> None:
    """What has ended costs no sweep anything."""
    turn = await bench.turn()
    assert await bench.store.call("ZCARD", bench.keys.running()) == 1
    await bench.finish(turn, Entry(2, COMPLETED))
    assert await bench.store.call("ZCARD", bench.keys.running()) == 0


async def test_orphans_looks_at_few_a_sweep_and_finds_all(short: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many living turns in front do not hide a lost one, and many lost ones are all taken over in some sweeps."""
    monkeypatch.setattr(event_log, "SWEEP_MAX", 3)
    living = await start_many(short, 7)
    lost = await start_many(short, 4)
    keeper = short.log_of(short.worker)
    await until_all_orphaned(short, [*living, *lost])
    for turn in living:
        await keeper.append(short.tenant, [Append(turn, 1, 1, ())])
    taken: list[TurnId] = []
    for _ in range(-(-11 // 3)):
        found = await keeper.orphans(short.tenant, None)
        assert len(found) <= 3
        for turn in found:
            assert await keeper.take_over(short.tenant, turn) == 2
        taken += found
    assert sorted(taken) == sorted(lost)
    assert await keeper.orphans(short.tenant, None) == []


async def test_orphans_looks_at_a_living_turn_once_a_lease(short: Bench) -> None:
    """A turn that was found alive is not looked at again before its lease could have run out."""
    turn = await short.turn()
    await short.until_orphaned(turn)
    keeper = short.log_of(short.worker)
    await keeper.append(short.tenant, [Append(turn, 1, 1, ())])
    await keeper.orphans(short.tenant, None)
    lease = await short.store.call("HGET", short.keys.turn(turn), "lease")
    assert float(await short.store.call("ZSCORE", short.keys.running(), turn)) == int(lease)


# --- taken over ---------------------------------------------------------------------------------------------------


async def test_take_over_of_many_at_once_gives_one_new_epoch(short: Bench) -> None:
    """Of many that find the same orphan one becomes its owner."""
    turn = await short.turn()
    await short.until_orphaned(turn)
    log = short.log_of(new_worker())
    epochs = await asyncio.gather(*(log.take_over(short.tenant, turn) for _ in range(20)))
    assert [epoch for epoch in epochs if epoch is not None] == [2]
    assert await log.orphans(short.tenant, None) == []


async def test_take_over_of_many_at_once_for_a_dead_worker_gives_one_new_epoch(bench: Bench) -> None:
    """All who hear of a worker's death at once: one has each turn, for then the dead one is not its owner any more."""
    turn = await bench.turn()
    logs = [bench.log_of(new_worker()) for _ in range(20)]
    epochs = await asyncio.gather(*(log.take_over(bench.tenant, turn, bench.worker) for log in logs))
    assert [epoch for epoch in epochs if epoch is not None] == [2]


async def test_take_over_before_the_lease_ran_out_only_from_the_worker_that_is_lost(bench: Bench) -> None:
    """A living owner keeps its turn, whoever else has died."""
    turn = await bench.turn()
    other = bench.log_of(new_worker())
    assert await other.take_over(bench.tenant, turn) is None
    assert await other.take_over(bench.tenant, turn, new_worker()) is None
    assert await other.take_over(bench.tenant, turn, bench.worker) == 2
    assert await bench.log.take_over(bench.tenant, turn, bench.worker) is None  # it is not theirs any more
    record = await bench.log.record(bench.tenant, turn)
    assert record is not None
    assert (record.epoch, record.leased) == (2, True)


async def test_take_over_waits_a_lease_after_an_outage(bench: Bench, short: Bench) -> None:
    """Owners that could not renew what they own get the time to; a dead worker's turns need not wait."""
    turn = await short.turn()
    await short.until_orphaned(turn)
    other = short.log_of(new_worker(), lease_s=0.3)
    short.store.note_failure()
    begun_s = time.monotonic()
    assert await other.take_over(short.tenant, turn) is None
    assert await other.orphans(short.tenant, None) == [turn]
    async with asyncio.timeout(PATIENCE_S):
        while await other.take_over(short.tenant, turn) is None:
            await asyncio.sleep(0.01)
    assert time.monotonic() - begun_s >= 0.3
    short.store.note_failure()
    await bench.another_conversation()
    assert await other.take_over(bench.tenant, await bench.turn(), bench.worker) == 2


async def test_take_over_of_an_ended_or_unknown_turn_is_refused(bench: Bench) -> None:
    """There is nothing to rescue where there is an ending."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    for lost in (None, bench.worker):
        assert await bench.log.take_over(bench.tenant, turn, lost) is None
        assert await bench.log.take_over(bench.tenant, TurnId("none"), lost) is None
    assert await bench.store.call("EXISTS", bench.keys.turn("none")) == 0
    assert await bench.store.call("ZCARD", bench.keys.running()) == 0


async def test_take_over_fences_append_and_finish_of_the_old_owner(bench: Bench) -> None:
    """From the new epoch on, a zombie writes neither text nor ending nor tokens, and does not renew the lease."""
    turn = await bench.turn()
    await bench.append(turn, Entry(3, TextDelta("ab")))
    other = bench.log_of(new_worker())
    epoch = await other.take_over(bench.tenant, turn, bench.worker)
    assert epoch == 2
    lease = await bench.store.call("HGET", bench.keys.turn(turn), "lease")
    with pytest.raises(Fenced):
        await bench.append(turn, Entry(4, TextDelta("c")))
    with pytest.raises(Fenced):
        await bench.append(turn)
    for look_up in (False, True):
        with pytest.raises(Fenced):
            await bench.finish(turn, Entry(4, COMPLETED), look_up=look_up)
    assert await bench.store.call("HGET", bench.keys.turn(turn), "lease") == lease
    assert await bench.store.call("EXISTS", bench.keys.settlements(), bench.keys.unsettled()) == 0
    await other.append(bench.tenant, [Append(turn, 2, 3, [Entry(4, TextDelta("c"))])])
    await bench.finish(turn, Entry(5, COMPLETED), epoch=2, log=other)
    assert [entry.position for entry in await bench.all(turn)] == [1, 3, 4, 5]
    with pytest.raises(Fenced):
        await bench.finish(turn, Entry(5, COMPLETED))  # the same ending, but it is not the old owner's
    assert await bench.store.call("XLEN", bench.keys.settlements()) == 1


async def test_take_over_leaves_a_stop_to_the_new_owner(bench: Bench) -> None:
    """A stop that the lost worker did not get to is told to whoever goes on."""
    turn = await bench.turn()
    await bench.log.request_stop(bench.tenant, turn, StopReason.USER)
    other = bench.log_of(new_worker())
    assert await other.take_over(bench.tenant, turn, bench.worker) == 2
    assert await other.append(bench.tenant, [Append(turn, 2, 1, ())]) == [Appended(StopReason.USER, ())]
