"""Readers: each sees every event after its cursor once and in order, live, stored or of another worker."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventId, TurnCompleted
from gateway.core.identity import UserHash
from gateway.core.turn import AnswerItem, TurnId
from gateway.store.redis import Keys
from tests.services.conftest import SetStage
from tests.services.stage import FINISH, Reading, Stage, until

NO_ONE = TurnId("00000000-0000-4000-8000-000000000000")


async def refusal(work: object) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work  # type: ignore[misc]  # any awaitable
    return error.value


async def test_readers_of_one_turn_all_see_the_same(stage: Stage) -> None:
    """Two tabs, one from the start and one from the middle, read the same turn to the same end."""
    started = await stage.start(await stage.conversation())
    first = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hello ")
    await until(lambda: first.text == "Hello ")
    second = await stage.read(started.turn_id, after=5)
    chat.say("wor", AnswerItem(citations=[{"link": "x"}]), "ld")
    chat.complete()
    assert await first.ended() == await second.ended()
    assert (first.text, second.text) == ("Hello world", "lo world")
    assert first.names.count("turn.completed") == second.names.count("turn.completed") == 1


async def test_reader_from_every_cursor_of_a_stored_turn_gets_the_exact_rest(stage: Stage) -> None:
    """A finished turn is replayed from any position; at the ending there is nothing to open."""
    started = await stage.start(await stage.conversation())
    (await stage.vendor.chat()).complete("Hel", "lo")
    await until(lambda: stage.turns.running == 0)
    for cursor in range(8):
        reading = await stage.read(started.turn_id, after=cursor)
        ending = await reading.ended()
        assert isinstance(ending, TurnCompleted)
        assert reading.text == "Hello"[max(0, cursor - 2) :]
        assert (cursor == 0) == ("turn.started" in reading.names)
    at_the_end = EventId(started.turn_id, 8)
    assert await stage.subscriptions.open(stage.user(), started.turn_id, at_the_end) is None


async def test_reader_that_falls_behind_catches_up_without_gap_or_repeat(stage: Stage) -> None:
    """A slow connection is let off, reads on at its own pace, and gets the whole; others do not wait for it."""
    started = await stage.start(await stage.conversation())
    slow = await stage.read(started.turn_id)
    fast = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    await until(lambda: "turn.started" in slow.names)
    slow.room, slow.blocked = 2, asyncio.Event()
    words = [f"{number} " for number in range(200)]
    for word in words[:100]:
        chat.say(word)
    await until(lambda: fast.text == "".join(words[:100]))
    assert len(slow.text) < len(fast.text)
    await until(lambda: slow.drains == 1)
    slow.room = 10**9
    slow.blocked.set()
    for word in words[100:]:
        chat.say(word)
    chat.complete()
    assert (await slow.ended()).text == (await fast.ended()).text == "".join(words)
    assert slow.text == fast.text == "".join(words)


async def test_reader_that_leaves_stops_nothing(stage: Stage) -> None:
    """Leaving is not stopping: the turn goes on and the next reader gets all of it."""
    started = await stage.start(await stage.conversation())
    leaving = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hel")
    await until(lambda: leaving.text == "Hel")
    leaving.task.cancel()
    await asyncio.gather(leaving.task, return_exceptions=True)
    turn = stage.turns.find(started.turn_id)
    assert turn is not None
    assert turn.live.readers == 0
    assert not chat.cancelled
    chat.complete("lo")
    later = await stage.read(started.turn_id, after=leaving.positions[-1])
    assert (await later.ended()).text == "Hello"
    assert leaving.text + later.text == "Hello"


async def test_reader_on_another_worker_follows_through_the_store(set_stage: SetStage) -> None:
    """A reader whose turn runs elsewhere gets the same events from the store."""
    owner = set_stage()
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    started = await owner.start(await owner.conversation())
    reading = await other.read(started.turn_id)
    chat = await owner.vendor.chat()
    chat.say("Hello")
    await until(lambda: reading.text == "Hello")
    chat.complete(" you")
    ending = await reading.ended()
    assert (ending.text, reading.text) == ("Hello you", "Hello you")


async def test_reader_elsewhere_whose_message_is_lost_gets_it_from_the_log(
    set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an owner showed in vain is read from the log before what it shows next: nothing is skipped."""
    owner = set_stage()
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    await other.hears()
    started = await owner.start(await owner.conversation())
    reading = await other.read(started.turn_id)
    chat = await owner.vendor.chat()
    chat.say("Hello")
    await until(lambda: reading.text == "Hello")
    lost = asyncio.Event()

    async def lose(*_: object) -> None:
        lost.set()
        raise GatewayError(Code.STORE_UNAVAILABLE)

    with monkeypatch.context() as patched:
        patched.setattr(owner.log, "show", lose)
        chat.say(" you")
        await lost.wait()
    chat.say(" there")
    await until(lambda: reading.text.endswith(" there"))
    assert reading.text == "Hello you there"
    chat.complete()
    assert (await reading.ended()).text == reading.text


async def test_open_by_another_user_or_of_no_turn_is_not_found(stage: Stage) -> None:
    """Replay needs the same right as the original, while the turn runs and after it has ended."""
    started = await stage.start(await stage.conversation())
    for _ in range(2):
        for principal, turn in (
            (stage.user("u2"), started.turn_id),
            (stage.user(personas=["other"]), started.turn_id),
            (stage.user(), NO_ONE),
        ):
            error = await refusal(stage.subscriptions.open(principal, turn, None))
            assert error.code is Code.NOT_FOUND
        if stage.turns.running:
            (await stage.vendor.chat()).complete("x")
            await until(lambda: stage.turns.running == 0)


async def test_open_by_another_tenant_is_not_found(set_stage: SetStage) -> None:
    """A turn's id opens nothing under another tenant, though the user bears the same name."""
    stage, stranger = set_stage(), set_stage()
    started = await stage.start(await stage.conversation())
    error = await refusal(stranger.subscriptions.open(stranger.user(), started.turn_id, None))
    assert error.code is Code.NOT_FOUND


@pytest.mark.parametrize("ended", [False, True])
async def test_open_with_a_cursor_that_fits_nowhere_is_refused(stage: Stage, ended: bool) -> None:
    """A cursor of another turn, or beyond the log, is an invalid cursor and not an endless wait."""
    started = await stage.start(await stage.conversation())
    chat = await stage.vendor.chat()
    chat.say("Hi", FINISH)
    if ended:
        chat.end()
        await until(lambda: stage.turns.running == 0)
    for cursor in (EventId(NO_ONE, 1), EventId(started.turn_id, 10**9)):
        error = await refusal(stage.subscriptions.open(stage.user(), started.turn_id, cursor))
        assert (error.code, error.field) == (Code.INVALID_CURSOR, "after")


async def test_open_when_the_log_is_gone_says_so_with_the_text(stage: Stage) -> None:
    """An answer whose log has expired is history_lost, with the text from the transcript."""
    started = await stage.start(await stage.conversation())
    (await stage.vendor.chat()).complete("Hello")
    await until(lambda: stage.turns.running == 0)
    await stage.store.call("DEL", Keys(stage.tenant.id).log(started.turn_id))
    for cursor in (None, EventId(started.turn_id, 4)):
        error = await refusal(stage.subscriptions.open(stage.user(), started.turn_id, cursor))
        assert error.code is Code.HISTORY_LOST
        assert (error.extra["text"], error.extra["message_id"]) == ("Hello", "m-1")
        assert error.extra["state"] == "completed"


async def test_reader_whose_log_expires_under_it_is_let_go(set_stage: SetStage) -> None:
    """A reader that waits on a log that is no more is told so, and not left to think that the answer ended."""
    stage = set_stage(interval_s=60.0, heartbeat_s=60.0)  # an owner that does not look after its log
    other = set_stage(tenant=stage.tenant.id, vendor=stage.vendor)
    started = await stage.start(await stage.conversation())
    (await stage.vendor.chat()).say("Hello")
    reading = await other.read(started.turn_id)
    await until(lambda: reading.text == "Hello")
    keys = Keys(stage.tenant.id)
    await stage.store.call("DEL", keys.log(started.turn_id), keys.turn(started.turn_id))
    with pytest.raises(GatewayError) as raised:
        await reading.ended()
    assert raised.value.code is Code.HISTORY_LOST
    assert reading.names[-1] == "message.delta"


async def test_join_reads_a_turn_from_its_beginning(stage: Stage) -> None:
    """A watcher that joins a turn as it begins misses nothing of it."""
    conversation = await stage.conversation()
    joined: list[Reading] = []

    def join(turn_id: TurnId, owner: UserHash) -> None:
        turn = stage.turns.find(turn_id)
        assert turn is not None
        joined.append(Reading(stage.subscriptions.join(stage.user(), turn)))

    await stage.watches.watch(stage.tenant.id, conversation, join)
    await stage.start(conversation)
    (await stage.vendor.chat()).complete("Hello")
    assert (await joined[0].ended()).text == "Hello"
    assert joined[0].names[0] == "turn.started"


async def test_active_turn_is_the_one_that_runs(stage: Stage) -> None:
    """A conversation names its running turn to its owner, and none before and after."""
    conversation = await stage.conversation()
    assert await stage.subscriptions.active_turn(stage.user(), conversation) is None
    started = await stage.start(conversation)
    assert await stage.subscriptions.active_turn(stage.user(), conversation) == started.turn_id
    error = await refusal(stage.subscriptions.active_turn(stage.user("u2"), conversation))
    assert error.code is Code.NOT_FOUND
    (await stage.vendor.chat()).complete("x")
    await until(lambda: stage.turns.running == 0)
    assert await stage.subscriptions.active_turn(stage.user(), conversation) is None


async def test_reader_that_comes_before_the_record_is_written_again_waits_for_it(set_stage: SetStage) -> None:
    """After an outage that lost a running turn, a reader elsewhere is not told that there is no such turn."""
    owner = set_stage(interval_s=0.3)
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    started = await owner.start(await owner.conversation())
    chat = await owner.vendor.chat()
    chat.say("Hello")
    await until(lambda: owner.vendor.chats != [])
    keys = Keys(owner.tenant.id)
    await owner.store.call("DEL", keys.log(started.turn_id), keys.turn(started.turn_id))
    error = await refusal(other.subscriptions.open(other.user(), started.turn_id, None))
    assert error.code is Code.NOT_FOUND  # a store that was well has lost nothing
    await owner.store.call("DEL", keys.log(started.turn_id), keys.turn(started.turn_id))
    other.store.note_failure()
    chat.say(" you")
    reading = await other.read(started.turn_id)
    chat.complete()
    assert (await reading.ended()).text == reading.text == "Hello you"
