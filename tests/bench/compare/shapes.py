"""The loads that contenders are measured under, and one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tests.bench.compare.contenders import Contender
from tests.bench.phase import Figures, Work, hold_sockets, measure, wait_idle
from tests.bench.process import ProcessDied

STARTS_PER_S: Final = 200.0
SOCKETS: Final = ("gateway-ws", "relay-ws")  # contenders over WebSocket


@dataclass(frozen=True, slots=True)
class Shape:
    """One load. ``waiting`` only opens streams, ``sockets`` only WebSockets; their other figures do not count."""

    name: str
    title: str
    work: Work
    kind: Literal["streaming", "waiting", "sockets"] = "streaming"
    heavy: bool = False  # more than a slow contender can carry

    def fits(self, contender: Contender) -> bool:
        """Whether a contender is measured under it."""
        match self.name:
            case "sockets":
                return contender.name in SOCKETS
            case "waiting":  # a process has memory for streams once, not over each transport anew
                return contender.name not in ("direct", "source", *SOCKETS)
            case "readers":
                return contender.name == "gateway"
            case "first" | "delay":
                return not (self.heavy and contender.slow)
            case _:
                return contender.name not in ("direct", "source") and not (self.heavy and contender.slow)


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
    )


def shapes(names: tuple[str, ...], seconds: float) -> tuple[Shape, ...]:
    """Return the shapes of these names, in the order in which they must be measured."""
    return tuple(shape for shape in _shapes(seconds) if shape.name in names)


def of_round(chosen: Sequence[Shape], number: int) -> list[Shape]:
    """Return the shapes of a round: of the two that read memory, each in every second one.

    What the first has made a process allocate, the second would find there.
    """
    both = {"waiting", "sockets"} <= {shape.name for shape in chosen}
    left_out = ("sockets", "waiting")[number % 2] if both else ""
    return [shape for shape in chosen if shape.name != left_out]


NAMES: Final = tuple(shape.name for shape in _shapes(1.0))
SHORT: Final = ("paced", "turns")


class Sample(msgspec.Struct, kw_only=True):
    """What one contender showed under one shape in one round; ``failure`` says why there is nothing."""

    round: int
    shape: str
    contender: str
    figures: Figures | None = None
    idle_kib: float | None = None  # before the streams or sockets were opened, and with them
    held_kib: float | None = None
    streams: int
    failure: str = ""


async def sample(contender: Contender, shape: Shape, number: int) -> Sample:
    """Measure; a contender that falls silent or ends is told of, not raised."""
    told = Sample(round=number, shape=shape.name, contender=contender.name, streams=shape.work.streams)
    try:
        match shape.kind:
            case "waiting":
                memory = await wait_idle(contender.rig, contender.route, shape.work)
                told.idle_kib, told.held_kib = memory.idle_kib, memory.waiting_kib
            case "sockets":
                memory = await hold_sockets(contender.rig, contender.route, shape.work.streams)
                told.idle_kib, told.held_kib = memory.idle_kib, memory.waiting_kib
            case "streaming":
                told.figures = await measure(contender.rig, contender.route, shape.work)
    except (ProcessDied, AssertionError, TimeoutError) as error:
        told.failure = reason(error)
    return told


def reason(error: Exception) -> str:
    """Say why nothing was measured; the first line is enough for a reader."""
    return (str(error).strip() or type(error).__name__)[:500]
