"""One phase: so many clients on one route, measured between two marks while all of them stream."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from tests.bench.plan import THROUGH, Plan, Route
from tests.bench.process import Child, cpu_of_all_s, machine_busy_s, resident_bytes
from tests.bench.stack import expect

STARTS_PER_S: Final = 100.0  # turns begin so fast, on beats of their own, as people do
SETTLE_S: Final = 0.5
SLACK_S: Final = 1.0
FINISH_S: Final = 60.0
WAITING_S: Final = 1.5  # that all streams wait together for their first token
WARM_UP_STREAMS: Final = 10


class Work(msgspec.Struct, kw_only=True, frozen=True):
    """What every phase of a run has in common."""

    streams: int
    rate_per_s: float
    events_per_turn: int | None  # None: each stream's turn lasts the whole phase
    seconds: float
    starts_per_s: float = STARTS_PER_S
    readers: int = 1  # of each turn

    @property
    def ramp_s(self) -> float:
        return max(1 / self.rate_per_s, self.streams / self.starts_per_s)

    @property
    def events(self) -> int:
        if self.events_per_turn is not None:
            return self.events_per_turn
        return math.ceil((self.ramp_s + SETTLE_S + self.seconds + SLACK_S) * self.rate_per_s)


class Rig(Protocol):
    """What stands between the clients and the vendor, as a phase sees it."""

    @property
    def directory(self) -> Path:
        """Where the logs of what a phase starts go."""

    def groups(self, route: Route) -> dict[str, list[int]]:
        """The pids whose CPU time counts on a route, by the name of their part, as they are now."""

    def remembering(self, route: Route) -> list[int]:
        """The pids whose memory a stream costs."""

    def plan(
        self,
        route: Route,
        *,
        streams: int,
        events: int,
        message: str,
        ramp_s: float,
        repeat: bool,
        readers: int = 1,
    ) -> Plan: ...

    def clients(self, plan: Plan) -> AbstractAsyncContextManager[Child]: ...

    async def metrics(self) -> dict[str, float]:
        """The gateway's, where it is one."""

    async def resets(self) -> dict[str, float]:
        """When the upstream saw streams end before their answers, in Unix seconds, by the messages answered."""


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float
    count: int


class Figures(msgspec.Struct, kw_only=True):
    """What one phase showed."""

    route: Route
    seconds: float
    events: int
    turns: int
    lost: int
    duplicated: int
    faults: dict[str, int]
    cpu_us_per_event: dict[str, float]
    busiest_us_per_event: dict[str, float] = {}  # of the one process of a part that used most
    cores: dict[str, float]
    others_cores: float  # what was busy on the machine besides
    load_average: float
    first_token_ms: Spread
    delay_ms: Spread
    resident_kib: dict[str, float]
    redis_round_trips_per_event: float | None = None
    redis_commands_per_event: float | None = None


class Mark:
    """CPU time of groups of processes up to a moment."""

    def __init__(self, groups: dict[str, list[int]]) -> None:
        self.at_s = time.monotonic()
        self.busy_s = machine_busy_s()
        self.pid_s = {name: {pid: cpu_of_all_s([pid]) for pid in pids} for name, pids in groups.items()}
        self.cpu_s = {name: sum(used.values()) for name, used in self.pid_s.items()}

    def busiest_s(self, name: str, begin: Mark) -> float:
        """CPU time since ``begin`` of the process of a group that used most, of those that were there then."""
        before = begin.pid_s[name]
        return max((used - before[pid] for pid, used in self.pid_s[name].items() if pid in before), default=0.0)


async def measure(stack: Rig, route: Route, work: Work, beside: Sequence[str] = ()) -> Figures:
    """Run one phase; ``beside`` is a command that runs while it is recorded, such as a profiler."""
    message = f"#clock #tokens={work.events} #rate={work.rate_per_s:g}"
    repeat = work.events_per_turn is not None
    plan = stack.plan(
        route,
        streams=work.streams,
        events=work.events,
        message=message,
        ramp_s=work.ramp_s,
        repeat=repeat,
        readers=work.readers,
    )
    through_gateway = route in THROUGH
    async with stack.clients(plan) as load:
        load.tell("start")
        await expect(load, "waiting", within_s=work.ramp_s + FINISH_S)
        await expect(load, "steady", within_s=work.ramp_s + FINISH_S)
        await asyncio.sleep(SETTLE_S)
        counts = await stack.metrics() if through_gateway else {}
        load.tell("begin")
        begin = Mark(stack.groups(route) | {"clients": [load.pid]})
        if beside:
            async with Child("profiler", [*beside], stack.directory / "profiler.log") as profiler:
                await profiler.ended(within_s=work.seconds + FINISH_S)
        else:
            await asyncio.sleep(work.seconds)
        load.tell("end")
        groups = stack.groups(route) | {"clients": [load.pid]}
        end = Mark(groups)
        resident_kib = {name: sum(map(resident_bytes, pids)) / 1024 for name, pids in groups.items()}
        if through_gateway:
            counts = {name: value - counts.get(name, 0.0) for name, value in (await stack.metrics()).items()}
        result = await finish(load, work)
    return _figures(route, result, begin, end, resident_kib, counts)


def _figures(
    route: Route,
    result: dict[str, Any],
    begin: Mark,
    end: Mark,
    resident_kib: dict[str, float],
    counts: dict[str, float],
) -> Figures:
    seconds = end.at_s - begin.at_s
    events = int(result["events"])
    used_s = {name: end.cpu_s[name] - begin.cpu_s[name] for name in end.cpu_s}
    per_event = max(events, 1)
    return Figures(
        route=route,
        seconds=seconds,
        events=events,
        turns=result["turns"],
        lost=result["lost"],
        duplicated=result["duplicated"],
        faults=result["faults"],
        cpu_us_per_event={name: used * 1e6 / per_event for name, used in used_s.items()},
        busiest_us_per_event={name: end.busiest_s(name, begin) * 1e6 / per_event for name in end.pid_s},
        cores={name: used / seconds for name, used in used_s.items()},
        others_cores=max(0.0, (end.busy_s - begin.busy_s - sum(used_s.values())) / seconds),
        load_average=os.getloadavg()[0],
        first_token_ms=spread(result["first_tokens_ns"]),
        delay_ms=spread(result["delays_ns"]),
        resident_kib=resident_kib,
        redis_round_trips_per_event=counts["gateway_redis_call_seconds_count"] / per_event if counts else None,
        redis_commands_per_event=counts["gateway_redis_commands_total"] / per_event if counts else None,
    )


async def warm_up(stack: Rig, route: Route) -> None:
    """Let the gateway import, connect and allocate what its first turns need, before its memory is read."""
    plan = stack.plan(
        route, streams=WARM_UP_STREAMS, events=3, message="#clock #tokens=3 #rate=50", ramp_s=0.1, repeat=False
    )
    async with stack.clients(plan) as load:
        load.tell("start")
        await expect(load, "waiting")
        await expect(load, "steady")
        await finish(load, None)


class Waiting(msgspec.Struct, kw_only=True):
    """The memory before, and while every stream waits for its first token or every socket for anything."""

    idle_kib: float
    waiting_kib: float


async def wait_idle(stack: Rig, route: Route, work: Work) -> Waiting:
    """Open every stream on answers that do not begin yet, and read the gateway's memory."""
    delay_s = work.ramp_s + WAITING_S
    message = f"#clock #tokens=1 #delay={delay_s:g}"
    plan = stack.plan(route, streams=work.streams, events=1, message=message, ramp_s=work.ramp_s, repeat=False)
    async with stack.clients(plan) as load:
        idle = sum(map(resident_bytes, stack.remembering(route)))
        load.tell("start")
        await expect(load, "waiting", within_s=delay_s + FINISH_S)
        waiting = sum(map(resident_bytes, stack.remembering(route)))
        await expect(load, "steady", within_s=delay_s + FINISH_S)
        await finish(load, work)
    return Waiting(idle_kib=idle / 1024, waiting_kib=waiting / 1024)


async def hold_sockets(stack: Rig, route: Route, count: int) -> Waiting:
    """Open so many WebSockets on which nothing happens, and read the memory."""
    plan = stack.plan(route, streams=count, events=1, message="", ramp_s=0.0, repeat=False)
    async with stack.clients(plan) as load:
        idle = sum(map(resident_bytes, stack.remembering(route)))
        load.tell("connect")
        await expect(load, "connected", within_s=FINISH_S)
        await asyncio.sleep(SETTLE_S)
        held = sum(map(resident_bytes, stack.remembering(route)))
        await finish(load, None)
    return Waiting(idle_kib=idle / 1024, waiting_kib=held / 1024)


async def finish(load: Child, work: Work | None) -> dict[str, Any]:
    """Let the turns end; return what the clients saw. Without ``work`` they end at once."""
    load.tell("finish")
    longest_s = work.events / work.rate_per_s if work is not None else 0.0
    result: dict[str, Any] = json.loads(await load.line(within_s=longest_s + FINISH_S))
    await load.ended(within_s=FINISH_S)
    return result


def spread(values_ns: Sequence[int]) -> Spread:
    if not values_ns:
        return Spread(math.nan, math.nan, 0)
    ordered = sorted(values_ns)
    last = len(ordered) - 1
    return Spread(ordered[last // 2] / 1e6, ordered[math.ceil(last * 0.99)] / 1e6, len(ordered))
