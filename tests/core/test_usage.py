"""Sums of settlements: whatever they are grouped by, the groups add up to the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import usage
from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId, UserHash
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnId, TurnState
from gateway.core.usage import DIMENSIONS, Dimension, Row, Span, Sums, Tally, TooManyGroups, local_midnight
from gateway.core.vendor_keys import KeyLabel

BEGINS = datetime(2026, 10, 20, tzinfo=UTC)
SPAN = Span(BEGINS, BEGINS + timedelta(days=10), UTC)
BERLIN = ZoneInfo("Europe/Berlin")
ACME, OTHER = TenantId("acme"), TenantId("other")


def written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def settlement(ended_at: datetime = BEGINS, **fields: Any) -> Settlement:
    whole: dict[str, Any] = {
        "turn_id": TurnId("t"),
        "conversation_id": ConversationId("c"),
        "owner": UserHash("u"),
        "persona": "default",
        "state": TurnState.COMPLETED,
        "reason": "stop",
        "message_id": None,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "source": "reported",
        "duration_s": 1.0,
        "ended_at": written(ended_at),
    }
    return Settlement(**{**whole, **fields})


PRICED = st.one_of(st.just((None, None)), st.tuples(st.integers(0, 2**53 - 1), st.sampled_from(["EUR", "USD", "JPY"])))
SETTLEMENTS = st.builds(
    lambda offset_ms, tokens, priced, **fields: settlement(
        BEGINS + timedelta(milliseconds=offset_ms),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        total_tokens=sum(tokens),
        cost_micros=priced[0],
        currency=priced[1],
        **fields,
    ),
    offset_ms=st.integers(-86_400_000, 12 * 86_400_000),
    tokens=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    priced=PRICED,
    conversation_id=st.sampled_from([ConversationId(""), ConversationId("c")]),
    persona=st.sampled_from(["", "support", "sales"]),
    owner=st.sampled_from([UserHash("u1"), UserHash("u2")]),
    state=st.sampled_from([TurnState.COMPLETED, TurnState.STOPPED, TurnState.FAILED]),
    source=st.sampled_from(["reported", "read_back", "estimated"]),
    vendor_key=st.sampled_from([None, KeyLabel("default"), KeyLabel("spare")]),
)
BOOKS = st.lists(st.tuples(st.sampled_from([ACME, OTHER]), SETTLEMENTS), max_size=40)
GROUPINGS = st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=len(DIMENSIONS))


def tally(books: Sequence[tuple[TenantId, Settlement]], by: Sequence[Dimension] = (), span: Span = SPAN) -> Tally:
    made = Tally(span, by)
    for tenant, one in books:
        made.add(tenant, [one])
    return made


def joined(rows: Sequence[Row]) -> dict[str | None, Sums]:
    """Add rows up, currency by currency."""
    totals: dict[str | None, Sums] = {}
    for row in rows:
        totals.setdefault(row.currency, Sums()).join(row.sums)
    return totals


@given(books=BOOKS, by=GROUPINGS, zone=st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu")]))
def test_groups_of_any_kind_add_up_to_the_whole(
    books: list[tuple[TenantId, Settlement]], by: list[Dimension], zone: Any
) -> None:
    """Nothing is in two groups and nothing in none: turns, tokens and cost of each currency are those of the range."""
    found = tally(books, by, SPAN._replace(zone=zone))
    inside = [one for _, one in books if written(SPAN.begins) <= one.ended_at < written(SPAN.ends)]
    plain = tally(books)
    assert joined(found.rows()) == joined(found.total()) == joined(plain.rows())
    sums = [row.sums for row in found.total()]
    assert sum(each.turns for each in sums) == sum(bool(one.conversation_id) for one in inside)
    assert sum(each.turns + each.moderations for each in sums) == len(inside)
    assert sum(each.completed + each.stopped + each.failed for each in sums) == len(inside)
    assert sum(each.total_tokens for each in sums) == sum(one.total_tokens for one in inside)
    costs: Counter[str] = Counter()
    for one in inside:
        if one.currency is not None:
            costs[one.currency] += one.cost_micros or 0
    assert {row.currency: row.sums.cost_micros for row in found.total() if row.currency is not None} == dict(costs)


@given(books=BOOKS, by=GROUPINGS)
def test_groups_are_told_apart_and_sorted(books: list[tuple[TenantId, Settlement]], by: list[Dimension]) -> None:
    """No group is told twice, each has one value a dimension, and the order does not depend on what came first."""
    rows = tally(books, by).rows()
    names = [(row.values, row.currency) for row in rows]
    assert len(names) == len(set(names))
    assert all(len(row.values) == len(by) for row in rows)
    assert rows == tally(books[::-1], by).rows()


def test_group_has_the_values_of_its_settlements() -> None:
    """Each dimension is told as the ledger has it, and what has none is told as that."""
    by: tuple[Dimension, ...] = DIMENSIONS
    one = settlement(
        datetime(2026, 10, 24, 23, 30, tzinfo=UTC), vendor_key=KeyLabel("spare"), currency="EUR", cost_micros=5
    )
    moderation = settlement(conversation_id=ConversationId(""), persona="", source="estimated", state=TurnState.FAILED)
    found = tally([(ACME, one), (OTHER, moderation)], by, SPAN._replace(zone=BERLIN))
    first, second = sorted(found.rows(), key=lambda row: row.sums.turns)
    assert first.values == (
        *("2026-10", "2026-10-20", "2026-10-20T02:00+02:00"),
        *("other", None, "u", "failed", "estimated", None),
    )
    assert (first.currency, first.sums.moderations, first.sums.cost_micros) == (None, 1, None)
    assert second.values == (
        *("2026-10", "2026-10-25", "2026-10-25T01:00+02:00"),
        *("acme", "default", "u", "completed", "reported", "spare"),
    )
    assert (second.currency, second.sums.turns, second.sums.cost_micros) == ("EUR", 1, 5)


def test_hour_that_comes_twice_is_two_hours() -> None:
    """Where clocks go back, the hour before and the one after are told apart by their offset, and the day has 25."""
    day = Span(datetime(2026, 10, 25, tzinfo=BERLIN), datetime(2026, 10, 26, tzinfo=BERLIN), BERLIN)
    begins = day.begins.astimezone(UTC)
    books = [(ACME, settlement(begins + timedelta(minutes=30 * half))) for half in range(-1, 51)]
    hours = [row.values[0] for row in tally(books, ("hour",), day).rows()]
    assert len(hours) == 25
    assert {"2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"} <= set(hours)
    (only,) = tally(books, ("day",), day).rows()
    assert (only.values, only.sums.turns) == (("2026-10-25",), 50)


def test_range_has_its_beginning_and_not_its_end() -> None:
    """A turn that ends at midnight belongs to the day that begins, so that days next to each other share none."""
    midnight = BEGINS + timedelta(days=1)
    books = [(ACME, settlement(midnight + timedelta(milliseconds=ms))) for ms in (-1, 0)]
    for begins in (BEGINS, midnight):
        (row,) = tally(books, (), Span(begins, begins + timedelta(days=1), UTC)).rows()
        assert row.sums.turns == 1


def test_more_groups_than_anybody_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report ends there, and does not grow with the users that a tenant has."""
    monkeypatch.setattr(usage, "GROUPS_MAX", 3)
    made = Tally(SPAN, ("user",))
    made.add(ACME, [settlement(owner=UserHash(f"u{number}")) for number in (0, 1, 2, 2)])
    with pytest.raises(TooManyGroups):
        made.add(ACME, [settlement(owner=UserHash("one more"))])
    assert len(made.rows()) == 3


@pytest.mark.parametrize(
    ("day", "zone", "begins", "following"),
    [
        ("2026-11-22", "UTC", "2026-11-22T00:00:00+00:00", "2026-11-23T00:00:00+00:00"),
        ("2026-03-29", "Europe/Berlin", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        ("2018-11-04", "America/Sao_Paulo", "2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"),
    ],
)
def test_midnight_is_the_one_on_the_wall(day: str, zone: str, begins: str, following: str) -> None:
    """Days have 23 to 25 hours, and one may begin at one o'clock."""
    assert local_midnight(day, ZoneInfo(zone)) == datetime.fromisoformat(begins)
    assert local_midnight(day, ZoneInfo(zone), following=True) == datetime.fromisoformat(following)


def test_day_that_there_is_none_after_is_refused() -> None:
    """The last day of the calendar is no crash."""
    with pytest.raises(OverflowError):
        local_midnight("9999-12-31", UTC, following=True)
