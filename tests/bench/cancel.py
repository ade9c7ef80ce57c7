"""A phase in which every client stops its turn, while all cores are busy, and when the upstream saw its stream end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec

from tests.bench.phase import FINISH_S, SETTLE_S, Rig, Work
from tests.bench.plan import Route
from tests.bench.process import Child
from tests.bench.stack import expect

RESET_S: Final = 5.0  # after the last stop; what has not been reset by then counts as never
POLL_S: Final = 0.1
LONG_S: Final = 60.0  # of an answer, and to the first token of one that is stopped before it: far beyond the stop


async def measure_cancel(rig: Rig, route: Route, work: Work, *, early: bool) -> list[float | None]:
    """Have every turn stopped, ``early`` before its first token; return milliseconds to each reset.

    At the gateway clients ask for the stop, elsewhere they leave. None stands for a stream that was not reset. Raises
    AssertionError when a reader at the gateway did not get ``turn.stopped`` as the one ending of its turn.
    """
    events = math.ceil(LONG_S * work.rate_per_s)
    words = f"#clock #tokens={events} #rate={work.rate_per_s:g}" + (f" #delay={LONG_S:g}" if early else "")
    message = f"{uuid4().hex}-{{n}} {words}"
    plan = rig.plan(route, streams=work.streams, events=events, message=message, ramp_s=work.ramp_s, repeat=False)
    async with rig.clients(msgspec.structs.replace(plan, stops=True)) as load:
        load.tell("start")
        if early:  # some proxies say nothing to their clients before the first token
            await asyncio.sleep(work.ramp_s + SETTLE_S)
        else:
            await expect(load, "waiting", within_s=work.ramp_s + FINISH_S)
            await expect(load, "steady", within_s=work.ramp_s + FINISH_S)
        async with busy_cores(rig.directory):
            await asyncio.sleep(SETTLE_S)
            load.tell("stop")
            asked_at_s: list[float] = json.loads(await _line(load, "["))
            asked = {message.replace("{n}", str(number)): at_s for number, at_s in enumerate(asked_at_s)}
            reset_at_s = await _resets(rig, asked)
        load.tell("finish")
        result: dict[str, Any] = json.loads(await _line(load, "{"))
        await load.ended(within_s=FINISH_S)
    if route in ("sse", "ws") and result["faults"] != {"turn.stopped": work.streams}:
        raise AssertionError(f"{work.streams} turns were stopped, and their readers saw {result['faults']}")
    return [(reset_at_s[one] - at_s) * 1000 if one in reset_at_s else None for one, at_s in asked.items()]


@asynccontextmanager
async def busy_cores(directory: Path) -> AsyncIterator[None]:
    """Keep every core busy with a process of the usual priority that does nothing else."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            spin = [sys.executable, "-c", "while True: pass"]
            await stack.enter_async_context(Child("spinner", spin, directory / "spinner.log"))
        yield


async def _resets(rig: Rig, asked: Mapping[str, float]) -> dict[str, float]:
    until_s = time.monotonic() + RESET_S
    while True:
        seen = await rig.resets()
        if asked.keys() <= seen.keys() or time.monotonic() > until_s:
            return seen
        await asyncio.sleep(POLL_S)


async def _line(load: Child, head: str) -> bytes:
    """The next line of the clients that begins so; early stops let them say ``waiting`` and ``steady`` in between."""
    while not (line := await load.line(within_s=FINISH_S)).startswith(head.encode()):
        pass
    return line
