"""A tenant's plan: how much its users, personas and visitors may use, and by which calendar budgets are counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final, Literal, NamedTuple, get_args

Scope = Literal["tenant", "user", "anonymous", "app", "persona", "address"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)


class StoreAway(StrEnum):
    """What becomes of requests while the store cannot be asked."""

    CLOSED = "closed"  # they are refused
    OPEN = "open"  # they go on under limits that each worker counts for itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeLimits:
    """What one tenant, user, persona or address may use; 0 is no limit. Requests are counted by kind of request."""

    requests_per_s: int = 0
    requests_per_min: int = 0
    tokens_per_min: int = 0
    concurrent_turns: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0

    def tightened(self, other: ScopeLimits) -> ScopeLimits:
        """Return of each limit the lower; where one of the two has none, the other's holds."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.__slots__}
        return ScopeLimits(**{name: min(pair) or max(pair) for name, pair in pairs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All limits of a tenant. ``anonymous`` holds for visitors in the place of ``user``; ``address`` for them alone.

    Visitors by a key of kind ``app`` have the lower of ``app`` and ``anonymous``, see ``of``.
    ``away_share`` of each limit is what one worker grants by itself under ``StoreAway.OPEN``.
    """

    tenant: ScopeLimits = field(default_factory=lambda: ScopeLimits(requests_per_min=6000))
    user: ScopeLimits = field(default_factory=lambda: ScopeLimits(requests_per_min=60, concurrent_turns=20))
    anonymous: ScopeLimits = field(default_factory=lambda: ScopeLimits(requests_per_min=30, concurrent_turns=4))
    app: ScopeLimits = field(default_factory=lambda: ScopeLimits(requests_per_min=10, concurrent_turns=2))
    persona: ScopeLimits = field(default_factory=ScopeLimits)
    address: ScopeLimits = field(default_factory=lambda: ScopeLimits(requests_per_min=600))
    zone: tzinfo = UTC
    store_away: StoreAway = StoreAway.CLOSED
    away_share: float = 0.25

    def of(self, scope: Scope) -> ScopeLimits:
        """Return the limits that hold in a scope."""
        limits: ScopeLimits = getattr(self, scope)
        return limits.tightened(self.anonymous) if scope == "app" else limits


class Calendar(NamedTuple):
    """The day and the month that a moment lies in, somewhere; times in Unix microseconds, ends exclusive."""

    day: str
    month: str
    day_begins_us: int
    day_ends_us: int
    month_ends_us: int


def calendar(now_us: int, zone: tzinfo) -> Calendar:
    """Return the calendar of a moment. A day may have 23 or 25 hours, and need not begin at a full one."""
    today = datetime.fromtimestamp(now_us // 1_000_000, zone).date()
    following = (today.replace(day=1) + timedelta(days=31)).replace(day=1)
    begins, ends, month_ends = (
        # A midnight that a change of the clocks leaves out is the moment of that change (PEP 495).
        int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1_000_000
        for day in (today, today + timedelta(days=1), following)
    )
    return Calendar(f"{today:%Y%m%d}", f"{today:%Y%m}", begins, ends, month_ends)
