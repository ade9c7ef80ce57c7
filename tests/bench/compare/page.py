"""The page of a comparison: the table, the goals, and what else was measured, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.bench.compare.goals import LATE_MS, SOON_MS, goals_table
from tests.bench.compare.results import Results, middle
from tests.bench.compare.shapes import STREAMS, Shape
from tests.bench.compare.table import cell, table


def document(results: Results, shapes: Sequence[Shape], command: str, machine: str, skipped: Sequence[str]) -> str:
    """The table with all that is needed to read and to repeat it."""
    versions = ", ".join(f"{line.title} {line.version}" for line in results.lines if line.version)
    seconds = shapes[0].work.seconds if shapes else 0.0
    others = max((one.figures.others_cores for one in results.samples if one.figures is not None), default=0.0)
    lines = [
        "# Results",
        "",
        f"`{command}`",
        "",
        f"{machine}. {versions + '. ' if versions else ''}{results.rounds} rounds, windows of {seconds:g} s; other "
        f"processes of the machine, idle contenders among them, used at most {others:.2f} cores in any.",
        "",
        table(results),
        "",
        "![CPU time for a streamed turn and event](results.svg)",
        "",
        "CPU time is user and system time of a contender's whole process tree. A cell is the median over the rounds "
        "(least–most); × is the median of the ratios to the bare aiohttp relay over SSE, each taken within a round. "
        "First event and event are delays less those with nothing between clients and the same upstream, the first "
        "with 100 short turns a second, the others at 500 × 20/s. Read ratios rather than microseconds.",
        "",
        *(f"- `{shape.name}`: {shape.title}" for shape in shapes),
    ]
    for title, text in (
        ("Goals of the gateway", goals_table(results)),
        ("Cost against the number of streams", streams_table(results)),
        ("Stops, stalls and the store", conduct_table(results)),
    ):
        lines += ["", f"## {title}", "", text] if text else []
    lines += ["", *(f"- {line}" for line in skipped)] if skipped else []
    failures = results.failures()
    if failures:
        lines += ["", "Nothing measured:", ""]
        for one in failures:
            title, why = results.line(one.contender).title, one.failure.splitlines()[0]
            lines.append(f"- {title}, `{one.shape}`, round {one.round + 1}: {why}")
    return "\n".join(lines) + "\n"


def streams_table(results: Results) -> str:
    """What the gateway costs with more and more streams of the same rate on one worker; nothing if not measured."""
    rows = []
    for count in STREAMS:
        shape = f"streams:{count}"
        own = [one for one in results.samples if (one.shape, one.contender) == (shape, "gateway")]
        figures = [one.figures for one in own if one.figures is not None]
        if not figures:
            continue
        cores = middle([one.cores["gateway"] + one.cores["valkey"] for one in figures])
        wrong = [
            sum(part) for part in zip(*((f.lost, f.duplicated, sum(f.faults.values())) for f in figures), strict=True)
        ]
        rows.append(
            (
                f"{count:,}",
                cell(middle(results.cpu_us(shape, "gateway"))),
                cell(middle(results.cpu_us(shape, "gateway", "valkey"))),
                cell(cores, 2),
                cell(middle([one.delay_ms.p50 for one in figures]), 2),
                cell(middle([one.delay_ms.p99 for one in figures]), 1),
                " + ".join(map(str, wrong)),
            )
        )
    head = ("streams", "µs / event", "of it Valkey", "cores", "delay, ms p50", "delay, ms p99", "lost + twice + faults")
    return _markdown(head, rows)


def conduct_table(results: Results) -> str:
    """What a stop, a reader that stalls and the store cost; nothing if not measured."""
    rows = []
    for line in results.lines:
        stalled = middle(results.held_kib("stalled", line.name))
        cells = (
            stops_cell(results.reset_ms("stopped", line.name)),
            stops_cell(results.reset_ms("stopped-early", line.name)),
            "" if stalled is None else f"{stalled.median / 1024:,.2f}",
            cell(middle(results.round_trips("flood", line.name)), 4),
        )
        if any(cells):
            rows.append((line.title, *cells))
    head = (
        "",
        "upstream reset after a stop in mid-answer",
        "after one before the first token",
        "MiB / stalled reader",
        "round trips to Redis / event",
    )
    return _markdown(head, rows)


def stops_cell(reset_ms: Sequence[float]) -> str:
    """Shares of the resets that came soon and late, and the slowest; nothing for none."""
    if not reset_ms:
        return ""
    shares = [100 * sum(ms <= most for ms in reset_ms) / len(reset_ms) for most in (SOON_MS, LATE_MS)]
    slowest = "some never" if math.isinf(reset_ms[-1]) else f"slowest {reset_ms[-1]:,.0f} ms"
    return f"{shares[0]:.0f} % in {SOON_MS:g} ms, {shares[1]:.0f} % in {LATE_MS:g} ms, {slowest}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
