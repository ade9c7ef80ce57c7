"""Reads the dialects of the gateway's other doors over server-sent events: one regular expression a delta.

What ends a turn well is each dialect's own; whatever else ends it is a fault.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from tests.bench.dialects import Dialect, NativeSse, VendorItems
from tests.bench.ledger import Reading
from tests.bench.plan import Route

_DONE: Final = b"[DONE]"


class _DoorSse:
    """A stream of JSON objects; ``_take`` gets those that are no plain delta."""

    DELTA: ClassVar[re.Pattern[bytes]]  # its first group is the text

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._rest = b""

    def feed(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        while at < end:
            found = self.DELTA.match(data, at)
            if found is not None:
                self._delta(found, now_ns)
                at = found.end()
                continue
            stop = data.find(b"\n\n", at)
            if stop < 0:
                self._rest = data[at:]
                return
            for line in data[at:stop].split(b"\n"):
                if line.startswith(b"data: "):
                    payload = line[6:]
                    self._take(None if payload == _DONE else msgspec.json.decode(payload))
            at = stop + 2

    def close(self) -> None:
        self._reading.close(has_ending=True)

    def _delta(self, found: re.Match[bytes], now_ns: int) -> None:
        self._reading.unnumbered_delta(found[1], now_ns)

    def _take(self, told: Any) -> None:
        """Take an object, or None for ``[DONE]``."""
        raise NotImplementedError


class Completions(_DoorSse):
    """OpenAI's chunks: a ``finish_reason``, then ``[DONE]``, which is the ending."""

    DELTA = re.compile(rb'data: \{[^\n]*"delta":\{"content":"([0-9@ ]+)"\}[^\n]*\n\n')

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._finish: str | None = None

    def _take(self, told: Any) -> None:
        self._reading.step()
        if told is None:
            self._reading.ended(None if self._finish == "stop" else f"finish_reason {self._finish}")
        elif "error" in told:
            self._reading.ended(f"error {told['error']['code']}")
        else:
            for choice in told["choices"]:
                self._finish = choice["finish_reason"]


class Responses(_DoorSse):
    """OpenAI's response events, whose sequence numbers must grow; the ending has the whole text."""

    DELTA = re.compile(
        rb'event: response\.output_text\.delta\ndata: \{[^\n]*"delta":"([0-9@ ]+)"[^\n]*"sequence_number":(\d+)\}\n\n'
    )

    def _delta(self, found: re.Match[bytes], now_ns: int) -> None:
        self._reading.positioned_delta(int(found[2]), found[1], now_ns)

    def _take(self, told: Any) -> None:
        kind = told["type"]
        self._reading.step(told["sequence_number"])
        if kind == "response.completed":
            texts = [part["text"] for item in told["response"]["output"] for part in item["content"]]
            self._reading.ended(whole="".join(texts))
        elif kind in ("response.failed", "response.incomplete", "error"):
            self._reading.ended(kind)


class Parts(_DoorSse):
    """The AI SDK's UI message stream: ``finish``, then ``[DONE]``, which is the ending."""

    DELTA = re.compile(rb'data: \{"type":"text-delta","id":"text","delta":"([0-9@ ]+)"\}\n\n')

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._last = "nothing"

    def _take(self, told: Any) -> None:
        self._reading.step()
        if told is None:
            self._reading.ended(None if self._last == "finish" else f"{self._last} before [DONE]")
        else:
            self._last = told["type"]


class Run(_DoorSse):
    """AG-UI's events of a run."""

    DELTA = re.compile(rb'data: \{"type":"TEXT_MESSAGE_CONTENT","messageId":"[^"]*","delta":"([0-9@ ]+)"\}\n\n')

    def _take(self, told: Any) -> None:
        self._reading.step()
        if told["type"] == "RUN_FINISHED":
            result = told["result"]
            self._reading.ended(None if "finish_reason" in result else f"run stopped: {result['reason']}")
        elif told["type"] == "RUN_ERROR":
            self._reading.ended(f"RUN_ERROR {told['code']}")


DIALECTS: Final[dict[Route, Callable[[Reading], Dialect]]] = {
    "sse": NativeSse,
    "hyperleap": VendorItems,
    "completions": Completions,
    "responses": Responses,
    "ai-sdk": Parts,
    "ag-ui": Run,
}
