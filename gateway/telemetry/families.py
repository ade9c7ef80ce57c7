"""Families of metrics with a known bound: each says which labels it has and how many values they can take."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

from gateway.telemetry.histogram import HistogramFamily

OTHER = "other"
WORDS_MAX = 32


@dataclass(slots=True)
class Axis:
    """One or more labels that vary together, and how many values they can have."""

    labels: tuple[str, ...]
    size: int


class Family(NamedTuple):
    """One metric as the reference page shows it; ``lines`` is what a scrape prints of each label set."""

    name: str
    kind: str
    text: str
    axes: tuple[Axis, ...]
    lines: int

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


class Tally:
    """A counter or gauge whose children are kept, because finding one costs four times as much as adding to it."""

    def __init__(self, metric: Counter | Gauge, labels: tuple[str, ...]) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Counter | Gauge] = {} if labels else {(): metric}

    def add(self, amount: float, *values: str) -> None:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        child.inc(amount)


class Families:
    """A registry that can tell the most lines a scrape can ever hold."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Family] = []
        self._histograms: list[HistogramFamily] = []

    def counter(self, name: str, text: str, *axes: Axis) -> Tally:
        labels = self._declare(name, "counter", text, axes, 1)
        return Tally(Counter(name, text, labels, registry=self.registry), labels)

    def gauge(self, name: str, text: str, *axes: Axis) -> Tally:
        labels = self._declare(name, "gauge", text, axes, 1)
        return Tally(Gauge(name, text, labels, registry=self.registry), labels)

    def histogram(self, name: str, text: str, bounds: tuple[float, ...], *axes: Axis) -> HistogramFamily:
        labels = self._declare(name, "histogram", text, axes, len(bounds) + 3)  # +Inf, sum and count
        family = HistogramFamily(name, text, labels, bounds)
        self._histograms.append(family)
        return family

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the body and the content type of a scrape, made in a thread so that no stream waits for it."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no version
            encoder, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return await asyncio.to_thread(self.render, encoder), content_type

    def render(self, encoder: Callable[[CollectorRegistry], bytes]) -> bytes:
        """Return a scrape: what the library's ``encoder`` says of counters and gauges, then the histograms."""
        body = encoder(self.registry)
        end = b"# EOF\n" if body.endswith(b"# EOF\n") else b""  # only OpenMetrics has it
        return body.removesuffix(end) + "".join(family.render() for family in self._histograms).encode() + end

    def max_series(self) -> int:
        return sum(family.lines * prod(axis.size for axis in family.axes) for family in self.declared)

    def _declare(self, name: str, kind: str, text: str, axes: tuple[Axis, ...], lines: int) -> tuple[str, ...]:
        family = Family(name, kind, text, axes, lines)
        self.declared.append(family)
        return family.labels
