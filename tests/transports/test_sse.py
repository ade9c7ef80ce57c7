"""What is written to the connection of an event stream: whole answers in few writes, and nothing beside them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from asyncio import selector_events
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.transports import turns
from gateway.transports.sse import SseStream
from tests.conftest import Running, StartGateway
from tests.transports.client import PATIENCE_S, Client, check_log, eventually
from tests.transports.conftest import SignIn

LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that is written to any connection that is opened from now on, a write an item."""
    written: list[bytes] = []
    transport = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]  # whose every write is to be seen
    write = transport.write

    def noted(self: Any, data: bytes) -> None:
        written.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(transport, "write", noted)
    return written


class Wire:
    """One connection to the gateway, read as it comes."""

    def __init__(self, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = client
        self._reader = reader
        self._writer = writer

    def send(self, method: str, path: str, body: Any = None, *, version: str = "1.1", **headers: str) -> None:
        data = json.dumps(body).encode() if body is not None else b""
        named = {
            "Host": "gateway",
            "Accept": "text/event-stream",
            "Content-Length": str(len(data)),
            **self._client.headers,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if body is not None:
            named["Content-Type"] = "application/json"
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self._writer.write(f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + data)

    async def head(self) -> tuple[str, dict[str, str]]:
        """Read a status line and headers."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode().removesuffix("\r\n\r\n").split("\r\n")
        return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked body, to the letter of RFC 9112; the last one is empty."""
        async with asyncio.timeout(PATIENCE_S):
            size = int((await self._reader.readuntil(b"\r\n")).removesuffix(b"\r\n"), 16)
            data = await self._reader.readexactly(size)
            assert await self._reader.readexactly(2) == b"\r\n"
        return data

    async def body(self) -> bytes:
        body = b""
        while data := await self.chunk():
            body += data
        return body

    async def rest(self) -> bytes:
        """Read until the connection ends."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read()


@contextlib.asynccontextmanager
async def wire(running: Running, client: Client) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    try:
        yield Wire(client, reader, writer)
    finally:
        writer.close()


async def test_stream_begins_and_ends_in_one_write_each(writes: list[bytes], running: Running, client: Client) -> None:
    """Headers, the time to come back after and the first events go in one write, ending and end of body in another."""
    conversation = await client.conversation()
    writes.clear()
    async with client.ask(conversation, "Hi #tokens=3") as reader:
        check_log(await reader.rest())
    (first,) = [data for data in writes if data.startswith(b"HTTP/1.1 200") and b"text/event-stream" in data]
    assert b"\nretry: " in first
    assert b"\n: open\n" in first
    assert b"event: turn.started\n" in first
    (last,) = [data for data in writes if b"event: turn.completed\n" in data]
    assert last.endswith(b"\r\n" + LAST_CHUNK)
    assert LAST_CHUNK not in writes


async def test_replay_ends_with_its_body_in_one_write(writes: list[bytes], running: Running, client: Client) -> None:
    """A finished turn goes out with the end of its body."""
    async with client.ask(await client.conversation(), "Hi #tokens=3") as reader:
        events = await reader.rest()
    writes.clear()
    replayed = await client.replay(reader.turn_id)
    assert check_log(replayed).data == events[-1].data
    parts = [data for data in writes if data.startswith(b"HTTP/1.1 200") or data.endswith(LAST_CHUNK)]
    assert len(parts) <= 2  # the beginning does not wait for a log that is read from the store
    assert parts[0].startswith(b"HTTP/1.1 200")
    assert parts[-1].endswith(b"\r\n" + LAST_CHUNK)


async def test_headers_do_not_wait_for_an_event(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A reader who has all there is so far gets headers and the comment at once, and later the rest."""
    running = await start_gateway()
    client = await sign_in(running)
    async with client.ask(await client.conversation(), "Hi #tokens=2 #delay=1.5") as reader:
        last = await reader.until("message.started")
        async with wire(running, client) as line:
            line.send("GET", f"/v1/turns/{reader.turn_id}/events", Last_Event_ID=last.id)
            status, headers = await line.head()
            assert status == "HTTP/1.1 200 OK"
            assert headers["transfer-encoding"] == "chunked"
            assert (await line.chunk()).endswith(b": open\n\n")
            assert len(reader.seen) == 2, "the answer has gone on meanwhile, and shows nothing"
            assert b"event: turn.completed\n" in await line.body()
        await reader.rest()


async def test_connection_serves_the_next_request(running: Running, client: Client) -> None:
    """Nothing follows the end of a body; requests on the same connection, even sent ahead, are answered in turn."""
    paths = [f"/v1/conversations/{await client.conversation()}/turns" for _ in range(3)]
    async with wire(running, client) as line:
        for path in paths:
            line.send("POST", path, {"message": "Hi #tokens=2"})
        for _ in paths:
            status, headers = await line.head()
            assert status == "HTTP/1.1 200 OK"
            assert "connection" not in headers
            body = await line.body()
            assert body.endswith(b"\n\n")
            assert body.count(b"event: turn.completed\n") == 1
        line.send("GET", "/v1/conversations", Connection="close")
        status, headers = await line.head()
        assert status == "HTTP/1.1 200 OK"
        assert len(await line.rest()) == int(headers["content-length"])
    await eventually(lambda: not running.gateway.edge.open, "the streams to be over")


async def test_http_1_0_is_told_by_the_end_of_the_connection(running: Running, client: Client) -> None:
    """A client of HTTP/1.0 gets the events bare, and the connection ends with them."""
    async with wire(running, client) as line:
        path = f"/v1/conversations/{await client.conversation()}/turns"
        line.send("POST", path, {"message": "Hi #tokens=2"}, version="1.0")
        status, headers = await line.head()
        assert status == "HTTP/1.0 200 OK"
        assert "transfer-encoding" not in headers
        body = await line.rest()
    assert body.startswith(b"retry: ")
    assert body.endswith(b"\n\n")
    assert body.count(b"event: turn.completed\n") == 1


async def test_no_keepalive_follows_the_ending(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Comments that are due all the time stay within the body."""
    running = await start_gateway(environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.001"})
    client = await sign_in(running)
    path = f"/v1/conversations/{await client.conversation()}/turns"
    async with wire(running, client) as line:
        for _ in range(5):
            line.send("POST", path, {"message": "Hi #tokens=2 #delay=0.2"})
            assert (await line.head())[0] == "HTTP/1.1 200 OK"
            body = await line.body()
            assert b": keep-alive\n\n" in body
            assert b"event: turn.completed\n" in body[-2000:]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_answer_leaves_nothing_to_the_collector_of_cycles(accept: str, running: Running, client: Client) -> None:
    """What a request for a turn held is free when it is answered: a cycle would keep all of it until a collection."""

    def held() -> list[object]:
        return [found for found in gc.get_objects() if isinstance(found, SseStream | turns._Collector)]

    gc.collect()
    gc.disable()
    try:
        path = f"/v1/conversations/{await client.conversation()}/turns"
        answer = await client.call("POST", path, {"message": "Hi #tokens=2"}, Accept=accept)
        assert answer.status == 200
        await eventually(lambda: not held(), "the request to be let go of")
    finally:
        gc.enable()
