"""The bytes of a batch: those of its entries, one after another, however many are written together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import Entry, Event, MessageCitations, MessageStarted, TextDelta, TurnStarted, advance
from gateway.protocol.native import encode_frame, encode_sse, text_frame
from gateway.transports.deliveries import encode_frames
from gateway.transports.sse import encode_chunked, encode_plain

TURN, CONVERSATION = "8a1f0e53-1f0e-4c53-8a1f-0e531f0e4c53", "0e531f0e-4c53-4a1f-8e53-1f0e4c538a1f"
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=300).map(TextDelta),
        st.just(MessageStarted(None, "r", "assistant")),
        st.just(MessageCitations([{"title": 'a "b"\r\n'}])),
        st.just(TurnStarted(TURN, CONVERSATION, 1)),
    ),
    min_size=1,
    max_size=5,
)


@given(EVENTS)
def test_batch_is_its_entries_one_after_another_in_every_dialect(events: list[Event]) -> None:
    """One entry alone, the rule, is written as the same bytes as among others."""
    entries: list[Entry] = []
    for event in events:
        entries.append(Entry((entries[-1].position if entries else 0) + advance(event), event))
    body = b"".join([encode_sse(TURN, entry) for entry in entries])
    assert encode_plain(TURN, CONVERSATION, entries) == body
    assert encode_chunked(TURN, CONVERSATION, entries) == f"{len(body):x}\r\n".encode() + body + b"\r\n"
    messages = [text_frame(encode_frame(TURN, CONVERSATION, entry)) for entry in entries]
    assert encode_frames(TURN, CONVERSATION, entries) == b"".join(messages)
