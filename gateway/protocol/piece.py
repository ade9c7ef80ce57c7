"""How a dialect writes one delta alone, which is nearly all there is: in bytes that are the same for all readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.events import Entry, TextDelta

_json: Final = msgspec.json.Encoder().encode


class Piece(msgspec.Struct, frozen=True, gc=False):
    """What stands before and after a delta's text. Equal ones make the same bytes, so a batch is encoded by one."""

    head: bytes
    tail: bytes

    def __call__(self, turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
        """Encode the only entry, a delta."""
        event = entries[0].event
        assert type(event) is TextDelta
        return b"%b%b%b" % (self.head, _json(event.text), self.tail)


class NumberedPiece(msgspec.Struct, frozen=True, gc=False):
    """What stands around a delta's text and its number, which is ``stride`` times its position."""

    stride: int
    head: bytes
    middle: bytes
    tail: bytes

    def __call__(self, turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
        """Encode the only entry, a delta."""
        entry = entries[0]
        event = entry.event
        assert type(event) is TextDelta
        return b"%b%b%b%d%b" % (self.head, _json(event.text), self.middle, entry.position * self.stride, self.tail)
