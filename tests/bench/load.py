"""The load generator: one process that holds all clients of a phase. ``python -m tests.bench.load``, told by lines.

Reads a Plan from standard input, opens what it needs and says ``ready``; then it is led by words: ``connect`` (it says
``connected`` when each seat has its connection, which ``start`` does as well), ``start`` the turns (it says ``waiting``
when each has its first event and ``steady`` when each has its first delta), ``begin`` and ``end`` the recording,
``finish`` (let turns end, start none, print the result).
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gateway.upstream.pool import Pool
from tests.bench.dialects import NativeFrames, NativeSse, VendorFrames, VendorItems
from tests.bench.ledger import Tally
from tests.bench.process import fast_loop
from tests.bench.seats import (
    DirectSeat,
    FollowingSeat,
    HttpSeat,
    Seat,
    ShownSeat,
    SocketSeat,
    follow_request,
    post_request,
    upgrade_request,
)

POLL_S: Final = 0.02
STUCK_S: Final = 50.0  # after the ramp; less than the benchmark waits
SETUP_CONNECTIONS: Final = 8
PERSONA_ID: Final = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"

# The vendor itself, the gateway over SSE and over WebSocket, then what has only HTTP/1.1 to its source: relays of the
# vendor's items over SSE and over WebSocket, and of OpenAI's chunks over SSE.
Route = Literal["direct", "sse", "ws", "relay", "relay-ws", "openai"]


class Plan(msgspec.Struct, kw_only=True):
    """What the clients of one phase do. ``events`` is what the simulator will send in answer to ``message``."""

    route: Route
    url: str
    key: str  # the vendor's for direct, the tenant's secret key for the gateway, or what a proxy asks for
    ca_file: str | None = None
    streams: int
    events: int
    message: str
    ramp_s: float
    repeat: bool
    readers: int = 1  # of each turn; more than one over SSE from the gateway only


class Load:
    """The clients of one phase."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.finishing = False
        self.over = asyncio.Event()
        self._seats: list[Seat] = []
        self._sockets: Sequence[HttpSeat | SocketSeat] = ()
        self._followers: list[FollowingSeat] = []
        self._running = 0
        self._pool: Pool | None = None

    async def open(self) -> None:
        """Create the conversations, over a few connections that are closed again, and the seats."""
        match self.plan.route:
            case "direct":
                await self._open_direct()
            case "relay" | "openai" | "relay-ws":
                self._open_relay()
            case "sse" | "ws":
                await self._open_gateway()

    async def start(self) -> None:
        """Connect the seats, then begin a turn in each, spread over the ramp."""
        await self.connect()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for number, seat in enumerate(self._seats):
            await asyncio.sleep(begun_s + number * self.plan.ramp_s / len(self._seats) - loop.time())
            self._running += 1
            seat.begin()

    async def aclose(self) -> None:
        for seat in (*self._seats, *self._followers):
            seat.leave()
        if self._pool is not None:
            await self._pool.aclose()

    def _turn_over(self, seat: Seat) -> None:
        if self.plan.repeat and not self.finishing and not isinstance(seat, FollowingSeat):
            asyncio.get_running_loop().call_soon(seat.begin)
            return
        self._running -= 1
        if self._running == 0 and self.finishing:
            self.over.set()

    def finish(self) -> None:
        self.finishing = True
        if self._running == 0:
            self.over.set()

    @property
    def waiting(self) -> bool:
        """Whether each turn has its first event, or, of a dialect without one before the answer, its headers."""
        tally, streams = self.tally, self.plan.streams * self.plan.readers
        seen = tally.waiting if self.plan.route in ("sse", "ws") else tally.answered
        return seen >= streams or self.steady

    @property
    def steady(self) -> bool:
        """Whether each turn has its first delta, or will have none."""
        return self.tally.streaming + self.tally.barren >= self.plan.streams * self.plan.readers

    def _open_relay(self) -> None:
        plan = self.plan
        host = urlsplit(plan.url).netloc
        common = (self.tally, plan.events, self._turn_over)
        if plan.route == "relay-ws":
            upgrade = upgrade_request(host, "/ws", plan.key)
            command = {"message": plan.message}
            self._sockets = [SocketSeat(*common, upgrade, command, VendorFrames) for _ in range(plan.streams)]
            return
        path, asked = "/", dict[str, Any](message=plan.message)
        if plan.route == "openai":
            path = "/v1/chat/completions"
            asked = {"model": "bench", "stream": True, "messages": [{"role": "user", "content": plan.message}]}
        request = post_request(host, path, plan.key, json.dumps(asked).encode())
        self._sockets = [HttpSeat(*common, request, VendorItems) for _ in range(plan.streams)]

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
                SocketSeat(
                    *common,
                    upgrade_request(host, "/v1/ws", token),
                    {"type": "turn.start", "conversation_id": one, "message": plan.message},
                    NativeFrames,
                )
                for token, one in places
            ]
            return
        body = json.dumps({"message": plan.message}).encode()
        requests = [post_request(host, f"/v1/conversations/{one}/turns", token, body) for token, one in places]
        if plan.readers == 1:
            self._sockets = [HttpSeat(*common, request, NativeSse) for request in requests]
            return
        shown = [ShownSeat(*common, request, NativeSse) for request in requests]
        for seat, (token, _) in zip(shown, places, strict=True):
            request = follow_request(host, token)
            followers = [FollowingSeat(*common, request, NativeSse) for _ in range(plan.readers - 1)]
            seat.shown = self._show_to(followers)
            self._followers += followers
        self._sockets = shown

    def _show_to(self, followers: Sequence[FollowingSeat]) -> Callable[[bytes], None]:
        def show(turn_id: bytes) -> None:
            self._running += len(followers)
            for follower in followers:
                follower.follow(turn_id)

        return show

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = urlsplit(self.plan.url).netloc.rpartition(":")
        seats = [*self._sockets, *self._followers]

        async def connect_one(number: int) -> None:
            seat = seats[number]
            await loop.create_connection(lambda: seat, host, int(port))
            await seat.opened

        await _few_at_a_time(connect_one, len(seats))
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
    tally, within_s = load.tally, load.plan.ramp_s + STUCK_S
    try:
        async with asyncio.timeout(within_s):
            while not load.waiting:
                await asyncio.sleep(POLL_S)
        _say("waiting")
        async with asyncio.timeout(within_s):
            while not load.steady:
                await asyncio.sleep(POLL_S)
        _say("steady")
    except TimeoutError:
        _say(
            f"stuck: of {load.plan.streams * load.plan.readers} turns {tally.answered} were answered, {tally.waiting} "
            f"have an event, {tally.streaming} a delta, {tally.turns} ended, faults {dict(tally.faults)}"
        )


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
                case b"connect":
                    await load.connect()
                    _say("connected")
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
