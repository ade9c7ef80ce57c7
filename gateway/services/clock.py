"""The time as the wire shows it."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp() -> str:
    """Return the current time in ISO 8601 with milliseconds and ``Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso(at_s: float) -> str:
    """Return a Unix time in ISO 8601 to the second, with ``Z``."""
    return datetime.fromtimestamp(int(at_s), UTC).isoformat().replace("+00:00", "Z")


def age_s(at: str) -> float:
    """Return how long ago a ``timestamp`` was, in seconds."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
