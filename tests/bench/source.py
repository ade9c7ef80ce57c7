"""A bare HTTP/1.1 source of the simulator's ``chat-sse`` items, for the baseline: aiohttp's client has no HTTP/2.

``python -m tests.bench.source --rate R``: every POST is answered with the items that its ``message`` asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

from gateway.simulator.directives import read_directives
from gateway.simulator.pace import Pace
from gateway.simulator.wire import DELTA_HEAD, delta_tail
from tests.bench.relay import announce, runner

_TAIL = delta_tail("3d2f0c52-6a0e-4a53-9d3f-7f6f0f2a9b11", "8c1d7c34-2f55-4d8e-8f2a-1b6c5d4e3f20")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Source(asyncio.Protocol):
    """One connection of the relay."""

    def __init__(self, pace: Pace, rate_per_s: float) -> None:
        self._pace = pace
        self._interval_s = 1 / rate_per_s
        self._transport: asyncio.Transport | None = None
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if not found or len(body) < length or self._transport is None:
            return
        self._request = b""
        self._left = read_directives(json.loads(body)["message"]).tokens or 1
        self._number = 0
        self._due_s = self._pace.now_s()
        self._transport.write(_HEAD)
        self._beat()

    def _beat(self) -> None:
        if self._transport is None:
            return
        item = b'data: %b"%d@%d "%b\n\n' % (DELTA_HEAD, self._number, time.monotonic_ns(), _TAIL)
        self._number += 1
        last = self._number == self._left
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(item), item, b"0\r\n\r\n" if last else b""))
        if not last:
            self._due_s += self._interval_s
            self._pace.at(self._due_s, self._beat)


async def serve(rate_per_s: float) -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(loop)
    server = await loop.create_server(lambda: Source(pace, rate_per_s), "127.0.0.1", 0, backlog=1024)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True)
    runner(serve(parser.parse_args().rate))
