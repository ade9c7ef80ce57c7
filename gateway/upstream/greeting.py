"""What the upstream says of itself to somebody without a key."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

STAND_IN: Final = "x-simulator"  # the header by which the simulator is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """``clock_ahead_s`` is of this machine's, to the second (a Date header has no fractions); None where none came."""

    stand_in: bool
    clock_ahead_s: float | None


def greeting_of(headers: Mapping[str, str], *, asked_s: float) -> Greeting:
    """Read an answer's headers; ``asked_s`` is Unix time."""
    ahead_s = None
    if "date" in headers:
        with contextlib.suppress(ValueError):
            # Cut to whole seconds: half of one more is likelier than none.
            ahead_s = parsedate_to_datetime(headers["date"]).timestamp() + 0.5 - (asked_s + time.time()) / 2
    return Greeting(stand_in=STAND_IN in headers, clock_ahead_s=ahead_s)
