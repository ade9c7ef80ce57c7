"""A log taken apart: what tests compare where deltas may be merged or split."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.core.events import Entry, TextDelta

Unit = tuple[int, object]


def units(entries: Iterable[Entry]) -> list[Unit]:
    """Return the smallest pieces, each with its position: a character of a delta, or another event whole."""
    found: list[Unit] = []
    for entry in entries:
        position, event = entry.position, entry.event
        if isinstance(event, TextDelta):
            begin = position - len(event.text)
            found += [(begin + index, char) for index, char in enumerate(event.text, 1)]
        else:
            found.append((position, event))
    return found
