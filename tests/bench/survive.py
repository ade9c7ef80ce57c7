"""Strikes the faults of a run, one after the other, and lays out what they left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import msgspec

from tests.bench.report import aligned
from tests.bench.survival.field import Load
from tests.bench.survival.strikes import STRIKES
from tests.bench.survival.verdict import Verdict

HEAD = (
    *("fault", "turns", "readers", "lost", "dup", "order", "done", "recovered", "otherwise", "wrong", "endings≠1"),
    *("back", "next s p50", "max", "settled/billed", "estimated/billed", "double", "took s"),
)
PAUSE_HEAD = (
    *("fault", "it took s", "no new turns s", "newcomers", "refused", "slowest answer s"),
    *("gap at its own gateway s", "at the other s"),
)


class Report(msgspec.Struct, kw_only=True):
    """What every fault of a run has left."""

    load: Load
    verdicts: list[Verdict]
    took_s: list[float]

    @property
    def broken(self) -> bool:
        return any(verdict.broken for verdict in self.verdicts)

    def as_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def table(self) -> str:
        lines = aligned([HEAD, *map(_row, self.verdicts, self.took_s)])
        for verdict in self.verdicts:
            if verdict.stop_ms:
                ordered = sorted(verdict.stop_ms)
                p50, p99 = (ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.99))
                lines.append(
                    f"\n{verdict.fault}: {len(ordered)} streams reset at the vendor after "
                    f"{p50:.0f} ms (p50), {p99:.0f} ms (p99), {ordered[-1]:.0f} ms (max)"
                )
            lines += [f"\n{verdict.fault}: {words}" for words in verdict.broken]
        if any(verdict.pause for verdict in self.verdicts):
            lines += ["", *aligned([PAUSE_HEAD, *(row for one in self.verdicts if (row := _pause_row(one)))])]
        return "\n".join(lines)


async def run(load: Load, faults: Sequence[str], say: Callable[[str], None]) -> Report:
    """Strike each fault on processes of its own; ``say`` is told which is next."""
    report = Report(load=load, verdicts=[], took_s=[])
    for fault in faults:
        say(f"{fault} …")
        begun_s = time.monotonic()
        report.verdicts.append(await STRIKES[fault](load))
        report.took_s.append(time.monotonic() - begun_s)
    return report


def _row(verdict: Verdict, took_s: float) -> tuple[str, ...]:
    books = verdict.books
    return (
        verdict.fault,
        str(verdict.turns),
        str(verdict.readers),
        str(verdict.lost),
        str(verdict.duplicated),
        str(verdict.disordered),
        str(verdict.completed),
        str(verdict.recovered),
        " ".join(f"{count} {kind}" for kind, count in verdict.others.items()) or "–",
        str(len(verdict.wrong) + len(books.wrong)),
        str(verdict.endings),
        str(verdict.returns),
        "–" if math.isnan(verdict.next_p50_s) else f"{verdict.next_p50_s:.2f}",
        "–" if math.isnan(verdict.next_max_s) else f"{verdict.next_max_s:.2f}",
        f"{books.settled}/{books.billed}",
        f"{books.estimated}/{books.estimated_billed}",
        str(books.doubled),
        f"{took_s:.0f}",
    )


def _pause_row(verdict: Verdict) -> tuple[str, ...] | None:
    pause = verdict.pause
    if pause is None:
        return None
    return (
        verdict.fault,
        f"{pause.fault_s:.2f}",
        f"{pause.closed_s:.2f}",
        str(pause.let_in),
        " ".join(f"{count} {code}" for code, count in pause.refused.items()) or "–",
        f"{pause.slowest_s:.2f}",
        f"{pause.gap_own_s:.2f}",
        f"{pause.gap_other_s:.2f}",
    )
