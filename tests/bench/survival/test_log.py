"""The judge of the survive benchmark sees what it is there to see."""

from __future__ import annotations

from typing import Any

from tests.bench.survival.log import ANSWER_CAP, ReaderLog

TURN = "3d2f0c52-6a0e-4a53-9d3f-7f6f0f2a9b11"


Event = tuple[int, str, dict[str, Any]]


def read(*events: Event) -> ReaderLog:
    log = ReaderLog()
    for position, name, data in events:
        log.take(f"{TURN}.{position}", name, data)
    return log


STARTED: Event = (1, "turn.started", {})
HEL, LO = (4, "message.delta", {"text": "Hel"}), (6, "message.delta", {"text": "lo"})
COMPLETED = (7, "turn.completed", {"text": "Hello"})


def failed(position: int, text: str) -> Event:
    return (position, "turn.failed", {"text": text, "error": {"code": "worker_lost"}})


def counts(log: ReaderLog) -> tuple[int, int, int]:
    return log.lost, log.duplicated, log.disordered


def test_whole_log_has_no_fault() -> None:
    """Every event once: nothing is found."""
    log = read(STARTED, HEL, LO, COMPLETED)
    assert counts(log) == (0, 0, 0)
    assert log.faults("Hello") == []
    assert log.cursor == f"{TURN}.7"


def test_gap_is_lost_and_the_text_says_so() -> None:
    """A delta that never came is missing in positions and in the text."""
    log = read(STARTED, HEL, COMPLETED)
    assert counts(log) == (2, 0, 0)
    assert len(log.faults("Hello")) == 2


def test_repeat_and_overlap_are_duplicated_and_anything_else_is_out_of_order() -> None:
    """The same event again, text that was there already, and an event that comes too late."""
    assert counts(read(STARTED, HEL, HEL, LO, COMPLETED)) == (0, 3, 0)
    assert counts(read(STARTED, HEL, (6, "message.delta", {"text": "llo"}), COMPLETED)) == (0, 1, 0)
    assert counts(read(STARTED, HEL, LO, (5, "message.delta", {"text": "l"}), COMPLETED)) == (0, 0, 1)


def test_endings_other_than_one_are_told() -> None:
    """None, or two."""
    assert read(STARTED, HEL).faults("Hello") == ["0 endings"]
    twice = read(STARTED, HEL, LO, COMPLETED, failed(9, "Hello"))
    assert twice.faults("Hello") == ["2 endings"]


def test_recovered_failure_may_step_over_what_readers_might_have() -> None:
    """A failure one answer cap further on is no gap, but its text must be the reader's."""
    good = read(STARTED, HEL, failed(4 + ANSWER_CAP, "Hel"))
    assert counts(good) == (0, 0, 0)
    assert good.faults("Hello") == []
    assert read(STARTED, HEL, LO, failed(4 + ANSWER_CAP, "Hel")).faults("Hello") == []  # it was ahead of the log
    assert read(STARTED, HEL, LO, failed(7, "Hel")).faults("Hello") != []
    assert read(STARTED, HEL, failed(4 + ANSWER_CAP, "Hello")).faults("Hello") != []
    assert read(STARTED, HEL, failed(5 + ANSWER_CAP, "Hel")).lost > 0


def test_text_that_the_vendor_never_said_is_wrong() -> None:
    """Positions and ending agree, and it still is another answer."""
    assert read(STARTED, HEL, LO, COMPLETED).faults("Hella") == ["completed: not the vendor's text"]
