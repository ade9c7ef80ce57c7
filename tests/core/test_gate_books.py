"""The rules of the gate: never more than the plan in any window, a fair queue, and one probe when the vendor failed."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.gate import (
    GRANTS_MAX,
    HOUR_US,
    LEASE_US,
    MINUTE_US,
    PROBE_LOOK_US,
    Answer,
    Asker,
    Departure,
    Outcome,
    State,
)
from gateway.core.gate_books import GateBooks, Window
from gateway.core.identity import TenantId, WorkerId
from gateway.core.vendor_keys import PlanLimit

NOW_US = 1_795_312_860_327_763
SECOND_US = 1_000_000
LONG_US = 10**6 * SECOND_US
A, B, C = (TenantId(name) for name in "abc")
ONE, TWO = WorkerId("w1"), WorkerId("w2")


def gate(per_hour: int = 0, per_min: int = 0, queue_max: int = 100_000) -> GateBooks:
    return GateBooks(PlanLimit(per_hour or None, per_min or None), queue_max)


def ask(
    books: GateBooks,
    id_: str,
    now_us: int = NOW_US,
    *,
    tenant: TenantId = A,
    weight: int = 1,
    wait_us: int = LONG_US,
    worker: WorkerId = ONE,
) -> Answer:
    return books.enter(Asker(id_, tenant, weight, wait_us), worker, now_us)


def passes_in_order(books: GateBooks, now_us: int) -> list[str]:
    """Empty the queue, looking whenever something may happen; return who passed, in order."""
    order = []
    while books.lines:
        before = dict(books.waiting)
        next_us = books.serve(ONE, [], now_us).next_us
        gone = [id_ for id_ in before if id_ not in books.waiting]
        order += sorted(gone, key=lambda id_: int(books.known[id_]))
        now_us += min(max(next_us, 1), LEASE_US // 2)
    return order


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from([0, 1, 7, 5_000_000, 30_000_000, 61_000_000]), st.integers(1, 30)), max_size=60),
)
def test_no_window_of_a_minute_or_an_hour_holds_more_than_the_plan(
    per_min: int, arrivals: list[tuple[int, int]]
) -> None:
    """However calls come, in no window of 60 s or of 3,600 s do more pass than the plan lets through in one."""
    books = gate(per_hour=4 * per_min, per_min=per_min)
    now_us, passed, number = NOW_US, list[int](), 0
    for gap_us, count in arrivals:
        now_us += gap_us
        for _ in range(count):
            number += 1
            if ask(books, f"c{number}", now_us, wait_us=0).outcome is Outcome.PASSED:
                passed.append(now_us)
    for span_us, limit in ((60 * SECOND_US, per_min), (3600 * SECOND_US, 4 * per_min)):
        for first, begun_us in enumerate(passed):
            assert bisect_left(passed, begun_us + span_us) - first <= limit


@given(st.integers(1, 9), st.integers(1, 40))
def test_window_uses_the_whole_limit_and_its_wait_is_exact(limit: int, number: int) -> None:
    """The limit passes at one moment; each next passes exactly when it was told at the beginning, not a µs earlier."""
    window = Window(limit, MINUTE_US)
    for time_us in range(NOW_US, NOW_US + limit):
        assert window.wait_us(1, time_us) == 0
        window.fill(time_us)
    told_us = NOW_US + window.wait_us(number, NOW_US)
    for _ in range(number):
        now_us = window.passes[0] + MINUTE_US
        assert window.wait_us(1, now_us - 1) == 1
        assert window.wait_us(1, now_us) == 0
        window.fill(now_us)
    assert told_us == now_us


def test_limit_unused_is_there_whole_and_the_hour_holds_too() -> None:
    """10 a minute, 25 an hour: 10, 10 and 5, then nothing until the first are an hour back."""
    books, counts = gate(25, 10), []
    for minute in range(4):
        now_us = NOW_US + minute * (MINUTE_US + SECOND_US)
        outcomes = [ask(books, f"{minute}-{call}", now_us, wait_us=0).outcome for call in range(12)]
        counts.append(outcomes.count(Outcome.PASSED))
    assert counts == [10, 10, 5, 0]
    refused = ask(books, "late", NOW_US + 4 * MINUTE_US, wait_us=0)
    assert refused.wait_us == HOUR_US - 4 * MINUTE_US


def test_tenant_with_a_thousand_waiting_delays_another_by_one_turn() -> None:
    """However many of a tenant's turns wait, another's first is behind one of them at most."""
    books = gate(per_min=10)
    for number in range(1010):
        ask(books, f"a{number}", tenant=A)
    assert ask(books, "b0", tenant=B).position == 2
    order = passes_in_order(books, NOW_US)
    assert order.index("b0") <= 1
    assert [id_ for id_ in order if id_ != "b0"] == [f"a{number}" for number in range(10, 1010)]


def test_weights_share_what_passes() -> None:
    """A tenant of weight 3 passes three times as often as one of weight 1, as long as both wait."""
    books = gate(per_min=8)
    for number in range(8):
        ask(books, f"x{number}", tenant=C)
    for number in range(60):
        ask(books, f"a{number}", tenant=A, weight=1)
        ask(books, f"b{number}", tenant=B, weight=3)
    first = passes_in_order(books, NOW_US)[:40]
    assert sum(id_.startswith("b") for id_ in first) == 30


@given(st.lists(st.sampled_from([A, B, C]), min_size=4, max_size=40), st.sets(st.integers(0, 39)))
def test_whoever_leaves_is_as_if_he_had_never_come(tenants: list[TenantId], leavers: set[int]) -> None:
    """Who waits passes in the order in which all would pass if the others had not come; the queue ends empty."""
    here, without = gate(per_min=1), gate(per_min=1)
    for books in (here, without):
        ask(books, "first")
    for number, tenant in enumerate(tenants):
        ask(here, f"c{number}", tenant=tenant)
        if number not in leavers:
            ask(without, f"c{number}", tenant=tenant)
    for number in leavers & set(range(len(tenants))):
        assert here.leave(f"c{number}", NOW_US, unsent=True) is Departure.WAITING
    assert (here.lines, here.waiting.keys()) == (without.lines, without.waiting.keys())
    assert here.windows == without.windows
    assert passes_in_order(here, NOW_US) == passes_in_order(without, NOW_US)
    assert (here.lines, here.finishes, here.shares, here.waiting, here.virtual) == ({}, {}, {}, {}, 0)


@given(st.integers(0, 5), st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 3)), min_size=1, max_size=30))
def test_position_and_wait_told_are_exact_if_nobody_comes_or_goes(
    per_min: int, askers: list[tuple[TenantId, int]]
) -> None:
    """The n-th in line is the n-th to pass, at the time that it was told."""
    weights = dict(reversed(askers))  # a tenant has one
    books = gate(per_min=per_min + 1)
    for number in range(per_min + 1):
        ask(books, f"x{number}")
    for number, (tenant, _) in enumerate(askers):
        ask(books, f"c{number}", tenant=tenant, weight=weights[tenant])
    ids = list(books.waiting)
    places = dict(zip(ids, books.serve(ONE, ids, NOW_US).places, strict=True))
    assert sorted(place.position for place in places.values()) == list(range(1, len(ids) + 1))
    for number, id_ in enumerate(passes_in_order(books, NOW_US), 1):
        assert places[id_].position == number
        assert abs(int(books.known[id_]) - NOW_US - places[id_].wait_us) < 2 * len(ids) + 10


def test_queue_is_bounded_and_leaves_room_for_others() -> None:
    """A tenant fills half of an empty queue at most, the next half of the rest: who comes late finds room."""
    books = gate(per_min=1, queue_max=16)
    ask(books, "first")
    counts = []
    for tenant in (A, B, C):
        outcomes = [ask(books, f"{tenant}{number}", tenant=tenant).outcome for number in range(20)]
        counts.append(outcomes.count(Outcome.WAITING))
        assert outcomes[-1] is Outcome.FULL
    assert counts == [8, 4, 2]


def test_wait_that_is_too_long_is_refused_with_the_wait() -> None:
    """Who could not pass within what he may wait is refused, told how long it would be, and takes no place."""
    books = gate(per_min=1)
    ask(books, "first")
    assert ask(books, "second", wait_us=MINUTE_US).outcome is Outcome.WAITING
    refused = ask(books, "third", wait_us=2 * MINUTE_US - 1)
    assert (refused.outcome, refused.wait_us) == (Outcome.LATE, 2 * MINUTE_US)
    assert len(books.waiting) == 1


def test_same_id_again_gets_the_same_place_and_is_charged_once() -> None:
    """A call that is sent again passed once, waits once, and once it has left is let in no more."""
    books = gate(per_min=1)
    assert [ask(books, "one").outcome for _ in range(3)] == [Outcome.PASSED] * 3
    assert [(ask(books, "two").outcome, ask(books, "two").position) for _ in range(2)] == [(Outcome.WAITING, 1)] * 2
    assert [len(window.passes) for window in books.windows] == [0, 1]
    books.leave("two", NOW_US, unsent=False)
    assert ask(books, "two").outcome is Outcome.LEFT


def test_pass_that_was_not_used_is_given_back() -> None:
    """Room that nobody used is there for the next; a call that was sent stays counted."""
    books = gate(per_hour=5, per_min=2)
    ask(books, "one")
    ask(books, "two")
    assert books.leave("one", NOW_US, unsent=False) is Departure.PASSED
    assert ask(books, "three", wait_us=0).outcome is Outcome.LATE
    assert books.leave("two", NOW_US, unsent=True) is Departure.PASSED
    assert books.leave("two", NOW_US, unsent=True) is Departure.UNKNOWN
    assert ask(books, "four", wait_us=0).outcome is Outcome.PASSED
    assert ask(books, "five", wait_us=0).outcome is Outcome.LATE


def test_worker_that_is_gone_waits_no_more() -> None:
    """Those of a worker not heard of for a lease are dropped: never let through, and in nobody's way."""
    books = gate(per_min=1)
    ask(books, "first")
    for number in range(50):
        ask(books, f"lost{number}", worker=TWO)
    ask(books, "mine")
    later_us = NOW_US + LEASE_US
    books.workers[ONE] = later_us + LEASE_US
    assert books.serve(ONE, ["mine", "lost0"], later_us).places[0].position == 1
    assert books.leave("lost7", later_us, unsent=False) is Departure.WAITING
    assert list(books.waiting) == ["mine"]
    assert ask(books, "lost8", later_us, worker=TWO).outcome is Outcome.WAITING  # it was asleep, not dead


def test_hold_stops_everybody_and_the_later_one_counts() -> None:
    """What the vendor's Retry-After says holds for all; a shorter one does not end it."""
    books = gate()
    books.hold(10 * SECOND_US, NOW_US)
    books.hold(2 * SECOND_US, NOW_US)
    answer = ask(books, "one", NOW_US + 5 * SECOND_US)
    assert (answer.outcome, answer.wait_us, answer.state) == (Outcome.WAITING, 5 * SECOND_US, State.HELD)
    assert ask(books, "two", NOW_US + 5 * SECOND_US, wait_us=SECOND_US).outcome is Outcome.LATE
    books.workers[ONE] = NOW_US + LONG_US
    served = books.serve(ONE, ["one"], NOW_US + 10 * SECOND_US)
    assert (served.places[0].passed, served.state) == (True, State.CLEAR)


def test_breaker_rests_probes_with_one_and_rests_twice_as_long_each_time() -> None:
    """Open: nobody; after the rest exactly one; a failed probe doubles the rest up to its bound; a good one closes."""
    books, now_us = gate(), NOW_US
    books.trip(5 * SECOND_US, now_us)
    books.trip(9 * SECOND_US, now_us)
    for number, rest_s in enumerate([5, 10, 20, 40, 60, 60]):
        refused = ask(books, f"early{number}", now_us)
        assert (refused.outcome, refused.wait_us) == (Outcome.OPEN, rest_s * SECOND_US)
        now_us += rest_s * SECOND_US
        answers = [ask(books, f"p{number}-{call}", now_us) for call in range(10)]
        assert [(answer.outcome, answer.probe) for answer in answers] == [(Outcome.PASSED, True)] + [
            (Outcome.OPEN, False)
        ] * 9
        assert answers[1].wait_us == PROBE_LOOK_US
        books.judge(f"p{number}-1", now_us, alive=True, rest_max_us=60 * SECOND_US)  # not the probe: no judge
        books.judge(f"p{number}-0", now_us, alive=False, rest_max_us=60 * SECOND_US)
    now_us += 60 * SECOND_US
    assert ask(books, "last", now_us).probe
    books.judge("last", now_us, alive=True, rest_max_us=60 * SECOND_US)
    assert [ask(books, f"after{number}", now_us).outcome for number in range(5)] == [Outcome.PASSED] * 5


@pytest.mark.parametrize("end", ["left", "lost"])
def test_probe_that_is_never_answered_makes_way_for_another(end: str) -> None:
    """A probe that its user stopped, or whose worker died, says nothing: the next one may go at once."""
    books = gate()
    books.trip(SECOND_US, NOW_US)
    now_us = NOW_US + SECOND_US
    assert ask(books, "probe", now_us).probe
    if end == "left":
        books.leave("probe", now_us, unsent=False)
    else:
        now_us += LEASE_US
    assert ask(books, "next", now_us, worker=TWO).probe


def test_those_who_wait_when_the_breaker_opens_give_the_probe_and_go_when_it_closes() -> None:
    """The head of the queue probes; when it is answered all others go as the plan allows."""
    books = gate(per_min=3)
    for number in range(7):
        ask(books, f"c{number}", tenant=A if number % 2 else B)
    books.trip(SECOND_US, NOW_US)
    now_us = NOW_US + MINUTE_US + SECOND_US
    books.workers[ONE] = now_us + LONG_US
    served = books.serve(ONE, [f"c{number}" for number in range(3, 7)], now_us)
    assert [place.passed for place in served.places] == [place.probe for place in served.places]
    (probe,) = [f"c{number}" for number in range(3, 7) if served.places[number - 3].probe]
    books.judge(probe, now_us, alive=True, rest_max_us=LONG_US)
    assert len(books.waiting) == 1  # three of four in this minute


def test_one_step_lets_a_bounded_number_through() -> None:
    """A long queue that may all go does not hold the store up: the rest goes with the next step, at once."""
    books = gate()
    books.hold(SECOND_US, NOW_US)
    for number in range(GRANTS_MAX + 5):
        ask(books, f"c{number}")
    assert books.serve(ONE, [], NOW_US + SECOND_US).next_us == 0
    assert len(books.waiting) == 5
    assert books.serve(ONE, [], NOW_US + SECOND_US).next_us == -1
