"""What workers are told of each other's turns: who follows, what begins, what is to stop; each only who must know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.core.events import Appended, Entry, Followed, Shown, TextDelta
from gateway.core.turn import StopReason, TurnState
from gateway.store.event_log import RedisEventLog
from gateway.store.inbox import decode_shown
from gateway.store.redis import INBOX, Redis
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, NO_ONE, OWNER, PATIENCE_S, Bench, Ear, new_worker


@pytest.fixture
async def owner_ear(bench: Bench, store: Redis) -> AsyncIterator[Ear]:
    """Hears what the bench's worker is told."""
    async with Ear(store, bench.worker) as ear:
        yield ear


@pytest.fixture
def reader(bench: Bench) -> RedisEventLog:
    """The log as another worker sees it, on which somebody reads."""
    return bench.log_of(new_worker())


# --- follow -------------------------------------------------------------------------------------------------------


async def test_follow_tells_where_the_turn_stands(bench: Bench, reader: RedisEventLog) -> None:
    """A worker that begins to follow learns whether there is an owner and up to where the log has it."""
    turn = await bench.turn()
    assert await reader.follow(bench.tenant, turn, 60) == Followed(TurnState.RUNNING, leased=True, position=1)
    await bench.append(turn, Entry(4, TextDelta("abc")))
    assert await reader.follow(bench.tenant, turn, 60) == Followed(TurnState.RUNNING, leased=True, position=4)
    await bench.finish(turn, Entry(5, COMPLETED))
    assert await reader.follow(bench.tenant, turn, 60) == Followed(TurnState.COMPLETED, leased=False, position=5)
    assert await reader.follow(bench.tenant, NO_ONE, 60) is None


async def test_follow_of_a_turn_without_an_owner_says_so(make_bench: MakeBench) -> None:
    """A follower is the first to notice that an owner is gone."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    turn = await bench.turn()
    await bench.until_orphaned(turn)
    reader = bench.log_of(new_worker())
    assert await reader.follow(bench.tenant, turn, 60) == Followed(TurnState.RUNNING, leased=False, position=1)


async def test_follow_tells_the_owner_when_something_changed(
    bench: Bench, reader: RedisEventLog, owner_ear: Ear
) -> None:
    """The owner hears of the first and of every new follower and of every one that left; a renewal is no news."""
    turn = await bench.turn()
    second = bench.log_of(new_worker())
    await reader.follow(bench.tenant, turn, 60)
    assert await owner_ear.heard() == [["followers", turn, reader.worker]]
    await reader.follow(bench.tenant, turn, 60)
    assert await owner_ear.heard() == []
    await second.follow(bench.tenant, turn, 60)
    ((kind, told, workers),) = await owner_ear.heard()
    assert (kind, told, set(workers.split())) == ("followers", turn, {reader.worker, second.worker})
    await reader.follow(bench.tenant, turn, 0)
    assert await owner_ear.heard() == [["followers", turn, second.worker]]
    await reader.follow(bench.tenant, turn, 0)
    assert await owner_ear.heard() == []
    await second.follow(bench.tenant, turn, 0)
    assert await owner_ear.heard() == [["followers", turn, ""]]


async def test_follow_tells_nobody_but_the_owner(bench: Bench, reader: RedisEventLog, store: Redis) -> None:
    """Neither the follower itself nor an owner of before is told; an ended turn has nobody to tell."""
    turn = await bench.turn()
    new_owner = bench.log_of(new_worker())
    assert await new_owner.take_over(bench.tenant, turn, bench.worker) == 2
    async with (
        Ear(store, bench.worker) as old_ear,
        Ear(store, new_owner.worker) as new_ear,
        Ear(store, reader.worker) as own_ear,
    ):
        await reader.follow(bench.tenant, turn, 60)
        await new_owner.follow(bench.tenant, turn, 60)
        assert await new_ear.heard() == [["followers", turn, reader.worker]]
        await bench.finish(turn, Entry(2, COMPLETED), epoch=2, log=new_owner)
        await reader.follow(bench.tenant, turn, 0)
        assert (await old_ear.heard(), await new_ear.heard(), await own_ear.heard()) == ([], [], [])


async def test_append_tells_who_reads_the_turn_elsewhere(bench: Bench) -> None:
    """Followers are named from when they say so until they leave or fall silent."""
    turn = await bench.turn()
    first, second = bench.log_of(new_worker()), bench.log_of(new_worker())
    for reader in (first, second, first):
        await reader.follow(bench.tenant, turn, 60)
    told = await bench.append(turn, Entry(2, TextDelta("a")))
    assert set(told.followers) == {first.worker, second.worker}
    assert len(told.followers) == 2
    await first.follow(bench.tenant, turn, 0)
    assert await bench.append(turn) == Appended(None, [second.worker])
    await second.follow(bench.tenant, turn, 0.05)
    async with asyncio.timeout(PATIENCE_S):
        while await bench.append(turn) != Appended(None, ()):
            await asyncio.sleep(0.01)


async def test_follow_after_silence_is_news_again(bench: Bench, reader: RedisEventLog, owner_ear: Ear) -> None:
    """An owner that has taken a silent follower for gone is told when it is back."""
    turn = await bench.turn()
    stays = bench.log_of(new_worker())
    await reader.follow(bench.tenant, turn, 0.05)
    await stays.follow(bench.tenant, turn, 60)
    async with asyncio.timeout(PATIENCE_S):
        while (await bench.append(turn)).followers != [stays.worker]:
            await asyncio.sleep(0.01)
    await owner_ear.heard()
    await reader.follow(bench.tenant, turn, 60)
    ((_, _, workers),) = await owner_ear.heard()
    assert set(workers.split()) == {reader.worker, stays.worker}


async def test_followers_and_watchers_go_by_themselves(bench: Bench, reader: RedisEventLog) -> None:
    """What a worker that died has said is forgotten with its life, key and all."""
    turn = await bench.turn()
    await reader.follow(bench.tenant, turn, 60)
    await reader.watch(bench.tenant, bench.conversation, 60)
    keys = bench.keys.followers(turn), bench.keys.watchers(bench.conversation)
    assert all([50 < await bench.ttl_s(key) <= 60 for key in keys])
    await reader.follow(bench.tenant, turn, 0)
    await reader.watch(bench.tenant, bench.conversation, 0)
    assert await bench.store.call("EXISTS", *keys) == 0


async def test_follow_said_before_a_restore_is_known_after_it(bench: Bench, reader: RedisEventLog) -> None:
    """A follower that speaks while the turn's record is lost is told to the owner that writes it again."""
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    assert await reader.follow(bench.tenant, heading.turn_id, 60) is None
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.append(heading.turn_id) == Appended(None, [reader.worker])


async def test_show_gives_entries_to_one_worker(bench: Bench, reader: RedisEventLog, store: Redis) -> None:
    """What is shown arrives as it was, whatever is in the text, at the worker that is named."""
    turn = await bench.turn()
    text = 'a\0b\r\n"\\é😀\u2028'
    shown = [
        Shown(turn, 1, [Entry(1 + len(text), TextDelta(text)), Entry(2 + len(text), COMPLETED)]),
        Shown(NO_ONE, 7, [Entry(8, TextDelta("x"))]),
    ]
    pubsub = store.pubsub()
    await pubsub.subscribe(INBOX + reader.worker)
    assert (await pubsub.get_message(timeout=PATIENCE_S))["type"] == "subscribe"
    await bench.log.show(reader.worker, shown)
    message = await pubsub.get_message(timeout=PATIENCE_S)
    await pubsub.aclose()
    assert decode_shown(message["data"]) == shown


# --- watch --------------------------------------------------------------------------------------------------------


async def test_claim_tells_the_watchers_but_not_the_claiming_worker(
    bench: Bench, reader: RedisEventLog, owner_ear: Ear, store: Redis
) -> None:
    """A turn that begins is told to every other worker with a socket on the conversation, with its user."""
    await bench.log.watch(bench.tenant, bench.conversation, 60)
    await reader.watch(bench.tenant, bench.conversation, 60)
    async with Ear(store, reader.worker) as ear:
        turn = await bench.turn()
        assert await ear.heard() == [["began", bench.tenant, bench.conversation, turn, OWNER]]
    assert await owner_ear.heard() == []


async def test_claim_that_starts_nothing_tells_nobody(bench: Bench, reader: RedisEventLog, store: Redis) -> None:
    """Neither a repeated nor a refused message is a turn that begins."""
    first = await bench.claim("k1")
    await reader.watch(bench.tenant, bench.conversation, 60)
    async with Ear(store, reader.worker) as ear:
        outcomes = [(await bench.claim("k1")).outcome, (await bench.claim("k1", "b2")).outcome]
        outcomes.append((await bench.claim()).outcome)
        assert outcomes == ["repeated", "mismatched", "busy"]
        assert await ear.heard() == []
        await bench.finish(first.turn_id, Entry(2, COMPLETED))
        await bench.another_conversation()
        await bench.turn()
        assert await ear.heard() == []


async def test_watch_ends_when_it_is_given_up_or_falls_silent(
    bench: Bench, reader: RedisEventLog, store: Redis
) -> None:
    """A worker whose sockets have left is told nothing more, whether or not it said so."""
    silent = bench.log_of(new_worker())
    await reader.watch(bench.tenant, bench.conversation, 60)
    await silent.watch(bench.tenant, bench.conversation, 0.05)
    await reader.watch(bench.tenant, bench.conversation, 60)
    await reader.watch(bench.tenant, bench.conversation, 0)
    said_until_ms = float(await store.call("ZSCORE", bench.keys.watchers(bench.conversation), silent.worker))
    async with asyncio.timeout(PATIENCE_S):
        while await bench.now_ms() <= said_until_ms:
            await asyncio.sleep(0.01)
    async with Ear(store, reader.worker) as ear, Ear(store, silent.worker) as silent_ear:
        await bench.turn()
        assert (await ear.heard(), await silent_ear.heard()) == ([], [])


# --- stop ---------------------------------------------------------------------------------------------------------


async def test_request_stop_tells_the_owner_at_once(bench: Bench, reader: RedisEventLog, owner_ear: Ear) -> None:
    """A stop asked for anywhere reaches the owner without waiting for its append, with the reason that stands."""
    turn = await bench.turn()
    await reader.request_stop(bench.tenant, turn, StopReason.USER)
    assert await owner_ear.heard() == [["stop", turn, "user"]]
    await reader.request_stop(bench.tenant, turn, StopReason.ADMIN)  # the first word may have been lost
    assert await owner_ear.heard() == [["stop", turn, "user"]]
    assert (await bench.append(turn)).stop is StopReason.USER


async def test_request_stop_tells_the_owner_of_now(bench: Bench, reader: RedisEventLog, owner_ear: Ear) -> None:
    """After a take-over the stop goes to the worker that owns the turn."""
    turn = await bench.turn()
    assert await reader.take_over(bench.tenant, turn, bench.worker) == 2
    async with Ear(bench.store, reader.worker) as ear:
        await bench.log.request_stop(bench.tenant, turn, StopReason.USER)
        assert await ear.heard() == [["stop", turn, "user"]]
    assert await owner_ear.heard() == []


async def test_request_stop_of_an_ended_turn_tells_nobody(bench: Bench, reader: RedisEventLog, owner_ear: Ear) -> None:
    """A stop that comes too late disturbs nobody."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    await reader.request_stop(bench.tenant, turn, StopReason.USER)
    assert await owner_ear.heard() == []
