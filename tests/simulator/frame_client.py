"""A client that sees every frame: HTTP/2 by hand, so that a test can look at what the simulator really sent."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from gateway.simulator.server import Simulator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TIMEOUT_S = 10.0
CANCEL = 8


@dataclass
class Received:
    """Holds what came on one stream; ``frames`` are the payloads of its DATA frames that were not empty."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=list)
    ended: bool = False
    reset_code: int | None = None

    @property
    def body(self) -> bytes:
        """All of the body so far."""
        return b"".join(self.frames)

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self.ended or self.reset_code is not None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class FrameClient:
    """Speaks to a simulator frame by frame; reading happens only inside `until` and what is built on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, credit: bool) -> None:
        self._reader, self._writer, self._key, self._credit = reader, writer, key, credit
        self._encoder, self._decoder = Encoder(), Decoder()
        self._next_id = 1
        self.streams: dict[int, Received] = {}
        self.settings: dict[int, int] = {}
        self.goaway_last_id: int | None = None
        self.pongs = 0
        self.closed = False

    def send(self, *frames: Frame) -> None:
        """Writes frames."""
        self._writer.write(b"".join(frame.serialize() for frame in frames))

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        """Sends a request and returns its stream id; underscores in header names stand for hyphens."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        fields = {":method": method, ":scheme": "https", ":authority": "simulator", ":path": path}
        fields |= {"x-hl-api-key": self._key, "content-type": "application/json"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = HeadersFrame(stream_id, self._encoder.encode(list(fields.items())), flags=["END_HEADERS"])
        self.streams[stream_id] = Received()
        if body is None:
            head.flags.add("END_STREAM")
            self.send(head)
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send(head, DataFrame(stream_id, data, flags=["END_STREAM"]))
        return stream_id

    def chat(self, conversation_id: str, message: str, form: str = "chat-http2") -> int:
        """Sends a chat and returns its stream id."""
        return self.request("PATCH", f"/conversations/{conversation_id}/{form}", {"message": message})

    async def until(self, met: Callable[[], bool]) -> None:
        """Reads until a condition holds or the connection ends."""
        async with asyncio.timeout(TIMEOUT_S):
            while not met() and not self.closed:
                await self._read_frame()

    async def answer(self, stream_id: int) -> Received:
        """Reads until the stream is over or the connection ends."""
        received = self.streams[stream_id]
        await self.until(lambda: received.over)
        return received

    async def create(self) -> str:
        """Creates a conversation and returns its id."""
        body = {"personaId": "5b1f1a0e-3d3c-4d53-9a52-0d1d6a7f0001", "stream": False}
        answer = await self.answer(self.request("POST", "/conversations/persona", body))
        return str(answer.json()["conversationId"])

    async def ping(self) -> None:
        """Waits until everything sent so far has been read by the other side."""
        wanted = self.pongs + 1
        self.send(PingFrame(0, b"12345678"))
        await self.until(lambda: self.pongs >= wanted)

    async def _read_frame(self) -> None:
        try:
            head = await self._reader.readexactly(9)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            self.closed = True
            return
        self._take(frame)

    def _take(self, frame: Frame) -> None:
        received = self.streams.get(frame.stream_id, Received())
        match frame:
            case SettingsFrame():
                if "ACK" not in frame.flags:
                    self.settings |= frame.settings
                    self.send(SettingsFrame(0, flags=["ACK"]))
            case HeadersFrame():
                fields = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
                received.status = int(fields.pop(":status"))
                received.headers = fields
                received.ended = "END_STREAM" in frame.flags
            case DataFrame():
                if frame.data:
                    received.frames.append(bytes(frame.data))
                    if self._credit:
                        size = len(frame.data)
                        self.send(WindowUpdateFrame(0, size), WindowUpdateFrame(frame.stream_id, size))
                received.ended = "END_STREAM" in frame.flags
            case RstStreamFrame():
                received.reset_code = frame.error_code
            case GoAwayFrame():
                self.goaway_last_id = frame.last_stream_id
            case PingFrame():
                self.pongs += 1
            case _:
                pass

    async def aclose(self) -> None:
        """Closes the socket."""
        self._writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connect(
    simulator: Simulator, *, credit: bool = True, window: int = 65535, frame_size: int = 16384
) -> AsyncIterator[FrameClient]:
    """Opens a connection with the given SETTINGS; without `credit` no window is ever given back."""
    context = None
    if simulator.ca_file is not None:
        context = ssl.create_default_context(cafile=str(simulator.ca_file))
        context.set_alpn_protocols(["h2"])
    port = int(simulator.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    client = FrameClient(reader, writer, simulator.settings.api_key, credit)
    writer.write(PREFACE)
    client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: window, 5: frame_size}))
    try:
        yield client
    finally:
        await client.aclose()
