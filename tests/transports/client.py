"""A user of a gateway who speaks HTTP, SSE and WebSocket, and the law that every log of a turn must keep."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from aiohttp import ClientResponse, ClientWebSocketResponse, WSMsgType
from multidict import CIMultiDictProxy

from gateway.protocol.sse import SseDecoder
from tests.conftest import Running

PATIENCE_S = 5.0  # far beyond what anything here takes; only a failure ever waits so long
ENDINGS = frozenset({"turn.completed", "turn.stopped", "turn.failed"})


async def eventually(
    condition: Callable[[], object | Awaitable[object]], what: str, *, within_s: float = PATIENCE_S
) -> None:
    """Wait until a condition holds; fail with ``what`` when it does not in time."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                held = condition()
                if await held if isinstance(held, Awaitable) else held:
                    return
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


async def metric(running: Running, name: str, **labels: str) -> float:
    """Scrape the internal port and sum the samples of a name that have these labels."""
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        assert response.status == 200
        lines = (await response.text()).splitlines()
    total = 0.0
    for line in lines:
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match is None or match[1] != name:
            continue
        if all(f'{label}="{value}"' in (match[2] or "") for label, value in labels.items()):
            total += float(match[3])
    return total


class Event(NamedTuple):
    """One event as a client sees it; ``id`` is empty where the wire has none."""

    id: str
    name: str
    data: dict[str, Any]

    @property
    def turn_id(self) -> str:
        return self.id.rpartition(".")[0]

    @property
    def position(self) -> int:
        return int(self.id.rpartition(".")[2])

    @property
    def text(self) -> str:
        return str(self.data["text"]) if self.name == "message.delta" else ""


def text_of(events: Sequence[Event]) -> str:
    """Join the deltas."""
    return "".join(event.text for event in events)


def check_log(events: Sequence[Event], *, after: int = 0) -> Event:
    """Check that events are a log's whole rest after a position; return its ending.

    One turn, positions that grow by code points for a delta and by one for any other event, nothing missing,
    nothing twice, one ending and that last, whose text is what the deltas say.
    """
    assert events, "no events"
    assert len({event.turn_id for event in events}) == 1
    position = after
    for event in events:
        position += len(event.text) if event.name == "message.delta" else 1
        assert event.position == position, (event, position)
    ending = events[-1]
    assert [event.name for event in events if event.name in ENDINGS] == [ending.name]
    text = text_of(events)
    assert ending.data["text"].endswith(text)
    if after == 0:
        assert events[0].name == "turn.started"
        assert ending.data["text"] == text
    return ending


class Reader:
    """One event stream being read."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        self.raw = bytearray()
        self.seen: list[Event] = []
        self._decoder = SseDecoder()
        self._ready: list[Event] = []

    @property
    def turn_id(self) -> str:
        return self.response.headers["x-turn-id"]

    async def next(self, within_s: float = PATIENCE_S) -> Event | None:
        """Return the next event, or None when the stream has ended."""
        async with asyncio.timeout(within_s):
            while not self._ready:
                data = await self.response.content.readany()
                if not data:
                    return None
                self.raw += data
                for event in self._decoder.feed(data):
                    self._ready.append(Event(event.id or "", event.event, msgspec.json.decode(event.data)))
        self.seen.append(self._ready.pop(0))
        return self.seen[-1]

    async def until(self, name: str, count: int = 1) -> Event:
        """Read on to the ``count``-th event of a name."""
        while True:
            event = await self.next()
            assert event is not None, f"the stream ended before {name}"
            count -= event.name == name
            if not count:
                return event

    async def rest(self, within_s: float = PATIENCE_S) -> list[Event]:
        """Read to the end and return all events, those read before included; ``within_s`` is for each."""
        while await self.next(within_s) is not None:
            pass
        return self.seen


@dataclass(slots=True)
class Answer:
    """An HTTP answer read whole."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.raw)


@dataclass(slots=True)
class Client:
    """One user with a session token."""

    running: Running
    headers: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers["Authorization"].removeprefix("Bearer ")

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request with a JSON body and read the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.running.http.request(
            method, self.running.url + path, json=body, headers={**self.headers, **named}
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def conversation(self, **fields: Any) -> str:
        return await self.running.conversation(self.headers, **fields)

    @contextlib.asynccontextmanager
    async def ask(self, conversation: str, message: str, **headers: str) -> AsyncIterator[Reader]:
        """Start a turn and read its stream."""
        path = f"/v1/conversations/{conversation}/turns"
        async with self._stream("POST", path, {"message": message}, headers) as reader:
            assert reader.response.status == 200, await reader.response.text()
            yield reader

    async def complete(self, conversation: str, message: str) -> list[Event]:
        """Start a turn and read its whole log."""
        async with self.ask(conversation, message) as reader:
            return await reader.rest()

    async def start(self, conversation: str, message: str) -> str:
        """Start a turn, read nothing, and return its id."""
        answer = await self.call(
            "POST", f"/v1/conversations/{conversation}/turns", {"message": message}, Prefer="respond-async"
        )
        assert answer.status == 202, answer.raw
        return str(answer.body["turn_id"])

    @contextlib.asynccontextmanager
    async def follow(self, turn: str, cursor: str | None = None, **headers: str) -> AsyncIterator[Reader]:
        """Read a turn's events after a cursor."""
        if cursor is not None:
            headers["Last_Event_ID"] = cursor
        async with self._stream("GET", f"/v1/turns/{turn}/events", None, headers) as reader:
            assert reader.response.status == 200, await reader.response.text()
            yield reader

    async def replay(self, turn: str, cursor: str | None = None) -> list[Event]:
        async with self.follow(turn, cursor) as reader:
            return await reader.rest()

    async def stop(self, turn: str) -> Answer:
        return await self.call("POST", f"/v1/turns/{turn}/stop")

    @contextlib.asynccontextmanager
    async def _stream(self, method: str, path: str, body: Any, headers: dict[str, str]) -> AsyncIterator[Reader]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.running.http.request(
            method,
            self.running.url + path,
            json=body,
            headers={**self.headers, "Accept": "text/event-stream", **named},
        ) as response:
            yield Reader(response)

    @contextlib.asynccontextmanager
    async def socket(self) -> AsyncIterator[Socket]:
        """Open a WebSocket that has shown the token as its second subprotocol."""
        async with self.running.http.ws_connect(
            f"{self.running.url}/v1/ws", protocols=("hyperleap.chat.v1", f"hgt.{self.token}")
        ) as ws:
            yield Socket(ws)


class Closed(NamedTuple):
    """How a socket ended."""

    code: int | None
    reason: str


class Socket:
    """One WebSocket. Frames that a wait passes over are kept in ``frames``."""

    def __init__(self, ws: ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[dict[str, Any]] = []

    async def send(self, type_: str, **fields: Any) -> None:
        await self.ws.send_str(msgspec.json.encode({"type": type_, **fields}).decode())

    async def next(self) -> dict[str, Any] | Closed:
        """Return the next frame, or how the socket closed."""
        message = await self.ws.receive(timeout=PATIENCE_S)
        if message.type is WSMsgType.TEXT:
            frame: dict[str, Any] = msgspec.json.decode(message.data)
            self.frames.append(frame)
            return frame
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING), message
        return Closed(self.ws.close_code, message.extra or "")

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on to a frame."""
        while True:
            frame = await self.next()
            assert not isinstance(frame, Closed), frame
            if wanted(frame):
                return frame

    async def reply(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return its ``ack``, ``pong`` or ``error``; events may come before."""
        request_id = f"r{len(self.frames)}-{type_}"
        await self.send(type_, request_id=request_id, **fields)
        return await self.until(lambda frame: frame.get("request_id") == request_id)

    async def ending(self, turn: str) -> list[Event]:
        """Read on to a turn's ending and return all of its events."""
        if not any(event.name in ENDINGS for event in self.events(turn)):
            await self.until(lambda frame: frame.get("turn_id") == turn and frame["event"] in ENDINGS)
        return self.events(turn)

    async def closed(self) -> Closed:
        """Read on until the socket closes."""
        while not isinstance(frame := await self.next(), Closed):
            pass
        return frame

    def events(self, turn: str) -> list[Event]:
        return [
            Event(frame["id"], frame["event"], frame["data"]) for frame in self.frames if frame.get("turn_id") == turn
        ]

    def errors(self) -> list[dict[str, Any]]:
        return [frame["data"] for frame in self.frames if frame["event"] == "error"]
