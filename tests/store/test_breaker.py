"""The breaker: one trial at a time, and a pause after each that failed."""

from __future__ import annotations

from gateway.store.breaker import RETRY_S, Breaker


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_breaker_closed_admits_everybody() -> None:
    """While the server answers nobody is held back."""
    breaker = Breaker(Clock())
    assert [breaker.admit() for _ in range(3)] == [True] * 3


def test_breaker_opened_admits_one_trial_at_once_and_nobody_beside_it() -> None:
    """After a failure the next attempt is a trial, and all others are refused until it is over."""
    breaker = Breaker(Clock())
    breaker.fail(trial=False)
    assert breaker.is_open
    assert [breaker.admit() for _ in range(3)] == [True, False, False]


def test_breaker_after_a_failed_trial_waits() -> None:
    """The trial after a failed one comes a pause later."""
    clock = Clock()
    breaker = Breaker(clock)
    breaker.fail(trial=False)
    assert breaker.admit()
    breaker.fail(trial=True)
    clock.now_s += RETRY_S * 0.9
    assert not breaker.admit()
    clock.now_s += RETRY_S * 0.2
    assert [breaker.admit() for _ in range(2)] == [True, False]


def test_breaker_late_failures_of_the_same_outage_change_nothing() -> None:
    """Attempts that were under way when it opened neither end the trial nor put the next one off."""
    breaker = Breaker(Clock())
    breaker.fail(trial=False)
    assert breaker.admit()
    breaker.fail(trial=False)
    assert not breaker.admit()


def test_breaker_success_closes_it() -> None:
    """One answer is enough for everybody to be let in again."""
    breaker = Breaker(Clock())
    breaker.fail(trial=False)
    assert breaker.admit()
    breaker.succeed()
    assert not breaker.is_open
    assert [breaker.admit() for _ in range(2)] == [True, True]
