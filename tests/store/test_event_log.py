"""The contract of the event log: one claim wins, resending stores once, a zombie is fenced, any cursor reads on."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.events import (
    Append,
    Appended,
    Claim,
    Entry,
    Fenced,
    LogBehind,
    LogLost,
    MessageCitations,
    MessageStarted,
    TextDelta,
    TurnFailed,
    TurnRecord,
    TurnStarted,
)
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import StopReason, TurnId, TurnState
from gateway.store.redis import Redis
from tests.store.conftest import MakeBench
from tests.store.log_bench import COMPLETED, NO_ONE, OWNER, QUESTION, USAGE, Bench

# --- claim --------------------------------------------------------------------------------------------------------


async def test_claim_of_many_at_once_lets_exactly_one_start(bench: Bench) -> None:
    """However many claim a conversation at the same moment, one starts and the others are told which."""
    claims = await asyncio.gather(*(bench.claim() for _ in range(50)))
    started = [claim for claim in claims if claim.outcome == "started"]
    assert len(started) == 1
    busy = [claim for claim in claims if claim.outcome == "busy"]
    assert len(busy) == 49
    assert {claim.turn_id for claim in busy} == {started[0].turn_id}
    assert started[0].ordinal == 1


async def test_claim_writes_turn_started_with_it(bench: Bench) -> None:
    """A turn that was claimed has its first event in the log at once, at position 1."""
    claim = await bench.claim()
    assert await bench.all(claim.turn_id) == [Entry(1, TurnStarted(claim.turn_id, bench.conversation, 1))]
    record = await bench.log.record(bench.tenant, claim.turn_id)
    assert record == TurnRecord(
        claim.turn_id,
        bench.conversation,
        OWNER,
        TurnState.RUNNING,
        epoch=1,
        leased=True,
        persona="default",
        messages_before=0,
        last_message_id=None,
        message_id=None,
    )
    head = await bench.conversations.head(bench.tenant, bench.conversation)
    assert head is not None
    assert head.active_turn_id == claim.turn_id


async def test_claim_after_the_ending_counts_on(bench: Bench) -> None:
    """Turns of a conversation are numbered 1, 2, 3 whatever the workers' clocks say."""
    for ordinal in (1, 2, 3):
        claim = await bench.claim()
        assert (claim.outcome, claim.ordinal) == ("started", ordinal)
        await bench.finish(claim.turn_id, Entry(2, COMPLETED))


async def test_claim_of_a_read_back_conversation_counts_on_from_its_messages(bench: Bench) -> None:
    """A conversation that came from the vendor with two questions goes on with turn 3."""
    bench.conversation = ConversationId(str(uuid.uuid4()))
    await bench.cache(messages=[Message(role, "x") for role in ("user", "assistant", "user", "assistant")])
    assert (await bench.claim()).ordinal == 3


async def test_claim_by_another_user_or_of_no_conversation_is_unknown(bench: Bench) -> None:
    """Nobody starts a turn in what is not theirs, and nothing is written for them."""
    assert (await bench.claim(owner=UserHash("ff" * 16))).outcome == "unknown"
    bench.conversation = ConversationId(str(uuid.uuid4()))
    assert await bench.claim() == Claim("unknown", TurnId(""), 0)
    assert await bench.store.call("EXISTS", bench.keys.conversation(bench.conversation)) == 0


async def test_claim_with_the_same_key_leads_back_to_the_first_turn(bench: Bench) -> None:
    """A message sent again is not answered again, neither while the first runs nor after it has ended."""
    first = await bench.claim("k1")
    assert await bench.claim("k1") == Claim("repeated", first.turn_id, 0)
    await bench.finish(first.turn_id, Entry(2, COMPLETED))
    assert await bench.claim("k1") == Claim("repeated", first.turn_id, 0)
    assert (await bench.claim("k2")).outcome == "started"


async def test_claim_of_many_with_one_key_starts_one_and_repeats_the_rest(bench: Bench) -> None:
    """Fifty retries that arrive together make one turn."""
    claims = await asyncio.gather(*(bench.claim("k1") for _ in range(50)))
    assert sorted(claim.outcome for claim in claims) == ["repeated"] * 49 + ["started"]
    assert len({claim.turn_id for claim in claims}) == 1


async def test_claim_with_the_same_key_and_another_body_is_mismatched(bench: Bench) -> None:
    """A key that comes with another message is refused, not answered with the old answer."""
    first = await bench.claim("k1", "b1")
    assert await bench.claim("k1", "b2") == Claim("mismatched", first.turn_id, 0)


async def test_claim_key_of_another_conversation_is_another_key(bench: Bench) -> None:
    """Two conversations may use the same key without meeting."""
    first = await bench.claim("k1")
    bench.conversation = ConversationId(str(uuid.uuid4()))
    await bench.cache()
    second = await bench.claim("k1")
    assert (first.outcome, second.outcome) == ("started", "started")


async def test_claim_that_was_refused_leaves_its_key_free(bench: Bench) -> None:
    """A message refused because another turn runs may be sent again under the same key."""
    first = await bench.claim()
    assert (await bench.claim("k1")).outcome == "busy"
    await bench.finish(first.turn_id, Entry(2, COMPLETED))
    assert (await bench.claim("k1")).outcome == "started"


async def test_claim_after_the_owner_vanished_is_orphaned(make_bench: MakeBench) -> None:
    """A turn whose lease ran out is named as such, and stays until someone gives it an ending."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    turn = await bench.turn()
    await bench.until_orphaned(turn)
    assert await bench.claim() == Claim("orphaned", turn, 0)
    record = await bench.log.record(bench.tenant, turn)
    assert record is not None
    assert (record.state, record.leased) == (TurnState.RUNNING, False)


# --- append -------------------------------------------------------------------------------------------------------


async def test_append_resent_stores_once(bench: Bench) -> None:
    """A batch whose answer was lost may be sent again, whole or with more behind it."""
    turn = await bench.turn()
    batch = [Entry(2, MessageStarted("m", "r", "assistant")), Entry(5, TextDelta("abc"))]
    await bench.append(turn, *batch)
    await bench.append(turn, *batch)
    await bench.append(turn, *batch, Entry(7, TextDelta("de")))
    assert (await bench.all(turn))[1:] == [*batch, Entry(7, TextDelta("de"))]


async def test_append_of_any_text_comes_back_the_same(bench: Bench) -> None:
    """No character of an answer is changed on its way through Lua and RESP."""
    turn = await bench.turn()
    text = 'a\0b\r\n"\\é😀\u2028'
    await bench.append(turn, Entry(1 + len(text), TextDelta(text)))
    assert (await bench.all(turn))[1:] == [Entry(1 + len(text), TextDelta(text))]


async def test_append_under_an_old_epoch_is_fenced(make_bench: MakeBench) -> None:
    """A zombie owner writes nothing once another has taken the turn over."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    turn = await bench.turn()
    await bench.until_orphaned(turn)
    assert await bench.log.take_over(bench.tenant, turn) == 2
    with pytest.raises(Fenced):
        await bench.append(turn, Entry(3, TextDelta("zo")))
    with pytest.raises(Fenced):
        await bench.finish(turn, Entry(4, COMPLETED))
    await bench.append(turn, Entry(2, TextDelta("n")), epoch=2)
    assert [entry.position for entry in await bench.all(turn)] == [1, 2]


async def test_append_to_an_ended_or_unknown_turn_is_fenced(bench: Bench) -> None:
    """Nothing is written behind an ending, nor to a turn that never was."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    for target, refusal in ((turn, Fenced), (NO_ONE, LogLost)):
        with pytest.raises(refusal):
            await bench.append(target, Entry(3, TextDelta("x")))
    assert [entry.position for entry in await bench.all(turn)] == [1, 2]
    assert await bench.store.call("EXISTS", bench.keys.log(NO_ONE), bench.keys.turn(NO_ONE)) == 0


async def test_append_to_many_turns_answers_each_for_itself(make_bench: MakeBench) -> None:
    """One call brings every turn what is its own, and a turn that is lost, behind or another's hinders no other."""
    bench = make_bench(lease_s=0.05)
    await bench.cache()
    taken = await bench.turn()
    await bench.until_orphaned(taken)
    assert await bench.log.take_over(bench.tenant, taken) == 2
    await bench.finish(taken, Entry(2, COMPLETED), epoch=2)
    stopped = await bench.turn()
    await bench.log.request_stop(bench.tenant, stopped, StopReason.USER)
    first, second = Entry(3, TextDelta("ab")), Entry(4, TextDelta("c"))
    answers = await bench.log.append(
        bench.tenant,
        [
            Append(NO_ONE, 1, 1, [first]),
            Append(stopped, 1, 1, [first, second]),
            Append(taken, 1, 1, [first]),
            Append(stopped, 1, 9, [Entry(10, TextDelta("z"))]),
            Append(stopped, 1, 4, ()),
        ],
    )
    assert [type(answer) for answer in answers] == [LogLost, Appended, Fenced, LogBehind, Appended]
    assert answers[1] == answers[4] == Appended(StopReason.USER, ())
    assert isinstance(answers[3], LogBehind)
    assert answers[3].position == 4
    assert (await bench.all(stopped))[1:] == [first, second]
    assert [entry.position for entry in await bench.all(taken)] == [1, 2]


async def test_append_answers_with_the_stop_flag(bench: Bench) -> None:
    """An owner that hears nothing else learns of a stop from its next append; the first reason stands."""
    turn = await bench.turn()
    assert await bench.append(turn) == Appended(None, ())
    await bench.log.request_stop(bench.tenant, turn, StopReason.USER)
    await bench.log.request_stop(bench.tenant, turn, StopReason.ADMIN)
    assert await bench.append(turn, Entry(2, TextDelta("a"))) == Appended(StopReason.USER, ())
    assert await bench.append(turn) == Appended(StopReason.USER, ())


async def test_append_to_a_log_that_holds_more_than_its_owner_knows_stores_once(bench: Bench) -> None:
    """An append whose answer was lost is skipped when it comes again, however sure its sender was of the log."""
    turn = await bench.turn()
    for number in range(2, 5):
        await bench.append(turn, Entry(number, TextDelta("a")))
    unheard = bench.log_of(bench.worker)
    sent = [Entry(6, TextDelta("bc")), Entry(7, TextDelta("d"))]
    assert await unheard.append(bench.tenant, [Append(turn, 1, 4, sent)]) == [Appended(None, ())]
    assert await bench.append(turn, *sent) == Appended(None, ())
    assert await bench.append(turn, Entry(8, TextDelta("e")), follows=7) == Appended(None, ())
    assert [entry.position for entry in await bench.all(turn)] == [1, 2, 3, 4, 6, 7, 8]


async def test_append_to_a_log_that_lost_its_end_says_where_it_ends(bench: Bench) -> None:
    """A store that went back in time is noticed by an owner that has appended all along, and made whole."""
    turn = await bench.turn()
    entries = [Entry(number, TextDelta("a")) for number in range(2, 6)]
    log = bench.keys.log(turn)
    for entry in entries:
        await bench.append(turn, entry)
        if entry.position == 3:
            past = await bench.store.call("DUMP", log)
    await bench.store.call("RESTORE", log, 0, past, "REPLACE")
    with pytest.raises(LogBehind) as behind:
        await bench.append(turn, Entry(6, TextDelta("b")))
    assert behind.value.position == 3
    await bench.append(turn, *entries[2:], Entry(6, TextDelta("b")))
    await bench.append(turn, Entry(7, TextDelta("c")))
    assert [entry.position for entry in await bench.all(turn)] == [1, 2, 3, 4, 5, 6, 7]


async def test_append_sent_from_before_the_logs_end_leaves_it_in_order(bench: Bench) -> None:
    """An owner that sends less than the log has, and then goes on from there, adds what is new and no more."""
    turn = await bench.turn()
    entries = [Entry(number, TextDelta("a")) for number in range(2, 6)]
    for entry in entries:
        await bench.append(turn, entry)
    await bench.append(turn, *entries[:2])
    await bench.append(turn, *entries[2:], Entry(6, TextDelta("b")))
    assert [entry.position for entry in await bench.all(turn)] == [1, 2, 3, 4, 5, 6]


async def test_append_keeps_the_lease_close_to_its_whole_length(make_bench: MakeBench) -> None:
    """A lease that has hardly run is not written again; one that has run an eighth is."""
    bench = make_bench(lease_s=8)
    await bench.cache()
    turn = await bench.turn()
    key = bench.keys.turn(turn)
    written = int(await bench.store.call("HGET", key, "lease"))
    await bench.append(turn, Entry(2, TextDelta("a")))
    assert int(await bench.store.call("HGET", key, "lease")) == written
    await bench.store.call("HINCRBY", key, "lease", -1500)
    await bench.append(turn, Entry(3, TextDelta("b")))
    assert int(await bench.store.call("HGET", key, "lease")) >= written


async def test_request_stop_of_an_ended_or_unknown_turn_writes_nothing(bench: Bench) -> None:
    """A stop that comes too late leaves no trace."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    for target in (turn, NO_ONE):
        await bench.log.request_stop(bench.tenant, target, StopReason.USER)
        assert await bench.store.call("HGET", bench.keys.turn(target), "stop") is None
    assert await bench.store.call("EXISTS", bench.keys.turn(NO_ONE)) == 0


async def test_append_without_entries_renews_the_lease(make_bench: MakeBench) -> None:
    """A quiet turn is kept by its heartbeat: it cannot be taken over as long as its owner appends."""
    bench = make_bench(lease_s=0.3)
    await bench.cache()
    turn = await bench.turn()
    started = await bench.store.call("HGET", bench.keys.turn(turn), "lease")
    await bench.append(turn)
    assert int(await bench.store.call("HGET", bench.keys.turn(turn), "lease")) >= int(started)
    assert await bench.log.take_over(bench.tenant, turn) is None
    await bench.until_orphaned(turn)
    await bench.append(turn)  # late, but nobody took the turn meanwhile: it is still its owner's
    assert await bench.log.take_over(bench.tenant, turn) is None


# --- finish -------------------------------------------------------------------------------------------------------


async def test_finish_ends_the_turn_and_frees_the_conversation(bench: Bench) -> None:
    """The ending is the log's last entry, the state is final, the conversation may have its next turn."""
    turn = await bench.turn()
    await bench.append(turn, Entry(4, TextDelta("abc")))
    await bench.finish(turn, Entry(4, TextDelta("abc")), Entry(6, TextDelta("de")), Entry(7, COMPLETED))
    assert (await bench.all(turn))[1:] == [Entry(4, TextDelta("abc")), Entry(6, TextDelta("de")), Entry(7, COMPLETED)]
    record = await bench.log.record(bench.tenant, turn)
    assert record is not None
    assert (record.state, record.leased) == (TurnState.COMPLETED, False)
    head = await bench.conversations.head(bench.tenant, bench.conversation)
    assert head is not None
    assert head.active_turn_id is None
    assert await bench.log.take_over(bench.tenant, turn) is None


async def test_finish_resent_changes_nothing(bench: Bench) -> None:
    """An ending whose answer was lost may be sent again; the transcript is not doubled."""
    turn = await bench.turn()
    answer = Message("assistant", "Hello", turn_id=turn)
    for _ in range(3):
        await bench.finish(turn, Entry(2, COMPLETED), messages=[answer])
    record = await bench.conversations.get(bench.tenant, bench.conversation)
    assert record is not None
    assert record.messages == [QUESTION, answer]
    assert [entry.position for entry in await bench.all(turn)] == [1, 2]


async def test_finish_with_another_ending_is_fenced(bench: Bench) -> None:
    """A turn has one ending; a second, different one is refused."""
    turn = await bench.turn()
    await bench.finish(turn, Entry(2, COMPLETED))
    failed = TurnFailed(None, None, None, "", USAGE)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(Fenced):
        await bench.finish(turn, Entry(3, failed))
    assert [entry.event for entry in await bench.all(turn)][-1] == COMPLETED


async def test_finish_leaves_the_next_turn_active(bench: Bench) -> None:
    """An ending sent again late does not free a conversation that is busy with its next turn."""
    first = await bench.turn()
    await bench.finish(first, Entry(2, COMPLETED))
    second = await bench.turn()
    await bench.finish(first, Entry(2, COMPLETED))
    assert (await bench.claim()).turn_id == second


async def test_finish_of_a_turn_whose_record_was_read_anew_frees_no_other(bench: Bench) -> None:
    """A lost worker's ending, written while the next turn runs on a fresh record, leaves that turn's mark alone."""
    lost = await bench.turn()
    await bench.store.call("DEL", bench.keys.conversation(bench.conversation))
    await bench.cache()
    following = await bench.turn()
    await bench.finish(lost, Entry(2, COMPLETED))
    assert (await bench.claim()).turn_id == following
    head = await bench.conversations.head(bench.tenant, bench.conversation)
    assert head is not None
    assert head.active_turn_id == following


async def test_finish_extends_the_transcript_only_where_one_is_cached(bench: Bench) -> None:
    """A transcript that left the cache is not rebuilt from its last answer: the vendor's copy is whole."""
    turn = await bench.turn()
    await bench.store.call("DEL", bench.keys.conversation(bench.conversation))
    await bench.finish(turn, Entry(2, COMPLETED), messages=[Message("assistant", "Hello")])
    assert await bench.store.call("EXISTS", bench.keys.conversation(bench.conversation)) == 0
    record = await bench.log.record(bench.tenant, turn)
    assert record is not None
    assert record.state is TurnState.COMPLETED


async def test_finish_keeps_the_transcript_in_order(bench: Bench) -> None:
    """Messages of many turns come back in the order in which they were said."""
    for number in range(12):
        turn = await bench.turn()
        await bench.finish(turn, Entry(2, COMPLETED), messages=[Message("assistant", f"{number}")])
    record = await bench.conversations.get(bench.tenant, bench.conversation)
    assert record is not None
    answers = [message.content for message in record.messages if message.role == "assistant"]
    assert answers == [str(number) for number in range(12)]
    assert [message.role for message in record.messages] == ["user", "assistant"] * 12


async def test_finish_on_a_record_read_back_in_mid_turn_drops_it(bench: Bench) -> None:
    """The vendor's copy may hold the answer already: it is read anew rather than told twice."""
    turn = await bench.turn()
    await bench.store.call("DEL", bench.keys.conversation(bench.conversation))
    await bench.cache()
    await bench.finish(turn, Entry(2, COMPLETED), messages=[Message("assistant", "Hello")])
    assert await bench.conversations.get(bench.tenant, bench.conversation) is None


async def test_claim_shows_the_question_while_the_answer_runs(bench: Bench) -> None:
    """Another device that opens the conversation in mid-answer sees what was asked."""
    turn = await bench.turn()
    record = await bench.conversations.get(bench.tenant, bench.conversation)
    assert record is not None
    assert record.messages == [QUESTION]
    assert record.active_turn_id == turn


# --- read ---------------------------------------------------------------------------------------------------------


async def test_read_from_any_cursor_gives_the_exact_rest(bench: Bench) -> None:
    """A cursor in the middle of a delta is cut at its character; one at the end gets nothing."""
    turn = await bench.turn()
    await bench.append(turn, Entry(2, MessageStarted("m", "r", "assistant")), Entry(6, TextDelta("a😀cd")))
    await bench.finish(turn, Entry(7, MessageCitations([{"link": "x"}])), Entry(8, COMPLETED))
    for cursor in range(10):
        page = await bench.log.read(bench.tenant, turn, cursor, 100)
        text = "".join(entry.event.text for entry in page if isinstance(entry.event, TextDelta))
        assert text == "a😀cd"[max(0, cursor - 2) :]
        assert [entry.position for entry in page] == [at for at in (1, 2, 6, 7, 8) if at > cursor]


async def test_read_in_pages_misses_and_repeats_nothing(bench: Bench) -> None:
    """Pages of one, each from where the last one ended, are the whole log."""
    turn = await bench.turn()
    for number in range(2, 12):
        await bench.append(turn, Entry(number, TextDelta(str(number % 10))))
    position, text = 0, ""
    while page := await bench.log.read(bench.tenant, turn, position, 1):
        assert len(page) == 1
        position = page[0].position
        if isinstance(page[0].event, TextDelta):
            text += page[0].event.text
    assert (position, text) == (11, "2345678901")


async def test_read_and_record_of_another_tenant_find_nothing(bench: Bench, store: Redis) -> None:
    """A turn's id opens nothing in another tenant's name."""
    turn = await bench.turn()
    stranger = TenantId("t-stranger")
    assert await bench.log.read(stranger, turn, 0, 10) == []
    assert await bench.log.record(stranger, turn) is None
    assert await bench.log.take_over(stranger, turn) is None


# --- life ---------------------------------------------------------------------------------------------------------


async def test_log_keys_live_as_long_as_promised(bench: Bench) -> None:
    """A running turn outlives its deadline by the log's life; after the ending the record outlives the log."""
    claim = await bench.claim("k1")
    keys = bench.keys

    async def ttl(key: str) -> int:
        return int(await bench.store.call("TTL", key))

    assert 290 < await ttl(keys.turn(claim.turn_id)) <= 300
    assert 290 < await ttl(keys.log(claim.turn_id)) <= 300
    assert 290 < await ttl(keys.running()) <= 300
    assert 290 < await ttl(keys.idempotency(OWNER, bench.conversation, "k1")) <= 300
    assert 490 < await ttl(keys.conversation(bench.conversation)) <= 500
    assert 490 < await ttl(keys.conversations(OWNER)) <= 500
    await bench.append(claim.turn_id, Entry(2, TextDelta("a")))
    await bench.finish(claim.turn_id, Entry(3, COMPLETED))
    assert 190 < await ttl(keys.log(claim.turn_id)) <= 200
    assert 490 < await ttl(keys.turn(claim.turn_id)) <= 500
