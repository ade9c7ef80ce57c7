"""What an event costs by each of the gateway's doors, beside native server-sent events in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Final

import msgspec

from tests.bench.phase import Figures, Work, measure, warm_up
from tests.bench.plan import DOORS, Door, Through
from tests.bench.report import aligned
from tests.bench.stack import running

OTHERS: Final[Sequence[Door]] = [door for door in DOORS if door != "native"]
BOUND: Final = 1.25  # times native's


class DoorsReport(msgspec.Struct, kw_only=True):
    """Phases of native events and of doors in turn, a native one first and last."""

    work: Work
    phases: list[Figures]

    def ratios(self, door: Door) -> list[float]:
        """CPU time of the gateway and its store for an event, to the mean of the native phases before and after."""
        route = DOORS[door]
        return [
            _tree(one) / mean((_tree(before), _tree(after)))
            for before, one, after in zip(self.phases, self.phases[1:], self.phases[2:], strict=False)
            if one.route == route
        ]

    @property
    def over(self) -> list[Door]:
        """The doors whose median is past the bound."""
        return [door for door in OTHERS if median(self.ratios(door)) > BOUND]

    @property
    def wrong(self) -> int:
        return sum(one.lost + one.duplicated + sum(one.faults.values()) for one in self.phases)

    def as_json(self) -> bytes:
        ratios = {door: self.ratios(door) for door in OTHERS}
        document = {"ratios": ratios, "over": self.over, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(document), indent=2)

    def table(self) -> str:
        work = self.work
        turns = "one turn a stream" if work.events_per_turn is None else f"turns of {work.events_per_turn} events"
        others = median(figures.others_cores for figures in self.phases)
        head = (
            f"{work.streams} streams × {work.rate_per_s:g} events/s, {turns}, {work.seconds:g} s windows; "
            f"other processes busy on {others:.2f} cores"
        )
        rows: list[tuple[str, ...]] = [
            ("door", "gateway µs/event", "Valkey µs/event", "to native", "least – most", "lost", "twice", "faults")
        ]
        rows += [self._row(door, route) for door, route in DOORS.items()]
        past = [f"past {BOUND:g} ×: {', '.join(self.over)}"] if self.over else [f"none is past {BOUND:g} ×"]
        faults = sorted({f"{one.route}: {fault}" for one in self.phases for fault in one.faults})
        return "\n".join([head, "", *aligned(rows), "", *past, *(f"fault on {fault}" for fault in faults)])

    def _row(self, door: Door, route: Through) -> tuple[str, ...]:
        own = [one for one in self.phases if one.route == route]
        ratios = self.ratios(door) if door != "native" else []
        return (
            door,
            *(f"{median(one.cpu_us_per_event[part] for one in own):.1f}" for part in ("gateway", "valkey")),
            f"{median(ratios):.2f} ×" if ratios else "1",
            f"{min(ratios):.2f} – {max(ratios):.2f}" if ratios else "",
            str(sum(one.lost for one in own)),
            str(sum(one.duplicated for one in own)),
            str(sum(sum(one.faults.values()) for one in own)),
        )


def _tree(figures: Figures) -> float:
    return figures.cpu_us_per_event["gateway"] + figures.cpu_us_per_event["valkey"]


async def run(work: Work, rounds: int, *, h2c: bool) -> DoorsReport:
    """Measure native, a door, native, the next door, and so on, on one gateway."""
    async with running(rate_per_s=work.rate_per_s, h2c=h2c, baseline=False) as stack:
        for route in DOORS.values():
            await warm_up(stack, route)
        phases = [await measure(stack, "sse", work)]
        for _ in range(rounds):
            for door in OTHERS:
                phases += [await measure(stack, DOORS[door], work), await measure(stack, "sse", work)]
        return DoorsReport(work=work, phases=phases)
