"""A turn whose worker is gone gets an honest ending; one whose worker lives is never taken from it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.core.conversation import Message
from gateway.core.errors import Code
from gateway.core.events import TurnCompleted, TurnFailed
from gateway.core.turn import TurnState
from gateway.services.rescue import RescueRules
from tests.services.conftest import SetStage
from tests.services.stage import Stage, until

CAP = 1000


@pytest.fixture
async def short_lease(set_stage: SetStage) -> Stage:
    """A worker on whose store a lease runs out after 50 ms."""
    return set_stage(lease_s=0.05, heartbeat_s=0.01, answer_max_chars=CAP)


async def test_recover_ends_the_turn_one_cap_further_on(short_lease: Stage) -> None:
    """The ending says worker_lost, holds the text so far, and lies after whatever any reader may have been shown."""
    stage = short_lease
    _, turn = await stage.orphan("Hel", "lo")
    assert await stage.recovery.end(stage.tenant.id, turn)
    entries = await stage.log.read(stage.tenant.id, turn, 0, 100)
    position, ending = entries[-1].position, entries[-1].event
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.error.retryable) == (Code.WORKER_LOST, True)
    assert (ending.text, ending.message_id, ending.run_id) == ("Hello", "m-9", "r-9")
    assert ending.usage.source == "estimated"
    assert position == 2 + len("Hello") + CAP
    record = await stage.log.record(stage.tenant.id, turn)
    assert record is not None
    assert record.state is TurnState.FAILED


async def test_recover_of_what_the_vendor_drops_ends_at_the_first_copy(set_stage: SetStage) -> None:
    """Where the vendor is said to keep what it had sent, readers get that and the failure without a minute's wait."""
    stage = set_stage(
        lease_s=0.05, heartbeat_s=0.01, after_disconnect="drops", rescue=RescueRules(timeout_s=600, settle_s=0)
    )
    conversation, turn = await stage.orphan("Hel")
    copy = [Message("user", "Hi"), Message("assistant", "Hello", message_id="m-9", run_id="r-9", completion_tokens=2)]
    known = stage.vendor.conversations[conversation]
    stage.vendor.conversations[conversation] = msgspec.structs.replace(known, messages=copy)
    assert await stage.recovery.recover(stage.tenant.id, turn)
    ending = await (await stage.read(turn)).ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.text) == (Code.WORKER_LOST, "Hello")
    assert (ending.usage.completion_tokens, ending.usage.source) == (2, "reported")


async def test_recover_of_many_at_once_writes_one_ending(short_lease: Stage) -> None:
    """However many readers find the orphan, the log has one ending."""
    stage = short_lease
    _, turn = await stage.orphan("Hello")
    stage.log._lease_ms = 30_000
    await asyncio.gather(*(stage.recovery.end(stage.tenant.id, turn) for _ in range(20)))
    names = [entry.event.name for entry in await stage.log.read(stage.tenant.id, turn, 0, 100)]
    assert names.count("turn.failed") == 1


async def test_recover_makes_the_conversation_free_for_the_next_message(short_lease: Stage) -> None:
    """The next message in a conversation whose worker was lost starts at its first try, and both turns end."""
    stage = short_lease
    conversation, turn = await stage.orphan("Hello")
    started = await stage.start(conversation, "And now?")
    assert not started.repeated
    assert started.turn_id != turn
    (await stage.vendor.chat()).complete("Fine")
    ending = await (await stage.read(started.turn_id)).ended()
    assert isinstance(ending, TurnCompleted)
    lost = await (await stage.read(turn)).ended()
    assert isinstance(lost, TurnFailed)


async def test_recover_keeps_the_question_and_what_was_answered(short_lease: Stage) -> None:
    """After a loss the transcript still holds the question, the partial answer, and why there is no more."""
    stage = short_lease
    conversation, turn = await stage.orphan("Hel")
    await stage.recovery.end(stage.tenant.id, turn)
    question, answer = await stage.transcript(conversation)
    assert (question.role, question.content, question.turn_id) == ("user", "Hi", turn)
    assert (answer.role, answer.content, answer.state, answer.turn_id) == ("assistant", "Hel", "failed", turn)
    assert answer.error is not None
    assert answer.error["code"] == "worker_lost"


async def test_recover_leaves_no_gap_for_two_active_turns(short_lease: Stage) -> None:
    """Many messages that meet an orphan at once make one turn: recovery takes away no other turn's claim."""
    stage = short_lease
    for _ in range(5):
        stage.log._lease_ms = 50
        conversation, _ = await stage.orphan("Hello")
        stage.log._lease_ms = 30_000
        results = await asyncio.gather(
            *(stage.start(conversation, f"{number}") for number in range(8)), return_exceptions=True
        )
        assert sum(not isinstance(result, BaseException) for result in results) == 1
        await until(lambda: len(stage.vendor.chats) > 0)
        for chat in stage.vendor.chats:
            chat.complete("x")
        await until(lambda: stage.turns.running == 0)
        stage.vendor.chats.clear()


async def test_reader_of_an_orphan_is_given_its_ending(short_lease: Stage) -> None:
    """A reader that waits for a lost worker does not wait for ever: it brings the ending about itself."""
    stage = short_lease
    _, turn = await stage.orphan("Hello")
    reading = await stage.read(turn, after=4)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert reading.text == "llo"


async def test_reader_ahead_of_the_saved_log_is_given_the_ending(short_lease: Stage) -> None:
    """A reader that was shown more than the lost worker had saved still gets the ending, after all it has."""
    stage = short_lease
    _, turn = await stage.orphan("Hello")
    reading = await stage.read(turn, after=7 + 500)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert reading.names == ["turn.failed"]


async def test_recover_never_robs_a_live_owner(set_stage: SetStage) -> None:
    """As long as its worker's heart beats, a quiet turn cannot be taken over, however often others try."""
    owner = set_stage(lease_s=0.3, heartbeat_s=0.05)
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor, lease_s=0.3)
    conversation = await owner.conversation()
    started = await owner.start(conversation)
    chat = await owner.vendor.chat()
    deadline_s = asyncio.get_running_loop().time() + 0.8  # several leases of silence
    while asyncio.get_running_loop().time() < deadline_s:
        assert not await other.recovery.end(owner.tenant.id, started.turn_id)
        await asyncio.sleep(0.02)
    chat.complete("Hello")
    ending = await (await other.read(started.turn_id)).ended()
    assert isinstance(ending, TurnCompleted)


async def test_start_beside_a_late_local_turn_does_not_rob_it(set_stage: SetStage) -> None:
    """A turn of this very worker whose lease ran out (an outage, a long pause) is busy, not lost."""
    stage = set_stage(lease_s=0.05, heartbeat_s=30.0, interval_s=30.0)
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    chat = await stage.vendor.chat()
    await stage.until_unleased(started.turn_id)
    with pytest.raises(Exception, match="turn_active"):
        await stage.start(conversation)
    assert not chat.cancelled
    chat.complete("Hello")
    ending = await (await stage.read(started.turn_id)).ended()
    assert isinstance(ending, TurnCompleted)


async def test_owner_that_was_fenced_lets_go_and_its_readers_go_on_from_the_store(set_stage: SetStage) -> None:
    """A worker that lost its turn writes nothing more, resets the stream, and its readers get the one ending."""
    owner = set_stage(lease_s=0.05, heartbeat_s=30.0, interval_s=0.2, answer_max_chars=CAP)
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor, lease_s=5.0, answer_max_chars=CAP)
    started = await owner.start(await owner.conversation())
    reading = await owner.read(started.turn_id)
    chat = await owner.vendor.chat()
    await owner.until_unleased(started.turn_id)
    chat.say("shown, not saved")
    await until(lambda: reading.text != "")
    assert await other.recovery.end(owner.tenant.id, started.turn_id)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert ending.error.code is Code.WORKER_LOST
    assert chat.cancelled
    assert reading.names.count("turn.failed") == 1
    await until(lambda: owner.turns.running == 0)
    entries = await other.log.read(owner.tenant.id, started.turn_id, 0, 100)
    assert [entry.event.name for entry in entries] == ["turn.started", "turn.failed"]
