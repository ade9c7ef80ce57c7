"""What an owner writes again: after an answer that was lost, after the log's end was lost, after all of it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.conversation import Message
from gateway.core.events import (
    Append,
    Entry,
    Event,
    Fenced,
    LogBehind,
    LogLost,
    MessageCitations,
    TextDelta,
    TurnStarted,
    advance,
    after,
    merged,
)
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId, TurnState
from gateway.store.redis import Redis
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, OWNER, QUESTION, Bench, new_worker
from tests.units import Unit, units

CITED = MessageCitations([{"link": "x"}])


def started(bench: Bench, turn: TurnId) -> Entry:
    return Entry(1, TurnStarted(turn, bench.conversation, 1))


async def cut_log(bench: Bench, turn: TurnId, keep: int) -> None:
    """Have the store lose all but the first entries of a log, as when a replica without the last ones takes over."""
    log = bench.keys.log(turn)
    kept = await bench.store.call("XRANGE", log, "-", "+", "COUNT", keep) if keep else ()
    await bench.store.call("DEL", log)
    for entry_id, values in kept:
        await bench.store.call("XADD", log, entry_id, "e", values[b"e"], "d", values[b"d"])
    await bench.store.call("EXPIRE", log, 100)


# --- a log that ends too early ------------------------------------------------------------------------------------


async def test_append_beyond_the_logs_end_is_behind_and_writes_nothing(bench: Bench) -> None:
    """A log never gets a gap: the owner is told where it ends, also when the whole of it is gone."""
    turn = await bench.turn()
    await bench.append(turn, Entry(4, TextDelta("abc")))
    for _ in range(2):
        with pytest.raises(LogBehind) as behind:
            await bench.append(turn, Entry(9, TextDelta("fgh")))
        assert behind.value.position == 4
    assert [entry.position for entry in await bench.all(turn)] == [1, 4]
    await bench.store.call("DEL", bench.keys.log(turn))
    with pytest.raises(LogBehind) as behind:
        await bench.append(turn, Entry(9, TextDelta("fgh")))
    assert behind.value.position == 0
    assert await bench.store.call("EXISTS", bench.keys.log(turn)) == 0


async def test_finish_beyond_the_logs_end_is_behind_and_ends_nothing(bench: Bench) -> None:
    """An ending is not written behind a gap: the turn still runs, and nothing is settled."""
    turn = await bench.turn()
    with pytest.raises(LogBehind) as behind:
        await bench.finish(turn, Entry(9, COMPLETED))
    assert behind.value.position == 1
    record = await bench.log.record(bench.tenant, turn)
    assert record is not None
    assert (record.state, record.leased) == (TurnState.RUNNING, True)
    assert await bench.store.call("EXISTS", bench.keys.settlements()) == 0
    assert (await bench.cached()).active_turn_id == turn
    await bench.finish(turn, Entry(8, TextDelta("bcdefgh")), Entry(9, COMPLETED))
    assert units(await bench.all(turn))[-1] == (9, COMPLETED)


async def test_append_that_is_behind_renews_the_lease(make_bench: MakeBench) -> None:
    """Whoever has to send again is alive: nobody takes the turn meanwhile."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    turn = await bench.turn()
    await bench.until_orphaned(turn)
    log = bench.log_of(bench.worker)
    (answer,) = await log.append(bench.tenant, [Append(turn, 1, 5, [Entry(6, TextDelta("x"))])])
    assert isinstance(answer, LogBehind)
    assert await log.take_over(bench.tenant, turn) is None


async def test_append_behind_sent_again_from_there_makes_the_log_whole(bench: Bench) -> None:
    """What the store has lost of a log's end comes back, each character once."""
    turn = await bench.turn()
    sent = [Entry(4, TextDelta("abc")), Entry(5, CITED), Entry(8, TextDelta("def"))]
    for entry in sent:
        await bench.append(turn, entry)
    await cut_log(bench, turn, keep=2)
    with pytest.raises(LogBehind) as behind:
        await bench.append(turn, Entry(10, TextDelta("gh")))
    rest = after([*sent, Entry(10, TextDelta("gh"))], behind.value.position)
    await bench.append(turn, *merged(rest), follows=behind.value.position)
    assert units(await bench.all(turn)) == units([started(bench, turn), *sent, Entry(10, TextDelta("gh"))])


# --- an append that is sent again with more -----------------------------------------------------------------------


async def pages(bench: Bench, turn: TurnId, cursor: int, size: int) -> list[Unit]:
    """Read a log to its end as a reader does, a page at a time, each from where the last one ended."""
    found: list[Entry] = []
    while page := await bench.log.read(bench.tenant, turn, found[-1].position if found else cursor, size):
        assert len(page) <= size
        found += page
    return units(found)


@pytest.mark.parametrize("cursor", [0, 1, 2, 4, 6, 8])
async def test_append_resent_with_its_delta_grown_is_read_once(bench: Bench, cursor: int) -> None:
    """An append whose answer was lost comes again with more text in the same delta; whoever reads has it once."""
    turn = await bench.turn()
    await bench.append(turn, Entry(4, TextDelta("abc")))
    await bench.append(turn, Entry(8, TextDelta("abcdefg")))
    whole = units([started(bench, turn), Entry(8, TextDelta("abcdefg"))])
    for size in (1, 2, 100):
        assert await pages(bench, turn, cursor, size) == [unit for unit in whole if unit[0] > cursor]


SAID = st.lists(st.one_of(st.text(min_size=1, max_size=5).map(TextDelta), st.just(CITED)), min_size=1, max_size=4)
FATES = st.sampled_from(["answered", "answered", "unanswered", "unsent", "cut"])


def recut(entries: Sequence[Entry], data: st.DataObject) -> list[Entry]:
    """Merge entries and cut their deltas anew, anywhere."""
    found: list[Entry] = []
    for entry in merged(entries):
        position, event = entry.position, entry.event
        if isinstance(event, TextDelta):
            begin = position - len(event.text)
            ends = sorted(data.draw(st.sets(st.integers(1, len(event.text)), max_size=3)) | {len(event.text)})
            found += [
                Entry(begin + end, TextDelta(event.text[start:end]))
                for start, end in zip([0, *ends], ends, strict=False)
            ]
        else:
            found.append(Entry(position, event))
    return found


class Owner:
    """A turn's owner as the promise has it: keeps all that was said, and what it believes to be saved."""

    def __init__(self, bench: Bench, turn: TurnId) -> None:
        self.bench = bench
        self.turn = turn
        self.said = [started(bench, turn)]
        self.saved = 1

    def say(self, events: Sequence[Event]) -> None:
        for event in events:
            self.said.append(Entry(self.said[-1].position + advance(event), event))

    async def save(self, fate: str, data: st.DataObject) -> None:
        if fate == "cut":  # the store loses some of the end
            count = await self.bench.store.call("XLEN", self.bench.keys.log(self.turn))
            await cut_log(self.bench, self.turn, keep=data.draw(st.integers(0, count)))
        if fate == "unsent":
            return
        entries = recut(after(self.said, self.saved), data)
        try:
            await self.bench.append(self.turn, *entries, follows=self.saved)
        except LogBehind as behind:
            self.saved = min(behind.position, self.saved - 1)  # never further than what was believed
            await self.save("answered", data)
        else:
            if fate != "unanswered":
                self.saved = self.said[-1].position


def test_log_of_any_resends_is_read_once_from_any_cursor(any_store_url: str, tenant: TenantId) -> None:
    """However appends are cut, merged, lost on either way and sent again, a replay has each character once."""

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        async def play() -> None:
            async with aclosing(Redis(any_store_url, timeout_s=2.0, connections=2)) as store:
                bench = Bench(store, tenant)
                await bench.cache()
                owner = Owner(bench, await bench.turn())
                for said, fate in data.draw(st.lists(st.tuples(SAID, FATES), min_size=1, max_size=7)):
                    owner.say(said)
                    await owner.save(fate, data)
                await owner.save("answered", data)
                whole = units(owner.said)
                last = owner.said[-1].position
                for cursor in {0, *(entry.position for entry in await bench.all(owner.turn)), *range(0, last, 3)}:
                    found = await pages(bench, owner.turn, cursor, data.draw(st.integers(1, 5)))
                    assert found == [unit for unit in whole if unit[0] > cursor]

        asyncio.run(play())

    check()


# --- a record that was lost ---------------------------------------------------------------------------------------


async def test_write_of_a_lost_record_says_so(bench: Bench) -> None:
    """An owner learns from whatever it writes that the store has lost its turn, and nothing is written in its place."""
    turn = await bench.turn()
    await bench.lose(turn)
    with pytest.raises(LogLost):
        await bench.append(turn, Entry(2, TextDelta("a")))
    with pytest.raises(LogLost):
        await bench.append(turn)
    with pytest.raises(LogLost):
        await bench.finish(turn, Entry(2, COMPLETED))
    assert await bench.store.call("EXISTS", bench.keys.turn(turn), bench.keys.log(turn), bench.keys.settlements()) == 0


async def test_restore_writes_again_all_that_a_claim_wrote(bench: Bench) -> None:
    """A store that forgot a claim knows it again: record, running set, key, the conversation's lock and question."""
    await bench.another_conversation()
    answer = Message("assistant", "Hello", message_id="m")
    await bench.finish(await bench.turn(), Entry(2, COMPLETED), messages=[answer])
    before = await bench.store.call("DUMP", bench.keys.conversation(bench.conversation))
    heading = await bench.begin("k1")
    assert (heading.ordinal, heading.messages_before, heading.last_message_id) == (2, 2, "m")
    turn = heading.turn_id
    record = await bench.log.record(bench.tenant, turn)
    idempotency = bench.keys.idempotency(OWNER, bench.conversation, "k1")
    await bench.lose(turn)
    await bench.store.call("DEL", idempotency)
    await bench.store.call("RESTORE", bench.keys.conversation(bench.conversation), 100_000, before, "REPLACE")
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.log.record(bench.tenant, turn) == record
    assert [entry.decode() for entry in await bench.store.call("ZRANGE", bench.keys.running(), 0, -1)] == [turn]
    assert await bench.log.repeated(bench.tenant, OWNER, bench.conversation, "k1") == (turn, "b1")
    found = await bench.cached()
    assert (found.active_turn_id, found.messages) == (turn, [QUESTION, answer, QUESTION])
    assert (await bench.claim()).outcome == "busy"
    assert (await bench.claim("k1")).outcome == "repeated"
    keys = (bench.keys.turn(turn), bench.keys.running(), idempotency, bench.keys.conversation(bench.conversation))
    assert all([0 < await bench.ttl_s(key) <= 500 for key in keys])


async def test_restore_and_the_log_from_the_beginning_make_it_whole(bench: Bench) -> None:
    """After a loss the owner writes its whole log again, and the turn ends as if nothing had been."""
    heading = await bench.begin()
    turn = heading.turn_id
    said = [started(bench, turn), Entry(4, TextDelta("abc")), Entry(5, CITED), Entry(7, TextDelta("de"))]
    await bench.append(turn, *said[1:])
    await bench.lose(turn)
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.all(turn) == []
    with pytest.raises(LogBehind) as behind:
        await bench.append(turn, Entry(8, TextDelta("f")))
    assert behind.value.position == 0
    await bench.append(turn, *said, Entry(8, TextDelta("f")))
    assert 290 < await bench.ttl_s(bench.keys.log(turn)) <= 300
    await bench.finish(turn, Entry(9, COMPLETED))
    assert await bench.all(turn) == [*said, Entry(8, TextDelta("f")), Entry(9, COMPLETED)]


async def test_restore_leaves_nothing_of_an_old_log(bench: Bench) -> None:
    """A record that went alone takes its log along: what is appended from the beginning finds no rest of it."""
    heading = await bench.begin()
    turn = heading.turn_id
    await bench.append(turn, Entry(4, TextDelta("abc")))
    await bench.store.call("DEL", bench.keys.turn(turn))
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.all(turn) == []


async def test_restore_where_there_is_a_record_changes_nothing(bench: Bench) -> None:
    """Neither a running nor an ended turn is touched, whoever believes it lost."""
    heading = await bench.begin("k1")
    turn = heading.turn_id
    await bench.append(turn, Entry(4, TextDelta("abc")))

    async def stands() -> list[object]:
        keys = bench.keys
        return [
            sorted(map(repr, (await bench.store.call("HGETALL", keys.turn(turn))).items())),
            await bench.all(turn),
            await bench.store.call("ZRANGE", keys.running(), 0, -1, "WITHSCORES"),
            await bench.cached(),
        ]

    for _ in range(2):
        before = await stands()
        await bench.log_of(new_worker()).restore(bench.tenant, heading, 7)
        assert await stands() == before
        if before[2]:
            await bench.finish(turn, Entry(5, COMPLETED))


async def test_restore_under_the_owners_epoch_keeps_a_zombie_out(make_bench: MakeBench) -> None:
    """A turn that was taken over and then lost is its second owner's again; the first stays fenced."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    heading = await bench.begin()
    turn = heading.turn_id
    await bench.until_orphaned(turn)
    second = bench.log_of(new_worker())
    epoch = await second.take_over(bench.tenant, turn)
    assert epoch == 2
    await bench.lose(turn)
    await second.restore(bench.tenant, heading, epoch)
    with pytest.raises(Fenced):
        await bench.append(turn, started(bench, turn))
    await second.append(bench.tenant, [Append(turn, epoch, 0, [started(bench, turn)])])
    assert await bench.all(turn) == [started(bench, turn)]


async def test_restore_does_not_take_the_lock_from_a_turn_that_began_since(bench: Bench) -> None:
    """The conversation went on after the loss: the new turn keeps it, and the old one comes to its end beside it."""
    before = await bench.cached()
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    await bench.store.call("DEL", bench.keys.conversation(bench.conversation))
    await bench.conversations.put(bench.tenant, before)
    newer = await bench.turn()
    await bench.log.restore(bench.tenant, heading, 1)
    assert (await bench.cached()).active_turn_id == newer
    await bench.append(heading.turn_id, started(bench, heading.turn_id))
    await bench.finish(heading.turn_id, Entry(2, COMPLETED))
    assert (await bench.cached()).active_turn_id == newer
    assert (await bench.claim()).turn_id == newer
    assert [message.role for message in (await bench.cached()).messages] == ["user"]


async def test_restore_shortens_no_transcript_that_went_on(bench: Bench) -> None:
    """What was said in the conversation since stays, though the lost turn knew less of it."""
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    answer = Message("assistant", "Hello", message_id="m")
    await bench.finish(await bench.turn(), Entry(2, COMPLETED), messages=[answer])
    await bench.log.restore(bench.tenant, heading, 1)
    found = await bench.cached()
    assert (found.active_turn_id, found.messages) == (heading.turn_id, [QUESTION, QUESTION, answer])
    await bench.append(heading.turn_id, started(bench, heading.turn_id))
    await bench.finish(heading.turn_id, Entry(2, COMPLETED))
    assert (await bench.claim()).ordinal == 3


async def test_restore_takes_the_lock_from_a_turn_that_has_ended(bench: Bench) -> None:
    """A lock that a lost or ended turn left behind holds nobody up."""
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    newer = await bench.turn()  # nobody knew of the first any more
    await bench.store.call("HSET", bench.keys.turn(newer), "state", "failed")
    await bench.log.restore(bench.tenant, heading, 1)
    assert (await bench.claim()).turn_id == heading.turn_id


async def test_restore_does_not_take_a_key_from_the_turn_that_used_it_since(bench: Bench) -> None:
    """A message sent again in the moment of a loss leads to one turn from then on, whichever was first written."""
    heading = await bench.begin("k1")
    await bench.lose(heading.turn_id)
    idempotency = bench.keys.idempotency(OWNER, bench.conversation, "k1")
    await bench.store.call("DEL", idempotency)
    again = await bench.claim("k1")
    assert again.outcome == "started"
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.log.repeated(bench.tenant, OWNER, bench.conversation, "k1") == (again.turn_id, "b1")


async def test_restore_without_a_cached_conversation_makes_none(bench: Bench) -> None:
    """A transcript is never begun from its last question: the vendor's copy is whole."""
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    await bench.store.call("DEL", bench.keys.conversation(bench.conversation))
    await bench.log.restore(bench.tenant, heading, 1)
    assert await bench.store.call("EXISTS", bench.keys.conversation(bench.conversation)) == 0


async def test_restore_writes_the_question_once(bench: Bench) -> None:
    """Where the conversation survived with its question, it is not asked a second time, and turns count on."""
    heading = await bench.begin()
    await bench.lose(heading.turn_id)
    await bench.log.restore(bench.tenant, heading, 1)
    assert (await bench.cached()).messages == [QUESTION]
    await bench.append(heading.turn_id, started(bench, heading.turn_id))
    await bench.finish(heading.turn_id, Entry(2, COMPLETED))
    claim = await bench.claim()
    assert (claim.outcome, claim.ordinal) == ("started", 2)
