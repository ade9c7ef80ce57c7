"""Plan limits: read as the vendor's plans are written, and nothing else taken for one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.vendor_keys import PLAN_LIMIT_MAX, PlanLimit

COUNTS = st.one_of(st.none(), st.integers(1, PLAN_LIMIT_MAX))
SPACE = st.sampled_from(["", " ", "   "])


@given(per_hour=COUNTS, per_min=COUNTS)
def test_plan_limit_written_and_read_is_the_same(per_hour: int | None, per_min: int | None) -> None:
    """What a limit says of itself is read as that limit."""
    limit = PlanLimit(per_hour, per_min)
    assert PlanLimit.parse(str(limit)) == limit


@given(
    per_hour=st.integers(1, PLAN_LIMIT_MAX), per_min=st.integers(1, PLAN_LIMIT_MAX), space=SPACE, comma=st.booleans()
)
def test_plan_limit_order_spaces_and_commas_do_not_matter(per_hour: int, per_min: int, space: str, comma: bool) -> None:
    """Both units may come first, with spaces around the plus, and thousands may be grouped by commas."""
    hour, minute = (f"{count:,}" if comma else str(count) for count in (per_hour, per_min))
    wanted = PlanLimit(per_hour, per_min)
    assert PlanLimit.parse(f"{hour}/h{space}+{space}{minute}/min") == wanted
    assert PlanLimit.parse(f"{space}{minute}/min{space}+{space}{hour}/h{space}") == wanted


@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"[0-9, ]{0,12}/(h|min|s|)( \+ [0-9,]{0,12}/(h|min))?")))
def test_plan_limit_of_any_text_is_a_limit_within_bounds_or_an_error_in_words(text: str) -> None:
    """No text is half understood: every number in it is one of the limit's, or it is refused with ValueError."""
    try:
        limit = PlanLimit.parse(text)
    except ValueError:
        return
    told = sorted(count for count in (limit.per_hour, limit.per_min) if count is not None)
    assert sorted(int(number.replace(",", "")) for number in re.findall(r"[\d,]+", text)) == told
    assert all(1 <= count <= PLAN_LIMIT_MAX for count in told)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("100/h + 10/min", PlanLimit(100, 10)),
        ("20,000/h + 500/min", PlanLimit(20_000, 500)),
        ("1000/h", PlanLimit(1000, None)),
        ("50/min", PlanLimit(None, 50)),
        ("none", PlanLimit()),
    ],
)
def test_plan_limit_as_plans_are_written_is_read(text: str, limit: PlanLimit) -> None:
    """The forms of the documentation mean what they say."""
    assert PlanLimit.parse(text) == limit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not <requests>"),
        ("1000", "'1000' is not"),
        ("0/h", "between 1 and"),
        ("-5/h", "is not"),
        ("1,00/h", "is not"),
        ("10/s", "is not"),
        ("10/h + 20/h", "more than one"),
        ("10/h +", "'' is not"),
        ("10/h, 5/min", "is not"),
        ("999999999/h", "between 1 and"),
        ("１０/h", "is not"),
        ("1e3/h", "is not"),
    ],
)
def test_plan_limit_that_is_none_is_refused_in_words(text: str, words: str) -> None:
    """A limit that cannot be meant is refused, and the error says which part of it."""
    with pytest.raises(ValueError, match=re.escape(words)):
        PlanLimit.parse(text)
