"""The load generator: one process that holds all clients of a phase. ``python -m tests.bench.load``, told by lines.

Reads a Plan from standard input, opens what it needs and says ``ready``; then it is led by words: ``start`` the turns
(it says ``waiting`` when each has its first event and ``steady`` when each has its first delta), ``begin`` and ``end``
the recording, ``finish`` (let turns end, start none, print the result).
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gateway.upstream.pool import Pool
from tests.bench.dialects import NativeSse, VendorItems
from tests.bench.ledger import Tally
from tests.bench.process import fast_loop
from tests.bench.seats import DirectSeat, HttpSeat, Seat, SocketSeat, post_request, upgrade_request

POLL_S: Final = 0.02
SETUP_CONNECTIONS: Final = 8
PERSONA_ID: Final = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"

Route = Literal["direct", "sse", "ws", "relay"]


class Plan(msgspec.Struct, kw_only=True):
    """What the clients of one phase do. ``events`` is what the simulator will send in answer to ``message``."""

    route: Route
    url: str
    key: str  # the vendor's for direct, the tenant's secret key for the gateway
    ca_file: str | None = None
    streams: int
    events: int
    message: str
    ramp_s: float
    repeat: bool


class Load:
    """The clients of one phase."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.finishing = False
        self.over = asyncio.Event()
        self._seats: list[Seat] = []
        self._sockets: Sequence[HttpSeat | SocketSeat] = ()
        self._running = 0
        self._pool: Pool | None = None

    async def open(self) -> None:
        """Create the conversations, over a few connections that are closed again, and the seats."""
        match self.plan.route:
            case "direct":
                await self._open_direct()
            case "relay":
                body = json.dumps({"message": self.plan.message}).encode()
                host = urlsplit(self.plan.url).netloc
                request = post_request(host, "/", "none", body)
                self._sockets = [
                    HttpSeat(self.tally, self.plan.events, self._turn_over, request, VendorItems)
                    for _ in range(self.plan.streams)
                ]
            case "sse" | "ws":
                await self._open_gateway()

    async def start(self) -> None:
        """Connect the seats, then begin a turn in each, spread over the ramp."""
        await self._connect()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for number, seat in enumerate(self._seats):
            await asyncio.sleep(begun_s + number * self.plan.ramp_s / len(self._seats) - loop.time())
            self._running += 1
            seat.begin()

    async def aclose(self) -> None:
        for seat in self._seats:
            seat.leave()
        if self._pool is not None:
            await self._pool.aclose()

    def _turn_over(self, seat: Seat) -> None:
        if self.plan.repeat and not self.finishing:
            asyncio.get_running_loop().call_soon(seat.begin)
            return
        self._running -= 1
        if self._running == 0 and self.finishing:
            self.over.set()

    def finish(self) -> None:
        self.finishing = True
        if self._running == 0:
            self.over.set()

    async def _open_direct(self) -> None:
        plan = self.plan
        pool = self._pool = Pool(plan.url, ca_file=plan.ca_file)
        headers = [(b"x-hl-api-key", plan.key.encode()), (b"content-type", b"application/json")]
        body = json.dumps({"message": plan.message}).encode()
        create = json.dumps({"personaId": PERSONA_ID}).encode()

        async def create_conversation(_: int) -> str:
            answer = _Answer()
            await pool.open_stream("POST", "/conversations/persona", headers, create, answer, deadline_s=30.0)
            return str(json.loads(await answer.body)["conversationId"])

        # All at once, so that the pool opens now the connections that it will need.
        for conversation_id in await _few_at_a_time(create_conversation, plan.streams, together=plan.streams):
            path = f"/conversations/{conversation_id}/chat-http2"
            self._seats.append(DirectSeat(self.tally, plan.events, self._turn_over, pool, path, headers, body))

    async def _open_gateway(self) -> None:
        plan = self.plan
        host = urlsplit(plan.url).netloc
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SETUP_CONNECTIONS)) as http:

            async def post(path: str, token: str, body: dict[str, Any]) -> Any:
                async with http.post(
                    plan.url + path, json=body, headers={"Authorization": f"Bearer {token}"}
                ) as response:
                    answer = await response.json()
                    if response.status != 201:
                        raise RuntimeError(f"POST {path}: {response.status} {answer}")
                    return answer

            async def open_one(number: int) -> tuple[str, str]:
                token = str((await post("/v1/sessions", plan.key, {"user_id": f"bench-{number}"}))["token"])
                return token, str((await post("/v1/conversations", token, {}))["id"])

            places = await _few_at_a_time(open_one, plan.streams)
        common = (self.tally, plan.events, self._turn_over)
        if plan.route == "ws":
            self._sockets = [
                SocketSeat(*common, upgrade_request(host, token), one, plan.message) for token, one in places
            ]
            return
        body = json.dumps({"message": plan.message}).encode()
        self._sockets = [
            HttpSeat(*common, post_request(host, f"/v1/conversations/{one}/turns", token, body), NativeSse)
            for token, one in places
        ]

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = urlsplit(self.plan.url).netloc.rpartition(":")

        async def connect_one(number: int) -> None:
            seat = self._sockets[number]
            await loop.create_connection(lambda: seat, host, int(port))
            await seat.opened

        await _few_at_a_time(connect_one, len(self._sockets))
        self._seats += self._sockets


class _Answer:
    """Collects the body of one answer from the pool."""

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status not in (200, 201):
            self.body.set_exception(RuntimeError(f"the simulator answered {status}"))

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)

    def stream_ended(self) -> None:
        if not self.body.done():
            self.body.set_result(b"".join(self._parts))

    def stream_failed(self, error: Exception) -> None:
        self.body.set_exception(error)


async def _few_at_a_time(work: Any, count: int, *, together: int = SETUP_CONNECTIONS) -> list[Any]:
    """Run ``work(0)`` … ``work(count - 1)``, a few together."""
    places: list[Any] = [None] * count
    numbers = iter(range(count))

    async def run() -> None:
        for number in numbers:
            step: Awaitable[Any] = work(number)
            places[number] = await step

    await asyncio.gather(*(run() for _ in range(together)))
    return places


def _say(word: str) -> None:
    print(word, flush=True)


async def _follow(load: Load) -> None:
    """Say once when every turn has its first event, and once when every turn has its first delta."""
    while load.tally.waiting < load.plan.streams and load.tally.streaming < load.plan.streams:
        await asyncio.sleep(POLL_S)
    _say("waiting")
    while load.tally.streaming < load.plan.streams:
        await asyncio.sleep(POLL_S)
    _say("steady")


async def run() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    load = Load(msgspec.json.decode(await reader.readline(), type=Plan))
    await load.open()
    gc.collect()
    gc.disable()  # a short life with plenty of memory; its pauses would count as the gateway's delay
    _say("ready")
    tasks: set[asyncio.Task[None]] = set()
    try:
        while line := await reader.readline():
            match line.strip():
                case b"start":
                    tasks |= {loop.create_task(load.start()), loop.create_task(_follow(load))}
                case b"begin":
                    load.tally.recording = True
                case b"end":
                    load.tally.recording = False
                case b"finish":
                    load.finish()
                    await load.over.wait()
                    _say(json.dumps(load.tally.result()))
                    return
    finally:
        for task in tasks:
            task.cancel()
        await load.aclose()


def main() -> None:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
