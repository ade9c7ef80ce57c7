"""A stretch of one turn's log in memory, and the readers at its head, who are pushed to."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.errors import GatewayError
from gateway.core.events import Entry, advance, after, is_ending, merged
from gateway.core.turn import TurnId

logger = logging.getLogger(__name__)

PAGE: Final = 256  # entries that a reader behind takes at once …
PAGE_CHARS: Final = 32_768  # … and text, so that a slow connection is handed little that it has not sent

Encoder = Callable[[str, str, Sequence[Entry]], bytes]


class Batch:
    """Neighbouring entries of one turn on their way to readers, encoded once for all readers of a dialect."""

    __slots__ = ("_data", "_encoder", "_others", "begins", "conversation_id", "ends", "entries", "head", "turn_id")

    def __init__(self, turn_id: TurnId, conversation_id: ConversationId, entries: Sequence[Entry]) -> None:
        first, last = entries[0], entries[-1]
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.entries = entries
        self.begins = first.position - advance(first.event)  # the position that the first entry follows
        self.head = last.position
        self.ends = is_ending(last.event)
        self._encoder: Encoder | None = None
        self._data: bytes
        self._others: dict[Encoder, bytes] | None

    def encoded(self, encoder: Encoder) -> bytes:
        """Return the batch in a dialect; of equal encoders one runs, once however many readers share them."""
        if encoder is self._encoder or encoder == self._encoder:
            return self._data
        if self._encoder is None:  # nearly always all readers speak one dialect: spare them a mapping
            self._encoder = encoder
            self._others = None
            self._data = encoder(self.turn_id, self.conversation_id, self.entries)
            return self._data
        if self._others is None:
            self._others = {}
        data = self._others.get(encoder)
        if data is None:
            data = self._others[encoder] = encoder(self.turn_id, self.conversation_id, self.entries)
        return data


class Reader(Protocol):
    """A cursor at the head of a window. Its methods must return quickly and must not raise."""

    def pushed(self, batch: Batch, /) -> None: ...

    def released(self) -> None:
        """This window has nothing more for the reader: look again where the log goes on."""


class Window(ABC):
    """The entries after position ``base``, without a gap. Not thread-safe; every method is synchronous."""

    __slots__ = ("_readers", "_shown", "base", "conversation_id", "error", "turn_id")

    def __init__(self, turn_id: TurnId, conversation_id: ConversationId, base: float, shown: list[Entry]) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.base = base
        self.error: GatewayError | None = None  # why there will be nothing more
        self._shown = shown
        self._readers: list[Reader] = []

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether the log goes on elsewhere: in another window, or with nobody but the store."""

    @property
    def head(self) -> int:
        """The position of the last entry shown."""
        return self._shown[-1].position if self._shown else int(self.base)

    @property
    def ended(self) -> bool:
        """Whether the ending has been shown."""
        return bool(self._shown) and is_ending(self._shown[-1].event)

    @property
    def readers(self) -> int:
        return len(self._readers)

    def read(self, position: int) -> Batch | None:
        """Return the next page after a position, which is not before ``base``; None when it is at the head."""
        if position >= self.head:
            return None
        index = bisect_right(self._shown, position, key=position_of)
        page: list[Entry] = []
        chars = 0
        for entry in after(self._shown[index : index + PAGE], position):
            page.append(entry)
            chars += advance(entry.event)
            if chars >= PAGE_CHARS:
                break
        return Batch(self.turn_id, self.conversation_id, merged(page))

    def attach(self, reader: Reader) -> None:
        """Push to a reader from now on. The caller has read to the head in the same step."""
        self._readers = [*self._readers, reader]  # a new list: readers come and go while the old one is gone through

    def detach(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers = [other for other in self._readers if other is not reader]

    def release(self) -> None:
        """Send every reader to look again where the log goes on; none is pushed to until it attaches anew."""
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.released()

    def _show(self, entries: list[Entry]) -> None:
        self._shown += entries
        readers = self._readers
        if readers:
            batch = Batch(self.turn_id, self.conversation_id, entries)
            for reader in readers:
                try:
                    reader.pushed(batch)
                except Exception:  # one reader's connection must not end the turn for all
                    logger.exception("reader.crashed")
                    self.detach(reader)
                    reader.released()


def position_of(entry: Entry) -> int:
    return entry.position
