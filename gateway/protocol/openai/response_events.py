"""A response as typed events over server-sent events.

``sequence_number`` is made of the log's positions (see ``core.events``), so it grows but leaves numbers out, and means
the same however often a log is read: ``starting_after`` continues at the exact character, on any worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.events import (
    Ending,
    Entry,
    Event,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    TurnStopped,
)
from gateway.protocol.openai.errors import error_body
from gateway.protocol.openai.responses import Response, part, status
from gateway.protocol.piece import NumberedPiece
from gateway.protocol.sse import encode_event

STRIDE: Final = 4  # events that one entry may make, but the last, after which nothing is counted
LAST: Final = {"completed": "response.completed", "failed": "response.failed"}

Data = dict[str, Any]

_json: Final = msgspec.json.Encoder().encode


class ResponseEncoder:
    """Encodes a turn's entries as a response's events; ``last`` its ending. Keeps nothing from call to call."""

    __slots__ = ("_after", "_piece", "_response")

    def __init__(self, response: Response, after: int = -1) -> None:
        """``after`` is the sequence number of the last event that the reader has."""
        self._response = response
        self._after = after
        mark, number = "\0", 987_654_321
        text = encode("response.output_text.delta", {**self._at(), "delta": mark, "logprobs": []}, number)
        head, rest = text.split(_json(mark))
        self._piece = NumberedPiece(STRIDE, head, *rest.split(_json(number)))

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        around = self._piece
        parts: list[bytes] = []
        for entry in entries:
            event = entry.event
            if type(event) is TextDelta:
                number = entry.position * STRIDE
                if number > self._after:
                    new = entry.position - self._after // STRIDE  # of a merged delta the reader may have the beginning
                    text = event.text[-new:] if new < len(event.text) else event.text
                    parts += (around.head, _json(text), around.middle, b"%d" % number, around.tail)
            else:
                for offset, (name, data) in enumerate(self._events(event)):
                    number = entry.position * STRIDE + offset
                    if number > self._after:
                        parts.append(encode(name, data, number))
        return b"".join(parts)

    def piece(self, delta: Entry) -> NumberedPiece | None:
        """Return what encodes a delta that comes alone; None for one of which the reader has some."""
        event = delta.event
        assert type(event) is TextDelta
        new = (delta.position - len(event.text)) * STRIDE >= self._after
        return self._piece if new else None

    def last(self, entry: Entry, citations: Sequence[dict[str, Any]]) -> bytes:
        """Encode the ending."""
        number = entry.position * STRIDE
        ending = entry.event
        assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
        events = enumerate(self._last(ending, citations), number)
        return b"".join([encode(name, data, number) for number, (name, data) in events if number > self._after])

    def _events(self, event: Event) -> Iterator[tuple[str, Data]]:
        response = self._response
        if type(event) is TurnStarted:
            for name in ("response.created", "response.in_progress"):
                yield name, {"response": response.body()}
        elif type(event) is MessageStarted:
            yield "response.output_item.added", {"output_index": 0, "item": response.item(None, ())}
            yield "response.content_part.added", {**self._at(), "part": part("", ())}

    def _last(self, ending: Ending, citations: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Data]]:
        response, state = self._response, status(ending)
        if state != "failed":
            whole = part(ending.text, citations)
            for index, annotation in enumerate(whole["annotations"]):
                about = {**self._at(), "annotation_index": index, "annotation": annotation}
                yield "response.output_text.annotation.added", about
            yield "response.output_text.done", {**self._at(), "text": ending.text, "logprobs": []}
            yield "response.content_part.done", {**self._at(), "part": whole}
            yield "response.output_item.done", {"output_index": 0, "item": response.item(ending, citations)}
        yield LAST.get(state, "response.incomplete"), {"response": response.body(ending, citations)}

    def _at(self) -> Data:
        return {"item_id": self._response.item_id, "output_index": 0, "content_index": 0}


def encode(name: str, data: Data, number: int) -> bytes:
    return encode_event(_json({"type": name, **data, "sequence_number": number}), event=name)


def encode_error(error: GatewayError, number: int) -> bytes:
    """Encode an error of the stream itself, after its beginning."""
    told = error_body(error, "input")["error"]
    data = {"code": told["code"], "message": told["message"], "param": told["param"]}
    return encode("error", data, number)
