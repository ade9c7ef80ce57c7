"""The rules of limits: a burst of the limit and then its rate, budgets to the last token, slots that come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.limit_books import Books
from gateway.core.limits import COMPLETION_UNKNOWN, LEVEL_MAX, Ask, Kind, Rule, Work, percentile_90

NOW_US = 1_795_312_860_327_763
MINUTE_US = 60_000_000
LIMITS = st.integers(1, 50)
PERIODS_US = st.sampled_from([1_000_000, MINUTE_US, 7_654_321])


def rate(limit: int, period_us: int = MINUTE_US) -> Rule:
    return Rule("user_requests_per_min", "rm:u", Kind.RATE, limit, period_us)


def ask(number: int, *rules: Rule, message_tokens: int = 0) -> Ask:
    until_us = min((rule.period_us for rule in rules if rule.kind is Kind.BUDGET), default=0)
    return Ask(f"r{number}", rules, Work("c", "p", message_tokens), 0, until_us)


@given(LIMITS, PERIODS_US, st.lists(st.integers(0, 20_000_000), min_size=1, max_size=120))
def test_rate_in_any_window_admits_at_most_limit_plus_what_drained(limit: int, period_us: int, gaps: list[int]) -> None:
    """In a window of any length no more goes through than the burst and one for each interval that passed: exactly."""
    books, rule, now_us, admitted = Books(), rate(limit, period_us), NOW_US, []
    for number, gap_us in enumerate(gaps):
        now_us += gap_us
        if books.admit(ask(number, rule), now_us).refused is None:
            admitted.append(now_us)
    for first, begun_us in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= limit + (admitted[last] - begun_us) * limit // period_us


@given(LIMITS, PERIODS_US)
def test_rate_burst_admits_exactly_the_limit_and_names_the_exact_wait(limit: int, period_us: int) -> None:
    """At one moment the limit goes through and nothing more; after the wait one does, a microsecond before none."""
    books, rule = Books(), rate(limit, period_us)
    left = [books.admit(ask(number, rule), NOW_US) for number in range(limit)]
    assert [decision.quotas[0].remaining for decision in left] == list(range(limit - 1, -1, -1))
    refused = books.admit(ask(-1, rule), NOW_US)
    assert refused.refused == rule
    assert refused.wait_us == refused.quotas[0].reset_us
    assert books.admit(ask(-2, rule), NOW_US + refused.wait_us - 1).refused == rule
    assert books.admit(ask(-3, rule), NOW_US + refused.wait_us).refused is None


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=30))
def test_settled_turns_have_charged_what_they_cost(turns: list[tuple[int, int]]) -> None:
    """However estimates and figures differ, a budget holds the figures' sum when all turns are settled, twice even."""
    books = Books()
    rule = Rule("user_tokens_per_day", "d:u", Kind.BUDGET, 10**9, NOW_US + MINUTE_US)
    for number, (message_tokens, total) in enumerate(turns):
        books.admit(ask(number, rule, message_tokens=message_tokens), NOW_US)
        for figure in (total + 7, total, total):
            books.settle(f"r{number}", NOW_US, prompt=0, completion=9, total=figure, known=True, completed=True)
    assert books.spent["d:u"] == sum(total for _, total in turns)


def test_tokens_larger_than_the_bucket_wait_for_a_full_one_and_leave_it_in_debt() -> None:
    """A prompt that is larger than a minute's tokens is not refused for ever; the next waits until it is paid off."""
    books, rule = Books(), Rule("user_tokens_per_min", "t:u", Kind.TOKENS, 600, MINUTE_US)
    assert books.admit(ask(1, rule), NOW_US).tokens == COMPLETION_UNKNOWN
    refused = books.admit(ask(2, rule), NOW_US)
    assert refused.wait_us == -(-COMPLETION_UNKNOWN * MINUTE_US // 600)
    books.settle("r1", NOW_US, prompt=0, completion=0, total=100, known=False, completed=True)
    assert books.admit(ask(3, rule), NOW_US).wait_us == 10_000_000


def test_absurd_figures_do_not_leave_the_numbers_that_are_exact() -> None:
    """A vendor that tells 10^15 tokens makes no number that the store could not hold."""
    books, rule = Books(), Rule("user_tokens_per_min", "t:u", Kind.TOKENS, 600, MINUTE_US)
    books.admit(ask(1, rule), NOW_US)
    books.settle("r1", NOW_US, prompt=0, completion=0, total=10**15, known=True, completed=True)
    assert books.meters["t:u"].level == LEVEL_MAX < 2**53


@pytest.mark.parametrize(
    ("seen", "known"),
    [([], None), ([5] * 7, None), ([1, 2, 3, 4, 5, 6, 7, 8], 8), (list(range(1, 65)), 58), ([3] * 60 + [900] * 4, 3)],
)
def test_percentile_is_by_nearest_rank_once_enough_are_known(seen: list[int], known: int | None) -> None:
    """Nine of ten answers cost no more than this."""
    assert percentile_90(seen) == known
