"""The ledger's judge sees what is missing, written twice, or not what was billed."""

from __future__ import annotations

from typing import Any

from gateway.core.conversation import ConversationId
from gateway.core.identity import UserHash
from gateway.core.ledger import Settlement, Source
from gateway.core.turn import TurnId, TurnState
from tests.bench.survival.books import balance
from tests.bench.survival.crowd import Turn


def turn() -> Turn:
    one = Turn("Hi", "c", [])
    one.turn_id = "t"
    return one


def settled(completion: int, source: Source = "reported") -> Settlement:
    return Settlement(
        turn_id=TurnId("t"),
        conversation_id=ConversationId("c"),
        owner=UserHash("u"),
        persona="default",
        state=TurnState.COMPLETED,
        reason="stop",
        message_id=None,
        prompt_tokens=3,
        completion_tokens=completion,
        total_tokens=3 + completion,
        source=source,
        duration_s=1.0,
        ended_at="",
    )


def run(completion: int) -> dict[str, Any]:
    return {"conversation_id": "c", "prompt_tokens": 3, "completion_tokens": completion}


def test_one_settlement_of_what_was_billed_is_in_order() -> None:
    """The sums are those of the turn, and nothing is wrong."""
    books = balance([turn()], [settled(7)], [run(7)])
    assert (books.settled, books.billed, books.unsettled, books.doubled, books.wrong) == (10, 10, 0, 0, [])


def test_missing_and_double_settlements_are_counted() -> None:
    """None, or two of one turn."""
    assert balance([turn()], [], [run(7)]).unsettled == 1
    assert balance([turn()], [settled(7), settled(7)], [run(7)]).doubled == 1


def test_other_tokens_than_billed_are_wrong_unless_estimated_within_the_bound() -> None:
    """A token too many is wrong where the vendor told; an estimate may miss some, and not many."""
    assert balance([turn()], [settled(8)], [run(7)]).wrong
    assert not balance([turn()], [settled(30, "estimated")], [run(7)]).wrong
    assert balance([turn()], [settled(300, "estimated")], [run(7)]).wrong


def test_message_that_was_sent_twice_is_wrong() -> None:
    """One turn has one run at the vendor, whatever the sums say."""
    assert balance([turn()], [settled(7)], [run(7), run(7)]).wrong
