"""Positions make deltas divisible: however a log is cut, merged or resumed, the text is the same."""

from __future__ import annotations

import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    ENDING_STATE,
    EVENT_TYPES,
    Entry,
    Event,
    EventId,
    MessageCitations,
    MessageStarted,
    TextDelta,
    TurnStarted,
    TurnStopped,
    advance,
    after,
    is_ending,
    merged,
)
from gateway.core.turn import StopReason, TurnId, TurnState, Usage
from tests.units import units

OTHERS = st.sampled_from([MessageStarted("m", "r", "assistant"), MessageCitations([]), TurnStarted("t", "c", 1)])
DELTAS = st.text(min_size=1, max_size=6).map(TextDelta)
EVENTS = st.lists(st.one_of(DELTAS, DELTAS, OTHERS), max_size=12)
TURN = "0d9c6d8e-32a0-4b5b-8d5c-7b0b8f1e2d3c"


def log_of(events: list[Event]) -> list[Entry]:
    """Give events their positions, as a turn's owner does."""
    entries, position = [], 0
    for event in events:
        position += advance(event)
        entries.append(Entry(position, event))
    return entries


@given(EVENTS)
def test_merged_keeps_every_character_at_its_position(events: list[Event]) -> None:
    """Joining neighbouring deltas moves no character and no event, and leaves no two deltas side by side."""
    log = log_of(events)
    joined = merged(log)
    assert units(joined) == units(log)
    kinds = [isinstance(entry.event, TextDelta) for entry in joined]
    assert not any(left and right for left, right in pairwise(kinds))


@given(EVENTS)
def test_merged_twice_is_merged_once(events: list[Event]) -> None:
    """Merging is idempotent, so a log saved again is the log saved before."""
    once = merged(log_of(events))
    assert merged(once) == once


@given(EVENTS, st.data())
def test_after_any_cursor_gives_exactly_the_rest(events: list[Event], data: st.DataObject) -> None:
    """Before and after a cursor are the whole, wherever it falls and whether or not the log was merged."""
    log = log_of(events)
    last = log[-1].position if log else 0
    cursor = data.draw(st.integers(0, last + 2))
    rest = [unit for unit in units(log) if unit[0] > cursor]
    assert units(after(log, cursor)) == rest
    assert units(after(merged(log), cursor)) == rest
    assert units(merged(after(log, cursor))) == rest


@given(EVENTS, st.lists(st.integers(0, 80), max_size=5))
def test_after_a_chain_of_cursors_loses_nothing(events: list[Event], cursors: list[int]) -> None:
    """A reader that comes back again and again, at cursors of its own, ends with the whole."""
    log = merged(log_of(events))
    whole, got, position = units(log), [], 0
    for cursor in sorted(cursors):
        got += [unit for unit in units(after(log, position)) if unit[0] <= cursor]
        position = cursor
    got += units(after(log, position))
    assert got == whole


@given(st.one_of(st.text(max_size=20).map(TextDelta), OTHERS))
def test_advance_of_any_event_is_at_least_one(event: Event) -> None:
    """No two events ever share a position, not even when a delta is empty."""
    assert advance(event) >= 1
    if isinstance(event, TextDelta) and event.text:
        assert advance(event) == len(event.text)


def test_advance_counts_code_points_not_bytes() -> None:
    """A character beyond the basic plane and a combining one count one each."""
    assert advance(TextDelta("é😀e\u0301")) == 4


@given(st.uuids(), st.integers(0, 10**15 - 1))
def test_event_id_written_and_read_is_the_same(turn: uuid.UUID, position: int) -> None:
    """What the gateway sends as an id it understands as a cursor."""
    event_id = EventId(TurnId(str(turn)), position)
    assert EventId.parse(str(event_id), field="after") == event_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "17",
        TURN,
        f"{TURN}.",
        f"{TURN}.-1",
        f"{TURN}.1.2",
        f"{TURN}.1\n",
        f" {TURN}.1",
        f"{TURN}.1 ",
        f"{TURN}.1e3",
        f"{TURN}.\u0661",  # a digit, but not of ASCII
        f"{TURN}.{'9' * 16}",
        f"{TURN.upper()}.1",
        f"{TURN[:-1]}.1",
        f"{TURN}x.1",
        f"{TURN}.1\r\nevent: forged",
    ],
)
def test_event_id_garbage_is_refused_with_its_field(text: str) -> None:
    """Anything that the gateway never wrote is an invalid cursor, named by the field it came in."""
    with pytest.raises(GatewayError) as refused:
        EventId.parse(text, field="Last-Event-ID")
    assert refused.value.code is Code.INVALID_CURSOR
    assert refused.value.field == "Last-Event-ID"
    assert "forged" not in refused.value.detail


@given(st.text(max_size=60))
def test_event_id_random_text_is_read_or_refused(text: str) -> None:
    """No text makes the parser fail in any other way."""
    code = None
    try:
        EventId.parse(text, field="after")
    except GatewayError as refused:
        code = refused.code
    assert code in (None, Code.INVALID_CURSOR)


def test_event_types_are_named_as_on_the_wire() -> None:
    """The vocabulary is the documented one, and each name leads to the type that bears it."""
    assert set(EVENT_TYPES) == {
        *("turn.started", "turn.queued", "turn.completed", "turn.stopped", "turn.failed"),
        *("message.started", "message.delta", "message.extra", "message.citations", "message.moderated"),
    }
    assert all(event_type.name == name for name, event_type in EVENT_TYPES.items())


def test_endings_are_three_and_each_is_a_final_state() -> None:
    """Exactly the three ``turn.*`` endings end a turn."""
    assert {event_type.name for event_type in ENDING_STATE} == {"turn.completed", "turn.stopped", "turn.failed"}
    assert all(state.ended for state in ENDING_STATE.values())
    assert not TurnState.RUNNING.ended
    assert is_ending(TurnStopped(None, None, StopReason.USER, "", Usage(0, 0, 0, "reported")))
    assert not is_ending(TextDelta("x"))
