"""A histogram cheap enough for every event of every stream, and for a scrape of many tenants.

Observing is a bisect into a list (0.3 µs). The lines of a scrape are prepared once for each label set, because
the general way of the client library costs 20 µs a line: 0.7 s for 200 tenants, taken from the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString


class Histogram:
    """Counts of one label set. ``observe`` belongs to one thread; a scrape in another may miss the latest ones."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class HistogramFamily:
    """All label sets of one histogram metric."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: tuple[float, ...]) -> None:
        self._name = name
        self._head = f"# HELP {name} {_escaped(text)}\n# TYPE {name} histogram\n"
        self._labels = labels
        self._bounds = bounds
        self._le = [*(floatToGoString(bound) for bound in bounds), "+Inf"]  # type: ignore[no-untyped-call]  # the library's
        self._children: dict[tuple[str, ...], tuple[Histogram, list[str]]] = {}

    def of(self, *values: str) -> Histogram:
        """Return the histogram of these label values, which the caller has bounded."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = (Histogram(self._bounds), self._prepare(values))
        return child[0]

    def lines(self) -> int:
        """Return how many samples a scrape has of this metric now."""
        return len(self._children) * (len(self._le) + 2)

    def render(self) -> str:
        """Return the lines of a scrape; they are the same in the text format and in OpenMetrics."""
        lines = [self._head]
        for child, prepared in self._children.copy().values():
            total, counts = child.total, list(accumulate(child.counts.copy()))
            figures = (*counts, counts[-1], total)
            lines += [f"{start}{figure}\n" for start, figure in zip(prepared, figures, strict=True)]
        return "".join(lines)

    def _prepare(self, values: tuple[str, ...]) -> list[str]:
        pairs = [f'{label}="{_escaped(value, quote=True)}"' for label, value in zip(self._labels, values, strict=True)]
        own = f"{{{','.join(pairs)}}}" if pairs else ""
        buckets = ["{" + ",".join([*pairs, f'le="{le}"']) + "}" for le in self._le]
        return [
            *(f"{self._name}_bucket{labels} " for labels in buckets),
            f"{self._name}_count{own} ",
            f"{self._name}_sum{own} ",
        ]


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
