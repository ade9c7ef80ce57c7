"""The bytes of a batch: those of its entries, one after another, however many are written together."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.conversation import ConversationId
from gateway.core.events import Entry, Event, MessageCitations, MessageStarted, TextDelta, TurnStarted, advance
from gateway.core.turn import TurnId
from gateway.protocol.hyperleap_items import ItemEncoder
from gateway.protocol.native import encode_frame, encode_sse, text_frame
from gateway.protocol.openai.chat import ChunkEncoder, Completion
from gateway.protocol.openai.response_events import ResponseEncoder
from gateway.protocol.openai.responses import Response
from gateway.services.window import Batch
from gateway.transports.deliveries import encode_frames
from gateway.transports.held_stream import Encoder
from gateway.transports.sse import encode_chunked, encode_plain
from tests.protocol.turn_logs import batches, logs

TURN, CONVERSATION = "8a1f0e53-1f0e-4c53-8a1f-0e531f0e4c53", "0e531f0e-4c53-4a1f-8e53-1f0e4c538a1f"
HELD: Final[dict[str, Callable[[], Encoder]]] = {  # what makes each reader's encoder
    "chat completions": lambda: ChunkEncoder(Completion(TURN, "default", 1_790_000_000, include_usage=True)),
    "responses": lambda: ResponseEncoder(Response(TURN, CONVERSATION, "default", 1_790_000_000.5)),
    "array": lambda: ItemEncoder("array"),
    "items as events": lambda: ItemEncoder("sse"),
}
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


@pytest.mark.parametrize("dialect", HELD)
@given(log=logs(), cuts=st.lists(st.integers(0, 100), max_size=12))
def test_delta_alone_is_encoded_once_for_readers_of_a_dialect_that_encode_for_themselves(
    dialect: str, log: list[Entry], cuts: list[int]
) -> None:
    """Two readers are given one object, and a third that encodes for itself makes the same bytes."""
    one, two, other = (HELD[dialect]() for _ in range(3))
    for entries in batches(log[:-1], cuts, join=False):
        pieces = [reader.piece(entries[0]) for reader in (one, two)] if type(entries[0].event) is TextDelta else [None]
        alone = other(entries)
        if len(entries) == 1 and pieces[0] is not None and pieces[1] is not None:
            batch = Batch(TurnId(TURN), ConversationId(CONVERSATION), entries)
            assert batch.encoded(pieces[0]) == alone
            assert batch.encoded(pieces[0]) is batch.encoded(pieces[1])
        else:
            assert one(entries) == two(entries) == alone


@pytest.mark.parametrize("dialect", HELD)
def test_readers_share_what_is_said_after_the_beginning(dialect: str) -> None:
    """From the first text on nothing keeps them from it."""
    encoder = HELD[dialect]()
    encoder([Entry(1, TurnStarted(TURN, CONVERSATION, 1)), Entry(2, MessageStarted("m", "r", "assistant"))])
    assert encoder.piece(Entry(8, TextDelta("Hello "))) is not None


@pytest.mark.parametrize("dialect", HELD)
def test_delta_takes_five_microseconds_at_most(dialect: str) -> None:
    """The best of many rounds, since the machine has others to serve; it is under one."""
    encoder = HELD[dialect]()
    encoder([Entry(1, TurnStarted(TURN, CONVERSATION, 1)), Entry(2, MessageStarted("m", "r", "assistant"))])
    entries = [Entry(17, TextDelta(" word"))]
    best_s = min(timeit.repeat(lambda: encoder(entries), number=1000, repeat=50)) / 1000
    assert best_s < 5e-6
