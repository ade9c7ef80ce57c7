"""A reader as real ones are: it comes back with its cursor, to whichever worker answers, until the ending."""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, WSMsgType

from gateway.protocol.sse import SseDecoder
from tests.bench.survival.log import ReaderLog

BACKOFF_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
OPEN_S: Final = 3.0  # for an answer's head, or an upgrade
SILENCE_S: Final = 40.0  # more than two keep-alives
RETRIED: Final = frozenset({429, 502, 503, 504})
FINAL_CLOSES: Final = frozenset({4400, 4503, 4504})
LOST: Final = (ClientError, OSError, TimeoutError)


class Refused(Exception):
    """The gateway said something that no repetition changes."""


class Reader:
    """One reader of one turn. ``read`` returns at the ending; ``fault`` says why it gave up."""

    def __init__(self, http: ClientSession, urls: Sequence[str], token: str) -> None:
        """``urls``: the gateways, the one to begin with first."""
        self.log = ReaderLog()
        self.live = asyncio.Event()  # has its first text
        self.returns = 0
        self.fault: str | None = None
        self.next_s: float | None = None  # from the fault to the next event
        self.gap_s = 0.0  # longest between two events, the later one after the fault
        self._http = http
        self._urls = urls
        self._token = token
        self._struck_at_s: float | None = None
        self._struck = False
        self._taken_at_s: float | None = None
        self._wait_s = BACKOFF_S
        self._tries = 0

    def struck(self, at_s: float) -> None:
        """Measure from now on when the next event comes."""
        if not self.log.ended:
            self._struck_at_s = at_s
            self._struck = True

    async def read(self, turn_id: str) -> None:
        """Read to the ending, however often the connection is lost."""
        while not self.log.ended:
            url = self._urls[self._tries % len(self._urls)]
            try:
                await self._connect(url, turn_id)
            except LOST:
                self._tries += 1
            except Refused as refused:
                self.fault = str(refused)
                return
            if not self.log.ended:
                self.returns += 1
                await asyncio.sleep(random.uniform(self._wait_s / 2, self._wait_s))
                self._wait_s = min(2 * self._wait_s, BACKOFF_MAX_S)

    @abstractmethod
    async def _connect(self, url: str, turn_id: str) -> None:
        """Read over one connection until it ends; raises LOST or Refused."""

    def _take(self, event_id: str, name: str, data: bytes) -> None:
        self.log.take(event_id, name, msgspec.json.decode(data))
        self._wait_s = BACKOFF_S
        if name == "message.delta":
            self.live.set()
        now_s = asyncio.get_running_loop().time()
        if self._struck_at_s is not None:
            self.next_s = now_s - self._struck_at_s
            self._struck_at_s = None
        if self._struck and self._taken_at_s is not None:
            self.gap_s = max(self.gap_s, now_s - self._taken_at_s)
        self._taken_at_s = now_s


class SseReader(Reader):
    """As an EventSource: Last-Event-ID, and the server's ``retry:``."""

    async def _connect(self, url: str, turn_id: str) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        if self.log.cursor is not None:
            headers["Last-Event-ID"] = self.log.cursor
        decoder = SseDecoder()
        async with asyncio.timeout(OPEN_S) as opening:
            async with self._http.get(f"{url}/v1/turns/{turn_id}/events", headers=headers) as response:
                opening.reschedule(None)
                if response.status in RETRIED:
                    return
                if response.status != 200:
                    raise Refused(f"{response.status} {(await response.text())[:200]}")
                while not self.log.ended:
                    async with asyncio.timeout(SILENCE_S):
                        data = await response.content.readany()
                    if not data:
                        break
                    for event in decoder.feed(data):
                        if event.id is not None:
                            self._take(event.id, event.event, event.data.encode())
                        elif event.event == "stream.error":
                            _judge(event.data.encode())
        if decoder.retry_ms is not None:
            self._wait_s = decoder.retry_ms / 1000


class SocketReader(Reader):
    """Over a WebSocket of its own."""

    async def _connect(self, url: str, turn_id: str) -> None:
        async with asyncio.timeout(OPEN_S):
            ws = await self._http.ws_connect(
                f"{url}/v1/ws", protocols=("hyperleap.chat.v1", f"hgt.{self._token}"), autoclose=True
            )
        async with ws:
            await ws.send_json({"type": "subscribe", "request_id": "r", "turn_id": turn_id, "after": self.log.cursor})
            while not self.log.ended:
                message = await ws.receive(timeout=SILENCE_S)
                if message.type is not WSMsgType.TEXT:
                    if ws.close_code in FINAL_CLOSES:
                        raise Refused(f"closed with {ws.close_code}")
                    return
                frame = msgspec.json.decode(message.data, type=_Frame)
                if frame.event == "error":
                    _judge(frame.data)
                    return
                if frame.id is not None and frame.turn_id == turn_id:
                    self._take(frame.id, frame.event, bytes(frame.data))


class _Frame(msgspec.Struct):
    event: str
    id: str | None = None
    turn_id: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Problem(msgspec.Struct):
    code: str
    status: int


def _judge(data: bytes | msgspec.Raw) -> None:
    """Raise Refused for an error that no repetition changes."""
    problem = msgspec.json.decode(data, type=_Problem)
    if problem.status not in RETRIED:
        raise Refused(f"{problem.status} {problem.code}")
