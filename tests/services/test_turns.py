"""A turn ends in exactly one way, and honestly: complete, stopped or failed, with the text that was said."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gateway.core.conversation import Conversation, ConversationId
from gateway.core.errors import WIRE, Code, GatewayError
from gateway.core.events import MessageExtra, TurnCompleted, TurnFailed, TurnStopped
from gateway.core.identity import TenantId
from gateway.core.plan import Plan, ScopeLimits
from gateway.core.turn import AnswerItem, StopReason, TurnId, TurnState
from gateway.services import owned_turn
from gateway.store.embedded import EmbeddedValkey
from gateway.store.redis import Keys
from tests.services.conftest import SetStage
from tests.services.stage import FINISH, Stage, until

NO_ONE = TurnId("00000000-0000-4000-8000-000000000000")


async def refused(code: Code, work: object) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work  # type: ignore[misc]  # any awaitable
    assert error.value.code is code
    return error.value


# --- endings ------------------------------------------------------------------------------------------------------


async def test_turn_complete_is_told_stored_and_in_the_transcript(stage: Stage) -> None:
    """An answer that came whole is turn.completed with text, ids and usage, live, in the log and in the transcript."""
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    assert (started.ordinal, started.repeated) == (1, False)
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    assert (chat.conversation_id, chat.message) == (conversation, "Hi")
    chat.complete("Hel", "lo")
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert (ending.text, ending.finish_reason, ending.message_id, ending.run_id) == ("Hello", "stop", "m-1", "r-1")
    assert (ending.usage.total_tokens, ending.usage.source) == (3, "reported")
    assert reading.names[:2] == ["turn.started", "message.started"]
    assert reading.names[-1] == "turn.completed"
    assert (reading.text, reading.positions[-1]) == ("Hello", 8)
    await until(lambda: stage.turns.running == 0)
    later = await stage.read(started.turn_id)
    assert await later.ended() == ending
    assert later.text == "Hello"
    messages = await stage.transcript(conversation)
    assert [(message.role, message.content) for message in messages] == [("user", "Hi"), ("assistant", "Hello")]
    assert messages[1].turn_id == started.turn_id
    assert messages[1].state is None


async def test_turn_without_usage_is_estimated_and_a_reported_zero_is_zero(stage: Stage) -> None:
    """What the vendor did not tell is labelled an estimate; a usage of nothing is not taken for one that is missing."""
    conversation = await stage.conversation()
    for number, (usage, source) in enumerate([(None, "estimated"), ((0, 0, 0), "reported")]):
        started = await stage.start(conversation, "12345678")
        reading = await stage.read(started.turn_id)
        chat = await stage.vendor.chat(number)
        chat.say("1234", AnswerItem(finish_reason="stop", usage=usage))
        chat.end()
        ending = await reading.ended()
        assert ending.usage.source == source
        assert ending.usage.total_tokens == (3 if usage is None else 0)
        await until(lambda: stage.turns.running == 0)


@pytest.mark.parametrize("code", [Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_RESET, Code.UPSTREAM_TIMEOUT])
async def test_turn_broken_before_finish_is_failed_with_the_text_so_far(stage: Stage, code: Code) -> None:
    """An answer that was cut off is a failure that keeps what was said, never a made-up stop."""
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hel")
    chat.end(GatewayError(code, "Words.", vendor_status=500, retry_after_s=2.0))
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.error.detail, ending.error.retryable) == (code, "Words.", WIRE[code].retryable)
    assert (ending.error.vendor_status, ending.error.retry_after_s) == (500, 2.0)
    assert ending.text == "Hel"
    await until(lambda: stage.turns.running == 0)
    assert (await stage.transcript(conversation))[1].state == "failed"


async def test_turn_broken_after_finish_is_complete(stage: Stage) -> None:
    """A stream that breaks after the item with finish_reason brought the whole answer."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hello", FINISH)
    chat.end(GatewayError(Code.UPSTREAM_TRUNCATED))
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert (ending.text, ending.finish_reason) == ("Hello", "stop")


async def test_turn_closed_without_finish_reason_makes_none_up(stage: Stage) -> None:
    """An array that closes properly without a finish_reason is complete, and its reason is not said to be a stop."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hello")
    chat.end()
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert ending.finish_reason == "unknown"


async def test_turn_closed_before_anything_was_said_is_failed(stage: Stage) -> None:
    """An empty array is no answer."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    (await stage.vendor.chat()).end()
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert ending.error.code is Code.UPSTREAM_TRUNCATED


async def test_turn_refused_by_the_vendor_is_failed(stage: Stage) -> None:
    """A message that the vendor never took makes a turn with an honest ending, not an exception for the reader."""
    conversation = await stage.conversation()
    stage.vendor.refusal = GatewayError(Code.UPSTREAM_OVERLOADED)
    started = await stage.start(conversation)
    ending = await (await stage.read(started.turn_id)).ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.text) == (Code.UPSTREAM_OVERLOADED, "")


async def test_turn_over_the_answer_cap_is_failed_within_the_cap(set_stage: SetStage) -> None:
    """An endless answer is ended at the cap: the stream is reset and no reader gets more than the cap."""
    stage = set_stage(answer_max_chars=10)
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("12345678", "90ab", "cd")
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert ending.error.code is Code.ANSWER_TOO_LONG
    assert chat.cancelled
    assert (ending.text, reading.text) == ("1234567890", "1234567890")


async def test_turn_of_exactly_the_cap_is_complete(set_stage: SetStage) -> None:
    """The cap itself is allowed."""
    stage = set_stage(answer_max_chars=10)
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    (await stage.vendor.chat()).complete("12345", "67890")
    assert isinstance(await reading.ended(), TurnCompleted)


async def test_turn_whose_task_crashes_is_failed_and_frees_the_conversation(stage: Stage) -> None:
    """A fault of our own is told as internal, without its words, and leaves no turn behind."""
    conversation = await stage.conversation()
    stage.vendor.refusal = RuntimeError("secret words")
    started = await stage.start(conversation)
    ending = await (await stage.read(started.turn_id)).ended()
    assert isinstance(ending, TurnFailed)
    assert ending.error.code is Code.INTERNAL
    assert "secret" not in ending.error.detail
    await until(lambda: stage.turns.running == 0)
    stage.vendor.refusal = None
    assert (await stage.start(conversation)).ordinal == 2


# --- what is not text ---------------------------------------------------------------------------------------------


async def test_turn_extra_roles_are_told_and_kept_out_of_the_answer(stage: Stage) -> None:
    """Another choice or a tool's item is message.extra in its place; the answer's text does not hold it."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    tool = AnswerItem("found", role="tool", name="search", tool_call_id="call_1")
    choice = AnswerItem("another", role="assistant", index=1, finish_reason="length")
    chat.say("Hel", tool, choice)
    chat.complete("lo")
    ending = await reading.ended()
    assert (reading.text, ending.text, ending.finish_reason) == ("Hello", "Hello", "stop")
    extras = [event for event in reading.events if isinstance(event, MessageExtra)]
    assert extras == [
        MessageExtra(0, "tool", "search", "call_1", "found"),
        MessageExtra(1, "assistant", None, None, "another"),
    ]


async def test_turn_moderation_and_citations_are_told_and_cited_in_the_transcript(stage: Stage) -> None:
    """Both come in the vendor's shape; citations of several items are all kept with the answer."""
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    verdict = [{"category": "hate", "filtered": True, "severity": "high"}]
    chat.say(AnswerItem("Hm", "m-1", role="assistant", moderation=verdict, citations=[{"link": "a"}]))
    chat.say(AnswerItem(citations=[{"link": "b"}], finish_reason="content_filter"))
    chat.end()
    ending = await reading.ended()
    assert ending.finish_reason == "content_filter"
    assert [n for n in reading.names if n.startswith("message.")][2:] == [
        "message.moderated",
        "message.citations",
        "message.citations",
    ]
    await until(lambda: stage.turns.running == 0)
    assert (await stage.transcript(conversation))[1].citations == [{"link": "a"}, {"link": "b"}]


async def test_turn_event_that_must_be_stored_first_is_stored_when_shown(set_stage: SetStage) -> None:
    """Citations that a reader sees are in the store already, so a crash takes back nothing that was shown."""
    stage = set_stage(interval_s=5.0)
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hel", AnswerItem(citations=[{"link": "a"}]))
    await until(lambda: "message.citations" in reading.names)
    stored = await stage.log.read(stage.tenant.id, started.turn_id, 0, 100)
    assert "message.citations" in [entry.event.name for entry in stored]
    chat.complete("lo")
    await reading.ended()


# --- stopping -----------------------------------------------------------------------------------------------------


async def test_stop_resets_the_stream_and_keeps_the_text(stage: Stage) -> None:
    """A stop ends the upstream stream at once and the turn as stopped, with what was said."""
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    chat = await stage.vendor.chat()
    chat.say("Hel")
    assert await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER) is TurnState.STOPPING
    await until(lambda: chat.cancelled)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    assert (ending.reason, ending.text) == (StopReason.USER, "Hel")
    await until(lambda: stage.turns.running == 0)
    assert await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER) is TurnState.STOPPED
    assert (await stage.transcript(conversation))[1].state == "stopped"


async def test_stop_before_the_message_is_on_its_way_withdraws_it(stage: Stage) -> None:
    """A stop while the message waits for a stream takes it back: the vendor never sees it."""
    conversation = await stage.conversation()
    stage.vendor.gate = asyncio.Event()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    assert stage.vendor.chats == []


async def test_stop_flag_set_elsewhere_reaches_the_owner(set_stage: SetStage, stage: Stage) -> None:
    """A stop that comes in on another worker stops the turn by way of the owner's next append."""
    owner = set_stage(tenant=stage.tenant.id, heartbeat_s=0.05)
    conversation = await owner.conversation()
    started = await owner.start(conversation)
    chat = await owner.vendor.chat()
    chat.say("Hel")
    assert await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER) is TurnState.STOPPING
    await until(lambda: chat.cancelled)
    ending = await (await stage.read(started.turn_id)).ended()
    assert isinstance(ending, TurnStopped)


async def test_stop_by_another_user_or_of_no_turn_is_not_found(stage: Stage) -> None:
    """Nobody stops, or learns of, a turn that is not theirs, neither while it runs nor afterwards."""
    started = await stage.start(await stage.conversation())
    chat = await stage.vendor.chat()
    await refused(Code.NOT_FOUND, stage.turns.stop(stage.user("u2"), started.turn_id, StopReason.USER))
    assert not chat.cancelled
    chat.complete("x")
    await until(lambda: stage.turns.running == 0)
    for principal, turn in ((stage.user("u2"), started.turn_id), (stage.user(), NO_ONE)):
        await refused(Code.NOT_FOUND, stage.turns.stop(principal, turn, StopReason.USER))


async def test_aclose_stops_what_still_runs_and_settles_it(set_stage: SetStage) -> None:
    """At shutdown a running turn ends as stopped, in the store as well, and no new one is taken."""
    stage = set_stage()
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    (await stage.vendor.chat()).say("Hel")
    await stage.turns.aclose(grace_s=0.01)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    assert ending.reason is StopReason.SHUTDOWN
    record = await stage.log.record(stage.tenant.id, started.turn_id)
    assert record is not None
    assert record.state is TurnState.STOPPED
    await refused(Code.DRAINING, stage.start(conversation))


# --- starting -----------------------------------------------------------------------------------------------------


async def test_start_while_a_turn_runs_names_it(stage: Stage) -> None:
    """One active turn a conversation; the refusal says which, so that a client can follow or stop it."""
    conversation = await stage.conversation()
    results = await asyncio.gather(*(stage.start(conversation) for _ in range(10)), return_exceptions=True)
    started = [result for result in results if not isinstance(result, BaseException)]
    assert len(started) == 1
    busy = [result for result in results if isinstance(result, GatewayError)]
    assert {error.code for error in busy} == {Code.TURN_ACTIVE}
    assert {error.extra["turn_id"] for error in busy} == {started[0].turn_id}
    await stage.vendor.chat()
    assert len(stage.vendor.chats) == 1


async def test_start_again_with_its_key_leads_back(stage: Stage) -> None:
    """A retry under the same key joins the turn that it made; another message under it is refused."""
    conversation = await stage.conversation()
    first = await stage.start(conversation, key="k")
    again = await stage.start(conversation, key="k")
    assert (again.turn_id, again.repeated) == (first.turn_id, True)
    error = await refused(Code.IDEMPOTENCY_MISMATCH, stage.start(conversation, "Other", key="k"))
    assert error.field == "Idempotency-Key"


async def test_start_in_a_conversation_whose_persona_changed_goes_by_the_stores_word(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker remembers of a conversation spares a read, and never decides where the store knows better."""
    conversation = await stage.conversation()
    await stage.start(conversation)
    (await stage.vendor.chat()).complete("Hi")
    await until(lambda: stage.turns.running == 0)
    head = stage.cache.head
    reads: list[ConversationId] = []

    async def counted(tenant: TenantId, conversation_id: ConversationId) -> Conversation | None:
        reads.append(conversation_id)
        return await head(tenant, conversation_id)

    monkeypatch.setattr(stage.cache, "head", counted)
    started = await stage.start(conversation)
    assert reads == []
    await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    await until(lambda: stage.turns.running == 0)
    key = Keys(stage.tenant.id).conversation(conversation)
    await stage.store.call("HSET", key, "persona", "other")
    again = await stage.start(conversation)
    assert reads == [conversation]
    turn = stage.roster.find(again.turn_id)
    assert turn is not None
    assert turn.heading.persona == "other"


@pytest.mark.parametrize(
    ("message", "key", "code", "field"),
    [
        ("", None, Code.MESSAGE_EMPTY, "message"),
        (" \n\t\u2003", None, Code.MESSAGE_EMPTY, "message"),
        ("x" * 101, None, Code.MESSAGE_TOO_LONG, "message"),
        ("Hi", "", Code.INVALID_VALUE, "Idempotency-Key"),
        ("Hi", "k" * 256, Code.INVALID_VALUE, "Idempotency-Key"),
        ("Hi", "k\udce9", Code.INVALID_VALUE, "Idempotency-Key"),
    ],
)
async def test_start_with_bad_input_is_refused_by_field(
    set_stage: SetStage, message: str, key: str | None, code: Code, field: str
) -> None:
    """What cannot be sent is refused with its own code and field, and nothing is started."""
    stage = set_stage(message_max_chars=100)
    conversation = await stage.conversation()
    assert (await refused(code, stage.start(conversation, message, key=key))).field == field
    assert stage.turns.running == 0


async def test_start_over_the_cap_is_refused_with_its_wait(set_stage: SetStage) -> None:
    """The cap on turns a minute names itself and how long to wait."""
    stage = set_stage(plan=Plan(user=ScopeLimits(requests_per_min=1)))
    conversation = await stage.conversation()
    first = await stage.start(conversation, key="k")
    error = await refused(Code.RATE_LIMITED, stage.start(conversation, key="other"))
    assert error.extra == {"limit": "user_requests_per_min"}
    assert error.retry_after_s is not None
    assert 59 < error.retry_after_s <= 66
    repeat = await stage.start(conversation, key="k")  # starts nothing, so no cap stands in its way
    assert (repeat.turn_id, repeat.repeated) == (first.turn_id, True)


async def test_start_of_a_caller_who_left_is_not_cut_in_half(stage: Stage) -> None:
    """A client that vanishes in mid-start leaves a whole turn behind, claimed and sent, or none."""
    conversation = await stage.conversation()
    for _ in range(5):  # let the start get further each time before the caller leaves
        number = len(stage.vendor.chats)
        leaving = asyncio.ensure_future(stage.start(conversation))
        await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        active = await stage.cache.head(stage.tenant.id, conversation)
        assert active is not None
        if active.active_turn_id is not None:
            await until(lambda: stage.turns.running == 1)
            (await stage.vendor.chat(number)).complete("x")
            await until(lambda: stage.turns.running == 0)


# --- a store that is away -----------------------------------------------------------------------------------------


async def test_turn_ending_while_the_store_is_away_reaches_the_local_reader(
    set_stage: SetStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader on this worker gets the ending within a bound, and the store gets the same one when it is back."""
    monkeypatch.setattr(owned_turn, "FINISH_ATTEMPTS", 3)
    monkeypatch.setattr(owned_turn, "FINISH_PAUSE_S", 0.05)
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    try:
        stage = set_stage(server.url, store_timeout_s=0.1)
        started = await stage.start(await stage.conversation())
        reading = await stage.read(started.turn_id)
        chat = await stage.vendor.chat()
        chat.say("Hel")
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
        chat.complete("lo")
        ending = await reading.ended(within_s=3)
        assert isinstance(ending, TurnCompleted)
        assert reading.text == "Hello"
        os.kill(server._process.pid, signal.SIGCONT)
        await until(lambda: stage.turns.running == 0)
        later = await stage.read(started.turn_id)
        assert (await later.ended(), later.text) == (ending, "Hello")
    finally:
        await server.aclose()


async def test_turn_goes_on_while_the_store_is_away_and_is_whole_when_it_is_back(
    set_stage: SetStage, tmp_path: Path
) -> None:
    """Text keeps flowing to local readers through an outage, and the log has all of it afterwards."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    try:
        stage = set_stage(server.url, store_timeout_s=0.1)
        started = await stage.start(await stage.conversation())
        reading = await stage.read(started.turn_id)
        chat = await stage.vendor.chat()
        chat.say("one ")
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
        chat.say("two ")
        await until(lambda: reading.text == "one two ")
        os.kill(server._process.pid, signal.SIGCONT)
        chat.complete("three")
        ending = await reading.ended()
        assert ending.text == "one two three"
        await until(lambda: stage.turns.running == 0)
        later = await stage.read(started.turn_id)
        assert await later.ended() == ending
        assert later.text == "one two three"
    finally:
        await server.aclose()
