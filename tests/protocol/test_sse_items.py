"""The events decoder yields the items of the whole, however the input is cut, a whole answer is told from a cut one."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.sse_items import ItemsError, ItemsMalformed, ItemsTruncated, SseItemDecoder

Item = dict[str, Any]
END = {"end": True}


class Typed(msgspec.Struct):
    """An item type that names two fields and skips the rest, as the vendor's does."""

    end: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a whole input came to."""

    items: list[Any]
    fault: type[ItemsError] | None


def decoder(**bounds: int) -> SseItemDecoder[Item]:
    return SseItemDecoder(Item, ends=lambda item: "end" in item, **bounds)


def split(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cuts `raw` at the given places (taken modulo its length), empty pieces included."""
    return [raw[begin:end] for begin, end in pairwise([0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)])]


def read(reader: SseItemDecoder[Any], pieces: Iterable[bytes]) -> Reading:
    """Feeds the pieces and finishes; once there is a fault, it stays the one it was."""
    items: list[Any] = []
    fault: ItemsError | None = None
    try:
        for piece in pieces:
            items += reader.feed(piece)
        reader.finish()
    except ItemsError as error:
        fault = error
    if fault is None:
        return Reading(items, None)
    for again in (lambda: reader.feed(b"data: {}\n\n"), reader.finish):
        with pytest.raises(ItemsError) as repeated:
            again()
        assert repeated.value is fault
    return Reading(items, type(fault))


def written(items: Iterable[Item], *, done: bool = False, ascii_only: bool = True) -> bytes:
    events = [json.dumps(item, ensure_ascii=ascii_only).encode() for item in items]
    return b"".join(b"data: %b\n\n" % event for event in [*events, *([b"[DONE]"] if done else [])])


_cuts = st.lists(st.integers(0, 2000), max_size=12)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_items = st.lists(st.dictionaries(_text, st.none() | st.integers() | _text | st.lists(_text), max_size=3), max_size=5)
_between = st.sampled_from([b"", b": alive\n\n", b": \n", b"retry: 5\n", b"event: item\n", b"id: 7\n", b"\n"])


@given(_items, st.lists(_between, min_size=8, max_size=8), st.booleans(), st.booleans(), _cuts)
def test_items_split_anywhere_are_those_of_the_whole(
    items: list[Item], between: list[bytes], done: bool, ascii_only: bool, cuts: list[int]
) -> None:
    """Comments, names and ids between events, raw UTF-8 and any cuts change nothing; nor does how the stream ends."""
    parts = [written([item], ascii_only=ascii_only) for item in [*items, END]]
    raw = b"".join(lead + part for lead, part in zip(between, parts, strict=False))
    raw += written([], done=done)
    whole = Reading([*items, END], None)
    assert read(decoder(), [raw]) == whole
    assert read(decoder(), split(raw, cuts)) == whole
    assert read(decoder(), [raw[i : i + 1] for i in range(len(raw))]) == whole


@given(_items, st.booleans(), st.integers(0, 2000), _cuts)
def test_input_cut_off_anywhere_is_told_from_a_whole_one(
    items: list[Item], done: bool, at: int, cuts: list[int]
) -> None:
    """What is whole comes out. Only after the ending item, between two events, does an end pass for one."""
    raw = written([*items, END], done=done, ascii_only=False)
    at %= len(raw) + 1
    cut = raw[:at]
    events = cut.split(b"\n\n")
    come, rest = [event.removeprefix(b"data: ") for event in events[:-1]], events[-1]
    expected = [json.loads(event) for event in come if event != b"[DONE]"]
    whole = END in expected and not rest
    assert read(decoder(), split(cut, cuts)) == Reading(expected, None if whole else ItemsTruncated)


@given(
    st.lists(
        st.sampled_from([b"data: {}\n\n", b"data: [DONE]\n\n", b'data: {"end":1}\n\n', b"\xff", b"data: "])
        | st.binary(max_size=8),
        max_size=8,
    ),
    _cuts,
)
@example([b'data: {"a":"\xe2\x82', b"\n\n"], [13, 14])
@example([b"data: {}\n\n", b"\xc3", b"\n\n"], [11])
def test_any_bytes_split_anywhere_come_to_the_same(parts: list[bytes], cuts: list[int]) -> None:
    """Whatever comes, the items and the fault are those of the whole, and nothing but ItemsError is raised."""
    raw = b"".join(parts)
    whole = read(decoder(), [raw])
    assert read(decoder(), split(raw, cuts)) == whole
    assert read(decoder(), [raw[i : i + 1] for i in range(len(raw))]) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: null\n\n",
        b"data: 7\n\n",
        b"data: {} {}\n\n",
        b"data: hello\n\n",
        b"data:\n\n",
        b'data: {"end":"yes"}\n\n',
        b'data: {"text":"\\ud800"}\n\n',
        b'data: {"text":"\xff"}\n\n',
        b'data: {"other":"\xc3("}\n\n',
        b"data: " + b'{"x":' * 65 + b"1" + b"}" * 65 + b"\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: " + b'{"text":"' + b"x" * 1000 + b'"}\n\n',
    ],
)
def test_what_is_no_item_is_malformed_and_takes_none_with_it(data: bytes) -> None:
    """The items before a fault come out, the fault is told by the next call, and its words hold nothing of the data."""
    reader = SseItemDecoder(Typed, ends=lambda item: item.end, max_item_bytes=900 if b"xxx" in data else 200_000)
    assert reader.feed(b'data: {"text":"secret"}\n\n' + data) == [Typed(text="secret")]
    with pytest.raises(ItemsMalformed) as error:
        reader.finish()
    assert error.value.__cause__ is error.value.__context__ is None
    assert "secret" not in str(error.value)
    assert "xxx" not in str(error.value)


def test_brackets_in_strings_do_not_nest() -> None:
    """An item that speaks of brackets is as flat as it is."""
    item = {"text": '[{"\\' * 100}
    assert read(decoder(max_depth=1), [written([item, END])]) == Reading([item, END], None)
    assert read(decoder(max_depth=1), [written([{"text": [1]}])]).fault is ItemsMalformed


def test_ending_that_is_followed_by_more_is_still_one() -> None:
    """After the ending item more may come, such as its usage; after `[DONE]` nothing but comments."""
    late = {"usage": 7}
    assert read(decoder(), [written([END, late])]) == Reading([END, late], None)
    assert read(decoder(), [written([END], done=True), b": bye\n\n"]) == Reading([END], None)
    assert read(decoder(), [written([END], done=True), written([late])]) == Reading([END], ItemsMalformed)


def test_done_ends_an_answer_that_named_no_end() -> None:
    """`[DONE]` is the vendor's word that this was all, as the array's bracket is."""
    assert read(decoder(), [written([{"a": 1}], done=True)]) == Reading([{"a": 1}], None)
    assert read(decoder(), [written([{"a": 1}])]) == Reading([{"a": 1}], ItemsTruncated)
    assert read(decoder(), []) == Reading([], ItemsTruncated)


def test_event_that_never_ends_is_held_up_to_the_cap_only() -> None:
    """An endless event is a fault as soon as it is too large, not a growing buffer."""
    reader = decoder(max_item_bytes=100_000)
    tracemalloc.start()
    try:
        assert read(reader, (b"data: " + b"x" * 1000 + b"\n" for _ in range(10_000))).fault is ItemsMalformed
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_repr_tells_no_payload() -> None:
    """What ends up in a log by its repr holds nothing of the stream."""
    reader = decoder()
    reader.feed(b'data: {"text":"secret"}\n\ndata: {"text":"sec')
    assert "sec" not in repr(reader).replace("SseItemDecoder", "").replace("SseDecoder", "")
