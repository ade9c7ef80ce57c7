"""What it costs to publish deltas to a worker that follows turns: a message a tick, or a message a turn."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.store.redis import Redis
from tests.bench.follower import END, Delta, FollowerPlan, OwnDelta
from tests.bench.layouts_report import Publishes
from tests.bench.log_forms import KEYS
from tests.bench.process import Child, cpu_clock_s
from tests.bench.server import Mark, Server

TICK_S: Final = 0.005  # about as often as a loaded worker reads what the upstream sent
READY_S: Final = 30.0
PREFIX: Final = f"{KEYS.prefix}events:"
JOINED: Final = f"{PREFIX}worker"


async def measure_publish(server: Server, turns: int, rate_per_s: float, seconds: float, *, joined: bool) -> Publishes:
    """Publish every delta of so many turns to one other process, which subscribes with redis-py and decodes them."""
    ids = [str(uuid.uuid4()) for _ in range(turns)]
    channels = [JOINED] if joined else [PREFIX + turn_id for turn_id in ids]
    plan = FollowerPlan(url=server.url, channels=channels, joined=joined)
    send = _send_joined if joined else _send_each
    texts, readers = itertools.cycle(("You ", "can ", "reset ", "your ", "password ")), itertools.cycle(ids)
    events = messages = 0
    async with Child(
        "follower", [sys.executable, "-m", "tests.bench.follower"], server.directory / "follower.log"
    ) as follower:
        follower.tell(msgspec.json.encode(plan).decode())
        await follower.line(within_s=READY_S)
        begin, begin_follower_s = Mark(server), cpu_clock_s(follower.pid)
        while (elapsed_s := time.monotonic() - begin.at_s) < seconds:
            due = int(elapsed_s * rate_per_s * turns) - events
            if due:
                deltas = [Delta(next(readers), events, next(texts)) for _ in range(due)]
                messages += await send(server.redis, deltas)
                events += due
            await asyncio.sleep(TICK_S)
        end, end_follower_s = Mark(server), cpu_clock_s(follower.pid)
        await server.redis.call("PUBLISH", channels[0], END)
        received = json.loads(await follower.line(within_s=READY_S))
    return Publishes(
        joined=joined,
        events=events,
        lost=events - received,
        messages=messages,
        sender_us=(end.client_s - begin.client_s) * 1e6 / events,
        server_us=(end.server_s - begin.server_s) * 1e6 / events,
        subscriber_us=(end_follower_s - begin_follower_s) * 1e6 / events,
    )


async def _send_joined(redis: Redis, deltas: Sequence[Delta]) -> int:
    await redis.call("PUBLISH", JOINED, msgspec.json.encode(deltas))
    return 1


async def _send_each(redis: Redis, deltas: Sequence[Delta]) -> int:
    encode = msgspec.json.encode
    await asyncio.gather(
        *(redis.call("PUBLISH", PREFIX + one.turn_id, encode(OwnDelta(one.position, one.text))) for one in deltas)
    )
    return len(deltas)
