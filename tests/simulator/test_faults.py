"""Reading faults and deciding when they strike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.faults import MEANINGS, Fault, FaultName, FaultPlan, parse_fault


def test_meanings_cover_every_fault() -> None:
    """Each fault says what it does."""
    assert set(MEANINGS) == set(FaultName)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("stall", Fault(FaultName.STALL)),
        ("429:3", Fault(FaultName.TOO_MANY, 3)),
        ("slow-headers:0.5@4", Fault(FaultName.SLOW_HEADERS, 0.5, every=4)),
        ("split:2@25%", Fault(FaultName.SPLIT, 2, probability=0.25)),
    ],
)
def test_parse_fault_reads_all_forms(spec: str, fault: Fault) -> None:
    """NAME, :PARAM, @EVERY and @PERCENT are understood."""
    assert parse_fault(spec) == fault


@pytest.mark.parametrize(
    "spec", ["", "nope", "stall:x", "stall:nan", "stall:-1", "batch:0", "stall@0", "stall@x", "stall@101%", "split:0"]
)
def test_parse_fault_nonsense_is_refused(spec: str) -> None:
    """A wrong name, parameter or frequency is an error."""
    with pytest.raises(ValueError):
        parse_fault(spec)


@given(st.integers(1, 500), st.one_of(st.none(), st.integers(0, 1000)))
def test_fault_position_always_inside_the_answer(items: int, param: int | None) -> None:
    """A fault in mid-answer strikes before the last item, whatever its parameter."""
    assert 0 <= Fault(FaultName.CUT, param).position(items) < items


def test_plan_every_third_strikes_every_third() -> None:
    """@3 strikes chats 3, 6 and 9."""
    plan = FaultPlan([parse_fault("stall@3")], seed=1)
    assert [number for number in range(1, 10) if plan.strike()] == [3, 6, 9]


def test_plan_probability_strikes_about_as_often_and_repeatably() -> None:
    """@25% strikes a quarter of the chats, the same ones for the same seed."""

    def struck(seed: int) -> list[bool]:
        plan = FaultPlan([parse_fault("stall@25%")], seed)
        return [bool(plan.strike()) for _ in range(400)]

    assert 60 < sum(struck(5)) < 140
    assert struck(5) == struck(5) != struck(6)


def test_plan_directive_wins_over_setting() -> None:
    """A message's own fault replaces the same fault of the settings."""
    plan = FaultPlan([parse_fault("stall:1"), parse_fault("low-streams:2")], seed=0)
    assert plan.strike([Fault(FaultName.STALL, 9)]) == {FaultName.STALL: Fault(FaultName.STALL, 9)}
