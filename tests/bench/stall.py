"""A phase in which every client stops reading for a while, as a phone does in a tunnel, and what that makes grow."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

from tests.bench.phase import FINISH_S, SETTLE_S, Rig, Waiting, Work, finish
from tests.bench.plan import Route
from tests.bench.process import resident_bytes
from tests.bench.stack import expect

SAMPLE_S: Final = 0.05


async def measure_stall(rig: Rig, route: Route, work: Work) -> tuple[Waiting, dict[str, Any]]:
    """Let all turns stream, nobody read for ``work.seconds``, then all read on to the end.

    Returns the memory before the stall and at its highest during it, with what the clients saw.
    """
    message = f"#clock #tokens={work.events} #rate={work.rate_per_s:g}"
    plan = rig.plan(route, streams=work.streams, events=work.events, message=message, ramp_s=work.ramp_s, repeat=False)
    async with rig.clients(msgspec.structs.replace(plan, narrow=True)) as load:
        load.tell("start")
        await expect(load, "waiting", within_s=work.ramp_s + FINISH_S)
        await expect(load, "steady", within_s=work.ramp_s + FINISH_S)
        await asyncio.sleep(SETTLE_S)
        before = most = sum(map(resident_bytes, rig.remembering(route)))
        load.tell("pause")
        until_s = time.monotonic() + work.seconds
        while time.monotonic() < until_s:
            await asyncio.sleep(SAMPLE_S)
            most = max(most, sum(map(resident_bytes, rig.remembering(route))))
        load.tell("resume")
        result = await finish(load, work)
    return Waiting(idle_kib=before / 1024, waiting_kib=most / 1024), result
