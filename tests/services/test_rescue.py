"""A lost worker's turn is completed from the vendor's copy, or ends honestly in bounded time: one log, one ending."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import TurnCompleted, TurnFailed, TurnStopped
from gateway.core.identity import Prompt, WorkerId
from gateway.core.turn import StopReason, TurnId
from gateway.services.key_gate import GateRules
from gateway.services.rescue import RescueRules
from gateway.services.vendor_copy import AfterLoss
from gateway.store.habits import KEY, RedisHabits
from tests.services.conftest import SetStage
from tests.services.stage import Stage, until

CAP = 1000
WHOLE = "Hello, how are you?"
SOON = RescueRules(timeout_s=0.2, reads_max=4, settle_s=0.01)
LONG = RescueRules(timeout_s=60, reads_max=20, settle_s=0.01)


@pytest.fixture
async def lost(set_stage: SetStage) -> Stage:
    """The worker that is lost: its leases run out after 50 ms."""
    return set_stage(lease_s=0.05, heartbeat_s=0.01, answer_max_chars=CAP)


def beside(set_stage: SetStage, lost: Stage, rules: RescueRules = SOON, **options: Any) -> Stage:
    """A worker that is left."""
    wanted: dict[str, Any] = {"after_disconnect": "finishes", "answer_max_chars": CAP, **options}
    return set_stage(tenant=lost.tenant.id, vendor=lost.vendor, rescue=rules, **wanted)


def keep(
    stage: Stage, conversation: ConversationId, text: str, tokens: int | None = 9, message_id: str = "m-9"
) -> None:
    """Have the vendor's copy of a conversation hold this answer, and its tokens where it tells them."""
    known = stage.vendor.conversations[conversation]
    answer = Message("assistant", text, message_id="m-9", run_id="r-9")
    if tokens is not None:
        answer = msgspec.structs.replace(answer, prompt_tokens=1, completion_tokens=tokens, total_tokens=tokens + 1)
    messages = [Message("user", "Hi"), answer]
    stage.vendor.conversations[conversation] = msgspec.structs.replace(known, messages=messages)


async def names(stage: Stage, turn: TurnId) -> list[str]:
    return [entry.event.name for entry in await stage.log.read(stage.tenant.id, turn, 0, 1000)]


async def test_rescue_completes_an_answer_that_the_vendor_finished_later(set_stage: SetStage, lost: Stage) -> None:
    """Readers that were there see one log, across the loss to the end, with the tokens that the vendor reported."""
    other = beside(set_stage, lost, LONG)
    conversation, turn = await lost.orphan("Hello")
    readings = [await other.read(turn), await other.read(turn, after=4)]
    await until(lambda: other.vendor.reads > 0)  # it is not there yet
    keep(other, conversation, WHOLE)
    for reading in readings:
        ending = await reading.ended()
        assert isinstance(ending, TurnCompleted)
        assert (ending.text, ending.message_id, ending.run_id) == (WHOLE, "m-9", "r-9")
        assert (ending.usage.total_tokens, ending.usage.source) == (10, "reported")
    assert [reading.text for reading in readings] == [WHOLE, WHOLE[2:]]
    assert readings[0].names[0] == "turn.started"
    question, answer = await other.transcript(conversation)
    assert (question.content, answer.content, answer.state) == ("Hi", WHOLE, None)


async def test_rescue_of_a_prompts_run_fails_it_without_asking_the_vendor(set_stage: SetStage, lost: Stage) -> None:
    """The vendor keeps no copy of a run: its readers are told at once, and its tokens stay an estimate."""
    other = beside(set_stage, lost, LONG, prompts={"default": Prompt(alias="default", prompt_id="p-1")})
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, WHOLE)
    ending = await (await other.read(turn)).ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.text) == (Code.WORKER_LOST, "Hello")

    async def settled() -> bool:
        await other.accounting.sweep(other.tenant)
        return bool(await other.ledger.settled(other.tenant.id, None, 1))

    async with asyncio.timeout(5):
        while not await settled():
            await asyncio.sleep(0.01)
    ((_, settlement),) = await other.ledger.settled(other.tenant.id, None, 2)
    assert (settlement.source, other.vendor.reads) == ("estimated", 0)


async def test_rescue_goes_on_where_a_reader_ahead_of_the_log_stopped(set_stage: SetStage, lost: Stage) -> None:
    """A reader that was shown more than the lost worker had saved gets exactly the rest."""
    other = beside(set_stage, lost)
    conversation, turn = await lost.orphan("Hello")
    shown = 2 + len("Hello, how")
    keep(other, conversation, WHOLE)
    here, elsewhere = await other.read(turn, after=shown), await beside(set_stage, lost).read(turn, after=shown)
    for reading in (here, elsewhere):
        assert isinstance(await reading.ended(), TurnCompleted)
        assert reading.text == " are you?"


async def test_rescue_of_a_turn_lost_before_its_first_token_finds_the_answer(set_stage: SetStage, lost: Stage) -> None:
    """Without the answer's id it is found by the question, and told from its beginning."""
    other = beside(set_stage, lost)
    conversation = await lost.conversation()
    started = await lost.start(conversation)
    await lost.vendor.chat()
    lost.journal._entries.clear()  # its heart stops
    await lost.until_unleased(started.turn_id)
    keep(other, conversation, WHOLE)
    reading = await other.read(started.turn_id)
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert (reading.text, reading.names[:2]) == (WHOLE, ["turn.started", "message.started"])


@pytest.mark.parametrize("text", ["Hallo, how are you?", "Hel", "Hello" + "x" * CAP])
async def test_rescue_of_a_copy_that_does_not_go_on_from_what_was_shown_fails(
    text: str, set_stage: SetStage, lost: Stage
) -> None:
    """A copy that says otherwise, or less, or more than an answer may have, leaves what was delivered."""
    other = beside(set_stage, lost)
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, text)
    reading = await other.read(turn)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.error.retryable) == (Code.WORKER_LOST, True)
    assert ending.text == reading.text == "Hello"


@pytest.mark.parametrize("habit", ["drops", "auto"])
async def test_rescue_of_what_may_be_half_an_answer_keeps_it_and_fails(
    habit: str, set_stage: SetStage, lost: Stage
) -> None:
    """A copy that nobody knows to be whole is shown as far as it goes, with its tokens, and called failed."""
    other = beside(set_stage, lost, after_disconnect=habit)
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, "Hello, how", tokens=3)
    reading = await other.read(turn)
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert ending.text == reading.text == "Hello, how"
    assert ending.usage.completion_tokens == 3
    (settled,) = [one for _, one in await other.ledger.settled(other.tenant.id, None, 10)]
    assert (settled.completion_tokens, settled.source, settled.reason) == (3, "reported", "worker_lost")


async def test_rescue_of_a_copy_without_tokens_waits_for_them(set_stage: SetStage, lost: Stage) -> None:
    """Tokens are counted at the end, so a copy without them is not whole yet, however long."""
    other = beside(set_stage, lost, LONG)
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, "Hello, how", tokens=None)
    reading = await other.read(turn)
    await until(lambda: reading.text == "Hello, how")
    keep(other, conversation, WHOLE)
    assert isinstance(await reading.ended(), TurnCompleted)
    assert reading.text == WHOLE


@pytest.mark.parametrize(
    ("trouble", "reads"),
    [
        (GatewayError(Code.UPSTREAM_RATE_LIMITED, vendor_status=429), 1),  # it asked to be left in peace for a while
        (GatewayError(Code.UPSTREAM_ERROR, vendor_status=500), SOON.reads_max),
        (GatewayError(Code.UPSTREAM_TIMEOUT), SOON.reads_max),
        (None, SOON.reads_max),
    ],
)
async def test_rescue_beside_a_vendor_in_trouble_reads_a_bounded_number_of_times(
    trouble: GatewayError | None, reads: int, set_stage: SetStage, lost: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor that refuses reads, or never answers them, is asked so often at most, and the deadline is kept."""
    monkeypatch.setattr("gateway.services.rescue.LOOK_TIMEOUT_S", 0.05)
    other = beside(set_stage, lost)
    _, turn = await lost.orphan("Hello")
    if trouble is None:
        lost.vendor.gate = asyncio.Event()
    lost.vendor.refusal = trouble
    begun_s = asyncio.get_running_loop().time()
    ending = await (await other.read(turn)).ended(within_s=SOON.timeout_s + 2)
    assert asyncio.get_running_loop().time() - begun_s >= SOON.timeout_s
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.text) == (Code.WORKER_LOST, "Hello")
    assert other.vendor.reads == reads


async def test_rescue_that_hears_the_vendor_again_in_time_completes(set_stage: SetStage, lost: Stage) -> None:
    """Refused reads cost tries, not the answer."""
    other = beside(set_stage, lost, LONG, gate_rules=GateRules(failures_max=100))  # whose rest is another test's
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, WHOLE)
    lost.vendor.refusal = GatewayError(Code.UPSTREAM_ERROR, vendor_status=500)
    reading = await other.read(turn)
    await until(lambda: other.vendor.reads >= 2)
    lost.vendor.refusal = None
    assert isinstance(await reading.ended(), TurnCompleted)


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_stop_of_a_turn_that_is_being_rescued_ends_it_soon(
    elsewhere: bool, hangs: bool, set_stage: SetStage, lost: Stage
) -> None:
    """A user who stops a turn that is looked for waits neither for the looks nor for a vendor that hangs."""
    rules = RescueRules(timeout_s=60, reads_max=2, settle_s=0.0 if hangs else 30.0)
    other, third = beside(set_stage, lost, rules), beside(set_stage, lost, rules)
    await other.hears()
    _, turn = await lost.orphan("Hello")
    if hangs:
        lost.vendor.gate = asyncio.Event()
    assert await other.recovery.recover(lost.tenant.id, turn)
    reading = await other.read(turn)
    if hangs:
        await until(lambda: other.vendor.reads == 1)
    asker = third if elsewhere else other
    assert await asker.turns.stop(asker.user(), turn, StopReason.USER) == "stopping"
    ending = await reading.ended(within_s=2)
    assert isinstance(ending, TurnStopped)
    assert (ending.reason, ending.text) == (StopReason.USER, "Hello")
    assert await asker.turns.stop(asker.user(), turn, StopReason.USER) == "stopped"


async def test_rescue_by_many_workers_at_once_is_one(set_stage: SetStage, lost: Stage) -> None:
    """Workers that all find the lost turn make one rescue: one ending, one settlement, one answer."""
    workers = [beside(set_stage, lost) for _ in range(4)]
    conversation, turn = await lost.orphan("Hello")
    keep(lost, conversation, WHOLE)
    taken = await asyncio.gather(*(worker.recovery.recover(lost.tenant.id, turn) for worker in workers * 3))
    owners = [worker for worker in workers if worker.roster.find(turn) is not None]
    assert len(owners) == 1
    assert any(taken)
    for worker in workers:
        assert isinstance(await (await worker.read(turn)).ended(), TurnCompleted)
    assert (await names(lost, turn)).count("turn.completed") == 1
    assert len(await lost.ledger.settled(lost.tenant.id, None, 10)) == 1
    assert [message.content for message in await lost.transcript(conversation)] == ["Hi", WHOLE]


async def test_rescuer_that_is_lost_as_well_is_rescued(set_stage: SetStage, lost: Stage) -> None:
    """A turn whose second owner dies too is taken over by a third, whose readers see one log to its end."""
    second = beside(set_stage, lost, RescueRules(timeout_s=60, reads_max=2, settle_s=50), lease_s=0.05)
    conversation, turn = await lost.orphan("Hello")
    assert await second.recovery.recover(lost.tenant.id, turn)
    second.journal._entries.clear()  # its heart stops
    await second.until_unleased(turn)
    third = beside(set_stage, lost)
    keep(third, conversation, WHOLE)
    reading = await third.read(turn, after=4)
    assert isinstance(await reading.ended(), TurnCompleted)
    assert reading.text == WHOLE[2:]
    assert (await names(third, turn)).count("turn.completed") == 1


async def test_message_in_an_orphans_conversation_completes_it_where_the_answer_is_there(
    set_stage: SetStage, lost: Stage
) -> None:
    """The next message goes through at its first try; the lost turn gets one look and the answer that is there."""
    other = beside(set_stage, lost, LONG)
    conversation, turn = await lost.orphan("Hello")
    keep(other, conversation, WHOLE)
    started = await other.start(conversation, "And now?")
    assert other.vendor.reads == 1
    (await other.vendor.chat()).complete("Fine")
    await until(lambda: other.turns.running == 0)
    assert [message.content for message in await other.transcript(conversation)] == ["Hi", WHOLE, "And now?", "Fine"]
    assert isinstance(await (await other.read(turn)).ended(), TurnCompleted)
    assert isinstance(await (await other.read(started.turn_id)).ended(), TurnCompleted)


async def test_rescue_learns_the_vendors_habit_from_an_answer_that_came_late(set_stage: SetStage, lost: Stage) -> None:
    """An answer that was not there after its worker's death and is there later teaches that the vendor finishes."""
    other = beside(set_stage, lost, LONG, after_disconnect="auto")
    conversation, turn = await lost.orphan("Hello")
    dead = WorkerId(lost.worker)
    await other.recovery.worker_lost(dead)
    await until(lambda: other.vendor.reads > 0)
    assert not other.habits.known
    keep(other, conversation, WHOLE)
    assert isinstance(await (await other.read(turn)).ended(), TurnCompleted)
    assert other.habits.known


async def test_rescue_learns_nothing_where_the_connection_may_have_been_open(set_stage: SetStage, lost: Stage) -> None:
    """Of a host that is out of reach nobody knows when its connections ended: no habit is taken from that."""
    other = beside(set_stage, lost, RescueRules(timeout_s=0.5, reads_max=10, settle_s=0.01), after_disconnect="auto")
    conversation, turn = await lost.orphan("Hello")
    assert await other.recovery.recover(lost.tenant.id, turn)
    await until(lambda: other.vendor.reads > 0)
    keep(other, conversation, WHOLE)
    assert isinstance(await (await other.read(turn)).ended(), TurnFailed)
    assert not other.habits.known


async def test_habit_that_one_worker_learned_is_known_to_all(set_stage: SetStage) -> None:
    """What one worker saw, every worker goes by, and only where no setting says otherwise."""
    first, second = set_stage(), set_stage()
    await first.store.call("DEL", KEY)
    try:
        knowing, asking = AfterLoss("auto", RedisHabits(first.store)), AfterLoss("auto", RedisHabits(second.store))
        told = AfterLoss("drops", RedisHabits(second.store))
        assert not await asking.finishes()
        await knowing.saw_finish()
        assert [await rule.finishes() for rule in (knowing, asking, told)] == [True, True, False]
        assert await first.store.call("TTL", KEY) > 0
    finally:
        await first.store.call("DEL", KEY)
