"""Event streams read as the HTML standard says, however they are cut, and what is written reads back the same."""

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.sse import SseDecoder, SseEvent, SseEventTooLarge, encode_comment, encode_event, encode_retry


def split(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cuts `raw` at the given places (taken modulo its length), empty pieces included."""
    return [raw[begin:end] for begin, end in pairwise([0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)])]


def single_bytes(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


def read(decoder: SseDecoder, pieces: Iterable[bytes]) -> list[SseEvent]:
    return [event for piece in pieces for event in decoder.feed(piece)]


def read_by_the_standard(raw: bytes) -> tuple[list[SseEvent], str | None, int | None]:
    """Follows section 9.2.6 word by word over a whole stream: events, last event id, reconnection time."""
    lines = re.split("\r\n|\n|\r", raw.decode("utf-8", "replace").removeprefix("\ufeff"))[:-1]
    events = []
    data = event_type = ""
    last_event_id = id_buffer = retry_ms = None
    for line in lines:
        if line == "":
            last_event_id = id_buffer
            if data:
                events.append(SseEvent(event_type or "message", data.removesuffix("\n"), last_event_id))
            data = event_type = ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event_type = value
            elif field == "data":
                data += value + "\n"
            elif field == "id" and "\0" not in value:
                id_buffer = value
            elif field == "retry" and re.fullmatch("[0-9]+", value):
                retry_ms = int(value)
    return events, last_event_id, retry_ms


_cuts = st.lists(st.integers(0, 2000), max_size=12)
_characters = st.characters(exclude_categories=["Cs"])
_data = st.text(_characters | st.sampled_from("\r\n :"), max_size=30)
_field = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=12)
_events = st.lists(
    st.tuples(
        _data, st.none() | _field.filter(bool), st.none() | _field, st.sampled_from([b"", b": \n", b"retry: 5\n"])
    ),
    max_size=6,
)


@given(_events, _cuts)
def test_encoded_events_split_anywhere_read_back_the_same(
    written: list[tuple[str, str | None, str | None, bytes]], cuts: list[int]
) -> None:
    """What goes in comes out: data with its line ends as LF, names, and ids that last until the next one."""
    raw, expected, last_id = b"", [], None
    for data, event, id, before in written:
        raw += before + encode_event(data.encode(), event=event, id=id)
        last_id = last_id if id is None else id
        expected.append(SseEvent(event or "message", re.sub("\r\n|\r", "\n", data), last_id))
    decoder = SseDecoder()
    assert read(decoder, split(raw, cuts)) == expected
    assert decoder.last_event_id == last_id
    assert read(SseDecoder(), single_bytes(raw)) == expected
    assert read(SseDecoder(), [raw]) == expected


_tokens = (b"data", b"event", b"id", b"retry", b"data: x", b"id: 1", b"event: e", b"retry: 10", b"data: {}\n\n")
_near_stream = st.lists(
    st.sampled_from(
        [*_tokens, b":", b": ", b" ", b"\n", b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xc3", b"\xa9", b"1"]
    ),
    max_size=24,
).map(b"".join)


@given(st.one_of(_near_stream, _near_stream.map(lambda raw: b"\xef\xbb\xbf" + raw), st.binary(max_size=60)), _cuts)
@example(b"id: 1\nevent: e\ndata: x\n\n", [])
@example(b"event: e\n\ndata: x\n\n", [])
@example(b"id: 1\n\nevent: e\nid: 2\ndata: x\n\n", [3])
@example(b"xdata: x\n\n", [1])
@example(b"data: x\r\n\r\ndata: y\r\r", [8, 10, 19])
def test_any_stream_reads_as_by_the_standard_however_cut(raw: bytes, cuts: list[int]) -> None:
    """Events, last event id and reconnection time depend on the bytes alone, and are those of the standard."""
    for pieces in ([raw], split(raw, cuts), single_bytes(raw)):
        decoder = SseDecoder()
        assert (read(decoder, pieces), decoder.last_event_id, decoder.retry_ms) == read_by_the_standard(raw)


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SseEvent(data="YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [SseEvent(data="first event", id="1"), SseEvent(data="second event", id="")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [SseEvent(data=""), SseEvent(data="\n")]),
        (b"data:test\n\ndata: test\n\n", [SseEvent(data="test"), SseEvent(data="test")]),
        (
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
            [SseEvent("add", "73857293"), SseEvent("remove", "2153")],
        ),
    ],
)
def test_example_of_the_standard_reads_as_it_says(raw: bytes, events: list[SseEvent]) -> None:
    """The streams shown in section 9.2 give the events described there, with every kind of line end."""
    for line_end in (b"\n", b"\r", b"\r\n"):
        stream = raw.replace(b"\n", line_end)
        assert read(SseDecoder(), [stream]) == events
        assert read(SseDecoder(), single_bytes(stream)) == events


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", [SseEvent(data="x")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n", []),
        (b"id: 7\n\n", []),
        (b"event: e\n\ndata: x\n\n", [SseEvent(data="x")]),
        (b"id: 1\nid: a\0b\ndata: x\n\n", [SseEvent(data="x", id="1")]),
        (b"id: a\0b\ndata: x\n\n", [SseEvent(data="x")]),
        (b"event:\ndata: x\n\n", [SseEvent(data="x")]),
        (b"data : x\nDATA: y\n data: z\n\n", []),
        (b"data: a:b: c\n\n", [SseEvent(data="a:b: c")]),
        (b"data: caf\xc3\xa9 \xff \xe6\x97\n\n", [SseEvent(data="café \ufffd \ufffd")]),
        (b"\rdata: x\n\n", [SseEvent(data="x")]),
        (b"xdata: x\n\n", []),
        (b"data: x\n", []),
        (b"data: x", []),
    ],
)
def test_corner_of_the_format_reads_as_the_standard_says(raw: bytes, events: list[SseEvent]) -> None:
    """Marks, NUL, unknown names, missing data and broken UTF-8 are treated as section 9.2.6 has it."""
    assert read(SseDecoder(), [raw]) == events
    assert read(SseDecoder(), single_bytes(raw)) == events


def test_event_is_returned_by_the_byte_that_ends_it() -> None:
    """A CR that ends a piece ends its line: the event does not wait for an LF that may never come."""
    decoder = SseDecoder()
    assert decoder.feed(b"data: x\r\n\r") == [SseEvent(data="x")]
    assert decoder.feed(b"\ndata: y\n\n") == [SseEvent(data="y")]


def test_last_event_id_changes_with_the_blank_line() -> None:
    """A reader that is cut off inside an event asks again from the one before it."""
    decoder = SseDecoder()
    decoder.feed(b"id: 1\ndata: x\n\nid: 2\ndata: y\n")
    assert decoder.last_event_id == "1"
    assert decoder.feed(b"\n") == [SseEvent(data="y", id="2")]
    assert decoder.last_event_id == "2"


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"1e3", b" 5", b"x", b"\xd9\xa3", b"9" * 5000])
def test_reconnection_time_that_is_no_sane_number_is_passed_over(value: bytes) -> None:
    """Only ASCII digits count, and digits without end neither stall nor break the reader."""
    decoder = SseDecoder()
    decoder.feed(b"retry: 2000\nretry: " + value + b"\n")
    assert decoder.retry_ms == 2000


def test_encoded_event_has_the_native_wire_form() -> None:
    """Id, name and data stand in this order, one line each."""
    assert encode_event(b'{"text":"Hel"}', event="message.delta", id="t.5") == (
        b'id: t.5\nevent: message.delta\ndata: {"text":"Hel"}\n\n'
    )
    assert encode_event(b"[DONE]") == b"data: [DONE]\n\n"
    assert encode_event(b"") == b"data: \n\n"
    assert encode_event(b"a\r\nb\rc\nd\n", id="") == b"id: \ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"
    assert encode_event(b"a\rb") == b"data: a\ndata: b\n\n"
    assert encode_comment("keep-alive") == b": keep-alive\n\n"
    assert encode_retry(2000) == b"retry: 2000\n"


def test_retry_line_and_comments_are_no_events() -> None:
    """A stream may begin with both and keep sending comments."""
    decoder = SseDecoder()
    raw = (
        encode_retry(2000) + encode_comment("") + encode_comment("é") + encode_event(b"x", id="1") + encode_comment("k")
    )
    assert read(decoder, [raw]) == [SseEvent(data="x", id="1")]
    assert decoder.retry_ms == 2000


@pytest.mark.parametrize("text", ["a\nb", "a\r", "\n", "a\0b"])
def test_line_end_or_nul_in_a_field_is_refused(text: str) -> None:
    """Nobody can smuggle a field or an event into the stream through an id, a name or a comment."""
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_event(b"x", id=text)
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_event(b"x", event=text)
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_comment(text)


def test_value_without_a_wire_form_is_refused() -> None:
    """An empty name would read as another one, a negative time as none, a lone surrogate not at all."""
    with pytest.raises(ValueError, match="empty"):
        encode_event(b"x", event="")
    with pytest.raises(ValueError, match="negative"):
        encode_retry(-1)
    with pytest.raises(ValueError, match="surrogates"):
        encode_event(b"x", id="\ud800")


@pytest.mark.parametrize(
    "large",
    [
        b"data: 789012345678901\n\n",  # a line, read at one stroke
        b"event: 89012345678901\ndata: x\n\n",
        b": 3456789012345678901\n",
        b"x" * 21,
        b"data: 789\ndata: 789\ndata: 789\ndata: x7890\n\n",  # lines that add up
        b"data\n" * 30,
    ],
)
def test_cap_holds_however_cut_and_loses_no_event_before_it(large: bytes) -> None:
    """What is too large is an error of its own behind the events before it, raised by every call from then on."""
    fits = b"data: 78901234567890\n\n"
    for pieces in ([fits, fits + large], [fits + fits + large], single_bytes(fits + fits + large)):
        decoder = SseDecoder(max_event_bytes=20)
        events = []
        caught = []
        for piece in [*pieces, b"", fits]:
            try:
                events += decoder.feed(piece)
            except SseEventTooLarge as error:
                caught.append(error)
        assert events == [SseEvent(data="78901234567890")] * 2
        assert len(caught) >= 2
        assert all(error is decoder.error for error in caught)
        assert "789" not in f"{caught[0]} {decoder!r}"


def test_cap_is_per_event_not_per_stream() -> None:
    """Comments and small events without end never add up to the cap."""
    decoder = SseDecoder(max_event_bytes=20)
    events = read(decoder, [b": keep-alive\n", b"data: x\n\n", b"data: y\r\n\r\n", b"\n"] * 1000)
    assert len(events) == 2000


def test_cap_below_one_byte_is_refused() -> None:
    """A cap that nothing can meet is a mistake of the caller."""
    with pytest.raises(ValueError, match="max_event_bytes"):
        SseDecoder(max_event_bytes=0)
