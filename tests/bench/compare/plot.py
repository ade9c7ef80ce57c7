"""The comparison as a plot: a point a contender, with its spread, on axes of powers of ten."""

from __future__ import annotations

import math
from typing import Final
from xml.sax.saxutils import escape

from tests.bench.compare.results import Middle, Results, middle

NAMES_PX: Final = 190
PANEL_PX: Final = 250
GAP_PX: Final = 24
ROW_PX: Final = 26
TOP_PX: Final = 56
BOTTOM_PX: Final = 30
OURS: Final = "gateway"

_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}.faint{fill:#59636e}"
    ".grid{stroke:#d1d9e0}.range{stroke:#59636e;stroke-width:2}.dot{fill:#59636e}"
    ".ours .range{stroke:#cf222e}.ours .dot{fill:#cf222e}.ours text{font-weight:600}"
)


def plot(results: Results) -> str:
    """Draw CPU time for a turn and for an event, under both loads, as an SVG document."""
    lines = [line for line in results.lines if line.parts]
    panels: list[tuple[str, list[Middle | None]]] = [
        ("CPU µs / turn of 10 events", [middle(results.turn_us(line.name)) for line in lines]),
        ("CPU µs / event, 500 × 4/s", [middle(results.cpu_us("paced", line.name)) for line in lines]),
        ("CPU µs / event, 1,000 × 20/s", [middle(results.cpu_us("flood", line.name)) for line in lines]),
    ]
    width = NAMES_PX + len(panels) * (PANEL_PX + GAP_PX)
    height = TOP_PX + len(lines) * ROW_PX + BOTTOM_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><title>CPU time for a streamed turn and event</title><style>{_STYLE}</style>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for row, line in enumerate(lines):
        kind = "ours" if line.name == OURS else "other"
        text = f'<text x="{NAMES_PX - 12}" y="{_y(row) + 4}" text-anchor="end">{escape(line.title)}</text>'
        parts.append(f'<g class="{kind}">{text}</g>')
    names = [line.name for line in lines]
    for number, (title, found) in enumerate(panels):
        parts += _panel(NAMES_PX + number * (PANEL_PX + GAP_PX), title, names, found, height - BOTTOM_PX)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, title: str, names: list[str], found: list[Middle | None], bottom: int) -> list[str]:
    parts = [f'<text class="title" x="{left}" y="22">{escape(title)}</text>']
    there = [one for one in found if one is not None and one.least > 0]
    if not there:
        return [*parts, f'<text class="faint" x="{left}" y="{TOP_PX}">not measured</text>']
    low, high = decades(min(one.least for one in there), max(one.most for one in there))

    def x(value: float) -> float:
        return round(left + PANEL_PX * (math.log10(value) - low) / (high - low), 1)

    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP_PX - 16}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" x="{at}" y="{bottom + 18}" text-anchor="middle">{10.0**power:,.0f}</text>')
    for row, (name, one) in enumerate(zip(names, found, strict=True)):
        if one is None or one.least <= 0:
            continue
        y, places = _y(row), 0 if one.median >= 100 else 1
        to_left = x(one.most) > left + PANEL_PX - 50
        label_x, anchor = (x(one.least) - 8, "end") if to_left else (x(one.most) + 8, "start")
        parts.append(
            f'<g class="{"ours" if name == OURS else "other"}">'
            f'<line class="range" x1="{x(one.least)}" x2="{x(one.most)}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{x(one.median)}" cy="{y}" r="4"/>'
            f'<text x="{label_x}" y="{y + 4}" text-anchor="{anchor}">{one.median:,.{places}f}</text></g>'
        )
    return parts


def decades(least: float, most: float) -> tuple[int, int]:
    """The powers of ten around a range; never the same one twice."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return low, max(high, low + 1)


def _y(row: int) -> int:
    return TOP_PX + row * ROW_PX
