"""The array decoder yields the items of the whole, however the input is cut, and names every fault as its own kind."""

import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import json_array
from gateway.protocol.json_array import (
    ArrayError,
    ArrayMalformed,
    ArrayTruncated,
    ItemTooDeep,
    ItemTooLarge,
    JsonArrayDecoder,
)

Item = dict[str, Any]


class Typed(msgspec.Struct):
    """An item type that names two fields and skips the rest, as the vendor's does."""

    a: int | None = None
    text: str | None = None


class ScannerOnly(JsonArrayDecoder[Item]):
    """The real decoder without its short way."""

    def _decode_whole(self, data: bytes) -> None:
        return None


@dataclass(frozen=True)
class Reading:
    """What a whole input came to."""

    items: list[Any]
    fault: type[ArrayError] | None


def read_to_fault(decoder: JsonArrayDecoder[Any], pieces: Iterable[bytes]) -> tuple[list[Any], ArrayError | None]:
    """Feeds the pieces, finishes, and returns the items and the fault, once sure that it stays the one it was."""
    items: list[Any] = []
    try:
        for piece in pieces:
            items += decoder.feed(piece)
        decoder.finish()
    except ArrayError as error:
        fault = error
    else:
        assert decoder.closed
        assert decoder.error is None
        return items, None
    for again in (lambda: decoder.feed(b"[{}]"), lambda: decoder.feed(b""), decoder.finish):
        with pytest.raises(ArrayError) as caught:
            again()
        assert caught.value is decoder.error is fault
    return items, fault


def read(decoder: JsonArrayDecoder[Any], pieces: Iterable[bytes]) -> Reading:
    items, fault = read_to_fault(decoder, pieces)
    return Reading(items, type(fault) if fault else None)


def split(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cuts `raw` at the given places (taken modulo its length), empty pieces included."""
    return [raw[begin:end] for begin, end in pairwise([0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)])]


def single_bytes(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


# JSON without what msgspec and json.loads read differently: lone surrogates, NaN, numbers beyond a double.
_characters = st.characters(exclude_categories=["Cs"])
_text = st.text(_characters, max_size=12) | st.sampled_from(
    ['},{"', "}]", '\\"', "\\", '"', "[{", "日本", "😀", "\0\n", "]"]
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_items = st.dictionaries(_text, _values, max_size=4)
_spaces = st.text(" \t\r\n", max_size=3)
_cuts = st.lists(st.integers(0, 5000), max_size=12)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[list[Item], bytes, list[int]]:
    """Items, a serialisation of them as an array with any whitespace, and where in it each item ends."""
    items = draw(st.lists(_items, max_size=5))
    space = _spaces if draw(st.booleans()) else st.just("")
    raw = (draw(space) + "[" + draw(space)).encode()
    ends = []
    for number, item in enumerate(items):
        if number:
            raw += (draw(space) + "," + draw(space)).encode()
        separators = (draw(space) + "," + draw(space), draw(space) + ":" + draw(space))
        raw += json.dumps(item, ensure_ascii=draw(st.booleans()), separators=separators).encode()
        ends.append(len(raw))
    raw += (draw(space) + "]" + draw(space)).encode()
    return items, raw, ends


@given(arrays(), _cuts)
def test_split_at_any_bytes_yields_items_of_whole(array: tuple[list[Item], bytes, list[int]], cuts: list[int]) -> None:
    """Any cut, inside UTF-8 sequences, escapes and surrogate pairs too, gives what json.loads makes of the whole."""
    items, raw, _ = array
    assert json.loads(raw) == items
    assert read(JsonArrayDecoder(Item), split(raw, cuts)) == Reading(items, None)
    assert read(JsonArrayDecoder(Item), single_bytes(raw)) == Reading(items, None)


@given(arrays(), st.data())
def test_item_is_returned_by_the_feed_that_brings_its_last_byte(
    array: tuple[list[Item], bytes, list[int]], data: st.DataObject
) -> None:
    """No item waits for bytes behind it."""
    items, raw, ends = array
    cut = data.draw(st.integers(0, len(raw)))
    decoder = JsonArrayDecoder(Item)
    assert decoder.feed(raw[:cut]) == items[: sum(end <= cut for end in ends)]


@given(arrays(), _cuts, st.data())
def test_truncation_anywhere_yields_the_received_items_then_truncated(
    array: tuple[list[Item], bytes, list[int]], cuts: list[int], data: st.DataObject
) -> None:
    """An input cut before its closing bracket loses no whole item and never passes for a complete one."""
    items, raw, ends = array
    length = data.draw(st.integers(0, len(raw.rstrip()) - 1))
    received = items[: sum(end <= length for end in ends)]
    assert read(JsonArrayDecoder(Item), split(raw[:length], cuts)) == Reading(received, ArrayTruncated)


_tokens = r"""[ ] { } , : " \ 1 null "a" "a":1 {"a":1} {} ,{} [{} },{ }] {"a":[{}]} {"a":"},{"} [[[[ \u é"""
_near_json = st.lists(
    st.sampled_from([*_tokens.encode().split(), b" ", b"\n", b"\xc3", b"\xff", b"\xef\xbb\xbf"]), max_size=14
).map(b"".join)


@given(st.one_of(_near_json, _near_json.map(lambda raw: b"[" + raw), st.binary(max_size=40)), _cuts)
@example(b'[{"a":1},{"a":2}', [])
@example(b"[{},[{}],{}]", [])
@example(b"[{},null,{}]", [])
@example(b'[{"a":[{}]', [])
@example(b'[{"a":[{}]}]', [3, 9])
def test_any_input_reads_alike_whole_or_cut_by_short_way_or_scanner(raw: bytes, cuts: list[int]) -> None:
    """Items and the kind of fault depend on the bytes alone, never on where they were cut or which way they took."""
    for caps in ({}, {"max_item_bytes": 6, "max_depth": 2}):
        whole = read(JsonArrayDecoder(Item, **caps), [raw])
        assert read(ScannerOnly(Item, **caps), [raw]) == whole
        assert read(JsonArrayDecoder(Item, **caps), split(raw, cuts)) == whole
        assert read(JsonArrayDecoder(Item, **caps), single_bytes(raw)) == whole


@given(st.one_of(_near_json.map(lambda raw: b"[" + raw), st.binary(max_size=40)))
def test_input_is_accepted_only_if_json_accepts_it(raw: bytes) -> None:
    """What reads without a fault is an array of objects, and the same one, to the standard library as well."""
    reading = read(JsonArrayDecoder(Item), [raw])
    if reading.fault is None:
        assert json.loads(raw) == reading.items


@pytest.mark.parametrize(
    ("raw", "items"),
    [
        (b"[]", 0),
        (b" [ ] ", 0),
        (b"\xef\xbb\xbf[{}]", 1),
        (b"\xef\xbb\xbf [ {} ] ", 1),
        (b"[{},{}]", 2),
        (b"[{}\n,{}\n,{}]\n", 3),
        (b'[{"a":"},{"}]', 1),
        (b'[{"a":"}]"}]', 1),
        (b'[{"a":"\\\\"},{"a":"\\""}]', 2),
        (b'[{"a":[{},{}]},{"b":{"c":[]}}]', 2),
        ('[{"é":"日本😀"}]'.encode(), 1),
        (b'[{"a":"\\ud83d\\ude00"}]', 1),
    ],
)
def test_well_formed_array_yields_its_items(raw: bytes, items: int) -> None:
    """Whitespace, a byte order mark and brackets inside strings do not disturb."""
    for pieces in ([raw], single_bytes(raw)):
        assert read(JsonArrayDecoder(Item), pieces) == Reading(json.loads(raw), None)
    assert len(json.loads(raw)) == items


@pytest.mark.parametrize(
    ("raw", "items", "fault"),
    [
        (b"", 0, ArrayTruncated),
        (b" ", 0, ArrayTruncated),
        (b"\xef\xbb", 0, ArrayTruncated),
        (b"[", 0, ArrayTruncated),
        (b"[{}", 1, ArrayTruncated),
        (b"[{},", 1, ArrayTruncated),
        (b'[{"a":[{}]', 0, ArrayTruncated),
        (b"{}", 0, ArrayMalformed),
        (b"null", 0, ArrayMalformed),
        (b"<html>", 0, ArrayMalformed),
        (b"x[{}]", 0, ArrayMalformed),
        (b"\xef[{}]", 0, ArrayMalformed),
        (b" \xef\xbb\xbf[{}]", 0, ArrayMalformed),
        (b"\xef\xbb\xbf\xef\xbb\xbf[{}]", 0, ArrayMalformed),
        (b"[,{}]", 0, ArrayMalformed),
        (b"[{},]", 1, ArrayMalformed),
        (b"[{},,{}]", 1, ArrayMalformed),
        (b"[{}{}]", 1, ArrayMalformed),
        (b"[{} {}]", 1, ArrayMalformed),
        (b"[{}]]", 1, ArrayMalformed),
        (b"[{}],{}", 1, ArrayMalformed),
        (b"[{}][{}]", 1, ArrayMalformed),
        (b"[{},[]]", 1, ArrayMalformed),
        (b'[{},"a",{}]', 1, ArrayMalformed),
        (b"[{},null,{}]", 1, ArrayMalformed),
        (b"[1]", 0, ArrayMalformed),
        (b"[{}\x0b,{}]", 1, ArrayMalformed),
        (b"[{}\x00]", 1, ArrayMalformed),
        (b'[{},{"a"}]', 1, ArrayMalformed),
        (b'[{},{"a":1,}]', 1, ArrayMalformed),
        (b'[{},{"a":01}]', 1, ArrayMalformed),
        (b'[{},{"a":NaN}]', 1, ArrayMalformed),
        (b'[{},{"a":[}]},{}]', 1, ArrayMalformed),
        (b"[{},{]", 1, ArrayMalformed),
        (b'[{"a":"\n"}]', 0, ArrayMalformed),
        (b'[{"a":"\\x"}]', 0, ArrayMalformed),
        (b'[{"a":"\\ud83d"}]', 0, ArrayMalformed),
        (b'[{"a":"\xff"}]', 0, ArrayMalformed),
        (b'[{"a":"\xc3"}]', 0, ArrayMalformed),
        (b'[{"a":"\xed\xa0\x80"}]', 0, ArrayMalformed),
        (b'[{"a":1e999}]', 0, ArrayMalformed),
    ],
)
def test_faulty_input_yields_the_items_before_its_own_fault(raw: bytes, items: int, fault: type[ArrayError]) -> None:
    """Each fault is of its kind, and what came before it is not lost."""
    for pieces in ([raw], single_bytes(raw)):
        reading = read(JsonArrayDecoder(Item), pieces)
        assert len(reading.items) == items
        assert reading.fault is fault


def test_fault_behind_items_is_shown_at_once_and_raised_by_the_next_call() -> None:
    """A feed that completed items returns them, holds the fault ready, and the next one raises it, even when empty."""
    decoder = JsonArrayDecoder(Item)
    assert decoder.feed(b'[{"a":1},{"a":2},oops') == [{"a": 1}, {"a": 2}]
    fault = decoder.error
    assert isinstance(fault, ArrayMalformed)
    for call in (lambda: decoder.feed(b""), lambda: decoder.feed(b',{"a":3}]'), decoder.finish, decoder.finish):
        with pytest.raises(ArrayMalformed) as caught:
            call()
        assert caught.value is fault
    assert not decoder.closed


def test_fault_without_items_is_raised_by_the_feed_that_finds_it() -> None:
    """Nothing delays a fault when there is nothing else to return."""
    decoder = JsonArrayDecoder(Item)
    with pytest.raises(ArrayMalformed):
        decoder.feed(b"<html>")


def test_repeated_raise_of_a_fault_keeps_its_traceback_short() -> None:
    """A caller that feeds on after a fault does not make the error grow."""
    decoder = JsonArrayDecoder(Item)
    lengths = []
    for _ in range(5):
        with pytest.raises(ArrayMalformed) as caught:
            decoder.feed(b"x")
        lengths.append(len(caught.traceback))
    assert len(set(lengths[1:])) == 1


class Colour(Enum):
    RED = "red"


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """An item type whose mismatches make msgspec quote the payload."""

    colour: Colour | None = None
    inner: Typed | None = None


@pytest.mark.parametrize(
    "raw",
    [
        b'[{"colour":"secret"}]',
        b'[{"secret":1}]',
        b'[{"secret - at `$.secret":1}]',
        b'[{"inner":{"a":"secret"}}]',
        b'[{"inner":{"text":"secret\xff"}}]',
        b'[{"x":"secret \\q"}]',
        b"[secret]",
        b'[{"colour":null}secret',
        b'[{"colour":"' + b"secret" * 20 + b'"}]',
        b'[{"x":' + b'{"secret":' * 9,
        b'[{"colour":"secret',
    ],
)
def test_fault_tells_nothing_of_the_payload(raw: bytes) -> None:
    """An answer may not be logged: no text, argument, chained exception or repr carries a piece of it."""
    for pieces in ([raw], single_bytes(raw)):
        decoder = JsonArrayDecoder(Strict, max_item_bytes=100, max_depth=8)
        _, fault = read_to_fault(decoder, pieces)
        assert fault is not None
        assert fault.__cause__ is None
        assert fault.__context__ is None
        assert "secret" not in f"{fault!r} {fault.args} {decoder!r}"


def test_type_mismatch_names_item_and_field() -> None:
    """A vendor that changes a field's type is told apart by its name, which is ours."""
    decoder = JsonArrayDecoder(Strict)
    assert decoder.feed(b'[{},{"inner":{"a":"x"}}') == [Strict()]
    assert str(decoder.error) == "item 2 is not of its type in field inner.a, before byte 23"


def test_typed_items_skip_unknown_fields_and_check_them() -> None:
    """A field without a name in the type is dropped, yet has to be JSON in UTF-8."""
    assert read(JsonArrayDecoder(Typed), [b'[{"a":1,"b":{"c":[]}}', b',{"text":"x"}]']).items == [
        Typed(1),
        Typed(None, "x"),
    ]
    for raw in (b'[{"b":"\xff"}]', b'[{"b":tru}]', b'[{"b":"\\ud800"}]'):
        assert read(JsonArrayDecoder(Typed), [raw]) == Reading([], ArrayMalformed)
        assert read(JsonArrayDecoder(Typed), single_bytes(raw)) == Reading([], ArrayMalformed)


@pytest.mark.parametrize("raw", [b"[{},null,{}]", b"[{},[{}],{}]", b'[{},"",{}]', b"[{},1,{}]"])
def test_item_that_is_no_object_is_refused_even_where_the_type_takes_it(raw: bytes) -> None:
    """Whatever the item type, only objects count as items."""
    for pieces in ([raw], [b"[{}", raw[3:]], single_bytes(raw)):
        assert read(JsonArrayDecoder(msgspec.Raw), pieces) == Reading([msgspec.Raw(b"{}")], ArrayMalformed)


def nested(depth: int) -> bytes:
    """An item that nests `depth` deep in a field that no type names."""
    return b'{"b":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


@pytest.mark.parametrize("cap", [1, 2, 5, 64])
def test_depth_cap_holds_on_every_way(cap: int) -> None:
    """The cap counts true nesting, in skipped fields too; brackets in strings or side by side do not add up."""
    flat = b'{"b":"' + b"[{" * cap + b'","c":1}'
    pieces = [b"[" + nested(cap), b"," + flat + b"," + nested(cap), b"," + flat + b"]"]
    for cut in (pieces, single_bytes(b"".join(pieces))):
        assert read(JsonArrayDecoder(Typed, max_depth=cap), cut) == Reading([Typed()] * 4, None)
    for deep in (nested(cap + 1), b'{"b":' + b"[" * cap + b"]" * cap + b"}"):
        for pieces in ([b"[{}", b"," + deep], [b"[{}," + deep + b",{}"], single_bytes(b"[{}," + deep + b"]")):
            assert read(JsonArrayDecoder(Typed, max_depth=cap), pieces) == Reading([Typed()], ItemTooDeep)


def test_depth_beyond_the_stack_is_too_deep_whatever_the_cap() -> None:
    """A cap set too high ends in this module's own error, never in RecursionError."""
    item = nested(50_000)
    for pieces in ([b"[" + item + b"]"], [b"[" + item[:1000], item[1000:]]):
        assert read(JsonArrayDecoder(Typed, max_depth=10**6), pieces) == Reading([], ItemTooDeep)


def test_size_cap_holds_on_every_way() -> None:
    """An item of just the cap passes, a byte more is too large, and several in a piece are not counted as one."""
    fits, large = b'{"b":"' + b"x" * 12 + b'"}', b'{"b":"' + b"x" * 13 + b'"}'
    assert len(fits) == 20
    pieces = [b"[" + fits, b"," + fits + b"," + fits, b"," + fits + b"]"]
    for cut in (pieces, single_bytes(b"".join(pieces))):
        assert read(JsonArrayDecoder(Typed, max_item_bytes=20), cut) == Reading([Typed()] * 4, None)
    for cut in ([b"[{}", b"," + large], [b"[{}," + large + b",{}"], single_bytes(b"[{}," + large + b"]")):
        assert read(JsonArrayDecoder(Typed, max_item_bytes=20), cut) == Reading([Typed()], ItemTooLarge)


def test_endless_item_is_refused_at_the_cap_and_held_no_longer() -> None:
    """Memory stays within the cap and a piece while an item has no end, and is given back at the fault."""
    cap, piece = 1 << 20, b"x" * 4096
    decoder = JsonArrayDecoder(Typed, max_item_bytes=cap)
    tracemalloc.start()
    try:
        decoder.feed(b'[{"b":"')
        _, fault = read_to_fault(decoder, (piece for _ in range(2 * cap // len(piece))))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(fault, ItemTooLarge)
    assert peak < 2.5 * cap  # the buffer and, while it grows, its copy
    assert held < cap / 10


def test_bounds_below_the_smallest_item_are_refused() -> None:
    """A cap that no item can meet is a mistake of the caller."""
    with pytest.raises(ValueError, match="max_item_bytes"):
        JsonArrayDecoder(Typed, max_item_bytes=1)
    with pytest.raises(ValueError, match="max_depth"):
        JsonArrayDecoder(Typed, max_depth=0)


def count_work(monkeypatch: pytest.MonkeyPatch, pieces: Iterable[bytes]) -> int:
    """Counts the bytes that the scanner's patterns and attempts at the short way go over, and the patterns' uses."""
    work = 0

    class Counting(JsonArrayDecoder[Item]):
        def _decode_whole(self, data: bytes) -> list[Item] | None:
            nonlocal work
            work += len(data)
            return super()._decode_whole(data)

    with monkeypatch.context() as patch:
        for name in ("_skip_to_bracket", "_skip_to_quote"):
            skip = getattr(json_array, name)

            def counting(data: bytes, begin: int, stop: int, skip: Any = skip) -> Any:
                nonlocal work
                match = skip(data, begin, stop)
                # A string cut short is looked at to its end although the match stops before it.
                seen = stop if match.end() < stop and data[match.end()] == ord('"') else match.end()
                work += seen - begin + 1
                return match

            patch.setattr(json_array, name, counting)
        read(Counting(Item, max_depth=10**6), pieces)
    return work


@pytest.mark.parametrize("size", [1, 2, 7, 60, 4096, 10**6])
@pytest.mark.parametrize(
    "unit",
    [
        b'{"a":"xxxxxxx\\"xx\\\\xxxxx","b":[{},{}],"c":null},',
        b"{},",
        b"{} ,",
        b'{"a":[{},{}',
        b'{"a":"' + b"\\\\" * 20,
        b'{"":{},"',
        b'"a","',
    ],
)
def test_work_grows_no_faster_than_the_input(monkeypatch: pytest.MonkeyPatch, unit: bytes, size: int) -> None:
    """However small the pieces and wherever strings are cut, no byte is gone over more than a few times."""
    for count in (50, 500, 5000):
        raw = b"[" + unit * count
        assert count_work(monkeypatch, (raw[i : i + size] for i in range(0, len(raw), size))) <= 5 * len(raw)


def test_long_string_cut_short_is_passed_in_no_time() -> None:
    """A string that a piece cuts short would keep a backtracking pattern busy for ever."""
    decoder = JsonArrayDecoder(Item)
    text = rb"x\n\"" * 50_000
    assert decoder.feed(b'[{"a":"' + text[:-1]) == []
    assert decoder.feed(b'""}]') == [{"a": 'x\n"' * 50_000}]
