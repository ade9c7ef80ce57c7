"""Families of metrics with a known bound: each says which labels it has and how many values they can take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry

from gateway.telemetry.exposition import Format, Scrape, sliced
from gateway.telemetry.histogram import HistogramFamily
from gateway.telemetry.tally import Kind, Tally

OTHER: Final = "other"
WORDS_MAX: Final = 32
UNITS: Final = frozenset({"seconds", "bytes", "tokens"})
PROCESS_SERIES: Final = 32  # at most, of what prometheus-client itself tells of a process


@dataclass(slots=True)
class Axis:
    """One or more labels that vary together, and how many values they can have."""

    labels: tuple[str, ...]
    size: int


class Buckets(NamedTuple):
    """The upper bounds of a histogram's buckets, under a name by which the reference page shows them."""

    name: str
    bounds: tuple[float, ...]


class Family(NamedTuple):
    """One metric as the reference page shows it; ``lines`` is what a scrape prints of each label set."""

    name: str
    kind: str
    unit: str
    text: str
    axes: tuple[Axis, ...]
    lines: int
    buckets: Buckets | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for axis in self.axes for label in axis.labels)


class Words:
    """Folds words that our own code chooses: the first ``WORDS_MAX`` plain ones pass, what follows is ``other``."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def fold(self, word: str) -> str:
        known = self._seen.get(word)
        if known is not None:
            return known
        if len(self._seen) >= WORDS_MAX or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", word):
            return OTHER
        return self._seen.setdefault(str(word), str(word))


class Families:
    """All metrics of a process, which can tell the most lines that a scrape of them can ever hold.

    They belong to the event loop's thread, scrapes included. ``registry`` is for the library's own collectors of the
    process, which are told last.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Family] = []
        self._told: list[Tally | HistogramFamily] = []
        self._names: set[str] = set()
        self._process_series = 0  # as of the last scrape

    def counter(self, name: str, text: str, *axes: Axis, unit: str | None = None) -> Tally:
        """Make a counter, whose name ends with ``_total``; ``unit`` is what is counted."""
        return self._tally("counter", name, text, axes, unit)

    def gauge(self, name: str, text: str, *axes: Axis, unit: str | None = None) -> Tally:
        return self._tally("gauge", name, text, axes, unit)

    def histogram(
        self, name: str, text: str, buckets: Buckets, *axes: Axis, unit: str | None = None
    ) -> HistogramFamily:
        lines = len(buckets.bounds) + 3  # +Inf, sum and count
        family = self._declare(Family(name, "histogram", unit or unit_of(name), text, axes, lines, buckets))
        histogram = HistogramFamily(name, text, family.labels, buckets.bounds)
        self._told.append(histogram)
        return histogram

    def scrape(self, accept: str) -> Scrape:
        """Return a scrape in the format that the scraper accepts, made in slices while it is read."""
        format_ = Format.accepted(accept)
        return Scrape(format_.content_type, sliced(self._pieces(format_)))

    def series(self) -> int:
        """Return how many lines a scrape has now; those of the process as in the last one."""
        return sum(told.lines() for told in self._told) + self._process_series

    def max_series(self) -> int:
        """Return the most lines that a scrape can ever hold, however clients behave."""
        return PROCESS_SERIES + sum(family.lines * prod(axis.size for axis in family.axes) for family in self.declared)

    def _pieces(self, format_: Format) -> Iterator[str]:
        process = format_.encoder(self.registry).decode().removesuffix(format_.end)
        self._process_series = sum(not line.startswith("#") for line in process.splitlines())
        for told in self._told:
            told.refresh()
        for told in self._told:
            yield from told.pieces(openmetrics=format_.openmetrics)
        yield process
        yield format_.end

    def _tally(self, kind: Kind, name: str, text: str, axes: tuple[Axis, ...], unit: str | None) -> Tally:
        family = self._declare(Family(name, kind, unit or unit_of(name), text, axes, 1))
        tally = Tally(kind, name, text, family.labels)
        self._told.append(tally)
        return tally

    def _declare(self, family: Family) -> Family:
        suffixes = ("", "_bucket", "_count", "_sum") if family.kind == "histogram" else ("", "_total")
        names = {family.name.removesuffix("_total") + suffix for suffix in suffixes}
        if not self._names.isdisjoint(names):
            raise ValueError(f"{family.name} is the name of another metric too")
        self._names |= names
        self.declared.append(family)
        return family


def unit_of(name: str) -> str:
    """Return the unit that a metric's name ends with, as those of Prometheus do; else it counts things."""
    last = name.removesuffix("_total").rpartition("_")[2]
    return last if last in UNITS else "count"
