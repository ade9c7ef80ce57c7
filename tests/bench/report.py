"""The table and the JSON document of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from tests.bench.phase import Figures, Waiting, Work
from tests.bench.plan import Route

Row = tuple[str, str, str, str, str]


class Report(msgspec.Struct, kw_only=True):
    """Every figure of a run; those of the table are medians over its rounds."""

    work: Work
    transport: Route
    upstream: str
    waiting: Waiting
    phases: list[Figures]

    def of(self, route: Route) -> list[Figures]:
        return [figures for figures in self.phases if figures.route == route]

    @property
    def streaming_kib_per_stream(self) -> float:
        """Of the gateway's first phase: later ones reuse what the first one made it allocate."""
        return (self.of(self.transport)[0].resident_kib["gateway"] - self.waiting.idle_kib) / self.work.streams

    @property
    def waiting_kib_per_stream(self) -> float:
        return (self.waiting.waiting_kib - self.waiting.idle_kib) / self.work.streams

    def median_cpu(self, route: Route, parts: Sequence[str]) -> float:
        return median(sum(figures.cpu_us_per_event[part] for part in parts) for figures in self.of(route))

    @property
    def summary(self) -> dict[str, float | int | None]:
        """The figures that goals are set on."""
        gateway, direct, relay = self.of(self.transport), self.of("direct"), self.of("relay")
        tree = self.median_cpu(self.transport, ("gateway", "valkey"))
        return {
            "gateway_cpu_us_per_event": round(self.median_cpu(self.transport, ("gateway",)), 2),
            "valkey_cpu_us_per_event": round(self.median_cpu(self.transport, ("valkey",)), 2),
            "tree_cpu_us_per_event": round(tree, 2),
            "tree_to_relay": round(tree / self.median_cpu("relay", ("relay",)), 3) if relay else None,
            "added_first_token_p50_ms": _added(gateway, direct, lambda one: one.first_token_ms.p50),
            "added_first_token_p99_ms": _added(gateway, direct, lambda one: one.first_token_ms.p99),
            "added_delay_p50_ms": _added(gateway, direct, lambda one: one.delay_ms.p50),
            "added_delay_p99_ms": _added(gateway, direct, lambda one: one.delay_ms.p99),
            "streaming_kib_per_stream": round(self.streaming_kib_per_stream, 1),
            "waiting_kib_per_stream": round(self.waiting_kib_per_stream, 1),
            "lost": sum(figures.lost for figures in self.phases),
            "duplicated": sum(figures.duplicated for figures in self.phases),
            "faults": sum(sum(figures.faults.values()) for figures in self.phases),
        }

    def as_json(self) -> bytes:
        document = {"summary": self.summary, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(document), indent=2)

    def table(self) -> str:
        work = self.work
        turns = "one turn a stream" if work.events_per_turn is None else f"turns of {work.events_per_turn} events"
        others = median(figures.others_cores for figures in self.phases)
        head = (
            f"{work.streams} streams × {work.rate_per_s:g} events/s over {self.transport.upper()}, {turns}, "
            f"upstream {self.upstream}, {work.seconds:g} s windows × {len(self.of(self.transport))} rounds; "
            f"load average {self.phases[-1].load_average:.1f}, other processes busy on {others:.2f} cores"
        )
        rows: list[Row] = [
            ("", "direct", "gateway", "added", "relay"),
            self._row("events in the window", lambda one: one.events, "{:,.0f}"),
            self._cpu("CPU µs/event  gateway", "gateway"),
            self._cpu("              Valkey", "valkey"),
            ("              both, the tree", "", f"{self.summary['tree_cpu_us_per_event']:.1f}", "", self._relay()),
            self._cpu("              vendor side", "simulator", "source"),
            self._cpu("              clients", "clients"),
            self._row("first token ms  p50", lambda one: one.first_token_ms.p50, "{:.2f}", added=True),
            self._row("                p99", lambda one: one.first_token_ms.p99, "{:.2f}", added=True),
            self._row("delay ms        p50", lambda one: one.delay_ms.p50, "{:.2f}", added=True),
            self._row("                p99", lambda one: one.delay_ms.p99, "{:.2f}", added=True),
            ("KiB/stream  streaming", "", f"{self.streaming_kib_per_stream:.1f}", "", ""),
            ("            waiting", "", f"{self.waiting_kib_per_stream:.1f}", "", ""),
            self._row("Redis round trips/event", lambda one: one.redis_round_trips_per_event, "{:.3f}"),
            self._row("      commands/event", lambda one: one.redis_commands_per_event, "{:.3f}"),
            self._row("turns", lambda one: one.turns, "{:,.0f}", total=True),
            self._row("events lost", lambda one: one.lost, "{:,.0f}", total=True),
            self._row("events duplicated", lambda one: one.duplicated, "{:,.0f}", total=True),
            self._row("faults", lambda one: sum(one.faults.values()), "{:,.0f}", total=True),
        ]
        if not self.of("relay"):
            rows = [(*row[:4], "") for row in rows]
        ratio = self.summary["tree_to_relay"]
        lines = [head, "", *aligned(rows)]
        if ratio is not None:
            lines += ["", f"gateway and Valkey to bare aiohttp relay: {ratio:.2f} ×"]
        faults = sorted({f"{one.route}: {fault}" for one in self.phases for fault in one.faults})
        return "\n".join([*lines, *(f"fault on {fault}" for fault in faults)])

    def _cpu(self, name: str, *parts: str) -> Row:
        def used(one: Figures) -> float | None:
            return next((one.cpu_us_per_event[part] for part in parts if part in one.cpu_us_per_event), None)

        return self._row(name, used, "{:.1f}")

    def _relay(self) -> str:
        return f"{self.median_cpu('relay', ('relay',)):.1f}" if self.of("relay") else ""

    def _row(
        self,
        name: str,
        figure: Callable[[Figures], float | None],
        form: str,
        *,
        added: bool = False,
        total: bool = False,
    ) -> Row:
        cells = []
        routes: tuple[Route, ...] = ("direct", self.transport, "relay")
        for route in routes:
            values = [value for one in self.of(route) if (value := figure(one)) is not None]
            cells.append("" if not values else form.format(sum(values) if total else median(values)))
        more = _added(self.of(self.transport), self.of("direct"), figure) if added else None
        return (name, cells[0], cells[1], "" if more is None else f"{more:+.2f}", cells[2])


def _added(
    gateway: Sequence[Figures], direct: Sequence[Figures], figure: Callable[[Figures], float | None]
) -> float | None:
    """Median over the rounds of the gateway's figure less that of the direct phase just before it."""
    pairs = zip(gateway, direct, strict=True)
    differences = [a - b for one, other in pairs if (a := figure(one)) is not None and (b := figure(other)) is not None]
    return None if not differences or any(map(math.isnan, differences)) else round(median(differences), 3)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out lines of cells in columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
