"""What a turn cost is settled once: as the stream told it, as the vendor's copy tells it, or as estimated."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.ledger import Due, Settlement
from gateway.core.prices import Price, PriceTable
from gateway.core.turn import AnswerItem, StopReason, TurnId, estimate_usage
from tests.services.conftest import SetStage
from tests.services.stage import Stage, until

RETRIES_S = (0.02, 0.02)


@pytest.fixture
async def stage(set_stage: SetStage) -> Stage:
    """A worker that looks tokens up at once, and twice more."""
    return set_stage(settle_after_s=0.001, settle_retries_s=RETRIES_S)


async def settlements(stage: Stage, turn: TurnId | None = None) -> list[Settlement]:
    found = [settlement for _, settlement in await stage.ledger.settled(stage.tenant.id, None, 10_000)]
    return [settlement for settlement in found if turn is None or settlement.turn_id == turn]


async def sweep_until_settled(stage: Stage, turn: TurnId, *others: Stage) -> Settlement:
    """Sweep, as several workers do, until a turn is settled; then some more, and return its one settlement."""
    async with asyncio.timeout(5):
        while not await settlements(stage, turn):
            await asyncio.gather(*(one.accounting.sweep(one.tenant) for one in (stage, *others)))
            await asyncio.sleep(0.005)
    for _ in range(5):
        await asyncio.gather(*(one.accounting.sweep(one.tenant) for one in (stage, *others)))
    (settlement,) = await settlements(stage, turn)
    assert await stage.store.call("ZCARD", f"hg:{{{stage.tenant.id}}}:usage:unsettled") == 0
    return settlement


def keep(stage: Stage, conversation: ConversationId, *messages: Message) -> None:
    """Have the vendor's copy of a conversation end with these messages."""
    known = stage.vendor.conversations[conversation]
    stage.vendor.conversations[conversation] = msgspec.structs.replace(known, messages=[*known.messages, *messages])


def copied(text: str, tokens: tuple[int, int, int], message_id: str = "m-1") -> Message:
    prompt, completion, total = tokens
    return Message(
        "assistant",
        text,
        message_id=message_id,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
    )


async def stopped(stage: Stage, conversation: ConversationId, *texts: str, message: str = "Hi") -> TurnId:
    """Leave a turn behind that its user stopped after these texts."""
    chats = len(stage.vendor.chats)
    started = await stage.start(conversation, message)
    chat = await stage.vendor.chat(chats)
    if texts:
        chat.say(*texts)
    await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    await until(lambda: stage.turns.running == 0)
    return started.turn_id


@pytest.mark.parametrize("usage", [(5, 7, 12), (0, 0, 0)])
async def test_settlement_of_a_completed_turn_is_what_the_stream_reported(
    usage: tuple[int, int, int], stage: Stage
) -> None:
    """Reported tokens are settled in the step that ends the turn, zero as zero, and nothing is looked up."""
    started = await stage.start(await stage.conversation())
    chat = await stage.vendor.chat()
    chat.say("Hello", AnswerItem(finish_reason="stop", usage=usage, role="assistant"))
    chat.end()
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, started.turn_id)
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.total_tokens) == usage
    assert (settlement.source, settlement.state, settlement.reason) == ("reported", "completed", "stop")
    assert stage.vendor.reads == 0


async def test_settlement_names_the_key_and_the_wait_for_the_first_text(stage: Stage) -> None:
    """What it says of the first text is its wait, also where items without text came before; stopped before: none."""
    started = await stage.start(await stage.conversation())
    chat = await stage.vendor.chat()
    chat.say(AnswerItem(message_id="m-1", run_id="r-1", role="assistant"), AnswerItem(index=1, text="not the answer"))
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + 0.05:
        await asyncio.sleep(0.01)
    chat.say("Hello")
    chat.say(" there")
    chat.complete()
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, started.turn_id)
    assert settlement.vendor_key == stage.key
    assert settlement.first_token_s is not None
    assert 0.05 <= settlement.first_token_s <= settlement.duration_s
    stopped_before = await sweep_until_settled(stage, await stopped(stage, await stage.conversation()))
    assert (stopped_before.vendor_key, stopped_before.first_token_s) == (stage.key, None)


async def test_settlement_of_a_message_that_was_never_sent_names_no_key(stage: Stage) -> None:
    """A turn that was stopped before its message was on its way was served by nobody."""
    conversation = await stage.conversation()
    stage.vendor.gate = asyncio.Event()
    started = await stage.start(conversation)
    await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, started.turn_id)
    assert (settlement.vendor_key, settlement.first_token_s, settlement.total_tokens) == (None, None, 0)


@pytest.mark.parametrize("usage", [(5, 7, 12), (0, 0, 0)])
async def test_settlement_of_a_stopped_turn_is_read_back(usage: tuple[int, int, int], stage: Stage) -> None:
    """A stopped turn is settled as the vendor's copy tells, also zero, by the id that the stream told."""
    conversation = await stage.conversation()
    turn = await stopped(stage, conversation, "Hello")
    keep(stage, conversation, Message("user", "Hi"), copied("Hello and more", usage))
    settlement = await sweep_until_settled(stage, turn)
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.total_tokens) == usage
    assert (settlement.source, settlement.state, settlement.reason) == ("read_back", "stopped", "user")


@pytest.mark.parametrize("trouble", ["silent", "unknown", "away"])
async def test_settlement_is_estimated_where_the_vendor_tells_nothing(trouble: str, stage: Stage) -> None:
    """After the last look-up the estimate of message and delivered text stands, and the look-ups were counted."""
    conversation = await stage.conversation()
    turn = await stopped(stage, conversation, "Hello", message="How are you today?")
    match trouble:
        case "silent":
            keep(stage, conversation, Message("user", "Hi"), Message("assistant", "Hello", message_id="m-1"))
        case "unknown":
            del stage.vendor.conversations[conversation]
        case _:
            stage.vendor.refusal = GatewayError(Code.UPSTREAM_UNAVAILABLE)
    settlement = await sweep_until_settled(stage, turn)
    guess = estimate_usage("How are you today?", "Hello")
    assert (settlement.prompt_tokens, settlement.completion_tokens) == (guess.prompt_tokens, guess.completion_tokens)
    assert settlement.source == "estimated"
    assert stage.vendor.reads == 1 + len(RETRIES_S)


async def test_settlement_of_a_refused_message_is_zero_without_a_look_up(stage: Stage) -> None:
    """A message that the vendor refused cost nothing, and the vendor is not asked about it."""
    conversation = await stage.conversation()
    stage.vendor.refusal = GatewayError(Code.UPSTREAM_RATE_LIMITED, vendor_status=429)
    started = await stage.start(conversation)
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, started.turn_id)
    assert (settlement.total_tokens, settlement.source, settlement.state) == (0, "estimated", "failed")
    assert stage.vendor.reads == 0


async def test_settlement_has_the_cost_of_the_price_in_force(set_stage: SetStage) -> None:
    """Reported, read back and estimated tokens cost what the table says of the persona; what was not taken, nothing."""
    price = Price(currency="EUR", prompt_micros=2_500_000, completion_micros=10_000_000, turn_micros=100)
    stage = set_stage(settle_after_s=0.001, settle_retries_s=RETRIES_S, prices=PriceTable(personas={"default": price}))
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    chat = await stage.vendor.chat()
    chat.say("Hello", AnswerItem(finish_reason="stop", usage=(5, 7, 12), role="assistant"))
    chat.end()
    await until(lambda: stage.turns.running == 0)
    reported = await sweep_until_settled(stage, started.turn_id)
    assert (reported.cost_micros, reported.currency) == (13 + 70 + 100, "EUR")  # 12.5 goes up

    read_back = await stopped(stage, conversation, "Hello")
    keep(stage, conversation, Message("user", "Hi"), copied("Hello and more", (20, 30, 50)))
    assert (await sweep_until_settled(stage, read_back)).cost_micros == 50 + 300 + 100

    other = await stage.conversation()
    estimated = await sweep_until_settled(stage, await stopped(stage, other, "Hello", message="How are you today?"))
    guess = estimate_usage("How are you today?", "Hello")
    assert estimated.source == "estimated"
    assert estimated.cost_micros == price.cost_micros(guess.prompt_tokens, guess.completion_tokens) > 100

    last = await stage.conversation()
    stage.vendor.refusal = GatewayError(Code.UPSTREAM_RATE_LIMITED, vendor_status=429)
    refused = await stage.start(last)
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, refused.turn_id)
    assert (settlement.cost_micros, settlement.currency) == (0, "EUR")


async def test_settlement_without_a_price_has_no_cost(set_stage: SetStage) -> None:
    """What a turn costs is not known where nobody said it: that is not the same as nothing."""
    price = Price(currency="EUR", prompt_micros=1, completion_micros=1)
    stage = set_stage(settle_after_s=0.001, prices=PriceTable(personas={"other": price}))
    started = await stage.start(await stage.conversation())
    (await stage.vendor.chat()).complete("Hello")
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, started.turn_id)
    assert (settlement.cost_micros, settlement.currency) == (None, None)


async def test_settlement_never_counts_the_next_turns_tokens(stage: Stage) -> None:
    """A turn stopped before its first token is not given the tokens of the question after it, nor teaches a habit."""
    conversation = await stage.conversation()
    turn = await stopped(stage, conversation)
    await stage.accounting.sweep(stage.tenant)  # its answer is seen not to be there
    keep(stage, conversation, Message("user", "Hi"), Message("user", "And?"), copied("Fine", (100, 200, 300), "m-2"))
    second = await stage.start(conversation, "And?")
    chat = await stage.vendor.chat(1)
    chat.say(AnswerItem("Fine", "m-2", "r-2", role="assistant"), AnswerItem(finish_reason="stop", usage=(1, 2, 3)))
    chat.end()
    await until(lambda: stage.turns.running == 0)
    settlement = await sweep_until_settled(stage, turn)
    assert (settlement.source, settlement.completion_tokens) == ("estimated", 0)
    assert (await settlements(stage, second.turn_id))[0].total_tokens == 3
    assert not stage.habits.known


async def test_settlement_without_an_id_is_read_back_by_the_question(stage: Stage) -> None:
    """A turn stopped before its first token, whose answer the vendor finished all the same, costs what that did."""
    conversation = await stage.conversation()
    turn = await stopped(stage, conversation)
    keep(stage, conversation, Message("user", "Hi"), copied("Hello", (4, 5, 9)))
    settlement = await sweep_until_settled(stage, turn)
    assert (settlement.source, settlement.total_tokens) == ("read_back", 9)


async def test_settlement_is_one_however_many_workers_sweep(set_stage: SetStage) -> None:
    """Several workers that sweep at the same moment write one settlement a turn."""
    first = set_stage(settle_after_s=0.001, settle_retries_s=RETRIES_S)
    more = [
        set_stage(tenant=first.tenant.id, vendor=first.vendor, settle_after_s=0.001, settle_retries_s=RETRIES_S)
        for _ in range(3)
    ]
    turns = []
    for number in range(8):
        conversation = await first.conversation()
        turns.append(await stopped(first, conversation, "Hello"))
        if number % 2:
            keep(first, conversation, Message("user", "Hi"), copied("Hello", (1, number, number + 1)))
    found = [await sweep_until_settled(first, turn, *more) for turn in turns]
    assert [one.source for one in found] == ["estimated", "read_back"] * 4
    assert len(await settlements(first)) == len(turns)


@pytest.mark.parametrize("last", [False, True])
async def test_settlement_of_a_worker_that_dies_over_it_is_taken_up_by_another(last: bool, set_stage: SetStage) -> None:
    """A turn that was handed out and never settled, on its first or its last try, is handed out again."""
    options: dict[str, Any] = {"settle_after_s": 0.001, "settle_retries_s": () if last else RETRIES_S}
    doomed = set_stage(**options)
    other = set_stage(tenant=doomed.tenant.id, vendor=doomed.vendor, **options)
    turn = await stopped(doomed, await doomed.conversation(), "Hello")
    taken: list[Due] = []
    async with asyncio.timeout(5):
        while not taken:
            taken = await doomed.ledger.due(doomed.tenant.id, 10)
    assert [due.last for due in taken] == [last]
    assert await other.ledger.due(doomed.tenant.id, 10) == []  # not at once: whoever has it may be at work
    await other.store.call("ZADD", f"hg:{{{doomed.tenant.id}}}:usage:unsettled", 0, turn)  # and 30 s go by
    assert (await sweep_until_settled(other, turn)).source == "estimated"


async def test_settle_of_an_ending_that_is_written_again_counts_once(stage: Stage) -> None:
    """An owner that writes its endings again after an outage settles nothing twice, before and after a look-up."""
    conversation = await stage.conversation()
    reported = await stage.start(conversation)
    (await stage.vendor.chat()).complete("Hello")
    await until(lambda: stage.turns.running == 0)
    looked_up = await stopped(stage, conversation, "Hello")
    await stage.roster.reassert()
    await sweep_until_settled(stage, looked_up)
    await stage.roster.reassert()
    await stage.accounting.sweep(stage.tenant)
    assert [one.turn_id for one in await settlements(stage)] == [reported.turn_id, looked_up]


async def test_absent_answers_are_remembered_for_a_bounded_number_of_turns(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker keeps of turns that others settled is bounded, and it goes on learning."""
    monkeypatch.setattr("gateway.services.accounting.ABSENT_MAX", 3)
    conversation = await stage.conversation()
    turns = [await stopped(stage, conversation, "Hello") for _ in range(6)]
    async with asyncio.timeout(5):
        while len(stage.accounting._absent) < 3 or turns[-1] not in stage.accounting._absent:
            await stage.accounting.sweep(stage.tenant)
    assert len(stage.accounting._absent) == 3
