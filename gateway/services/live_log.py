"""The log of a running turn in its owner's memory: where events get positions and readers hang on.

``message.started`` and deltas are shown at once; any other event is shown only after the store has it, and
what follows it waits with it, so readers see one order everywhere. Saved deltas are merged in memory as they
are in the store, so a long answer costs its text and little more.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.events import Entry, Event, MessageStarted, TextDelta, advance, after, is_ending, merged
from gateway.core.turn import TurnId

logger = logging.getLogger(__name__)

SHOWN_EARLY: Final = frozenset({MessageStarted, TextDelta})
COMPACT_CHARS: Final = 4_096  # saved deltas are joined up to about this length
PAGE: Final = 256  # entries that a reader behind takes at once …
PAGE_CHARS: Final = 32_768  # … and text, so that a slow connection is handed little that it has not sent

Encoder = Callable[[str, str, Sequence[Entry]], bytes]


class Batch:
    """Neighbouring entries of one turn on their way to readers, encoded once for all readers of a dialect."""

    __slots__ = ("_encoded", "conversation_id", "ends", "entries", "turn_id")

    def __init__(self, turn_id: TurnId, conversation_id: ConversationId, entries: Sequence[Entry]) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.entries = entries
        self.ends = is_ending(entries[-1].event)
        self._encoded: dict[Encoder, bytes] = {}

    def encoded(self, encoder: Encoder) -> bytes:
        """Return the batch in a dialect; the encoder runs once however many readers share it."""
        data = self._encoded.get(encoder)
        if data is None:
            data = self._encoded[encoder] = encoder(self.turn_id, self.conversation_id, self.entries)
        return data


class Reader(Protocol):
    """A cursor at the head of a live log. Its methods must return quickly and must not raise."""

    def pushed(self, batch: Batch, /) -> None: ...

    def released(self) -> None:
        """The log goes on elsewhere: read on from the store."""


class LiveLog:
    """One running turn's entries. Not thread-safe; every method is synchronous, so a reader cannot miss a beat."""

    __slots__ = (
        "_compact_from",
        "_held",
        "_readers",
        "_shown",
        "_unsaved",
        "abandoned",
        "conversation_id",
        "position",
        "turn_id",
    )

    def __init__(self, turn_id: TurnId, conversation_id: ConversationId, started: Entry) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.position = started.position
        self.abandoned = False
        self._shown: list[Entry] = [started]  # turn.started is in the store before the turn exists here
        self._compact_from = 1
        self._unsaved: list[Entry] = []
        self._held: list[Entry] = []
        self._readers: list[Reader] = []

    @property
    def ended(self) -> bool:
        """Whether the ending has been shown."""
        return is_ending(self._shown[-1].event)

    @property
    def holding(self) -> bool:
        """Whether entries wait for the store before they may be shown: save at once."""
        return bool(self._held)

    @property
    def readers(self) -> int:
        return len(self._readers)

    def add(self, events: Sequence[Event]) -> None:
        """Give events their positions and show what may be shown."""
        early: list[Entry] = []
        for event in events:
            self.position += advance(event)
            entry = Entry(self.position, event)
            self._unsaved.append(entry)
            if self._held or type(event) not in SHOWN_EARLY:
                self._held.append(entry)
            else:
                early.append(entry)
        if early:
            self._show(merged(early) if len(early) > 1 else early)

    def unsaved(self) -> list[Entry]:
        """Return what the store does not have yet, deltas merged."""
        return merged(self._unsaved)

    def saved(self, position: int) -> None:
        """Note that the store has everything up to a position, and show what waited for that."""
        self._unsaved = [entry for entry in self._unsaved if entry.position > position]
        ready = [entry for entry in self._held if entry.position <= position]
        if ready:
            self._held = self._held[len(ready) :]
        while self._held and type(self._held[0].event) in SHOWN_EARLY:
            ready.append(self._held.pop(0))
        if ready:
            self._show(ready)
        done = bisect_right(self._shown, position, lo=self._compact_from, key=_position)
        begin = self._compact_from
        last = self._shown[begin - 1].event
        if type(last) is TextDelta and len(last.text) < COMPACT_CHARS:
            begin -= 1  # an entry a save would still be 200 bytes for a handful of characters
        if done - begin > 1:
            joined = merged(self._shown[begin:done])
            self._shown[begin:done] = joined
            self._compact_from = begin + len(joined)
        else:
            self._compact_from = done

    def read(self, position: int) -> Batch | None:
        """Return the next page after a position; None when the cursor is at the head."""
        if position >= self._shown[-1].position:
            return None
        index = bisect_right(self._shown, position, key=_position)
        page: list[Entry] = []
        chars = 0
        for entry in after(self._shown[index : index + PAGE], position):
            page.append(entry)
            chars += advance(entry.event)
            if chars >= PAGE_CHARS:
                break
        return Batch(self.turn_id, self.conversation_id, merged(page))

    def text(self) -> str:
        """Return the answer so far, what waits for the store included."""
        return "".join(
            [entry.event.text for entry in (*self._shown, *self._held) if isinstance(entry.event, TextDelta)]
        )

    def attach(self, reader: Reader) -> None:
        """Push to a reader from now on. The caller has read to the head in the same step."""
        self._readers.append(reader)

    def detach(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)

    def abandon(self) -> None:
        """Note that another worker owns the turn now, and send this one's readers to the store."""
        self.abandoned = True
        for reader in tuple(self._readers):
            reader.released()

    def _show(self, entries: list[Entry]) -> None:
        self._shown += entries
        if self._readers:
            batch = Batch(self.turn_id, self.conversation_id, entries)
            for reader in tuple(self._readers):  # a reader that falls behind detaches meanwhile
                try:
                    reader.pushed(batch)
                except Exception:  # one reader's connection must not end the turn for all
                    logger.exception("reader.crashed")
                    self.detach(reader)
                    reader.released()


def _position(entry: Entry) -> int:
    return entry.position
