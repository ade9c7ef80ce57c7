"""Decodes one JSON array that arrives in pieces, item by item.

The vendor writes `[{…}`, `,{…}`, …, `,{…}]`, mostly one piece a DATA frame, and promises none of it: a piece may hold
several items or part of one, and may end inside a UTF-8 sequence, an escape or a string. Bytes go in, typed items come
out.

Two ways lead to the same items. A piece made of whole items goes straight to msgspec; anything else, and any piece that
msgspec refuses, goes to a scanner that finds where items end and keeps its place between pieces, so the work is linear
in the bytes received however they are cut. The scanner alone decides what is wrong; the short way only ever accepts
what the scanner would accept.
"""

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar, cast

import msgspec

__all__ = ["ArrayError", "ArrayMalformed", "ArrayTruncated", "ItemTooDeep", "ItemTooLarge", "JsonArrayDecoder"]

T = TypeVar("T")

MAX_ITEM_BYTES = 4 * 1024 * 1024  # a whole answer at the cap of 1,000,000 code points still fits in one item
MAX_DEPTH = 64  # the vendor's deepest item, with tags of a citation's partition, nests 6 deep


class ArrayError(ValueError):
    """The array cannot be read further. The text tells places and sizes, never the payload: it may be logged."""


class ArrayMalformed(ArrayError):
    """The bytes are not a JSON array of the expected items."""


class ItemTooLarge(ArrayError):
    """An item is longer than `max_item_bytes`."""


class ItemTooDeep(ArrayError):
    """An item nests deeper than `max_depth`, or deeper than the interpreter's stack allows."""


class ArrayTruncated(ArrayError):
    """The input ended before the array's closing bracket."""


class _State(IntEnum):
    START = 0  # nothing but whitespace yet
    BOM_1 = 1  # one byte of a byte order mark
    BOM_2 = 2  # two bytes of it
    OPENED = 3  # after `[`: an item or `]`
    IN_ITEM = 4
    AFTER_ITEM = 5  # a comma or `]`
    AFTER_COMMA = 6  # an item
    CLOSED = 7  # nothing but whitespace any more


_START, _BOM_1, _BOM_2, _OPENED, _IN_ITEM, _AFTER_ITEM, _AFTER_COMMA, _CLOSED = _State

# What a byte between items leads to; whitespace stays (RFC 8259 section 2), any byte not listed is malformed. A byte
# order mark is passed over, as RFC 8259 section 8.1 allows, for .NET's text writers like to begin with one; only at the
# very first byte, which `_scan` checks.
_MOVES = {
    (_START, 0xEF): _BOM_1,
    (_BOM_1, 0xBB): _BOM_2,
    (_BOM_2, 0xBF): _START,
    (_START, ord("[")): _OPENED,
    (_OPENED, ord("{")): _IN_ITEM,
    (_OPENED, ord("]")): _CLOSED,
    (_AFTER_ITEM, ord(",")): _AFTER_COMMA,
    (_AFTER_ITEM, ord("]")): _CLOSED,
    (_AFTER_COMMA, ord("{")): _IN_ITEM,
} | {(state, space): state for state in (_START, _OPENED, _AFTER_ITEM, _AFTER_COMMA, _CLOSED) for space in b" \t\r\n"}

# How a piece of whole items begins, by state.
_LEADS = {_START: b"[{", _OPENED: b"{", _AFTER_ITEM: b",{", _AFTER_COMMA: b"{"}

# How an error names the state.
_PLACES = {
    _START: "before the array",
    _BOM_1: "in a byte order mark",
    _BOM_2: "in a byte order mark",
    _OPENED: "in place of the first item",
    _AFTER_ITEM: "after an item",
    _AFTER_COMMA: "in place of an item",
    _CLOSED: "after the array",
}

_QUOTE, _OPEN_BRACE, _OPEN_BRACKET = b'"{['

# Both match the empty string, so never fail. Possessive throughout: with `*` in place of `*+` a string that a piece
# cuts short is retried in exponentially many ways.
_Skip = Callable[[bytes, int, int], re.Match[bytes]]
_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_PLAIN = rb'[^"{}\[\]]*+'
# Stops at a bracket, or at the quote of a string that the piece cuts short.
_skip_to_bracket = cast(_Skip, re.compile(rb'%b(?:"%b"%b)*+' % (_PLAIN, _STRING, _PLAIN), re.DOTALL).match)
# Stops at the closing quote, or at a backslash that ends the piece.
_skip_to_quote = cast(_Skip, re.compile(_STRING, re.DOTALL).match)

# The field that msgspec names at the end of a message; keys out of the payload appear there as `[...]`. Messages that
# begin otherwise may quote the payload.
_FIELD_PATH = re.compile(r"\AExpected .* - at `\$\.?([\w.\[\]]+)`\Z", re.ASCII)

_SPLITTER = msgspec.json.Decoder(list[msgspec.Raw])


class JsonArrayDecoder(Generic[T]):
    """Turns the bytes of one JSON array of objects into items of a type that msgspec decodes, best a Struct.

    Feed every piece to `feed` and call `finish` when the input ends. Items are objects: an array, a string, a number or
    null in an item's place is `ArrayMalformed`. An item is checked whole, with the fields that the type does not name.
    An escaped surrogate without its other half is malformed too, for no UTF-8 could carry it on.

    No item is lost to a fault behind it. A call that completes items returns them even when it finds a fault after
    them; the fault is then in `error` at once, and the next call of `feed` (with `b""` as well) or `finish` raises it.
    A call that completes no item raises the fault itself. From then on every call raises that same error.

    Between calls at most `max_item_bytes` are held, and nothing after a fault.
    """

    __slots__ = (
        "_decoder",
        "_depth",
        "_escaped",
        "_in_string",
        "_items_decoded",
        "_max_depth",
        "_max_item_bytes",
        "_offset",
        "_partial",
        "_state",
        "error",
    )

    def __init__(self, item_type: type[T], *, max_item_bytes: int = MAX_ITEM_BYTES, max_depth: int = MAX_DEPTH) -> None:
        """`max_item_bytes` counts from an item's `{` to its `}`; `max_depth` counts the item's own braces as 1."""
        if max_item_bytes < 2:
            raise ValueError("max_item_bytes must be at least 2, the length of {}")
        if max_depth < 1:
            raise ValueError("max_depth must be at least 1")
        self._decoder = msgspec.json.Decoder(item_type)
        self._max_item_bytes = max_item_bytes
        self._max_depth = max_depth
        self._state = _START
        self.error: ArrayError | None = None  # the fault that every further call raises, if one was found
        self._offset = 0  # of the piece at hand in the input
        self._items_decoded = 0
        # The item begun in an earlier piece, and where in it the scanner stands.
        self._partial = bytearray()
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def __repr__(self) -> str:
        return (
            f"<JsonArrayDecoder {self._state.name.lower()}, {self._items_decoded} items, {self._offset} bytes read, "
            f"{len(self._partial)} held, error={self.error!r}>"
        )

    @property
    def closed(self) -> bool:
        """Whether the array's `]` was seen."""
        return self._state is _CLOSED

    def feed(self, data: bytes) -> list[T]:
        """Takes the next piece of input and returns the items it completes, in order. Raises `ArrayError`."""
        if self.error is not None:
            self._raise_fault()
        items = self._decode_whole(data)
        if items is None:
            items = self._scan(data)
            if not items:
                self._raise_fault()
        self._offset += len(data)
        return items

    def finish(self) -> None:
        """Takes the end of the input. Raises a fault not yet told, or `ArrayTruncated` when `]` was not seen."""
        if self.error is None and self._state is not _CLOSED:
            after = f"after {self._items_decoded} items and {self._offset} bytes"
            self._fail(ArrayTruncated(f"input ended {after}, before the closing bracket"))
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self.error is not None:
            raise self.error.with_traceback(None)  # or each raise would add to the last one's traceback

    def _decode_whole(self, data: bytes) -> list[T] | None:
        """Decodes a piece that consists of whole items; None, with nothing changed, leaves it to the scanner."""
        lead = _LEADS.get(self._state)
        if lead is None or not data.startswith(lead):
            return None
        if data.endswith(b"}"):
            body, state = data[len(lead) - 1 :], _AFTER_ITEM
        elif data.endswith(b"}]"):
            body, state = data[len(lead) - 1 : -1], _CLOSED
        else:
            return None
        # One item is tried first, for aligned pieces are the rule, and looking for a seam costs as much as decoding:
        # an item with citations has `},{` inside as well.
        try:
            items = [self._decode_surely(body)]
        except (ValueError, RecursionError):
            try:
                items = [self._decode_surely(bytes(raw)) for raw in _SPLITTER.decode(b"[%b]" % body)]
            except (ValueError, RecursionError):
                return None
        self._items_decoded += len(items)
        self._state = state
        return items

    def _decode_surely(self, item: bytes) -> T:
        """Decodes an item that is plainly in order; ValueError or RecursionError tell that the scanner has to look."""
        openings = item.count(b"{")  # in strings too: this errs on the safe side
        if _OPEN_BRACKET in item:  # mostly not, and that is told in 0.03 µs, a count in 0.16
            openings += item.count(b"[")
        if openings > self._max_depth or len(item) > self._max_item_bytes or not item.startswith(b"{"):
            raise ValueError
        if not item.isascii():
            item.decode()  # msgspec checks no UTF-8 in what it skips
        return self._decoder.decode(item)

    def _scan(self, data: bytes) -> list[T]:
        """Goes from byte to byte between items and by `_scan_item` inside them, to the end of `data` or to a fault."""
        items: list[T] = []
        position, end = 0, len(data)
        may_shorten = True
        while position < end and self.error is None:
            if self._state is not _IN_ITEM:
                if may_shorten and self._state is _AFTER_ITEM:
                    may_shorten = False  # once a piece, or a piece full of false seams would be gone over for each
                    seam = data.rfind(b"},{", position)
                    whole = None if seam < 0 else self._decode_whole(data[position : seam + 1])
                    if whole is not None:
                        items += whole
                        position = seam + 1
                        continue
                state = _MOVES.get((self._state, data[position]))
                if state is None or (state is _BOM_1 and self._offset + position):
                    at = self._offset + position
                    self._fail(ArrayMalformed(f"unexpected byte {_PLACES[self._state]}, at byte {at}"))
                    break
                self._state = state
                if state is not _IN_ITEM:
                    position += 1
                    continue
            begin, position = position, self._scan_item(data, position)
            if self._state is _AFTER_ITEM:
                item = data[begin:position]
                if self._partial:
                    item = bytes(self._partial) + item
                    self._partial.clear()
                self._decode_scanned(item, items, self._offset + position)
        return items

    def _scan_item(self, data: bytes, begin: int) -> int:
        """Follows the item open at `begin` and returns where it ends; one that does not end in `data` is kept."""
        # What lies beyond the cap is not looked at: the first byte there is a fault whatever follows.
        stop = min(len(data), begin + self._max_item_bytes - len(self._partial))
        position, depth = begin, self._depth
        while position < stop:
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            if self._in_string:
                position = _skip_to_quote(data, position, stop).end()
                if position < stop:
                    self._in_string = self._escaped = data[position] != _QUOTE
                    position += 1
                continue
            position = _skip_to_bracket(data, position, stop).end()
            if position == stop:
                break
            byte = data[position]
            position += 1
            if byte == _QUOTE:
                self._in_string = True
            elif byte in (_OPEN_BRACE, _OPEN_BRACKET):
                depth += 1
                if depth > self._max_depth:
                    at = self._offset + position - 1
                    self._fail(ItemTooDeep(f"{self._item_text()} nests deeper than {self._max_depth}, at byte {at}"))
                    return position
            else:
                depth -= 1  # which bracket closes which is for msgspec to say, once the item is whole
                if not depth:
                    self._depth = 0
                    self._state = _AFTER_ITEM
                    return position
        self._depth = depth
        if stop < len(data):
            limit, at = self._max_item_bytes, self._offset + stop
            self._fail(ItemTooLarge(f"{self._item_text()} is longer than {limit} bytes, at byte {at}"))
        else:
            self._partial += data[begin:]
        return stop

    def _decode_scanned(self, item: bytes, items: list[T], end: int) -> None:
        """Appends the item that ends before byte `end` of the input to `items`, or fails."""
        # A fault is only made here and raised elsewhere, so that no chained exception carries the payload along.
        try:
            if not item.isascii():
                item.decode()
            items.append(self._decoder.decode(item))
            self._items_decoded += 1
            return
        except RecursionError:
            fault: ArrayError = ItemTooDeep(f"{self._item_text()} nests too deep for the stack, before byte {end}")
        except UnicodeDecodeError:
            fault = ArrayMalformed(f"{self._item_text()} is not UTF-8, before byte {end}")
        except msgspec.ValidationError as error:
            path = _FIELD_PATH.search(str(error))
            field = f" in field {path[1]}" if path else ""
            fault = ArrayMalformed(f"{self._item_text()} is not of its type{field}, before byte {end}")
        except ValueError:
            fault = ArrayMalformed(f"{self._item_text()} is not JSON, before byte {end}")
        self._fail(fault)

    def _item_text(self) -> str:
        return f"item {self._items_decoded + 1}"

    def _fail(self, fault: ArrayError) -> None:
        self.error = fault
        self._partial.clear()
