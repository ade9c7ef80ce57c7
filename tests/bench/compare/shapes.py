"""The loads that contenders are measured under, and one measurement."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from httpx import HTTPError

from tests.bench.cancel import measure_cancel
from tests.bench.compare.contenders import Contender
from tests.bench.phase import Figures, Work, hold_sockets, measure, wait_idle
from tests.bench.process import ProcessDied
from tests.bench.stall import measure_stall

STARTS_PER_S: Final = 200.0
STREAM_STARTS_PER_S: Final = 125.0  # while thousands stream already
NOTHING: Final = ("direct", "source")  # contenders with nothing between
SOCKETS: Final = ("gateway-ws", "relay-ws")  # contenders over WebSocket
TWO_WORKERS: Final = "gateway-2"
FILES_A_STREAM: Final = 2  # of a relay: the client's connection and the source's
SPARE_FILES: Final = 500
STALL_S: Final = 6.0  # in which 4 MB become due for each reader
STREAMS: Final = (500, 1000, 2500, 5000)


@dataclass(frozen=True, slots=True)
class Shape:
    """One load. ``waiting`` only opens streams, ``sockets`` only WebSockets; their other figures do not count."""

    name: str
    title: str
    work: Work
    kind: Literal["streaming", "waiting", "sockets", "stalled", "stopped early", "stopped"] = "streaming"
    heavy: bool = False  # more than a slow contender can carry

    @property
    def family(self) -> str:
        """The name that a run is asked for it by: `streams` has several shapes."""
        return self.name.partition(":")[0]

    def fits(self, contender: Contender) -> bool:
        """Whether a contender is measured under it."""
        if (self.heavy and contender.slow) or (contender.kind == TWO_WORKERS and self.name != "flood"):
            return False
        match self.family:
            case "sockets":
                return contender.kind in SOCKETS
            case "waiting":  # a process has memory for streams once, not over each transport anew
                return contender.kind not in (*NOTHING, *SOCKETS)
            case "readers" | "streams":
                return contender.kind == "gateway"
            case "first" | "delay":
                return True
            case "stopped" | "stopped-early":  # on a WebSocket it is the same service that stops
                return contender.kind not in (*NOTHING, *SOCKETS)
            case _:
                return contender.kind not in NOTHING


def _shapes(seconds: float) -> tuple[Shape, ...]:
    def work(streams: int, rate_per_s: float, *, turn: int | None = None, readers: int = 1) -> Work:
        return Work(
            streams=streams,
            rate_per_s=rate_per_s,
            events_per_turn=turn,
            seconds=seconds,
            starts_per_s=STARTS_PER_S,
            readers=readers,
        )

    def crowd(streams: int) -> Work:
        return Work(
            streams=streams, rate_per_s=1, events_per_turn=None, seconds=seconds, starts_per_s=STREAM_STARTS_PER_S
        )

    stalled = Work(streams=4, rate_per_s=5000, events_per_turn=None, seconds=STALL_S)
    return (
        # Memory first: later phases reuse what earlier ones have made a process allocate.
        Shape("waiting", "streams that wait for their first token", work(500, 4), kind="waiting"),
        Shape("sockets", "idle WebSockets", work(500, 4), kind="sockets"),
        Shape("paced", "500 streams × 4 events/s", work(500, 4)),
        Shape("turns", "turns of 10 events, 50 at a time, 40 events/s each", work(50, 40, turn=10)),
        Shape("first", "turns of 10 events, 50 at a time, 20 events/s each", work(50, 20, turn=10)),
        Shape("readers", "500 streams × 4 events/s, two readers each", work(500, 4, readers=2)),
        Shape("delay", "500 streams × 20 events/s", work(500, 20), heavy=True),
        Shape("flood", "1,000 streams × 20 events/s", work(1000, 20), heavy=True),
        Shape("stalled", f"4 streams × 5,000 events/s, nobody reads for {STALL_S:g} s", stalled, "stalled", heavy=True),
        Shape("stopped-early", "100 streams stopped before their first token", work(100, 20), "stopped early"),
        Shape("stopped", "100 streams × 20 events/s stopped in mid-answer", work(100, 20), "stopped"),
        *(Shape(f"streams:{count}", f"{count:,} streams × 1 event/s", crowd(count), heavy=True) for count in STREAMS),
    )


def shapes(names: tuple[str, ...], seconds: float) -> tuple[Shape, ...]:
    """Return the shapes of these names, in the order in which they must be measured."""
    return tuple(shape for shape in _shapes(seconds) if shape.family in names)


def of_round(chosen: Sequence[Shape], number: int) -> list[Shape]:
    """Return the shapes of a round: of the two that read memory, each in every second one.

    What the first has made a process allocate, the second would find there. So is what a stall makes one hold, which is
    measured apart. What tells of promises and not of costs is in the first round only.
    """
    chosen = [shape for shape in chosen if shape.kind != "stalled"]
    both = {"waiting", "sockets"} <= {shape.name for shape in chosen}
    left_out = {("sockets", "waiting")[number % 2]} if both else set()
    if number > 0:
        left_out |= ONCE
    return [shape for shape in chosen if shape.family not in left_out]


ONCE: Final = {"stopped", "stopped-early", "streams"}
NAMES: Final = tuple(dict.fromkeys(shape.family for shape in _shapes(1.0)))
SHORT: Final = ("paced", "turns")


class Sample(msgspec.Struct, kw_only=True):
    """What one contender showed under one shape in one round; ``failure`` says why there is nothing."""

    round: int
    shape: str
    contender: str
    figures: Figures | None = None
    idle_kib: float | None = None  # before the streams or sockets were opened, and with them
    held_kib: float | None = None  # or at their most, while nobody read
    reset_ms: list[float | None] = []  # from each stop to the reset upstream; None: never
    lost: int = 0  # where there are no figures to say so
    duplicated: int = 0
    faults: dict[str, int] = {}
    streams: int
    failure: str = ""


async def sample(contender: Contender, shape: Shape, number: int) -> Sample:
    """Measure; a contender that falls silent or ends is told of, not raised."""
    told = Sample(round=number, shape=shape.name, contender=contender.name, streams=shape.work.streams)
    try:
        _check_open_files(shape.work)
        match shape.kind:
            case "waiting":
                memory = await wait_idle(contender.rig, contender.route, shape.work)
                told.idle_kib, told.held_kib = memory.idle_kib, memory.waiting_kib
            case "sockets":
                memory = await hold_sockets(contender.rig, contender.route, shape.work.streams)
                told.idle_kib, told.held_kib = memory.idle_kib, memory.waiting_kib
            case "stalled":
                memory, seen = await measure_stall(contender.rig, contender.route, shape.work)
                told.idle_kib, told.held_kib = memory.idle_kib, memory.waiting_kib
                told.lost, told.duplicated, told.faults = seen["lost"], seen["duplicated"], seen["faults"]
            case "stopped" | "stopped early":
                early = shape.kind == "stopped early"
                told.reset_ms = await measure_cancel(contender.rig, contender.route, shape.work, early=early)
            case "streaming":
                told.figures = await measure(contender.rig, contender.route, shape.work)
    except (ProcessDied, AssertionError, TimeoutError, HTTPError) as error:
        told.failure = reason(error)
    return told


def _check_open_files(work: Work) -> None:
    """Raise ProcessDied when a process of this run could not hold so many streams, instead of measuring refusals."""
    needed = work.streams * work.readers * FILES_A_STREAM + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise ProcessDied(f"needs {needed} open files a process, and the limit is {allowed} (`ulimit -Hn`)")


def reason(error: Exception) -> str:
    """Say why nothing was measured; the first line is enough for a reader."""
    return (str(error).strip() or type(error).__name__)[:500]
