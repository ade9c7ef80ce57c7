"""The load generator: one process that holds all clients of a phase. ``python -m tests.bench.load``, told by lines.

Reads a Plan from standard input, opens what it needs and says ``ready``; then it is led by words: ``connect`` (it says
``connected`` when each seat has its connection, which ``start`` does as well), ``start`` the turns (it says ``waiting``
when each has its first event and ``steady`` when each has its first delta), ``begin`` and ``end`` the recording,
``pause`` and ``resume`` reading, ``stop`` every turn (it says when it asked for each), ``finish`` (let turns end, start
none, print the result).
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.upstream.pool import Pool
from tests.bench.dialects import NativeFrames, NativeSse, VendorFrames, VendorItems
from tests.bench.door_dialects import DIALECTS
from tests.bench.ledger import Tally
from tests.bench.places import few_at_a_time, gateway_places, vendor_paths
from tests.bench.plan import Plan
from tests.bench.process import fast_loop
from tests.bench.requests import follow_request, post_request, turn_request, upgrade_request
from tests.bench.seats import (
    DirectSeat,
    FollowingSeat,
    HttpSeat,
    Seat,
    ShownSeat,
    SocketSeat,
    StopLine,
)

POLL_S: Final = 0.02
STUCK_S: Final = 50.0  # after the ramp; less than the benchmark waits
STOPS_PER_S: Final = 50.0
HOLDING: Final = ("hyperleap", "completions", "responses")
HELD_S: Final = 0.5  # less than all streams wait together for their first token
# Loopback's segments of 64 KiB let the kernel hold 3.6 MB for a client that does not read; so it holds 100 kB.
SEGMENT_BYTES: Final = 1460
RECEIVE_BYTES: Final = 16_384


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
        self._stop_lines: list[StopLine] = []
        self._running = 0
        self._asked_s: float | None = None  # when the last seat began, by the loop's clock
        self._pool: Pool | None = None

    async def open(self) -> None:
        """Create the conversations, over a few connections that are closed again, and the seats."""
        match self.plan.route:
            case "direct":
                await self._open_direct()
            case "relay" | "openai" | "relay-ws":
                self._open_relay()
            case _:
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
        self._asked_s = loop.time()

    async def stop(self) -> list[float]:
        """Have every turn stopped, on a beat; return when each was, in Unix seconds."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        asked_at_s = []
        for number in range(len(self._seats)):
            await asyncio.sleep(begun_s + number / STOPS_PER_S - loop.time())
            asked_at_s.append(time.time())
            if self._stop_lines:
                self._stop_lines[number].ask()
            else:
                self._seats[number].leave()
        return asked_at_s

    def read(self, *, on: bool) -> None:
        """Have no seat read any more, or all of them read on."""
        for seat in self._sockets:
            seat.read(on=on)

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
        """Whether each turn has its first event, or, of a dialect without one before the answer, its headers.

        Doors that hold back their headers until the vendor answers show nothing: some time after the last request.
        """
        tally, streams = self.tally, self.plan.streams * self.plan.readers
        if self.plan.route in HOLDING:
            asked_s = self._asked_s
            return self.steady or (asked_s is not None and asyncio.get_running_loop().time() > asked_s + HELD_S)
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

        def request(message: str) -> bytes:
            path, asked = "/", dict[str, Any](message=message)
            if plan.route == "openai":
                path = "/v1/chat/completions"
                asked = {"model": "bench", "stream": True, "messages": [{"role": "user", "content": message}]}
            return post_request(host, path, plan.key, json.dumps(asked).encode())

        self._sockets = [HttpSeat(*common, request(plan.message_of(n)), VendorItems) for n in range(plan.streams)]

    async def _open_direct(self) -> None:
        plan = self.plan
        pool = self._pool = Pool(plan.url, ca_file=plan.ca_file)
        headers = [(b"x-hl-api-key", plan.key.encode()), (b"content-type", b"application/json")]
        body = json.dumps({"message": plan.message}).encode()
        for path in await vendor_paths(pool, headers, plan.streams):
            self._seats.append(DirectSeat(self.tally, plan.events, self._turn_over, pool, path, headers, body))

    async def _open_gateway(self) -> None:
        plan = self.plan
        host = urlsplit(plan.url).netloc
        places = await gateway_places(plan)
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
        requests = [
            turn_request(plan.route, host, token, one, plan.message_of(number))
            for number, (token, one) in enumerate(places)
        ]
        if plan.route != "sse" or (plan.readers == 1 and not plan.stops):
            self._sockets = [HttpSeat(*common, request, DIALECTS[plan.route]) for request in requests]
            return
        shown = [ShownSeat(*common, request, NativeSse) for request in requests]
        for seat, (token, _) in zip(shown, places, strict=True):
            if plan.stops:
                line = StopLine(host, token)
                self._stop_lines.append(line)
                seat.shown = line.know
                continue
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
        seats = [*self._sockets, *self._followers, *self._stop_lines]

        async def connect_one(number: int) -> None:
            seat = seats[number]
            line = socket.socket()
            line.setblocking(False)
            if self.plan.narrow:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            await loop.sock_connect(line, (host, int(port)))
            await loop.create_connection(lambda: seat, sock=line)
            await seat.opened

        await few_at_a_time(connect_one, len(seats))
        self._seats += self._sockets


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
                case b"pause":
                    load.read(on=False)
                case b"resume":
                    load.read(on=True)
                case b"stop":
                    _say(json.dumps(await load.stop()))
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
