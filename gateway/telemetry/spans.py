"""Spans: where a request, a turn or a call stands in its trace, and the verbs that tell what happened there.

A ``Place`` records nothing and needs nothing: it carries the ids that logs, answers and turns' records tell. Where
tracing is on, ``otel`` has spans that are recorded; nothing else knows the difference. Facts have the names that they
have in logs; what each is called in an exported span is written in ``otel`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Literal, Protocol

Kind = Literal["admission", "turn", "chat", "call"]  # of the spans that are inside others
Fact = str | int | float | bool | None
Lines = Sequence[tuple[str, str]]

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.ASCII
)


_MEMBER: Final = re.compile(
    r"((?:[a-z][_0-9a-z\-*/]{0,255})|(?:[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}))"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])",
    re.ASCII,
)
_MEMBERS_MAX: Final = 32
_STATE_MAX_CHARS: Final = 512  # what every tracing system passes on at least


class Span(Protocol):
    """A span, or at least a place in a trace. Verbs are quick, never raise and never wait."""

    @property
    def traceparent(self) -> str:
        """The place as W3C Trace Context writes it; empty outside of any trace."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty outside of any trace."""
        ...

    @property
    def sampled(self) -> bool:
        """Whether the span is recorded: only then can the trace be looked up by its id."""
        ...

    @property
    def outgoing(self) -> Lines:
        """Header lines for whoever is asked on its behalf; none where tracing is off."""
        ...

    def begin(self, kind: Kind, /, **facts: Fact) -> Span:
        """Begin a span inside this one; the caller must ``end`` it."""
        ...

    def tell(self, **facts: Fact) -> None:
        """Add facts; those that are None are left out."""
        ...

    def happened(self, name: str, /) -> None:
        """Note a moment."""
        ...

    def end(self, error: str | None = None, /, **facts: Fact) -> None:
        """End the span, failed with an error's code or not. Only the first call counts."""
        ...


class Place:
    """A place in a trace that is not recorded."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent  # one text: a stream keeps it as long as it lasts

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def sampled(self) -> bool:
        return False

    @property
    def outgoing(self) -> Lines:
        return ()

    def begin(self, kind: Kind, /, **facts: Fact) -> Span:
        return self

    def tell(self, **facts: Fact) -> None:
        pass

    def happened(self, name: str, /) -> None:
        pass

    def end(self, error: str | None = None, /, **facts: Fact) -> None:
        pass


NOWHERE: Final[Span] = Place("")
# The span that what is done now belongs to; tasks take it along. Set by doors, and by turns in their own tasks.
CURRENT: ContextVar[Span] = ContextVar("span", default=NOWHERE)


def parse(traceparent: str) -> tuple[str, str, str] | None:
    """Return a header's trace id, span id and flags; None for one that is to be ignored (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == "00" and len(traceparent) != 55):  # a later version may have more to tell
        return None
    return match[2], match[3], match[4]


def parse_state(tracestate: str) -> list[tuple[str, str]]:
    """Return the members of a ``tracestate``; none of one that breaks the form (W3C Trace Context, 3.3)."""
    if len(tracestate) > _STATE_MAX_CHARS:
        return []
    members = [member for part in tracestate.split(",") if (member := part.strip(" \t"))]
    read = [match.groups() for member in members if (match := _MEMBER.fullmatch(member))]
    if len(read) != len(members) or len(read) > _MEMBERS_MAX or len({key for key, _ in read}) != len(read):
        return []
    return [(key, value) for key, value in read]
