"""Streams of server-sent events in dialects that have their own words for all: for a beginning, an error, an ending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from aiohttp import web

from gateway.core.errors import GatewayError
from gateway.core.events import Entry, MessageStarted, is_ending
from gateway.protocol import ag_ui, ai_sdk
from gateway.services.window import Batch, Encoder
from gateway.transports.sse import LAST_CHUNK, OPEN, SseStream, chunk


def _encode_parts_chunked(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    data = chunk(ai_sdk.encode_parts(turn_id, conversation_id, entries))
    return data + LAST_CHUNK if is_ending(entries[-1].event) else data


def _encode_run_chunked(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    data = ag_ui.encode_run(turn_id, conversation_id, entries)
    return chunk(data) if data else b""  # an empty chunk would end the body


class PartsStream(SseStream):
    """A UI message stream. Its client takes a stream's end for the answer's, so none ends before its turn."""

    comes_back = False
    encoders: ClassVar[tuple[Encoder, Encoder]] = (ai_sdk.encode_parts, _encode_parts_chunked)

    def _opening(self) -> bytes:
        return OPEN

    def _told(self, error: GatewayError) -> bytes:
        return ai_sdk.encode_error(error)


class RunStream(SseStream):
    """A run's events. Each reader has names of its own for thread and run, which its beginning and its ending bear."""

    comes_back = False
    encoders: ClassVar[tuple[Encoder, Encoder]] = (ag_ui.encode_run, _encode_run_chunked)

    def __init__(self, request: web.Request, turn_id: str, headers: Mapping[str, str], run: ag_ui.Run) -> None:
        super().__init__(request, turn_id, headers)
        self._turn_id: Final = turn_id
        self._run: Final = run
        self._message_open = False

    def push(self, batch: Batch, /) -> bool:
        if not self._message_open:
            self._message_open = any(type(entry.event) is MessageStarted for entry in batch.entries)
        return super().push(batch)

    def _closing(self, ending: Entry) -> bytes:
        return ag_ui.encode_ending(ending.event, turn_id=self._turn_id, run=self._run, message_open=self._message_open)

    def _opening(self) -> bytes:
        return ag_ui.encode_run_started(self._run)

    def _told(self, error: GatewayError) -> bytes:
        return ag_ui.encode_error(error)
