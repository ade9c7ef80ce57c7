"""What the gateway's figures have to be: the goals of a full run, and the bounds of a short one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tests.bench.compare.results import BASELINE, Results, least_ratio, middle, ratio
from tests.bench.compare.shapes import STREAMS

# The short form's bounds on the gateway's CPU time, with its store, over the bare relay's in the same run: a fifth
# above what a quiet machine shows (2.2 and 3.25). A busy one shows less, since it makes what is cheap dearer by more;
# and what is looked at is the least ratio of the rounds.
MOST_PER_EVENT: Final = 2.8
MOST_PER_TURN: Final = 4.0

SOON_MS: Final = 50.0
LATE_MS: Final = 200.0


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure. ``must`` and ``aim`` are the most that it may be, or with ``floor`` the least; None: no such goal."""

    title: str
    figure: Callable[[Results], float | None]
    must: float | None = None
    aim: float | None = None
    unit: str = ""
    digits: int = 1
    floor: bool = False

    def row(self, results: Results) -> tuple[str, ...] | None:
        """Its line of the table; None where it was not measured."""
        found = self.figure(results)
        if found is None or math.isnan(found):
            return None
        here = "never" if math.isinf(found) else f"{found:,.{self.digits}f}{self.unit}"
        return self.title, self._words(self.must), self._words(self.aim), here, self.verdict(found)

    def verdict(self, found: float) -> str:
        def kept(bound: float | None) -> bool:
            return bound is not None and (found >= bound if self.floor else found <= bound)

        if kept(self.aim) and (self.must is None or kept(self.must)):
            return "aim"
        if self.must is None:
            return "–"
        return "must" if kept(self.must) else "**missed**"

    def _words(self, bound: float | None) -> str:
        if bound is None:
            return "–"
        return f"{'≥' if self.floor else '≤'} {bound:,g}{self.unit}"


def _to(shape: str, other: str) -> Callable[[Results], float | None]:
    return lambda results: ratio(results.cpu_us(shape, "gateway"), results.cpu_us(shape, other))


def _round_trips(results: Results) -> float | None:
    return _middle(results.round_trips("flood", "gateway"))


def _growth(results: Results) -> float | None:
    fewest, most = (results.cpu_us(f"streams:{count}", "gateway") for count in (STREAMS[0], STREAMS[-1]))
    return ratio(most, fewest)


def _slowest(shape: str) -> Callable[[Results], float | None]:
    return lambda results: max(results.reset_ms(shape, "gateway"), default=None)


def _stalled(contender: str) -> Callable[[Results], float | None]:
    return lambda results: None if (kib := _middle(results.held_kib("stalled", contender))) is None else kib / 1024


def _first_event(results: Results) -> float | None:
    return _middle(results.added_ms("first", "gateway", lambda one: one.first_token_ms.p50))


def _delay(percentile: Literal["p50", "p99"]) -> Callable[[Results], float | None]:
    return lambda results: _middle(
        results.added_ms("delay", "gateway", lambda one: float(getattr(one.delay_ms, percentile)))
    )


def _wrong(results: Results) -> float:
    return float(sum(sum(results.wrong(name)) for name in results.gateways))


def _middle(values: list[float | None]) -> float | None:
    found = middle(values)
    return None if found is None else found.median


GOALS: Final = (
    Goal("CPU of an event at 500 × 4/s, to the bare relay", _to("paced", BASELINE), 1.0, 0.7, " ×", 2),
    Goal("CPU of an event at 1,000 × 20/s, to the bare relay", _to("flood", BASELINE), 1.0, 0.7, " ×", 2),
    Goal("CPU of a turn of 10 events, everything on, to the bare relay", _to("turns", BASELINE), 1.5, 1.0, " ×", 2),
    Goal("CPU of an event at 500 × 4/s, to LiteLLM", _to("paced", "litellm"), 1 / 10, 1 / 25, " ×", 3),
    Goal("CPU of a turn of 10 events, to LiteLLM", _to("turns", "litellm"), 1 / 10, 1 / 25, " ×", 3),
    Goal("CPU of an event at 500 × 4/s, to Envoy", _to("paced", "envoy"), None, 1.0, " ×", 2),
    Goal("CPU of an event at 1,000 × 20/s, to Envoy", _to("flood", "envoy"), None, 1.0, " ×", 2),
    Goal("CPU of an event for a second reader", lambda one: _middle(one.second_reader_us("gateway")), 12, 6, " µs"),
    Goal("time added to the first event, p50", _first_event, 2, 1, " ms", 2),
    Goal("delay added to an event, p50", _delay("p50"), 1, 0.3, " ms", 2),
    Goal("delay added to an event, p99", _delay("p99"), 10, 3, " ms", 2),
    Goal("memory of a streaming SSE stream", lambda one: _middle(one.streaming_kib("gateway")), 40, 20, " KiB"),
    Goal("memory of an idle WebSocket", lambda one: _middle(one.held_kib("sockets", "gateway-ws")), 20, None, " KiB"),
    Goal("memory that a stalled SSE reader costs", _stalled("gateway"), 2, 0.5, " MiB", 2),
    Goal("memory that a stalled WebSocket reader costs", _stalled("gateway-ws"), 2, 0.5, " MiB", 2),
    Goal("slowest upstream reset after a stop, all cores busy", _slowest("stopped"), LATE_MS, SOON_MS, " ms", 0),
    Goal("the same before the first token", _slowest("stopped-early"), LATE_MS, SOON_MS, " ms", 0),
    Goal("round trips to Redis for an event at 1,000 × 20/s", _round_trips, 0.02, digits=4),
    Goal(f"CPU of an event at {STREAMS[-1]:,} streams, to {STREAMS[0]}", _growth, 1.0, None, " ×", 2),
    Goal("throughput of two workers, to one", lambda one: _middle(one.two_workers_times()), 1.8, None, " ×", 2, True),
    Goal("events lost, repeated or wrong", _wrong, 0, digits=0),
)


def goals_table(results: Results) -> str:
    """The goals whose figures were measured, as a table in Markdown; nothing where there are none."""
    rows = [row for goal in GOALS if (row := goal.row(results)) is not None]
    head = [("figure", "must", "aim", "here", "keeps"), ("---",) * 5]
    return "\n".join("| " + " | ".join(row) + " |" for row in (*head, *rows)) if len(rows) > 1 else ""


def past_bounds(results: Results) -> list[str]:
    """Say which ratio to the bare relay is above the short form's bound."""
    told = []
    for name, values, base, most in (
        ("an event", results.cpu_us("paced", "gateway"), results.cpu_us("paced", BASELINE), MOST_PER_EVENT),
        ("a turn", results.turn_us("gateway"), results.turn_us(BASELINE), MOST_PER_TURN),
    ):
        found = least_ratio(values, base)
        if found is not None and found > most:
            told.append(f"{name} costs {found:.2f} × what it costs the bare relay; the bound is {most:g} ×")
    return told
