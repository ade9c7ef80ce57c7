"""Directives: words inside a chat message that steer the answer, for tests and for people at a keyboard.

| word | effect |
| --- | --- |
| ``#tokens=500`` | exactly that many completion tokens |
| ``#rate=20`` | items a second of this answer (0: as fast as flow control allows) |
| ``#delay=0.5`` | seconds before the first item |
| ``#seed=7`` | another answer to the same words |
| ``#echo`` | the answer is the message without its directives, character for character |
| ``#citations`` or ``#citations=3`` | citations on the last item, that many |
| ``#raw`` | non-ASCII as plain UTF-8, not escaped |
| ``#clock`` | each delta is ``<number>@<ns> ``: counted from 0, and the monotonic clock at sending (for benchmarks) |
| ``#fault=stall:5`` | a fault for this chat alone (may be repeated) |

A word counts only with white space or an end of the message on both sides; anything else after a ``#`` is text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gateway.simulator.faults import CONNECTION_FAULTS, Fault, parse_fault

_WORD = re.compile(r"(?<!\S)#(tokens|rate|delay|seed|echo|citations|raw|clock|fault)(?:=(\S+))?(?!\S)")
MAX_TOKENS = 200_000
MAX_CITATIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Directives:
    """Holds what a message asks for; None means that it does not say."""

    text: str
    tokens: int | None = None
    rate_per_s: float | None = None
    first_token_s: float | None = None
    seed: int | None = None
    echo: bool = False
    citations: int | None = None
    raw_utf8: bool | None = None
    clock: bool = False
    faults: tuple[Fault, ...] = ()


def read_directives(message: str) -> Directives:
    """Splits a message into its text and its directives; raises ValueError for a known word with a bad value."""
    found: dict[str, str | None] = {}
    faults: list[Fault] = []
    for match in _WORD.finditer(message):
        name, value = match[1], match[2]
        if name == "fault":
            fault = parse_fault(value or "")
            if fault.name in CONNECTION_FAULTS:
                raise ValueError(f"#fault={fault.name} belongs to the whole server, not to a message")
            faults.append(fault)
        else:
            found[name] = value
    text = _WORD.sub("", message).strip() if found or faults else message.strip()
    return Directives(
        text=text,
        tokens=_whole(found, "tokens", 1, MAX_TOKENS),
        rate_per_s=_real(found, "rate", 100_000),
        first_token_s=_real(found, "delay", 600),
        seed=_whole(found, "seed", 0, 2**32),
        echo="echo" in found,
        citations=2
        if "citations" in found and found["citations"] is None
        else _whole(found, "citations", 0, MAX_CITATIONS),
        raw_utf8=True if "raw" in found else None,
        clock="clock" in found,
        faults=tuple(faults),
    )


def _whole(found: dict[str, str | None], name: str, least: int, most: int) -> int | None:
    if name not in found:
        return None
    value = found[name] or ""
    if not (value.isascii() and value.isdigit() and len(value) < 12 and least <= int(value) <= most):
        raise ValueError(f"#{name} takes a whole number from {least} to {most}")
    return int(value)


def _real(found: dict[str, str | None], name: str, most: float) -> float | None:
    if name not in found:
        return None
    try:
        value = float(found[name] or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"#{name} takes a number from 0 to {most:g}")
    return value
