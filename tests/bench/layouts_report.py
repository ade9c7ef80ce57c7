"""The tables and the JSON document of ``layouts``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from tests.bench.phase import Spread
from tests.bench.report import aligned


class Appends(msgspec.Struct, kw_only=True):
    """What appending cost; all but counts, ``kept_up``, ``latency_ms`` and ``others_cores`` are for one event."""

    appends: int
    events: int
    kept_up: float  # events appended over those that the turns would have made
    client_us: float
    server_us: float
    round_trips: float
    written_bytes: float  # to the append-only file
    latency_ms: Spread
    others_cores: float

    @property
    def both_us(self) -> float:
        return self.client_us + self.server_us

    @property
    def events_per_append(self) -> float:
        return self.events / self.appends


class Replays(msgspec.Struct, kw_only=True):
    """What one replay cost."""

    count: int
    client_us: float
    server_us: float
    round_trips: float
    sent_bytes: float
    latency_ms: Spread


class Kept(msgspec.Struct, kw_only=True):
    """What the server holds of a turn, and what replays of a finished one cost."""

    live_bytes: float  # of a turn at the end of the window, of a finished one: of all its keys
    finished_bytes: float
    from_start: Replays
    from_middle: Replays


class Phase(msgspec.Struct, kw_only=True):
    """What one layout showed in one round. ``kept`` is None where a turn is stored as in the first layout."""

    layout: str
    appends: Appends
    kept: Kept | None = None


class Publishes(msgspec.Struct, kw_only=True):
    """What publishing cost for one event, on each side. ``joined``: one message a tick carries many turns."""

    joined: bool
    events: int
    lost: int
    messages: int
    sender_us: float
    server_us: float
    subscriber_us: float


class Layouts(msgspec.Struct, kw_only=True):
    """Every figure of a run; those of the tables are medians over its rounds, (lowest … highest)."""

    turns: int
    rate_per_s: int
    seconds: float
    rounds: int
    cores: int
    versions: str
    phases: list[Phase]
    publishes: list[Publishes]

    def of(self, layout: str) -> list[Phase]:
        return [phase for phase in self.phases if phase.layout == layout]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(phase.layout for phase in self.phases))

    def ratios(self, layout: str) -> list[float]:
        """Client and server CPU an event, over that of the first layout in the same round."""
        pairs = zip(self.of(layout), self.of(self.names[0]), strict=True)
        return [one.appends.both_us / first.appends.both_us for one, first in pairs]

    def as_json(self) -> bytes:
        summary = {name: round(median(self.ratios(name)), 3) for name in self.names}
        document = {"cpu_to_first": summary, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(document), indent=2)

    def table(self) -> str:
        others = median(phase.appends.others_cores for phase in self.phases)
        head = (
            f"{self.turns} live turns × {self.rate_per_s} events/s, {self.seconds:g} s windows × {self.rounds} rounds; "
            f"{self.versions}, {self.cores} cores, other processes busy on {others:.2f} of them"
        )
        return "\n".join([head, "", *aligned(self._layout_rows()), "", *aligned(self._publish_rows())])

    def _layout_rows(self) -> list[list[str]]:
        row = self._row
        return [
            ["", *self.names],
            row("CPU µs/append  client", lambda one: one.appends.client_us * one.appends.events_per_append, "{:.1f}"),
            row("               server", lambda one: one.appends.server_us * one.appends.events_per_append, "{:.1f}"),
            row("               both", lambda one: one.appends.both_us * one.appends.events_per_append, "{:.1f}"),
            row("CPU µs/event   client", lambda one: one.appends.client_us, "{:.2f}"),
            row("               server", lambda one: one.appends.server_us, "{:.2f}"),
            row("               both", lambda one: one.appends.both_us, "{:.2f}"),
            [f"               to {self.names[0]}", *(_spread(self.ratios(name), "{:.2f}") for name in self.names)],
            row("round trips/event", lambda one: one.appends.round_trips, "{:.4f}"),
            row("append ms  p50", lambda one: one.appends.latency_ms.p50, "{:.1f}"),
            row("           p99", lambda one: one.appends.latency_ms.p99, "{:.1f}"),
            row("kept up", lambda one: one.appends.kept_up, "{:.2f}"),
            row("append-only file bytes/event", lambda one: one.appends.written_bytes, "{:.0f}"),
            self._kept_row("live turn bytes", lambda kept: kept.live_bytes, "{:,.0f}"),
            self._kept_row("finished turn bytes", lambda kept: kept.finished_bytes, "{:,.0f}"),
            *self._replay_rows("replay from 0", lambda kept: kept.from_start),
            *self._replay_rows("replay from the middle", lambda kept: kept.from_middle),
        ]

    def _replay_rows(self, name: str, part: Callable[[Kept], Replays]) -> list[list[str]]:
        def row(name: str, figure: Callable[[Replays], float], form: str) -> list[str]:
            return self._kept_row(name, lambda kept: figure(part(kept)), form)

        return [
            row(f"{name}  client µs", lambda one: one.client_us, "{:,.0f}"),
            row("    server µs", lambda one: one.server_us, "{:,.0f}"),
            row("    bytes", lambda one: one.sent_bytes, "{:,.0f}"),
            row("    round trips", lambda one: one.round_trips, "{:.0f}"),
            row("    p50 ms", lambda one: one.latency_ms.p50, "{:.2f}"),
        ]

    def _kept_row(self, name: str, figure: Callable[[Kept], float], form: str) -> list[str]:
        return self._row(name, lambda one: None if one.kept is None else figure(one.kept), form)

    def _row(self, name: str, figure: Callable[[Phase], float | None], form: str) -> list[str]:
        cells = [name]
        for layout in self.names:
            values = [value for one in self.of(layout) if (value := figure(one)) is not None]
            cells.append(form.format(median(values)) if values else "")
        return cells

    def _publish_rows(self) -> list[list[str]]:
        columns = [[one for one in self.publishes if one.joined is joined] for joined in (True, False)]

        def row(name: str, figure: Callable[[Publishes], float], form: str) -> list[str]:
            return [name, *(_spread([figure(one) for one in column], form) for column in columns)]

        return [
            ["publish", "a message a tick", "a message a turn"],
            row("events/message", lambda one: one.events / one.messages, "{:.1f}"),
            row("CPU µs/event    sender", lambda one: one.sender_us, "{:.2f}"),
            row("                server", lambda one: one.server_us, "{:.2f}"),
            row("                subscriber", lambda one: one.subscriber_us, "{:.2f}"),
            row("CPU µs/message  sender", lambda one: one.sender_us * one.events / one.messages, "{:.1f}"),
            row("                server", lambda one: one.server_us * one.events / one.messages, "{:.1f}"),
            row("                subscriber", lambda one: one.subscriber_us * one.events / one.messages, "{:.1f}"),
            row("events lost", lambda one: one.lost, "{:.0f}"),
        ]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} … {high})"
