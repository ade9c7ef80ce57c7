"""Usage: what a range of the ledger is asked for, and the sums of its settlements, group by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, Literal, NamedTuple, get_args

from gateway.core.identity import TenantId
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnState

Dimension = Literal["month", "day", "hour", "tenant", "persona", "user", "outcome", "source", "key"]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
TIMES: Final[frozenset[Dimension]] = frozenset(("month", "day", "hour"))
GROUPS_MAX: Final = 10_000  # of one report; beyond it nobody reads them
MINUTE_CHARS: Final = len("2026-11-22T10:35")  # of a time in ISO 8601: no zone of our days has an offset with seconds


class TooManyGroups(Exception):
    """A report would have more than ``GROUPS_MAX`` groups."""


class Span(NamedTuple):
    """A range of time, aware: ``begins`` is in it, ``ends`` is not. Days and hours are the zone's."""

    begins: datetime
    ends: datetime
    zone: tzinfo

    def bounds(self) -> tuple[str, str]:
        """Return the range as the ledger writes times, so that they compare as text."""
        return _written(self.begins), _written(self.ends)


@dataclass(slots=True)
class Sums:
    """What settlements add up to. ``turns`` and ``moderations`` are counted apart, their outcomes together.

    ``estimated`` is how many of them have estimated tokens. ``cost_micros`` is None where there was no price.
    """

    turns: int = 0
    moderations: int = 0
    completed: int = 0
    stopped: int = 0
    failed: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost_micros: int | None = None

    def add(self, one: Settlement) -> None:
        if one.conversation_id:
            self.turns += 1
        else:
            self.moderations += 1
        if one.state is TurnState.COMPLETED:
            self.completed += 1
        elif one.state is TurnState.STOPPED:
            self.stopped += 1
        else:
            self.failed += 1
        if one.source == "estimated":
            self.estimated += 1
        self.prompt_tokens += one.prompt_tokens
        self.completion_tokens += one.completion_tokens
        self.total_tokens += one.total_tokens
        if one.cost_micros is not None:
            self.cost_micros = (self.cost_micros or 0) + one.cost_micros

    def join(self, other: Sums) -> None:
        """Add what others add up to."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None:
                setattr(self, name, (mine or 0) + theirs)


class Row(NamedTuple):
    """A group: its values in the order of the dimensions (None: there is none), a currency, and its sums.

    The currency always tells groups apart, for sums of two mean nothing; None is that of turns without a price.
    """

    values: tuple[str | None, ...]
    currency: str | None
    sums: Sums


@dataclass(slots=True)
class Tally:
    """Adds settlements up as they are read; what it holds grows with the groups, not with the settlements."""

    span: Span
    by: Sequence[Dimension]
    _groups: dict[tuple[str | None, ...], Sums] = field(default_factory=dict)
    _times: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by the minute

    def add(self, tenant: TenantId, settlements: Iterable[Settlement]) -> None:
        """Add a tenant's settlements, those outside the range left out; raises TooManyGroups."""
        begins, ends = self.span.bounds()
        by, groups = self.by, self._groups
        for one in settlements:
            if not begins <= one.ended_at < ends:
                continue
            key = (*self._values(by, tenant, one), one.currency)
            sums = groups.get(key)
            if sums is None:
                if len(groups) >= GROUPS_MAX:
                    raise TooManyGroups
                sums = groups[key] = Sums()
            sums.add(one)

    def rows(self) -> list[Row]:
        """Return the groups, sorted by their values, those without one last."""
        order = sorted(self._groups, key=lambda key: [(value is None, value or "") for value in key])
        return [Row(key[:-1], key[-1], self._groups[key]) for key in order]

    def total(self) -> list[Row]:
        """Return the sums of all groups, one for each currency."""
        totals: dict[str | None, Sums] = {}
        for key, sums in self._groups.items():
            totals.setdefault(key[-1], Sums()).join(sums)
        order = sorted(totals, key=lambda currency: (currency is None, currency or ""))
        return [Row((), currency, totals[currency]) for currency in order]

    def _values(self, by: Sequence[Dimension], tenant: TenantId, one: Settlement) -> Iterator[str | None]:
        for dimension in by:
            if dimension in TIMES:
                yield self._time(dimension, one.ended_at)
            elif dimension == "tenant":
                yield tenant
            elif dimension == "persona":
                yield one.persona or None
            elif dimension == "user":
                yield one.owner
            elif dimension == "outcome":
                yield one.state
            elif dimension == "source":
                yield one.source
            else:
                yield one.vendor_key

    def _time(self, dimension: Dimension, at: str) -> str:
        minute = at[:MINUTE_CHARS]
        known = self._times.get(minute)
        if known is None:
            if len(self._times) >= GROUPS_MAX:  # a week of minutes; the next begin anew
                self._times.clear()
            local = datetime.fromisoformat(minute).replace(tzinfo=UTC).astimezone(self.span.zone)
            hour = local.replace(minute=0, second=0).isoformat(timespec="minutes")
            known = self._times[minute] = (f"{local:%Y-%m}", f"{local:%Y-%m-%d}", hour)
        return known[DIMENSIONS.index(dimension)]


def in_span(settlements: Iterable[tuple[str, Settlement]], span: Span) -> list[tuple[str, Settlement]]:
    """Return those that ended within a range, each with its cursor."""
    begins, ends = span.bounds()
    return [(cursor, one) for cursor, one in settlements if begins <= one.ended_at < ends]


def local_midnight(day: str, zone: tzinfo, *, following: bool = False) -> datetime:
    """Return when a day (``YYYY-MM-DD``) begins in a zone, or the one after it.

    A midnight that a change of the clocks leaves out is the moment of that change (PEP 495).
    Raises ValueError for what is no day, OverflowError beyond the first or the last one that there is.
    """
    named = date.fromisoformat(day) + timedelta(days=1 if following else 0)
    return datetime.fromtimestamp(datetime(named.year, named.month, named.day, tzinfo=zone).timestamp(), zone)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"
