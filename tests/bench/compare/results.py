"""The arithmetic of a comparison: from samples to figures, over the rounds, and beside the bare relay."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Final

import msgspec

from tests.bench.compare.shapes import TWO_WORKERS, Sample
from tests.bench.phase import Figures

BASELINE: Final = "relay"
EVENTS_PER_TURN: Final = 10


class Line(msgspec.Struct, kw_only=True, frozen=True):
    """A contender as the results know it."""

    name: str
    title: str
    version: str
    parts: tuple[str, ...]
    upstream: str


class Middle(msgspec.Struct, frozen=True):
    """Over the rounds."""

    median: float
    least: float
    most: float


class Results(msgspec.Struct, kw_only=True):
    """All samples of a run. Figures are by round; a ratio and a difference are taken within one."""

    rounds: int
    lines: list[Line]
    samples: list[Sample]

    def cpu_us(self, shape: str, contender: str, part: str | None = None) -> list[float | None]:
        """CPU time for an event, of all parts of a contender or of one."""
        parts = self._parts(contender) if part is None else (part,)
        return self._each(shape, contender, lambda one: sum(one.cpu_us_per_event.get(name, 0.0) for name in parts))

    def turn_us(self, contender: str, part: str | None = None) -> list[float | None]:
        """CPU time for a short turn."""
        return [None if us is None else us * EVENTS_PER_TURN for us in self.cpu_us("turns", contender, part)]

    def second_reader_us(self, contender: str) -> list[float | None]:
        """CPU time for an event delivered to a second reader.

        With two readers an event counts twice, so the time for both is twice the time for one delivered event.
        """
        both, alone = self.cpu_us("readers", contender), self.cpu_us("paced", contender)
        return [None if b is None or a is None else 2 * b - a for b, a in zip(both, alone, strict=True)]

    def two_workers_times(self) -> list[float | None]:
        """What two workers carry, on cores of their own, over what one does, each with 500 × 20 events/s.

        Workers carry what they do until the busier one uses a whole core, so that their shared work and uneven shares
        of the connections count.
        """
        one = self._each("delay", "gateway", lambda figures: figures.busiest_us_per_event["gateway"])
        two = self._each("flood", TWO_WORKERS, lambda figures: figures.busiest_us_per_event["gateway"])
        return [None if a is None or b is None else a / b for a, b in zip(one, two, strict=True)]

    def round_trips(self, shape: str, contender: str) -> list[float | None]:
        """Round trips to Redis for an event."""
        return self._each(shape, contender, lambda figures: figures.redis_round_trips_per_event)

    def reset_ms(self, shape: str, contender: str) -> list[float]:
        """Times from clients' stops to the resets upstream, in order; infinite for one that never came."""
        found = [one for one in self._samples(shape, contender) if one is not None]
        return sorted(math.inf if ms is None else ms for one in found for ms in one.reset_ms)

    @property
    def gateways(self) -> list[str]:
        return [line.name for line in self.lines if line.name.startswith("gateway")]

    def added_ms(self, shape: str, contender: str, figure: Callable[[Figures], float]) -> list[float | None]:
        """A delay, less that without anything between clients and the same upstream."""
        own = self._each(shape, contender, figure)
        without = self._each(shape, next((one.upstream for one in self.lines if one.name == contender), ""), figure)
        return [None if a is None or b is None else a - b for a, b in zip(own, without, strict=True)]

    def held_kib(self, shape: str, contender: str) -> list[float | None]:
        """Memory that a waiting stream or an idle socket takes."""
        return [
            None
            if one is None or one.idle_kib is None or one.held_kib is None
            else (one.held_kib - one.idle_kib) / one.streams
            for one in self._samples(shape, contender)
        ]

    def streaming_kib(self, contender: str) -> list[float | None]:
        """Memory that a stream takes at the end of the first window, over that before any stream was opened."""
        parts = [part for part in self._parts(contender) if part != "valkey"]
        found: list[float | None] = []
        for before, after in zip(self._samples("waiting", contender), self._samples("paced", contender), strict=True):
            if before is None or before.idle_kib is None or after is None or after.figures is None:
                found.append(None)
            else:
                held = sum(after.figures.resident_kib[part] for part in parts)
                found.append((held - before.idle_kib) / after.streams)
        return found

    def most_cores(self, contender: str, part: str) -> float | None:
        """The most of a core that a part used in any window, to see that it was not the bottleneck."""
        used = [
            one.figures.cores[part]
            for one in self.samples
            if one.contender == contender and one.figures is not None and part in one.figures.cores
        ]
        return max(used, default=None)

    def wrong(self, contender: str) -> tuple[int, int, int]:
        """Events lost, events that came twice, and other faults, over all windows."""
        own = [one for one in self.samples if one.contender == contender]
        told: list[Sample | Figures] = [*own, *(one.figures for one in own if one.figures is not None)]
        return (
            sum(one.lost for one in told),
            sum(one.duplicated for one in told),
            sum(sum(one.faults.values()) for one in told),
        )

    def failures(self) -> list[Sample]:
        return [one for one in self.samples if one.failure]

    def line(self, contender: str) -> Line:
        return next(one for one in self.lines if one.name == contender)

    def _parts(self, contender: str) -> tuple[str, ...]:
        """None of one that was not measured."""
        return next((one.parts for one in self.lines if one.name == contender), ())

    def _samples(self, shape: str, contender: str) -> list[Sample | None]:
        found: list[Sample | None] = [None] * self.rounds
        for one in self.samples:
            if (one.shape, one.contender) == (shape, contender) and not one.failure:
                found[one.round] = one
        return found

    def _each(self, shape: str, contender: str, figure: Callable[[Figures], float | None]) -> list[float | None]:
        return [
            None if one is None or one.figures is None or one.figures.events == 0 else figure(one.figures)
            for one in self._samples(shape, contender)
        ]


def middle(values: list[float | None]) -> Middle | None:
    """The median of what there is, with the extremes."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    return Middle(median(there), min(there), max(there)) if there else None


def ratio(values: list[float | None], baseline: list[float | None]) -> float | None:
    """The median of the ratios that were taken in the same round."""
    found = _ratios(values, baseline)
    return median(found) if found else None


def least_ratio(values: list[float | None], baseline: list[float | None]) -> float | None:
    """The least of them: what other processes take from a round only adds to it."""
    return min(_ratios(values, baseline), default=None)


def _ratios(values: list[float | None], baseline: list[float | None]) -> list[float]:
    pairs = zip(values, baseline, strict=True)
    return [value / base for value, base in pairs if value is not None and base is not None and base > 0]
