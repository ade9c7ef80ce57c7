"""Reads the three dialects in which deltas arrive, as cheaply as Python can: one regular expression an event."""

from __future__ import annotations

import re
import time
from typing import Final, Protocol

import msgspec

from tests.bench.ledger import Reading

_SSE_DELTA: Final = re.compile(
    rb'id: [0-9a-f-]{36}\.(\d+)\nevent: message\.delta\ndata: \{"text":"([0-9@ ]*)"\}\n\n',
)
_SSE_ID: Final = re.compile(rb"id: [0-9a-f-]{36}\.(\d+)$")
_FRAME_DELTA: Final = re.compile(
    rb'\{"id":"[0-9a-f-]{36}\.(\d+)","event":"message\.delta","turn_id":"[^"]*","conversation_id":"[^"]*",'
    rb'"data":\{"text":"([0-9@ ]*)"\}\}'
)
_VENDOR_CONTENT: Final = re.compile(rb'"content":"([0-9@ ]+)"')


class Dialect(Protocol):
    """Takes the body of one turn in pieces."""

    def feed(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class FrameDialect(Protocol):
    """Takes the messages of one turn; ``take`` returns True at its end."""

    def take(self, payload: bytes, now_ns: int) -> bool: ...
    def close(self) -> None: ...


class NativeSse:
    """The gateway's server-sent events."""

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
            found = _SSE_DELTA.match(data, at)
            if found is not None:
                position, text = found.groups()
                self._reading.positioned_delta(int(position), text, now_ns)
                at = found.end()
                continue
            stop = data.find(b"\n\n", at)
            if stop < 0:
                self._rest = data[at:]
                return
            self._take(data[at:stop])
            at = stop + 2

    def _take(self, block: bytes) -> None:
        position, name, payload = -1, "", b""
        for line in block.split(b"\n"):
            if found := _SSE_ID.match(line):
                position = int(found[1])
            elif line.startswith(b"event: "):
                name = line[7:].decode()
            elif line.startswith(b"data: "):
                payload = line[6:]
        if name:
            self._reading.event(position, name, payload)

    def close(self) -> None:
        self._reading.close(has_ending=True)


class VendorItems:
    """The vendor's items, as a JSON array (HTTP/2) or in server-sent events (the relay)."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._rest = b""

    def feed(self, data: bytes) -> None:
        if self._rest or data[-1:] not in b"}]\n":
            data = self._rest + data
            self._rest = b"" if data[-1:] in b"}]\n" else data
            if self._rest:
                return
        now_ns = time.monotonic_ns()
        for text in _VENDOR_CONTENT.findall(data):
            self._reading.delta(text, now_ns)

    def close(self) -> None:
        self._reading.close(has_ending=False)


class VendorFrames:
    """The vendor's items in messages, as the bare relay sends them; an empty one ends the turn."""

    def __init__(self, reading: Reading) -> None:
        self._items = VendorItems(reading)

    def take(self, payload: bytes, now_ns: int) -> bool:
        self._items.feed(payload)
        return not payload

    def close(self) -> None:
        self._items.close()


class _Frame(msgspec.Struct):
    event: str
    data: msgspec.Raw
    id: str = ""


_frame: Final = msgspec.json.Decoder(_Frame)


class NativeFrames:
    """The gateway's WebSocket frames of one turn; ``take`` returns True at the turn's ending."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def take(self, payload: bytes, now_ns: int) -> bool:
        found = _FRAME_DELTA.fullmatch(payload)
        if found is not None:
            position, text = found.groups()
            self._reading.positioned_delta(int(position), text, now_ns)
            return False
        frame = _frame.decode(payload)
        if frame.event == "error":
            raise ValueError(f"the gateway refused a command: {payload.decode()}")
        if not frame.id:
            return False
        return self._reading.event(int(frame.id.rpartition(".")[2]), frame.event, bytes(frame.data))

    def close(self) -> None:
        self._reading.close(has_ending=True)
