"""Limits that tighten one another, and calendars by which budgets are counted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.plan import Plan, ScopeLimits, calendar

HOUR_US = 3_600_000_000


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("now", "zone", "day", "month", "hours"),
    [
        ("2026-11-21T23:59:59+00:00", "UTC", "20261121", "202611", 24),
        ("2026-12-31T23:30:00+00:00", "Europe/Berlin", "20270101", "202701", 24),
        ("2026-03-29T12:00:00+00:00", "Europe/Berlin", "20260329", "202603", 23),  # clocks go forward
        ("2026-10-25T12:00:00+00:00", "Europe/Berlin", "20261025", "202610", 25),
        ("2026-02-28T23:00:00+00:00", "Asia/Kathmandu", "20260301", "202603", 24),
        ("2018-11-04T12:00:00+00:00", "America/Sao_Paulo", "20181104", "201811", 23),  # a day without a midnight
        ("2011-12-29T12:00:00+00:00", "Pacific/Apia", "20111229", "201112", 24),  # the next date never was
    ],
)
def test_calendar_is_the_one_on_the_wall(now: str, zone: str, day: str, month: str, hours: int) -> None:
    """Days and months are the zone's, with 23, 24 or 25 hours."""
    found = calendar(us(now), ZoneInfo(zone))
    assert (found.day, found.month) == (day, month)
    assert (found.day_ends_us - found.day_begins_us) / HOUR_US == hours


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 1)),  # noqa: DTZ001 - made aware below
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "America/Sao_Paulo", "Asia/Beirut", "Africa/Cairo"]),
)
def test_calendar_holds_the_moment_it_is_of(moment: datetime, zone: str) -> None:
    """A moment lies in its day, the day in its month, and the next day begins where this one ends."""
    now_us = int((moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    found = calendar(now_us, ZoneInfo(zone))
    assert found.day_begins_us <= now_us < found.day_ends_us <= found.month_ends_us
    following = calendar(found.day_ends_us, ZoneInfo(zone))
    assert following.day_begins_us == found.day_ends_us
    assert following.day > found.day
    assert calendar(found.month_ends_us, ZoneInfo(zone)).month > found.month


def test_limits_are_tightened_one_by_one() -> None:
    """Of each limit the lower holds; none is higher than any."""
    one = ScopeLimits(requests_per_min=5, tokens_per_min=10, tokens_per_day=7)
    two = ScopeLimits(requests_per_min=3, tokens_per_min=20, concurrent_turns=2)
    lower = ScopeLimits(requests_per_min=3, tokens_per_min=10, concurrent_turns=2, tokens_per_day=7)
    assert one.tightened(two) == two.tightened(one) == lower
    assert one.tightened(ScopeLimits()) == one


def test_apps_have_at_most_what_visitors_have() -> None:
    """An app key shows no origin, so what it may use is never more than what a page's visitor may."""
    plan = Plan(anonymous=ScopeLimits(requests_per_min=5, tokens_per_day=100), app=ScopeLimits(requests_per_min=10))
    assert plan.of("app") == plan.of("anonymous") == plan.anonymous
    assert Plan().of("app") == ScopeLimits(requests_per_min=10, concurrent_turns=2)
    assert Plan().of("user") == Plan().user
