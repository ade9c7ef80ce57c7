"""The native API as clients read it that no one here wrote: ``websockets``, ``eventsource-parser`` and curl."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from gateway.core.turn import TurnId
from gateway.simulator.answers import answer as said
from tests.client.cutter import Cutter
from tests.conftest import Running
from tests.transports.client import ENDINGS, Client, Event, check_log
from tests.transports.npm import needs, play
from tests.transports.openai.loop import heard

WORDS = "Hi 👋 #tokens=120 #rate=100"
WITHIN_S = 15.0  # the turn takes little more than a second
PROTOCOL = websockets.Subprotocol("hyperleap.chat.v1")
CURL = shutil.which("curl")

needs_curl = pytest.mark.skipif(CURL is None, reason="no curl")

Open = Callable[[str, str], contextlib.AbstractAsyncContextManager[ClientConnection]]


# --- websockets -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def by_subprotocol(url: str, token: str) -> AsyncIterator[ClientConnection]:
    shown = websockets.Subprotocol(f"hgt.{token}")
    async with websockets.connect(url, subprotocols=[PROTOCOL, shown]) as ws:
        assert ws.subprotocol == PROTOCOL
        yield ws


@contextlib.asynccontextmanager
async def by_first_frame(url: str, token: str) -> AsyncIterator[ClientConnection]:
    async with websockets.connect(url, subprotocols=[PROTOCOL]) as ws:
        assert await command(ws, "auth", token=token) == []
        yield ws


async def command(ws: ClientConnection, type_: str, **fields: str) -> list[Event]:
    """Send a command and return the events that came before its ``ack``."""
    await ws.send(json.dumps({"type": type_, "request_id": type_, **fields}))
    events: list[Event] = []
    async with asyncio.timeout(WITHIN_S):
        while (frame := msgspec.json.decode(await ws.recv())).get("request_id") != type_:
            events.append(Event(frame["id"], frame["event"], frame["data"]))
    assert frame["event"] == "ack", frame
    return events


async def read_on(ws: ClientConnection, events: list[Event]) -> bool:
    """Read a turn's events up to its ending, or until the connection is lost; True at the ending."""
    with contextlib.suppress(websockets.ConnectionClosedError):
        async with asyncio.timeout(WITHIN_S):
            async for text in ws:
                frame = msgspec.json.decode(text)
                events.append(Event(frame["id"], frame["event"], frame["data"]))
                if frame["event"] in ENDINGS:
                    return True
    return False


@pytest.mark.parametrize("opened", [by_subprotocol, by_first_frame])
async def test_websockets_goes_on_with_a_turn_after_a_cut(running: Running, client: Client, opened: Open) -> None:
    """However the token is shown: two cuts in mid-answer, the rest after the last event's id, whole and once."""
    conversation = await client.conversation()
    events: list[Event] = []
    async with Cutter(running.url, (3000, 3000)) as cutter:
        url = cutter.url.replace("http", "ws") + "/v1/ws"
        for _ in range(3):
            async with opened(url, client.token) as ws:
                if events:
                    events += await command(ws, "subscribe", turn_id=events[-1].turn_id, after=events[-1].id)
                else:
                    await command(ws, "turn.start", conversation_id=conversation, message=WORDS)
                ended = await read_on(ws, events)
        assert cutter.cut == 2
    assert ended
    assert ws.close_code == 1000
    assert check_log(events).data["text"] == said(WORDS).text
    assert heard(running) == [[WORDS]]


# --- eventsource-parser -----------------------------------------------------------------------------------------------


class TestEventSourceParser:
    """Over Node's own ``fetch``."""

    pytestmark = needs("eventsource-parser")

    async def test_reads_a_turn_through_cuts(self, running: Running, client: Client) -> None:
        """Each connection goes on after ``Last-Event-ID``: every event once, and 204 when there is nothing left."""
        conversation = await client.conversation()
        async with Cutter(running.url, (2500, 2500)) as cutter:
            through = dataclasses.replace(running, url=cutter.url)
            told: list[dict[str, Any]] = await play(
                "event_source.mjs", "turn", through, CONVERSATION=conversation, WORDS=WORDS
            )
        assert [one["status"] for one in told] == [200, 200, 200, 204]
        assert [one["lost"] for one in told] == [True, True, False, False]
        assert all(one["retry"] for one in told[:3])
        events = [Event(one["id"], one["event"], one["data"]) for each in told for one in each["events"]]
        assert check_log(events).data["text"] == said(WORDS).text
        assert heard(running) == [[WORDS]]


# --- curl -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def curl(client: Client, path: str, *options: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run curl with a user's token and give what it prints; it must end well by itself."""
    assert CURL is not None
    process = await asyncio.create_subprocess_exec(
        *(CURL, "-sS", "--fail-with-body", *options),
        *("-H", f"Authorization: {client.headers['Authorization']}", client.running.url + path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            yield process.stdout
            errors = (await process.stderr.read()).decode()
            assert await process.wait() == 0, errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def asking(words: str) -> tuple[str, ...]:
    return ("-H", "Content-Type: application/json", "-d", json.dumps({"message": words}))


async def block(output: asyncio.StreamReader) -> dict[str, str]:
    """Read the fields of one event as they stand on the terminal; none at the end."""
    fields: dict[str, str] = {}
    while (line := (await output.readline()).decode()) not in ("", "\n"):
        name, _, value = line.rstrip("\n").partition(": ")
        fields[name] = value
    return fields


@needs_curl
async def test_curl_shows_events_while_the_turn_is_under_way(running: Running, client: Client) -> None:
    """``curl -N`` prints the first words while the vendor still sends, and the whole log in the end."""
    events: list[Event] = []
    under_way = 0
    path = f"/v1/conversations/{await client.conversation()}/turns"
    async with curl(client, path, "-N", "-H", "Accept: text/event-stream", *asking(WORDS)) as output:
        while fields := await block(output):
            if "id" not in fields:
                continue
            event = Event(fields["id"], fields["event"], json.loads(fields["data"]))
            events.append(event)
            under_way += event.name == "message.delta" and running.gateway.turns.find(TurnId(event.turn_id)) is not None
    assert under_way > 10
    assert check_log(events).data["text"] == said(WORDS).text


@needs_curl
async def test_curl_gets_a_whole_answer_as_json(client: Client) -> None:
    """Without asking for a stream: one JSON object, when the turn has ended."""
    path = f"/v1/conversations/{await client.conversation()}/turns"
    async with curl(client, path, *asking("Hi 👋 #tokens=8")) as output:
        told = json.loads(await output.read())
    truth = said("Hi 👋 #tokens=8")
    assert (told["event"], told["text"], told["usage"]["total_tokens"]) == (
        "turn.completed",
        truth.text,
        truth.total_tokens,
    )
