"""What readers of one turn at its head are written is made once, however many they are: in every dialect that a turn
can have two readers in, over its own transport."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiohttp import ClientResponse

from gateway.core.events import Entry, TextDelta
from gateway.services.window import Batch, Encoder
from tests.transports.client import Client, eventually

READERS = 3
DELTAS = 20  # looked at, from the first on that all readers were pushed
MESSAGE = "Hi #tokens=5000 #rate=100"  # goes on until it is stopped

Stack = contextlib.AsyncExitStack
Open = Callable[[Client, Stack], Awaitable[str]]


class Encodings:
    """What transports asked of the batches that are one delta, and what was done for that; by the delta's position."""

    def __init__(self) -> None:
        self.chars: dict[int, int] = {}
        self.asked: Counter[int] = Counter()
        self.run: Counter[int] = Counter()

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look on from here: everything is done as before."""
        encoded = Batch.encoded

        def watched(batch: Batch, encoder: Encoder) -> bytes:
            event = batch.entries[0].event
            if len(batch.entries) > 1 or not isinstance(event, TextDelta):
                return encoded(batch, encoder)
            self.chars[batch.head] = len(event.text)
            self.asked[batch.head] += 1
            return encoded(batch, _Watched(encoder, self.run))

        monkeypatch.setattr(Batch, "encoded", watched)

    def shared(self) -> list[int]:
        """Return the deltas from the first on that all readers were pushed."""
        first = min((position for position, count in self.asked.items() if count == READERS), default=None)
        return [] if first is None else sorted(position for position in self.asked if position >= first)


class _Watched:
    """An encoder whose runs are counted; equal to another one as the encoders are."""

    def __init__(self, encoder: Encoder, run: Counter[int]) -> None:
        self._encoder = encoder
        self._run = run

    def __call__(self, turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
        self._run[entries[-1].position] += 1
        return self._encoder(turn_id, conversation_id, entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Watched) and self._encoder == other._encoder

    def __hash__(self) -> int:
        return hash(self._encoder)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Encodings:
    found = Encodings()
    found.watch(monkeypatch)
    return found


async def native(client: Client, stack: Stack) -> str:
    turn = await client.start(await client.conversation(), MESSAGE)
    for _ in range(READERS):
        await stack.enter_async_context(client.follow(turn))
    return turn


async def websocket(client: Client, stack: Stack) -> str:
    turn = await client.start(await client.conversation(), MESSAGE)
    for _ in range(READERS):
        socket = await stack.enter_async_context(client.socket())
        await socket.reply("subscribe", turn_id=turn)
    return turn


async def ai_sdk(client: Client, stack: Stack) -> str:
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": MESSAGE}]}
    first = await opened(client, stack, "POST", "/api/chat", {"id": "c", "messages": [message]})
    for _ in range(READERS - 1):
        await opened(client, stack, "GET", "/api/chat/c/stream")
    return first.headers["x-turn-id"]


async def openai_responses(client: Client, stack: Stack) -> str:
    body = {"model": "default", "input": MESSAGE, "stream": True}
    turn = (await opened(client, stack, "POST", "/v1/responses", body)).headers["x-turn-id"]
    for _ in range(READERS - 1):
        await opened(client, stack, "GET", f"/v1/responses/resp_{turn}?stream=true")
    return turn


async def openai_chat(client: Client, stack: Stack) -> str:
    """A list that is sent again under its key, in another second, joins the answer."""
    body = {"model": "default", "messages": [{"role": "user", "content": MESSAGE}], "stream": True}
    for number in range(READERS):
        if number:
            begun_s = int(time.time())
            await eventually(lambda: int(time.time()) > begun_s, "the next second")  # noqa: B023 - awaited in this round
        response = await opened(client, stack, "POST", "/v1/chat/completions", body, **{"Idempotency-Key": "k"})
    return response.headers["x-turn-id"]


async def hyperleap(client: Client, stack: Stack) -> str:
    """A message that is sent again under its key joins the answer."""
    path = f"/hyperleap/conversations/{await client.conversation()}/chat-sse"
    for _ in range(READERS):
        response = await opened(client, stack, "PATCH", path, {"message": MESSAGE}, **{"Idempotency-Key": "k"})
    return response.headers["x-turn-id"]


async def opened(
    client: Client, stack: Stack, method: str, path: str, body: Any = None, **headers: str
) -> ClientResponse:
    """Begin to read a stream."""
    url, http = client.running.url + path, client.running.http
    response = await stack.enter_async_context(
        http.request(method, url, json=body, headers={**client.headers, **headers})
    )
    assert response.status == 200, await response.text()
    return response


@pytest.mark.parametrize("open_readers", [native, websocket, ai_sdk, openai_chat, openai_responses, hyperleap])
async def test_delta_is_encoded_once_for_all_readers_at_the_head(
    client: Client, encodings: Encodings, open_readers: Open
) -> None:
    """Every reader's transport takes a delta's bytes from its batch, where one run of an encoder makes them for all."""
    async with Stack() as stack:
        async with asyncio.timeout(30):
            turn = await open_readers(client, stack)
        await eventually(lambda: len(encodings.shared()) >= DELTAS, "all readers to take what they get from batches")
        assert (await client.stop(turn)).status == 200
        shared = encodings.shared()
    assert {encodings.asked[position] for position in shared} == {READERS}
    assert {encodings.run[position] for position in shared} == {1}
    first, *others = shared
    assert sum(encodings.chars[position] for position in others) == shared[-1] - first  # none went another way
