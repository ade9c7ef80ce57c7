"""A bare HTTP/1.1 source of answers, for what has no HTTP/2 to the vendor: aiohttp's client, plain proxies, LiteLLM.

``python -m tests.bench.source --rate R``: every POST is answered with as many events as its message asks for, one
write each: the vendor's ``chat-sse`` items, or OpenAI's chunks on a path that ends in ``/chat/completions``. Of the
simulator's directives ``#tokens``, ``#rate`` and ``#delay`` count; every delta is what ``#clock`` makes it. Any GET is
answered with the times at which connections were lost in mid-answer, by the message that was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Final, cast

from gateway.simulator.directives import read_directives
from gateway.simulator.pace import Pace
from gateway.simulator.wire import DELTA_HEAD, delta_tail
from tests.bench.relay import announce, runner

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TAIL: Final = delta_tail("3d2f0c52-6a0e-4a53-9d3f-7f6f0f2a9b11", "8c1d7c34-2f55-4d8e-8f2a-1b6c5d4e3f20")
_CHUNK_HEAD: Final = (
    b'{"id":"chatcmpl-3d2f0c52","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":'
)
_CHUNK_END: Final = b'data: %b{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n' % _CHUNK_HEAD
# What stands before and after the text of a delta, and what is sent after the last one.
VENDOR: Final = (DELTA_HEAD, _TAIL, b"")
OPENAI: Final = (
    _CHUNK_HEAD + b'{"role":"assistant","content":',
    b'},"finish_reason":null}]}',
    b"%x\r\n%b\r\n" % (len(_CHUNK_END), _CHUNK_END),
)


class Source(asyncio.Protocol):
    """One connection of a relay."""

    def __init__(self, pace: Pace, rate_per_s: float, lost_at_s: dict[str, float]) -> None:
        self._pace = pace
        self._rate_per_s = rate_per_s
        self._lost_at_s = lost_at_s  # Unix seconds by message, of all connections
        self._answering = ""  # the message
        self._transport: asyncio.Transport | None = None
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answering:
            self._lost_at_s[self._answering] = time.time()

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if not found or len(body) < length or self._transport is None:
            return
        self._request = b""
        if head.startswith(b"GET "):
            told = json.dumps(self._lost_at_s).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))
            return
        asked = json.loads(body)
        chat = head.split(b" ", 2)[1].endswith(b"/chat/completions")
        self._dialect = OPENAI if chat else VENDOR
        self._answering = asked["messages"][-1]["content"] if chat else asked["message"]
        directives = read_directives(self._answering)
        self._left = directives.tokens or 1
        self._interval_s = 1 / (directives.rate_per_s or self._rate_per_s)
        self._number = 0
        self._due_s = self._pace.now_s()
        self._transport.write(_HEAD)
        if directives.first_token_s:
            self._due_s += directives.first_token_s
            self._pace.at(self._due_s, self._beat)
        else:
            self._beat()

    def _beat(self) -> None:
        if self._transport is None:
            return
        before, after, ending = self._dialect
        item = b'data: %b"%d@%d "%b\n\n' % (before, self._number, time.monotonic_ns(), after)
        self._number += 1
        last = self._number == self._left
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(item), item, ending + b"0\r\n\r\n" if last else b""))
        if last:
            self._answering = ""
        else:
            self._due_s += self._interval_s
            self._pace.at(self._due_s, self._beat)


async def serve(rate_per_s: float) -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(loop)
    lost_at_s: dict[str, float] = {}
    server = await loop.create_server(lambda: Source(pace, rate_per_s, lost_at_s), "127.0.0.1", 0, backlog=1024)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True)
    runner(serve(parser.parse_args().rate))
