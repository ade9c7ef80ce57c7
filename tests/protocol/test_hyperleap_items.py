"""A turn in the vendor's forms: whatever is written together, the vendor's own decoder reads back what was said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Code
from gateway.core.events import (
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
    advance,
)
from gateway.core.turn import AnswerItem, StopReason, Usage
from gateway.protocol.hyperleap import StreamItem, read_item
from gateway.protocol.hyperleap_items import (
    NO_ID,
    STOPPED,
    Form,
    ItemEncoder,
    whole_answer,
)
from gateway.protocol.json_array import JsonArrayDecoder
from gateway.protocol.sse import SseDecoder

TURN, CONVERSATION = "8a1f0e53-1f0e-4c53-8a1f-0e531f0e4c53", "0e531f0e-4c53-4a1f-8e53-1f0e4c538a1f"
MESSAGE, RUN = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
REPORTED, ESTIMATED = Usage(1, 2, 3, "reported"), Usage(1, 2, 3, "estimated")

MIDDLE: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=30).map(TextDelta),
        st.text(max_size=5).map(lambda title: MessageCitations([{"link": title}])),
        st.just(MessageModerated([{"category": "hate", "filtered": False, "severity": "safe"}])),
        st.builds(
            MessageExtra,
            index=st.integers(0, 2),
            role=st.just("tool"),
            tool_name=st.just("search"),
            tool_call_id=st.just("c1"),
            content=st.one_of(st.none(), st.text(max_size=5)),
        ),
    ),
    max_size=12,
)


def turn(middle: Sequence[Event]) -> list[Entry]:
    """Make a turn's log of what was said between its beginning and its end."""
    text = "".join(event.text for event in middle if isinstance(event, TextDelta))
    events: list[Event] = [
        TurnStarted(TURN, CONVERSATION, 1),
        TurnQueued(1, 2.0),
        MessageStarted(MESSAGE, RUN, "assistant"),
        *middle,
        TurnCompleted(MESSAGE, RUN, "stop", text, REPORTED),
    ]
    entries: list[Entry] = []
    for event in events:
        entries.append(Entry((entries[-1].position if entries else 0) + advance(event), event))
    return entries


def written(form: Form, entries: Sequence[Entry], cuts: Sequence[int]) -> list[bytes]:
    """Write a log in batches, as a door does."""
    borders = sorted({0, len(entries), *(cut % (len(entries) + 1) for cut in cuts)})
    encoder = ItemEncoder(form)
    return [encoder(entries[begin:end]) for begin, end in pairwise(borders)]


def read(form: Form, body: Sequence[bytes]) -> list[AnswerItem]:
    """Read what was written as the vendor's own streams are read."""
    if form == "sse":
        decoder = SseDecoder()
        events = [event for piece in body for event in decoder.feed(piece)]
        return [read_item(msgspec.json.decode(event.data, type=StreamItem)) for event in events]
    array = JsonArrayDecoder(StreamItem)
    items = [item for piece in body for item in array.feed(piece)]
    array.finish()
    return [read_item(item) for item in items]


def begun(form: Form) -> ItemEncoder:
    """Return an encoder that has written the first item of its answer."""
    encoder = ItemEncoder(form)
    assert encoder([Entry(2, MessageStarted(MESSAGE, RUN, "assistant"))])
    return encoder


@pytest.mark.parametrize("form", ["array", "sse"])
@given(middle=MIDDLE, cuts=st.lists(st.integers(0, 100), max_size=8))
def test_log_written_in_any_batches_reads_back_as_what_was_said(
    form: Form, middle: list[Event], cuts: list[int]
) -> None:
    """Text, citations, moderation, other items, ids and the ending: nothing lost, nothing twice, in order."""
    items = read(form, written(form, turn(middle), cuts))
    own = [item for item in items if not item.index and item.role == "assistant"]
    others = [item for item in items if item.index or item.role != "assistant"]
    assert "".join(item.text or "" for item in own) == "".join(e.text for e in middle if isinstance(e, TextDelta))
    cited = [one for event in middle if isinstance(event, MessageCitations) for one in event.citations]
    assert [one for item in own for one in item.citations or ()] == cited
    judged = [one for event in middle if isinstance(event, MessageModerated) for one in event.categories]
    assert [one for item in own for one in item.moderation or ()] == judged
    extras = [(e.index, e.role, e.content, e.tool_call_id, e.tool_name) for e in middle if isinstance(e, MessageExtra)]
    assert [(one.index, one.role, one.text, one.tool_call_id, one.name) for one in others] == extras
    assert {(item.message_id, item.run_id) for item in items} == {(MESSAGE, RUN)}
    assert (items[-1].finish_reason, items[-1].usage) == ("stop", (1, 2, 3))


@given(texts=st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=6))
def test_text_written_together_is_one_item(texts: list[str]) -> None:
    """Deployed pages cut each read at its ends: a write of several deltas must be one item."""
    (item,) = msgspec.json.decode(ItemEncoder("array")(turn([TextDelta(text) for text in texts])))
    assert item["choice"]["message"]["content"] == "".join(texts)
    assert item["choice"]["finish_reason"] == "stop"


def test_delta_alone_has_every_member_of_the_contract() -> None:
    """The item that streams are made of is written past the general way, and the same."""
    encoder = begun("array")
    alone = msgspec.json.decode(encoder([Entry(3, TextDelta('"\n'))])[1:])
    two = [Entry(4, TextDelta('"')), Entry(5, TextDelta("\n"))]
    assert alone == msgspec.json.decode(encoder(two)[1:])
    assert alone["choice"]["message"] == {"role": "assistant", "content": '"\n', "toolCallId": None, "name": None}
    assert list(alone) == ["choice", "usage", "messageId", "runId", "citations"]


def test_citations_alone_wait_for_the_item_that_comes_next() -> None:
    """What says nothing of the text is no write of its own, and is on the next item, text or the end."""
    encoder = begun("array")
    cited = [Entry(3, MessageCitations([{"n": 1}]))]
    assert encoder(cited) == b""
    assert encoder(cited) == b""
    item = msgspec.json.decode(encoder([Entry(5, TextDelta("Hi"))])[1:])
    assert (item["citations"], item["choice"]["message"]["content"]) == ([{"n": 1}, {"n": 1}], "Hi")
    assert msgspec.json.decode(encoder([Entry(6, TextDelta("!"))])[1:])["citations"] is None


def test_ids_that_the_vendor_did_not_tell_are_empty_guids() -> None:
    """Clients in typed languages read ids that cannot be null."""
    ending = Entry(1, TurnCompleted(None, None, "unknown", "", ESTIMATED))
    (item,) = read("array", [ItemEncoder("array")([ending])])
    assert (item.message_id, item.run_id, item.finish_reason, item.usage) == (NO_ID, NO_ID, None, None)


def test_stop_and_failure_are_no_ends_of_the_vendors() -> None:
    """A stopped answer says so and is closed; of a failed one what was said is written, and no bracket."""
    stopped = Entry(9, TurnStopped(MESSAGE, RUN, StopReason.USER, "Hi", ESTIMATED))
    failed = Entry(9, TurnFailed(MESSAGE, RUN, TurnError(Code.UPSTREAM_RESET, "x", True), "Hi", ESTIMATED))
    assert read("array", [ItemEncoder("array")([stopped])])[-1].finish_reason == STOPPED
    assert begun("array")([failed]) == b""
    assert not begun("array")([Entry(8, TextDelta("Hi")), failed]).endswith(b"]")


@given(middle=MIDDLE)
def test_whole_answer_has_what_the_stream_had(middle: list[Event]) -> None:
    """The text and its facts in one choice, other items in choices of their own."""
    events = [entry.event for entry in turn(middle)]
    *before, ending = (one for one in events if not isinstance(one, TextDelta))
    assert isinstance(ending, TurnCompleted)
    whole = whole_answer(before, ending, TURN, 7)
    main, *others = whole["choices"]
    assert (main["message"]["content"], main["finish_reason"]) == (ending.text, "stop")
    assert len(others) == sum(isinstance(event, MessageExtra) for event in middle)
    assert whole["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert (whole["messageId"], whole["runId"], whole["created"]) == (MESSAGE, RUN, 7)
