"""GCRA admits a burst of the limit and then one an interval, never more, whatever the clock does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.limits import ROUNDING_S, gcra

LIMITS = st.integers(1, 50)
PERIODS = st.sampled_from([1.0, 60.0, 3600.0])
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 100)), min_size=1, max_size=200)


def admitted_at(arrivals_s: list[float], limit: int, period_s: float) -> list[float]:
    """Run the rule over arrivals and return the times of those that it let through."""
    tat_s, admitted = 0.0, []
    for now_s in arrivals_s:
        new_tat_s, wait_s = gcra(tat_s, now_s, limit, period_s)
        if wait_s == 0:
            tat_s = new_tat_s
            admitted.append(now_s)
    return admitted


@given(LIMITS, PERIODS, GAPS)
def test_gcra_in_any_window_admits_at_most_limit_plus_elapsed(limit: int, period_s: float, gaps: list[float]) -> None:
    """In a window of any length no more goes through than the burst and one for each interval that passed."""
    now_s, arrivals = 1000.0, []
    for gap in gaps:
        now_s += gap
        arrivals.append(now_s)
    admitted = admitted_at(arrivals, limit, period_s)
    interval_s = period_s / limit
    for first, begun_s in enumerate(admitted):
        for last in range(first, len(admitted)):
            allowed = limit + math.floor((admitted[last] - begun_s + limit * ROUNDING_S) / interval_s)
            assert last - first + 1 <= allowed


@given(LIMITS, PERIODS)
def test_gcra_burst_admits_exactly_the_limit(limit: int, period_s: float) -> None:
    """At one moment a full bucket lets the limit through and nothing more."""
    assert len(admitted_at([1000.0] * (limit + 20), limit, period_s)) == limit


@given(LIMITS, PERIODS, st.floats(0, 1e4))
def test_gcra_after_the_wait_it_named_admits(limit: int, period_s: float, ahead_s: float) -> None:
    """Who comes back when told to is let in; one who comes clearly earlier is not."""
    now_s = 1000.0
    tat_s = now_s + ahead_s
    _, wait_s = gcra(tat_s, now_s, limit, period_s)
    _, then_s = gcra(tat_s, now_s + wait_s, limit, period_s)
    assert then_s == pytest.approx(0, abs=1e-6)
    if wait_s > 0.01:
        _, early_s = gcra(tat_s, now_s + wait_s - 0.01, limit, period_s)
        assert early_s > 0


def test_gcra_of_an_idle_key_starts_from_a_full_bucket() -> None:
    """Idling for long saves up one burst and no more."""
    admitted = admitted_at([0.0] * 3 + [10_000.0] * 20, 5, 60.0)
    assert len([at for at in admitted if at == 10_000.0]) == 5
