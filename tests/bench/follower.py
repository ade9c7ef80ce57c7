"""A worker that follows turns of another: subscribes, decodes and counts. A process of its own, told by its input."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

import msgspec
import redis.asyncio as redis_asyncio

from tests.bench.process import fast_loop

END: Final = b""  # the message that comes last


class FollowerPlan(msgspec.Struct, kw_only=True, frozen=True):
    """``joined``: a message carries [turn id, position, text] of many turns, else [position, text] of its channel's."""

    url: str
    channels: list[str]
    joined: bool


class Delta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One turn's new text."""

    turn_id: str
    position: int
    text: str


class OwnDelta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """New text of the turn that the channel names."""

    position: int
    text: str


async def run() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=FollowerPlan)
    joined, own = msgspec.json.Decoder(list[Delta]), msgspec.json.Decoder(OwnDelta)
    client = redis_asyncio.Redis.from_url(plan.url, protocol=3, legacy_responses=False)
    async with client, client.pubsub(ignore_subscribe_messages=True) as subscriber:
        await subscriber.subscribe(*plan.channels)
        print("ready", flush=True)
        events = 0
        async for message in subscriber.listen():
            data = message["data"]
            if data == END:
                break
            if plan.joined:
                events += len(joined.decode(data))
            else:
                own.decode(data)
                events += 1
    print(json.dumps(events), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(run())
