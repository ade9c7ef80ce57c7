"""Turns and their readers: two each, one over SSE and one over WebSocket, who came in different places."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from gateway.simulator.answers import Answer, answer
from tests.bench.survival.reader import BACKOFF_MAX_S, BACKOFF_S, LOST, OPEN_S, RETRIED, Reader, SocketReader, SseReader

STARTS_AT_ONCE: Final = 16
LIVE_S: Final = 30.0  # for every turn to have its first text at every reader
USER: Final = "survivor"
TOKEN_LIFE_S: Final = 3600
SILENT: Final = "no answer"


class Turn:
    """One message, its answer as the vendor will give it, and who reads it."""

    def __init__(self, message: str, conversation_id: str, readers: Sequence[Reader]) -> None:
        self.message = message
        self.conversation_id = conversation_id
        self.readers = readers
        self.turn_id = ""
        self.at = 0  # the gateway that it was sent to

    @property
    def answer(self) -> Answer:
        return answer(self.message)


class Crowd:
    """The clients of a run. Use ``crowd()``."""

    def __init__(self, http: ClientSession, urls: Sequence[str], secret_key: str, *, tokens: int, rate: float) -> None:
        self.turns: list[Turn] = []
        self._http = http
        self._urls = urls
        self._secret_key = secret_key
        self._words = f"#tokens={tokens} #rate={rate:g}"
        self._token = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def readers(self) -> list[Reader]:
        return [reader for turn in self.turns for reader in turn.readers]

    async def begin(self, count: int, *, at: int | None = None, words: str = "") -> list[Turn]:
        """Create conversations and start a turn in each, at one gateway or spread; returns once all are started.

        ``words`` are put to each message, as for a fault of the vendor's.
        """
        if not self._token:
            body = {"user_id": USER, "ttl_s": TOKEN_LIFE_S}
            self._token = str((await self._post("/v1/sessions", body, key=self._secret_key))["token"])
        begun: list[Turn] = []
        numbers = iter(range(len(self.turns), len(self.turns) + count))

        async def start_some() -> None:
            for number in numbers:
                turn = await self._prepare(number, words)
                begun.append(turn)
                await self._start(turn, number if at is None else at)

        await asyncio.gather(*(start_some() for _ in range(min(STARTS_AT_ONCE, count))))
        return begun

    async def open(self, message: str, *, at: int) -> Turn:
        """Make a conversation for a turn that nobody reads before its end; ``enter`` is to follow."""
        return Turn(message, str((await self._post("/v1/conversations", {}, at=at))["id"]), ())

    async def enter(self, turn: Turn, *, at: int) -> str | None:
        """Ask one gateway once to begin a turn; return the code of its refusal, None if it began."""
        path = f"/v1/conversations/{turn.conversation_id}/turns"
        headers = {"Authorization": f"Bearer {self._token}", **_once(turn)}
        try:
            async with (
                asyncio.timeout(OPEN_S),
                self._http.post(self._at(at)[0] + path, json={"message": turn.message}, headers=headers) as response,
            ):
                answer = await response.json(content_type=None)
        except LOST:
            return SILENT
        if response.status >= 300:
            return str(answer["code"])
        turn.at, turn.turn_id = at, str(answer["turn_id"])
        self.turns.append(turn)
        return None

    async def live(self) -> None:
        """Wait until every reader has text."""
        async with asyncio.timeout(LIVE_S):
            for reader in self.readers:
                await reader.live.wait()

    def struck(self) -> None:
        """Measure from now on when readers have their next event."""
        now_s = asyncio.get_running_loop().time()
        for reader in self.readers:
            reader.struck(now_s)

    async def ended(self, *, within_s: float) -> None:
        """Wait until every reader has the ending or has given up; those that have not in time are left as they are."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in self._tasks:
            if task.done():
                task.result()

    async def replayed(self) -> list[Reader]:
        """Read every turn once more from its beginning, as somebody who comes late."""
        late = [SseReader(self._http, self._at(number), self._token) for number, _ in enumerate(self.turns)]
        work = zip(late, self.turns, strict=True)

        async def read_some() -> None:
            for reader, turn in work:
                await reader.read(turn.turn_id)

        await asyncio.gather(*(read_some() for _ in range(STARTS_AT_ONCE)))
        return list(late)

    async def stop(self, turn: Turn, *, after_s: float) -> float:
        """Ask another gateway than the turn's own to stop it; return when it was asked, in Unix seconds."""
        await asyncio.sleep(after_s)
        asked_at_s = time.time()
        await self._post(f"/v1/turns/{turn.turn_id}/stop", None, at=turn.at + 1)
        return asked_at_s

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _at(self, number: int) -> list[str]:
        first = number % len(self._urls)
        return [*self._urls[first:], *self._urls[:first]]

    async def _prepare(self, number: int, words: str) -> Turn:
        message = f"What comes after number {number}? {self._words} #seed={number} {words}".rstrip()
        conversation_id = str((await self._post("/v1/conversations", {}, at=number))["id"])
        # Where the two transports come in changes from turn to turn.
        kinds: list[type[Reader]] = [SseReader, SocketReader] if number // 2 % 2 else [SocketReader, SseReader]
        readers = [kind(self._http, self._at(place), self._token) for place, kind in enumerate(kinds)]
        turn = Turn(message, conversation_id, readers)
        self.turns.append(turn)
        return turn

    async def _start(self, turn: Turn, at: int) -> None:
        path = f"/v1/conversations/{turn.conversation_id}/turns"
        turn.at = at
        turn.turn_id = str((await self._post(path, {"message": turn.message}, at=at, headers=_once(turn)))["turn_id"])
        for reader in turn.readers:
            task = asyncio.get_running_loop().create_task(reader.read(turn.turn_id))
            self._tasks.add(task)

    async def _post(
        self, path: str, body: Any, *, at: int = 0, key: str | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Post as a client that repeats what may not have arrived; raises AssertionError for a refusal."""
        headers = {"Authorization": f"Bearer {key or self._token}", **(headers or {})}
        wait_s = BACKOFF_S
        async with asyncio.timeout(LIVE_S):
            while True:
                for url in self._at(at):
                    try:
                        async with (
                            asyncio.timeout(OPEN_S),
                            self._http.post(url + path, json=body, headers=headers) as response,
                        ):
                            if response.status < 300:
                                return await response.json()
                            if response.status not in RETRIED:
                                raise AssertionError(f"POST {path}: {response.status} {await response.text()}")
                    except LOST:
                        pass
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
                wait_s = min(2 * wait_s, BACKOFF_MAX_S)


def _once(turn: Turn) -> dict[str, str]:
    """Headers that start a turn once, however often it is asked for, and do not wait for it."""
    return {"Idempotency-Key": turn.conversation_id, "Prefer": "respond-async"}


@asynccontextmanager
async def crowd(urls: Sequence[str], secret_key: str, *, tokens: int, rate: float) -> AsyncIterator[Crowd]:
    """Clients of some gateways that share a store; every request has a connection of its own, so any worker may be it.

    ``tokens`` and ``rate`` (a second) are of every answer.
    """
    async with ClientSession(
        connector=TCPConnector(limit=0, force_close=True), timeout=ClientTimeout(total=None, sock_connect=OPEN_S)
    ) as http:
        clients = Crowd(http, urls, secret_key, tokens=tokens, rate=rate)
        try:
            yield clients
        finally:
            await clients.aclose()
