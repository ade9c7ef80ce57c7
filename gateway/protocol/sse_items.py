"""Decodes a stream of server-sent events whose data are JSON items, as the vendor's ``chat-sse`` sends them.

The events are split by `SseDecoder`, each one's data is an item, and `[DONE]` ends the stream. The vendor's material
has streams that end without it, too: at the end of the body. As that is also how a stream looks that was cut off
between two events, an end without `[DONE]` counts only after an item that ends the answer.

Where the HTML standard replaces what is no UTF-8, this refuses it, as in the array form: what a user reads, and what is
stored and billed, is what was sent or nothing.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from gateway.protocol.json_array import MAX_DEPTH, MAX_ITEM_BYTES
from gateway.protocol.sse import SseDecoder, SseEventTooLarge

__all__ = ["DONE", "ItemsError", "ItemsMalformed", "ItemsTruncated", "SseItemDecoder"]

T = TypeVar("T")

DONE = "[DONE]"
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class ItemsError(ValueError):
    """The stream cannot be read further. The text tells places and sizes, never the payload: it may be logged."""


class ItemsMalformed(ItemsError):
    """An event's data are not an item, or too large or nested too deep for one; or events follow the end."""


class ItemsTruncated(ItemsError):
    """The input ended in the middle of an event, or of an answer."""


class SseItemDecoder(Generic[T]):
    """Turns the bytes of one event stream into items of a type that msgspec decodes, best a Struct.

    Feed every piece to `feed` and call `finish` when the input ends. Names, ids and comments of events are passed over.

    No item is lost to a fault behind it, as with `JsonArrayDecoder`: a call that completes items returns them even when
    it finds a fault after them, which is in `error` at once and raised by the next call. A call that completes no item
    raises the fault itself. From then on every call raises that same error.
    """

    __slots__ = (
        "_broken_off",
        "_decoder",
        "_ended",
        "_ends",
        "_events",
        "_items_decoded",
        "_max_depth",
        "closed",
        "error",
    )

    def __init__(
        self,
        item_type: type[T],
        *,
        ends: Callable[[T], bool],
        max_item_bytes: int = MAX_ITEM_BYTES,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        """`ends` says whether an item ends the answer, so that nothing, or only more of the same, may follow it.

        `max_item_bytes` bounds one event's lines; `max_depth` counts the item's own braces as 1.
        """
        self._events = SseDecoder(max_event_bytes=max_item_bytes)
        self._decoder = msgspec.json.Decoder(item_type)
        self._ends = ends
        self._ended = False
        self._max_depth = max_depth
        self._items_decoded = 0
        self._broken_off = b""  # what the last piece had of a character
        self.closed = False  # `[DONE]` was seen
        self.error: ItemsError | None = None  # the fault that every further call raises, if one was found

    def __repr__(self) -> str:
        closed = "closed, " if self.closed else ""
        return f"<SseItemDecoder {closed}{self._items_decoded} items, {self._events!r}, error={self.error!r}>"

    def feed(self, data: bytes) -> list[T]:
        """Takes the next piece of input and returns the items it completes, in order. Raises `ItemsError`."""
        self._raise_fault()
        is_utf8 = True
        if self._broken_off or not data.isascii():
            known = len(self._broken_off)
            text = self._broken_off + data
            try:
                _, read = codecs.utf_8_decode(text, "strict", False)
            except UnicodeDecodeError as error:
                is_utf8 = False
                data = data[: max(0, error.start - known)]
            else:
                self._broken_off = text[read:]
        items = self._read(data)
        if not is_utf8 and self.error is None:
            self.error = ItemsMalformed(f"{self._item_text()} is not UTF-8")
        if not items:
            self._raise_fault()
        return items

    def finish(self) -> None:
        """Takes the end of the input. Raises a fault not yet told, or `ItemsTruncated` where it ends too early."""
        self._raise_fault()
        if not self._events.at_rest:
            self.error = ItemsTruncated(f"input ended in an event, after {self._items_decoded} items")
        elif not (self.closed or self._ended):
            self.error = ItemsTruncated(f"input ended after {self._items_decoded} items, before the answer did")
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self.error is not None:
            raise self.error.with_traceback(None)  # or each raise would add to the last one's traceback

    def _read(self, data: bytes) -> list[T]:
        items: list[T] = []
        try:
            events = self._events.feed(data)
        except SseEventTooLarge as error:
            events = []
            self.error = ItemsMalformed(f"{self._item_text()}: {error}")
        for event in events:
            if self.closed:
                self.error = ItemsMalformed(f"an event follows the end, after {self._items_decoded} items")
            elif event.data.strip() == DONE:
                self.closed = True
            else:
                self._decode(event.data, items)
            if self.error is not None:
                return items
        if events and self._events.error is not None:
            self.error = ItemsMalformed(f"{self._item_text()}: {self._events.error}")
        return items

    def _decode(self, data: str, items: list[T]) -> None:
        """Appends an event's item to `items`, or fails. No chained exception carries the payload along."""
        try:
            if data.count("{") + data.count("[") > self._max_depth and _depth(data) > self._max_depth:
                self.error = ItemsMalformed(f"{self._item_text()} nests deeper than {self._max_depth}")
                return
            item = self._decoder.decode(data)
        except RecursionError:
            self.error = ItemsMalformed(f"{self._item_text()} nests too deep for the stack")
        except ValueError:  # of msgspec, or of a lone surrogate
            self.error = ItemsMalformed(f"{self._item_text()} is not JSON of its type")
        else:
            items.append(item)
            self._items_decoded += 1
            self._ended = self._ended or self._ends(item)

    def _item_text(self) -> str:
        return f"item {self._items_decoded + 1}"


def _depth(data: str) -> int:
    """Returns how deep brackets nest outside of strings; which closes which is for msgspec to say."""
    depth = deepest = 0
    for character in _STRING.sub("", data):
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest
