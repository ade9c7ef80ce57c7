"""What a reader of one turn must see, and what all readers of a phase saw together.

The simulator's ``#clock`` directive makes every delta ``<number>@<ns> ``: its number from 0 and the monotonic clock
when it was sent. So each delivered delta says by itself whether one was lost or came twice, and how long it took.
"""

from __future__ import annotations

import re
import time
from array import array
from collections import Counter
from typing import Any, Final

import msgspec

STAMP: Final = re.compile(rb"(\d+)@(\d+) ")


class Tally:
    """Sums of all turns of a phase. ``events`` and delays are counted while ``recording``, the rest always."""

    def __init__(self) -> None:
        self.recording = False
        self.events = 0
        self.delays_ns = array("q")
        self.first_tokens_ns = array("q")
        self.answered = 0  # turns whose response headers have come
        self.waiting = 0  # turns whose first event has come
        self.streaming = 0  # turns whose first delta has come
        self.turns = 0  # that ended
        self.barren = 0  # turns that were over before a delta had come
        self.lost = 0
        self.duplicated = 0
        self.faults: Counter[str] = Counter()

    def result(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "delays_ns": list(self.delays_ns),
            "first_tokens_ns": list(self.first_tokens_ns),
            "turns": self.turns,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "faults": dict(self.faults),
        }


class Reading:
    """One turn as one reader sees it."""

    __slots__ = ("_begun_ns", "_endings", "_events", "_next", "_parts", "_position", "_seen", "_tally")

    def __init__(self, tally: Tally, events: int) -> None:
        self._tally = tally
        self._events = events  # that the simulator will send
        self._begun_ns = time.monotonic_ns()
        self._next = 0
        self._position = 0
        self._parts: list[bytes] = []
        self._endings = 0
        self._seen = False

    def delta(self, text: bytes, now_ns: int) -> None:
        """Take the text of a delta, which may be several joined ones."""
        tally = self._tally
        if not self._next:
            tally.first_tokens_ns.append(now_ns - self._begun_ns)
            tally.streaming += 1
        for number, sent_ns in STAMP.findall(text):
            if int(number) == self._next:
                self._next += 1
            else:
                self._out_of_order(int(number))
            if tally.recording:
                tally.events += 1
                tally.delays_ns.append(now_ns - int(sent_ns))

    def positioned_delta(self, position: int, text: bytes, now_ns: int) -> None:
        if position <= self._position or self._endings:
            self._tally.faults["position not increasing" if not self._endings else "event after the ending"] += 1
        self._position = position
        self._parts.append(text)
        self.delta(text, now_ns)

    def unnumbered_delta(self, text: bytes, now_ns: int) -> None:
        """Take a delta of a dialect that has no positions."""
        self.positioned_delta(self._position + 1, text, now_ns)

    def event(self, position: int, name: str, data: bytes) -> bool:
        """Take any other event; True when it ends the turn."""
        self.step(position)
        match name:
            case "turn.completed":
                self.ended(whole=msgspec.json.decode(data)["text"])
                return True
            case "turn.failed":
                self.ended(f"turn.failed {msgspec.json.decode(data)['error']['code']}")
                return True
            case "turn.stopped":
                self.ended("turn.stopped")
                return True
            case _:
                return False

    def step(self, position: int | None = None) -> None:
        """Take an event that is no delta; its dialect may have no positions."""
        tally = self._tally
        if not self._seen:
            self._seen = True
            tally.waiting += 1
        position = self._position + 1 if position is None else position
        if position <= self._position or self._endings:
            tally.faults["position not increasing" if not self._endings else "event after the ending"] += 1
        self._position = position

    def fault(self, words: str) -> None:
        self._tally.faults[words] += 1

    def ended(self, fault: str | None = None, *, whole: str | None = None) -> None:
        """Take the ending, which the event before it told; ``whole`` is the text that it has, if it has one."""
        self._endings += 1
        if fault is not None:
            self.fault(fault)
        elif whole is not None and whole.encode() != b"".join(self._parts):
            self.fault("text differs from the deltas")

    def close(self, *, has_ending: bool) -> None:
        """The turn's stream is over. ``has_ending`` says whether its dialect tells of endings."""
        tally = self._tally
        tally.turns += 1
        tally.barren += not self._next
        tally.lost += max(0, self._events - self._next)
        if has_ending and self._endings != 1:
            tally.faults[f"{self._endings} endings"] += 1

    def _out_of_order(self, number: int) -> None:
        if number > self._next:
            self._tally.lost += number - self._next
            self._next = number + 1
        else:
            self._tally.duplicated += 1
