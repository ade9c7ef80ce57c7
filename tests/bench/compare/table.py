"""The comparison as one table in Markdown."""

from __future__ import annotations

from typing import Final

from tests.bench.compare.results import BASELINE, Middle, Results, middle, ratio

HEAD: Final = (
    "",
    "µs / turn of 10",
    "µs / event, 500 × 4/s",
    "µs / event, 1,000 × 20/s",
    "2nd reader, µs / event",
    "first event, ms p50",
    "event, ms p50",
    "event, ms p99",
    "KiB / stream waiting",
    "KiB / stream streaming",
    "KiB / idle WebSocket",
    "lost + twice + faults",
    "vendor side, clients: cores",
)


def table(results: Results) -> str:
    """One row a contender; a cell is median (least–most), × is over the bare relay in the same round."""
    rows: list[tuple[str, ...]] = [HEAD]
    for line in results.lines:
        rows.append(_row(results, line.name))
        if "valkey" in line.parts and any((store := _store_row(results, line.name))[1:]):
            rows.append(store)
    # A column of a shape that was not measured says nothing.
    told = [number for number in range(len(HEAD)) if number == 0 or any(row[number] for row in rows[1:])]
    kept = [[row[number] for number in told] for row in rows]
    kept.insert(1, ["---"] * len(told))
    return "\n".join("| " + " | ".join(row) + " |" for row in kept)


def _row(results: Results, name: str) -> tuple[str, ...]:
    turn, paced, flood = results.turn_us(name), results.cpu_us("paced", name), results.cpu_us("flood", name)
    own = bool(results.line(name).parts)
    lost, twice, faults = results.wrong(name)
    vendor = "simulator" if results.line(name).upstream == "direct" else "source"
    loads = (results.most_cores(name, vendor), results.most_cores(name, "clients"))
    return (
        f"**{results.line(name).title}**" if name == "gateway" else results.line(name).title,
        _cost(turn, results.turn_us(BASELINE)) if own else "",
        _cost(paced, results.cpu_us("paced", BASELINE)) if own else "",
        _cost(flood, results.cpu_us("flood", BASELINE)) if own else "",
        cell(middle(results.second_reader_us(name))) if own else "",
        cell(middle(results.added_ms("first", name, lambda one: one.first_token_ms.p50)), 2) if own else "",
        cell(middle(results.added_ms("delay", name, lambda one: one.delay_ms.p50)), 2) if own else "",
        cell(middle(results.added_ms("delay", name, lambda one: one.delay_ms.p99)), 2) if own else "",
        cell(middle(results.held_kib("waiting", name))) if own else "",
        cell(middle(results.streaming_kib(name))) if own else "",
        cell(middle(results.held_kib("sockets", name))) if own else "",
        f"{lost} + {twice} + {faults}",
        ", ".join(f"{used:.2f}" for used in loads if used is not None),
    )


def _store_row(results: Results, name: str) -> tuple[str, ...]:
    """What of the row above is the store's."""
    cells = (
        cell(middle(results.turn_us(name, "valkey"))),
        cell(middle(results.cpu_us("paced", name, "valkey"))),
        cell(middle(results.cpu_us("flood", name, "valkey"))),
    )
    return ("– of it Valkey", *cells, *("",) * (len(HEAD) - len(cells) - 1))


def _cost(values: list[float | None], baseline: list[float | None]) -> str:
    found, times = cell(middle(values)), ratio(values, baseline)
    return f"{found} **{times:.2f} ×**" if found and times is not None else found


def cell(found: Middle | None, digits: int | None = None) -> str:
    """Lay out a median and its spread; without ``digits``, large numbers have none and small ones one."""
    if found is None:
        return ""
    places = digits if digits is not None else 0 if abs(found.median) >= 100 else 1
    least, most = f"{found.least:,.{places}f}", f"{found.most:,.{places}f}"
    spread = "" if least == most else f" ({least}–{most})"
    return f"{found.median:,.{places}f}{spread}"
