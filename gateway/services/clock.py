"""The time as the wire shows it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache


def timestamp() -> str:
    """Return the current time in ISO 8601 with milliseconds and ``Z``."""
    second, ms = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_date(second)}.{ms:03}Z"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def iso(at_s: float) -> str:
    """Return a Unix time in ISO 8601 to the second, with ``Z``."""
    return datetime.fromtimestamp(int(at_s), UTC).isoformat().replace("+00:00", "Z")


def age_s(at: str) -> float:
    """Return how long ago a ``timestamp`` was, in seconds."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


def unix_s(at: str) -> float:
    """Return the Unix time of a ``timestamp``."""
    return datetime.fromisoformat(at).timestamp()
