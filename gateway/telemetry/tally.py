"""A counter or gauge as plain numbers, and the lines of a scrape that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from prometheus_client.utils import floatToGoString

from gateway.telemetry.exposition import LINES, head, label_text

Kind = Literal["counter", "gauge"]


class Tally:
    """All label sets of one counter or gauge.

    To add takes 0.2 µs, where the library's own child takes 0.4 and its locks. The lines' beginnings are prepared once,
    because the general way of the client library costs 20 µs a line.
    """

    def __init__(self, kind: Kind, name: str, text: str, labels: Sequence[str]) -> None:
        if (kind == "counter") is not name.endswith("_total"):
            raise ValueError(f"{name}: the names of counters end with _total, and no others do")
        self._kind = kind
        self._name = name
        self._text = text
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._starts: dict[tuple[str, ...], str] = {}
        self._source: Callable[[], float] | None = None

    def add(self, amount: float, *values: str) -> None:
        """Add to the number of these label values; raises ValueError for a counter that would fall."""
        if amount < 0 and self._kind == "counter":
            raise ValueError(f"{self._name} is a counter: it cannot fall by {-amount}")
        try:
            self._values[values] += amount
        except KeyError:
            self._begin(values)
            self._values[values] = amount

    def put(self, value: float, *values: str) -> None:
        """Make the number of these label values another; raises ValueError for a counter."""
        if self._kind == "counter":
            raise ValueError(f"{self._name} is a counter: it only rises")
        if values not in self._values:
            self._begin(values)
        self._values[values] = value

    def drop(self, *values: str) -> None:
        """Tell these label values no more. Safe to repeat."""
        self._values.pop(values, None)

    def known(self) -> list[tuple[str, ...]]:
        """Return the label values that are told."""
        return list(self._values)

    def read_from(self, source: Callable[[], float]) -> None:
        """Take the number from ``source`` at every scrape, on the event loop; for a gauge without labels."""
        self._source = source

    def refresh(self) -> None:
        """Take the number from its source, where it has one."""
        if self._source is not None:
            self.put(self._source())

    def lines(self) -> int:
        """Return how many lines a scrape has of this metric now."""
        return len(self._values)

    def pieces(self, *, openmetrics: bool) -> Iterator[str]:
        """Tell the metric a few lines at a time; what is added meanwhile may be told or not."""
        yield head(self._name, self._kind, self._text, openmetrics=openmetrics)
        known = self.known()
        for first in range(0, len(known), LINES):
            yield "".join([self._line(values) for values in known[first : first + LINES]])

    def _line(self, values: tuple[str, ...]) -> str:
        number = self._values.get(values)
        if number is None:  # dropped meanwhile
            return ""
        start = self._starts.get(values)
        if start is None:
            shown = label_text(sorted(zip(self._labels, map(str, values), strict=True)))
            start = self._starts[values] = f"{self._name}{shown} "
        return f"{start}{floatToGoString(number)}\n"  # type: ignore[no-untyped-call]  # the library's

    def _begin(self, values: tuple[str, ...]) -> None:
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {tuple(self._labels)}, not {len(values)} values")
