"""The log of a running turn in its owner's memory: where events get positions and readers hang on.

``message.started`` and deltas are shown at once; any other event is shown only after the store has it, and
what follows it waits with it, so readers see one order everywhere. Saved deltas are merged in memory as they
are in the store, so a long answer costs its text and little more. The whole log stays here until the turn has
ended, so that it can be written again when the store has lost it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from gateway.core.conversation import ConversationId
from gateway.core.events import Entry, Event, MessageStarted, TextDelta, advance, after, merged
from gateway.core.turn import TurnId
from gateway.services.window import Window, position_of

SHOWN_EARLY: Final = frozenset({MessageStarted, TextDelta})
COMPACT_CHARS: Final = 4_096  # saved deltas are joined up to about this length …
COMPACT_ENTRIES: Final = 8  # … when so many more have come: to join them at every save would cost more than they do


class LiveLog(Window):
    """One running turn's entries, from the beginning. A reader cannot miss a beat: nothing here awaits."""

    __slots__ = ("_compact_from", "_held", "abandoned", "holding", "position", "saved_position")

    def __init__(self, turn_id: TurnId, conversation_id: ConversationId, stored: Sequence[Entry]) -> None:
        """``stored`` is what the store has of the log, ``turn.started`` at least."""
        super().__init__(turn_id, conversation_id, 0, list(stored))
        self.position = self.saved_position = self.head
        self.abandoned = False
        self._compact_from = len(self._shown)
        self._held: list[Entry] = []
        self.holding = False  # whether entries wait for the store before they may be shown: save at once

    @property
    def closed(self) -> bool:
        return self.abandoned

    def add_text(self, text: str) -> None:
        """Add a delta: nearly all there is, and it goes the straight way to its readers. ``text`` is not empty."""
        if self.holding:
            self.add([TextDelta(text)])
        else:
            self.position += len(text)
            self._show([Entry(self.position, TextDelta(text))])

    def add(self, events: Sequence[Event]) -> None:
        """Give events their positions and show what may be shown."""
        early: list[Entry] = []
        for event in events:
            self.position += advance(event)
            entry = Entry(self.position, event)
            if self._held or type(event) not in SHOWN_EARLY:
                self._held.append(entry)
            else:
                early.append(entry)
        self.holding = bool(self._held)
        if early:
            self._show(merged(early) if len(early) > 1 else early)

    def unsaved(self) -> list[Entry]:
        """Return what the store does not have yet, deltas merged; it follows ``saved_position``."""
        shown = self._shown
        if len(shown) > 1 and shown[-2].position == self.saved_position and not self._held:
            return shown[-1:]  # of a slow answer, one a save
        return merged(self.shown_after(self.saved_position) + self._held)

    def shown_after(self, position: int) -> list[Entry]:
        """Return what has been shown after a position."""
        found = self._shown[bisect_right(self._shown, position, key=position_of) :]
        found[:1] = after(found[:1], position)  # no entry overlaps the one before it, so only the first may be cut
        return found

    def saved(self, position: int) -> None:
        """Note that the store has everything up to a position, and show what waited for that."""
        self.saved_position = position
        if self._held:
            self._show_held(position)
        if len(self._shown) - self._compact_from >= COMPACT_ENTRIES:
            self._compact(position)

    def _compact(self, position: int) -> None:
        """Join the deltas that the store has: an entry a save would be 200 bytes for a handful of characters."""
        done = bisect_right(self._shown, position, lo=self._compact_from, key=position_of)
        begin = self._compact_from
        last = self._shown[begin - 1].event
        if type(last) is TextDelta and len(last.text) < COMPACT_CHARS:
            begin -= 1
        if done - begin > 1:
            joined = merged(self._shown[begin:done])
            self._shown[begin:done] = joined
            self._compact_from = begin + len(joined)
        else:
            self._compact_from = max(done, self._compact_from)

    def _show_held(self, position: int) -> None:
        """Show what waited for the store to have everything up to a position, and the deltas behind it."""
        ready = [entry for entry in self._held if entry.position <= position]
        if ready:
            self._held = self._held[len(ready) :]
        while self._held and type(self._held[0].event) in SHOWN_EARLY:
            ready.append(self._held.pop(0))
        self.holding = bool(self._held)
        if ready:
            self._show(ready)

    def end(self, ending: Entry) -> None:
        """Show everything, the ending last, which the store has or will not get in time."""
        self.saved(self.position)
        self.position = self.saved_position = ending.position
        self._show([ending])

    def text(self) -> str:
        """Return the answer so far, what waits for the store included."""
        return "".join(
            [entry.event.text for entry in (*self._shown, *self._held) if isinstance(entry.event, TextDelta)]
        )

    def abandon(self) -> None:
        """Note that another worker owns the turn now, and send this one's readers to the store."""
        self.abandoned = True
        self.release()
