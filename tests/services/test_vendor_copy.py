"""Finding one turn's answer in the vendor's copy: never another turn's, whatever order they were finished in."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.events import TurnRecord
from gateway.core.identity import UserHash
from gateway.core.turn import TurnId, TurnState
from gateway.services.vendor_copy import Asked, copied_usage, find_answer


def asked(text: str, run: str | None = None) -> Message:
    return Message("user", text, run_id=run)


def answer(text: str, run: str | None = None, message_id: str | None = None) -> Message:
    return Message("assistant", text, message_id=message_id or f"id of {text}", run_id=run)


def found(messages: list[Message], **known: Any) -> str | None:
    facts = {"message_id": None, "question": "Hi", "last_message_id": None, "messages_before": 0, **known}
    message = find_answer(messages, Asked(**facts))
    return message.content if message is not None else None


def others(*texts: str) -> frozenset[str]:
    return frozenset(f"id of {text}" for text in texts)


def test_answer_with_a_known_id_is_found_wherever_it_stands() -> None:
    """The id that the stream told decides, also where the answer was finished after later turns."""
    messages = [asked("Hi"), asked("And?"), answer("second"), answer("first")]
    assert found(messages, message_id="id of first") == "first"
    assert found(messages, message_id="id of nothing") is None


def test_answer_that_is_not_there_yet_is_not_found() -> None:
    """A question without an answer, or a conversation without the question, gives nothing."""
    assert found([]) is None
    assert found([asked("Hi")]) is None
    assert found([asked("Who?"), answer("I")]) is None


def test_answer_of_a_stopped_turn_is_not_the_next_turns() -> None:
    """A turn that was stopped before its first token is not given the answer to the question after it."""
    assert found([asked("Hi"), asked("And?"), answer("second")]) is None
    assert found([asked("Hi"), asked("And?"), answer("second")], question="And?") == "second"


def test_answer_to_the_same_question_asked_before_is_not_taken() -> None:
    """The same words asked twice are two turns, each with its own answer."""
    messages = [asked("Hi"), answer("one"), asked("Hi"), answer("two")]
    assert found(messages, others=others("one")) == "two"
    assert found(messages[:3], others=others("one")) is None
    assert found(messages[:2], others=others("one")) is None  # the vendor does not have the second question yet
    assert found(messages, again=1) == "one"
    assert found(messages[:2], again=1) is None


@pytest.mark.parametrize("runs", [True, False])
def test_answer_that_an_earlier_turn_got_late_is_not_taken(runs: bool) -> None:
    """A stopped answer that the vendor finished after the next question was sent is none of the next turn's."""
    first, second = ("r1", "r2") if runs else (None, None)
    messages = [asked("Hi", first), asked("And?", second), answer("late", first), answer("right", second)]
    known = {"question": "And?", "last_message_id": "id of late", "messages_before": 2, "others": others("late")}
    assert found(messages, **known) == "right"
    assert found(messages[:3], **known) is None


def test_answer_without_ids_is_told_apart_by_its_run() -> None:
    """Where no stream told an id, the run that the vendor notes on question and answer joins them."""
    messages = [asked("Hi", "r1"), asked("And?", "r2"), answer("late", "r1"), answer("right", "r2")]
    assert found(messages, question="Hi") == "late"
    assert found(messages, question="And?", messages_before=2) == "right"
    assert found(messages[:3], question="And?", messages_before=2) is None


def test_answer_is_found_where_runs_join_nothing() -> None:
    """A vendor that gives question and answer runs of their own is read by the order alone."""
    assert found([asked("Hi", "r1"), answer("right", "r2"), asked("And?", "r3")]) == "right"


def test_answer_to_an_unknown_question_is_looked_for_after_what_was_known() -> None:
    """Without its question, a turn's answer follows the last message known before it, or the count of messages."""
    messages = [asked("Hi"), answer("one"), asked("And?"), answer("two")]
    assert found(messages, question=None, last_message_id="id of one", messages_before=99) == "two"
    assert found(messages, question=None, last_message_id="id of nothing", messages_before=2) == "two"
    assert found(messages[:2], question=None, last_message_id="id of one") is None


def test_asked_of_a_transcript_knows_the_question_and_whose_the_other_answers_are() -> None:
    """The transcript tells what was asked, how often again since, and which answers are other turns'."""
    turn = TurnId("t2")
    record = TurnRecord(
        turn, ConversationId("c"), UserHash("u"), TurnState.STOPPED, 1, False, "default", 2, "m-1", None
    )
    transcript = [
        Message("user", "Hi", turn_id="t1"),
        Message("assistant", "one", message_id="m-1", turn_id="t1"),
        Message("user", "Hi", turn_id="t2"),
        Message("assistant", "", turn_id="t2"),
        Message("user", "Hi", turn_id="t3"),
        Message("assistant", "three", message_id="m-3", turn_id="t3"),
    ]
    assert Asked.of(record, None, transcript) == Asked(None, "Hi", "m-1", 2, 1, frozenset({"m-1", "m-3"}))
    assert Asked.of(record, "m-2", []) == Asked("m-2", None, "m-1", 2)


def test_copied_usage_zero_is_told_and_absent_is_not() -> None:
    """A copy that says 0 tokens has told them; one that says nothing has not."""
    told = copied_usage(Message("assistant", "x", prompt_tokens=0, completion_tokens=0, total_tokens=0))
    assert told is not None
    assert (told.prompt_tokens, told.completion_tokens, told.total_tokens, told.source) == (0, 0, 0, "reported")
    assert copied_usage(Message("assistant", "x")) is None
    assert copied_usage(Message("assistant", "x", prompt_tokens=3)) is None
