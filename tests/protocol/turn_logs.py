"""Turns' logs, and the ways in which they reach readers: any events, cut into any batches, deltas joined or not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from hypothesis import strategies as st

from gateway.core.errors import Code
from gateway.core.events import (
    Ending,
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
    advance,
    merged,
)
from gateway.core.turn import StopReason, Usage

TURN: Final = "8a1f0e53-1f0e-4c53-8a1f-0e531f0e4c53"
CONVERSATION: Final = "0e531f0e-4c53-4a1f-8e53-1f0e4c538a1f"
USAGE: Final = Usage(12, 34, 46, "reported")
CITATION: Final = {"sourceUrl": "https://example.com/a", "sourceName": 'a "b"\r\n'}
PLACE: Final = {"sourceName": "no address", "documentId": "d1", "sourceContentType": "application/pdf"}
KINDS: Final = ("stop", "length", "content_filter", "unknown", "failed", *StopReason)
_TEXTS: Final = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=8)


def ending_of(kind: str, text: str) -> Ending:
    ids = ("m", "r")
    match kind:
        case "failed":
            return TurnFailed(*ids, TurnError(Code.UPSTREAM_TRUNCATED, "Cut off.", True), text, USAGE)
        case "stop" | "length" | "content_filter" | "unknown":
            return TurnCompleted(*ids, kind, text, USAGE)
        case _:
            return TurnStopped(*ids, StopReason(kind), text, USAGE)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """A turn's log: a beginning, deltas and things between them that are not text, an ending. Or no answer at all."""
    texts, kind = draw(_TEXTS), draw(st.sampled_from(KINDS))
    events: list[Event] = [TurnStarted(TURN, CONVERSATION, 1)]
    if draw(st.booleans()):
        events.append(TurnQueued(2, 3.0))
    ending = ending_of(kind, "".join(texts))
    if texts or isinstance(ending, TurnCompleted) or draw(st.booleans()):
        events.append(MessageStarted("m", "r", "assistant"))
    between: list[Event] = [
        MessageExtra(1, "tool", "f", "c", "x"),
        MessageModerated([{"category": "hate"}]),
        MessageCitations([CITATION, PLACE]),
    ]
    for text in texts:
        events.append(TextDelta(text))
        if draw(st.booleans()):
            events.append(draw(st.sampled_from(between)))
    entries: list[Entry] = []
    for event in (*events, ending):
        entries.append(Entry((entries[-1].position if entries else 0) + advance(event), event))
    return entries


def batches(entries: Sequence[Entry], cuts: Sequence[int], join: bool) -> list[list[Entry]]:
    """Cut a log into batches at some places, its deltas joined within each as a replay does."""
    edges = sorted({0, len(entries), *(cut % (len(entries) + 1) for cut in cuts)})
    found = [list(entries[begin:end]) for begin, end in pairwise(edges)]
    return [merged(batch) for batch in found] if join else found
