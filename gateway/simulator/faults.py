"""Faults: the closed set of ways in which the simulator misbehaves on purpose.

A fault is written ``NAME[:PARAM][@EVERY]`` (``stall``, ``stall:5``, ``429:3@10``, ``split:4@25%``). ``PARAM`` is what
`MEANINGS` says; ``@N`` lets it strike every Nth chat (the Nth, the 2Nth, …), ``@P%`` each chat with that probability.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class FaultName(StrEnum):
    """Names every fault, as the command line and the ``#fault=`` directive spell it."""

    STALL = "stall"
    CUT = "cut"
    CUT_AFTER_FINISH = "cut-after-finish"
    RESET = "reset"
    REFUSE = "refuse"
    GOAWAY = "goaway"
    GOAWAY_UNSEEN = "goaway-unseen"
    DROP = "drop"
    DEAF = "deaf"
    TOO_MANY = "429"
    INTERNAL = "500"
    EMPTY_BODY_ERROR = "empty-body-error"
    SLOW_HEADERS = "slow-headers"
    SLOW_FIRST_TOKEN = "slow-first-token"
    MODERATED = "moderated"
    BATCH = "batch"
    SPLIT = "split"
    NO_USAGE = "no-usage"
    ZERO_USAGE = "zero-usage"
    GARBAGE = "garbage"
    HUGE_ITEM = "huge-item"
    EXTRA_ROLE = "extra-role"
    LOW_STREAMS = "low-streams"
    NO_ALPN = "no-alpn"


class Meaning(NamedTuple):
    """Says what a fault does, what its parameter is, and the parameter's default (None: the middle of the answer)."""

    does: str
    param: str
    default: float | None
    least: float = 0
    most: float = 1_000_000


_AFTER = "items sent before it strikes (default: half of the answer)"

MEANINGS: dict[FaultName, Meaning] = {
    FaultName.STALL: Meaning("stops in mid-answer and keeps the stream open", _AFTER, None),
    FaultName.CUT: Meaning("ends the stream without the closing bracket", _AFTER, None),
    FaultName.CUT_AFTER_FINISH: Meaning("sends every item, then ends without the closing bracket", "unused", 0),
    FaultName.RESET: Meaning("RST_STREAM(INTERNAL_ERROR) in mid-answer", _AFTER, None),
    FaultName.REFUSE: Meaning("RST_STREAM(REFUSED_STREAM) before anything is processed", "unused", 0),
    FaultName.GOAWAY: Meaning(
        "GOAWAY in mid-answer; streams in flight finish, then the connection closes", _AFTER, None
    ),
    FaultName.GOAWAY_UNSEEN: Meaning("GOAWAY whose last stream is below this one, nothing processed", "unused", 0),
    FaultName.DROP: Meaning("aborts the TCP connection in mid-answer", _AFTER, None),
    FaultName.DEAF: Meaning("the connection stops reading and writing, PING included, and stays open", _AFTER, None),
    FaultName.TOO_MANY: Meaning("429 with Retry-After and X-RateLimit-*", "seconds of Retry-After", 2),
    FaultName.INTERNAL: Meaning("500 in the documented error shape", "unused", 0),
    FaultName.EMPTY_BODY_ERROR: Meaning("an error status without any body", "the status", 502, 400, 599),
    FaultName.SLOW_HEADERS: Meaning("response headers come late", "seconds", 2),
    FaultName.SLOW_FIRST_TOKEN: Meaning("the first item comes late, after the headers", "seconds", 2),
    FaultName.MODERATED: Meaning("withholds the answer with filtered moderation results", "items sent before", 0),
    FaultName.BATCH: Meaning("several items in one DATA frame", "items in a frame", 3, 1),
    FaultName.SPLIT: Meaning("DATA frames cut anywhere, also inside escapes and UTF-8", "most bytes in a frame", 7, 1),
    FaultName.NO_USAGE: Meaning("leaves the usage out", "unused", 0),
    FaultName.ZERO_USAGE: Meaning("reports a usage of zero tokens", "unused", 0),
    FaultName.GARBAGE: Meaning("breaks into invalid JSON in mid-array, then ends", _AFTER, None),
    FaultName.HUGE_ITEM: Meaning("one item with a very long content", "bytes of content", 2_000_000, 1, 64_000_000),
    FaultName.EXTRA_ROLE: Meaning("adds an item of the tool role and one of index 1", "items sent before", 1),
    FaultName.LOW_STREAMS: Meaning("SETTINGS_MAX_CONCURRENT_STREAMS of new connections", "streams", 1),
    FaultName.NO_ALPN: Meaning("TLS that does not offer h2", "unused", 0),
}
CONNECTION_FAULTS = frozenset({FaultName.LOW_STREAMS, FaultName.NO_ALPN})  # of the whole server, not of a chat


@dataclass(frozen=True, slots=True)
class Fault:
    """Is one fault with its parameter and how often it strikes."""

    name: FaultName
    param: float | None = None
    every: int = 1
    probability: float = 1.0

    def __post_init__(self) -> None:
        meaning = MEANINGS[self.name]
        if self.param is not None and not meaning.least <= self.param <= meaning.most:
            raise ValueError(f"{self.name}: {meaning.param} must be from {meaning.least:g} to {meaning.most:g}")
        if self.every < 1 or not 0 <= self.probability <= 1:
            raise ValueError(f"{self.name}: strikes every Nth chat (N at least 1) or with a probability of 0 to 100 %")

    @property
    def value(self) -> float:
        """The parameter, or its default; 0 where the default depends on the answer."""
        if self.param is not None:
            return self.param
        return MEANINGS[self.name].default or 0

    def position(self, items: int) -> int:
        """Returns how many of `items` go out before the fault strikes; never all of them, so that it always strikes."""
        wanted = items // 2 if self.param is None and MEANINGS[self.name].default is None else int(self.value)
        return max(0, min(wanted, items - 1))


def parse_fault(spec: str) -> Fault:
    """Reads ``NAME[:PARAM][@EVERY]``; raises ValueError that names what is wrong and, for a name, the valid ones."""
    head, at, often = spec.strip().partition("@")
    name_text, colon, param_text = head.partition(":")
    try:
        name = FaultName(name_text)
    except ValueError:
        raise ValueError(f"unknown fault {name_text!r}; one of {', '.join(FaultName)}") from None
    param = _number(param_text, spec) if colon else None
    if not at:
        return Fault(name, param)
    if often.endswith("%"):
        return Fault(name, param, probability=_number(often[:-1], spec) / 100)
    if not (often.isascii() and often.isdigit()):
        raise ValueError(f"{spec!r}: after @ comes a whole number or a percentage")
    return Fault(name, param, every=int(often))


def _number(text: str, spec: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{spec!r}: {text!r} is not a number")
    return number


class FaultPlan:
    """Decides which faults strike a chat: those of the settings by turn or by chance, plus those of the message."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self.faults = tuple(faults)
        self._chats = 0
        self._random = random.Random(seed)

    def strike(self, asked: Iterable[Fault] = ()) -> dict[FaultName, Fault]:
        """Counts one chat and returns its faults; one that the message asks for wins over the same of the settings."""
        self._chats += 1
        return {fault.name: fault for fault in (*self._due(), *asked)}

    def _due(self) -> Iterator[Fault]:
        for fault in self.faults:
            if fault.name in CONNECTION_FAULTS or self._chats % fault.every:
                continue
            if fault.probability >= 1 or self._random.random() < fault.probability:
                yield fault

    def connection_fault(self, name: FaultName) -> Fault | None:
        """Returns the fault of the whole server with that name, if the settings have it."""
        return next((fault for fault in self.faults if fault.name is name), None)
