"""Reports of the ledger: what tenants used and what it cost, summed by what is asked for, or settlement by settlement.

A report reads a tenant's ledger in pages and keeps sums only, so its cost is that of the settlements since its range
began, and its memory that of its groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple, cast

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TENANT_ID, Tenant, TenantId
from gateway.core.ledger import Ledger, Settlement
from gateway.core.usage import DIMENSIONS, GROUPS_MAX, Dimension, Span, Tally, TooManyGroups, in_span, local_midnight
from gateway.sections import SettingsError
from gateway.tenant_options import time_zone

PAGE: Final = 500  # settlements that are read at a time: one to two milliseconds of the worker's
RECORDS_MAX: Final = 1000  # of a page that is answered
SPAN_MAX: Final = timedelta(days=366)
# A settlement is found by when it was written, on the store's clock, and counts by when its turn ended, on its
# worker's. It is written after that, at times much later, but for what the two clocks differ.
CLOCKS_DIFFER: Final = timedelta(minutes=10)
REPORTS_MAX: Final = 4  # at a time on a worker, of which a tenant has one …
WAITING_MAX: Final = 8  # … and so many wait of each

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CURSOR: Final = re.compile(r"(?P<tenant>[a-z0-9-]{1,32})\.(?P<entry>\d{1,15}-\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a report is asked for, as it was written; the names are those of the API's query."""

    from_: str | None = None
    to: str | None = None
    by: str | None = None
    timezone: str | None = None


class Page(NamedTuple):
    """Settlements of a range, each with its tenant, the oldest first; ``cursor`` leads to those after them, if any."""

    span: Span
    records: Sequence[tuple[TenantId, Settlement]]
    cursor: str | None


class UsageService:
    """Reports what the ledger holds. All methods are safe to cancel."""

    def __init__(self, ledger: Ledger, tenants: Mapping[TenantId, Tenant], *, keep_s: float) -> None:
        """``keep_s``: how long the ledger keeps settlements; what it may have forgotten is not reported."""
        self._ledger = ledger
        self._tenants = tenants
        self.keep_s = keep_s
        self._places = asyncio.Semaphore(REPORTS_MAX)
        self._turn_of: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    async def tenants(self, named: str | None) -> list[TenantId]:
        """Return the tenants of a report: all, or the one that is named, also one that is gone but has settlements.

        Raises GatewayError: not_found, store_unavailable.
        """
        if named is None:
            return sorted(self._tenants)
        name = TenantId(named)
        if TENANT_ID.fullmatch(named) and (name in self._tenants or await self._ledger.settled(name, None, 1)):
            return [name]
        raise GatewayError(Code.NOT_FOUND, f"There is no tenant {named[:64]!r}.", field="tenant")

    def span(self, asked: Asked, tenants: Sequence[TenantId]) -> Span:
        """Return the range that is meant; raises GatewayError(missing_field | invalid_value), naming the field.

        A date is the whole day, in ``timezone``, else in the one tenant's zone, else in UTC; a moment has an offset.
        Without ``to`` it is until now.
        """
        zone = self._zone(asked.timezone, tenants)
        now = datetime.now(zone)
        if asked.from_ is None:
            raise GatewayError(Code.MISSING_FIELD, "Say from when: a date, or a moment as in RFC 3339.", field="from")
        begins = _moment("from", asked.from_, zone, ends=False)
        # What ended within this millisecond has ended.
        ends = _moment("to", asked.to, zone, ends=True) if asked.to is not None else now + timedelta(milliseconds=1)
        if begins >= now:
            raise _invalid("from", "It lies in the future.")
        if begins >= ends:
            raise _invalid("to" if asked.to is not None else "from", "The range is empty: it ends before it begins.")
        if ends - begins > SPAN_MAX:
            raise _invalid("to" if asked.to is not None else "from", f"A range may have {SPAN_MAX.days} days.")
        kept = now - timedelta(seconds=self.keep_s)
        if begins < kept:
            earliest = (kept + timedelta(seconds=1)).astimezone(UTC)
            earliest_at = f"{earliest:%Y-%m-%dT%H:%M:%SZ}"
            raise GatewayError(
                Code.INVALID_VALUE,
                f"Settlements are kept for {_duration(self.keep_s)}; it may be {earliest_at} or later.",
                field="from",
                extra={"earliest": earliest_at},
            )
        return Span(begins, ends, zone)

    async def report(self, tenants: Sequence[TenantId], asked: Asked) -> Tally:
        """Sum the settlements of some tenants.

        Raises GatewayError: missing_field, invalid_value, rate_limited, store_unavailable.
        """
        span, by = self.span(asked, tenants), _dimensions(asked.by)
        tally = Tally(span, by)
        async with self._place(tenants):
            for tenant in tenants:
                async for page in self._pages(tenant, self._since(span)):
                    try:
                        tally.add(tenant, (one for _, one in page))
                    except TooManyGroups:
                        raise _invalid(
                            "by", f"It gives more than {GROUPS_MAX:,} groups; ask for fewer, or for a shorter range."
                        ) from None
        return tally

    async def records(self, tenants: Sequence[TenantId], asked: Asked, cursor: str | None, limit: int) -> Page:
        """Return a page of settlements of some tenants, one tenant after the other.

        Raises GatewayError: missing_field, invalid_value, invalid_cursor, rate_limited, store_unavailable.
        """
        span = self.span(asked, tenants)
        if not 1 <= limit <= RECORDS_MAX:
            raise _invalid("limit", f"limit lies between 1 and {RECORDS_MAX}.")
        first, after = self._begin(tenants, cursor, span)
        found: list[tuple[TenantId, str, Settlement]] = []
        async with self._place(tenants):
            for tenant in tenants[first:]:
                async with contextlib.aclosing(self._pages(tenant, after)) as pages:
                    async for page in pages:
                        found += [(tenant, entry, one) for entry, one in in_span(page, span)]
                        if len(found) > limit:
                            last = found[limit - 1]
                            return Page(span, [(whose, one) for whose, _, one in found[:limit]], f"{last[0]}.{last[1]}")
                after = self._since(span)
        return Page(span, [(whose, one) for whose, _, one in found], None)

    # --- the ledger ----------------------------------------------------------------------------------------------

    def _since(self, span: Span) -> str:
        return self._ledger.cursor((span.begins - CLOCKS_DIFFER).timestamp())

    async def _pages(self, tenant: TenantId, after: str) -> AsyncGenerator[list[tuple[str, Settlement]], None]:
        """Read to the ledger's end: of a turn that ended in the range, the settlement may have been written today."""
        while page := await self._ledger.settled(tenant, after, PAGE):
            yield page
            if len(page) < PAGE:
                return
            after = page[-1][0]

    def _begin(self, tenants: Sequence[TenantId], cursor: str | None, span: Span) -> tuple[int, str]:
        if cursor is None:
            return 0, self._since(span)
        found = _CURSOR.fullmatch(cursor)
        if found is None or TenantId(found["tenant"]) not in tenants:
            raise GatewayError(Code.INVALID_CURSOR, "The cursor is not one that this list gave.", field="cursor")
        return tenants.index(TenantId(found["tenant"])), found["entry"]

    @contextlib.asynccontextmanager
    async def _place(self, tenants: Sequence[TenantId]) -> AsyncIterator[None]:
        """Wait until it is this report's turn; raises GatewayError(rate_limited) where too many wait of the same."""
        whose = tenants[0] if len(tenants) == 1 else ""
        if self._waiting[whose] >= WAITING_MAX:
            raise GatewayError(Code.RATE_LIMITED, "Too many usage reports at a time; wait for one.", retry_after_s=1.0)
        self._waiting[whose] += 1
        lock = self._turn_of.setdefault(whose, asyncio.Lock())
        try:
            async with lock, self._places:
                yield
        finally:
            self._waiting[whose] -= 1
            if not self._waiting[whose]:
                del self._waiting[whose], self._turn_of[whose]

    # --- what is asked for ---------------------------------------------------------------------------------------

    def _zone(self, named: str | None, tenants: Sequence[TenantId]) -> tzinfo:
        if named is not None:
            try:
                return time_zone(named[:64])
            except SettingsError as error:
                raise _invalid("timezone", f"{error.message[:1].upper()}{error.message[1:]}.") from None
        only = self._tenants.get(tenants[0]) if len(tenants) == 1 else None
        return only.plan.zone if only is not None else UTC


def _dimensions(by: str | None) -> tuple[Dimension, ...]:
    """Return what a report is grouped by, in the order in which it is written; raises GatewayError(invalid_value)."""
    if not by:
        return ()
    names = [name.strip() for name in by[:256].split(",")]
    for name in names:
        if name not in DIMENSIONS:
            raise _invalid("by", f"{name[:64]!r} is none of {', '.join(DIMENSIONS)}; records alone are by turn.")
        if names.count(name) > 1:
            raise _invalid("by", f"It names {name} more than once.")
    return tuple(cast(Dimension, name) for name in names)


def _moment(field: str, text: str, zone: tzinfo, *, ends: bool) -> datetime:
    """Return a moment, or where a day begins (``ends``: where it is over)."""
    text = text.strip()
    try:
        if _DAY.fullmatch(text):
            return local_midnight(text, zone, following=ends)
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(zone)
    except (ValueError, OverflowError):
        pass
    raise _invalid(
        field, f"{text[:64]!r} is no date (2026-11-22) and no moment with an offset (2026-11-22T10:00:00+01:00, …Z)."
    )


def _invalid(field: str, detail: str) -> GatewayError:
    return GatewayError(Code.INVALID_VALUE, detail, field=field)


def _duration(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:g} days" if days >= 1 else f"{seconds:g} s"
