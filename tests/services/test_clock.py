"""The time as the wire shows it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from gateway.services.clock import age_s, iso, timestamp


def test_timestamp_is_now_to_the_millisecond() -> None:
    """A timestamp is ISO 8601 in UTC, never ahead and at most a digit behind, second after second."""
    until = time.monotonic() + 1.05
    seen: list[str] = []
    while time.monotonic() < until:
        before = time.time()
        shown = timestamp()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown)
        assert before - 0.0011 <= datetime.fromisoformat(shown).timestamp() <= time.time()
        seen.append(shown)
    assert seen == sorted(seen)
    assert len({shown[:19] for shown in seen}) >= 2
    assert 0 <= age_s(seen[-1]) < 60


def test_iso_is_to_the_second() -> None:
    """A Unix time is shown in UTC without its fraction."""
    assert iso(1_790_000_000.9) == "2026-09-21T14:13:20Z"
    assert datetime.fromisoformat(iso(0)) == datetime(1970, 1, 1, tzinfo=UTC)
