"""Usage reports over a real ledger: what a range holds, how it is asked for, and what is refused."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from gateway.core import usage as rules
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Persona, Tenant, TenantId, UserHash
from gateway.core.ledger import Settlement
from gateway.core.plan import Plan
from gateway.core.turn import TurnId
from gateway.services import usage as service
from gateway.services.usage import Asked, UsageService
from gateway.store.ledger import RedisLedger
from gateway.store.redis import Keys, Redis
from tests.core.test_usage import settlement

DAY_S = 86_400.0
PERSONA = Persona(alias="default", persona_id="0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab")


class Books:
    """Ledgers of two tenants of the test's own, written as they were some time ago."""

    def __init__(self, url: str) -> None:
        self.redis = Redis(url, timeout_s=2.0, connections=2)
        self.ledger = RedisLedger(self.redis, ttl_s=40 * DAY_S, retries_s=())
        first, second = sorted(f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
        self.here, self.there = TenantId(first), TenantId(second)
        self.tenants = {
            self.here: Tenant(id=self.here, personas={"default": PERSONA}, plan=Plan(zone=ZoneInfo("Europe/Berlin"))),
            self.there: Tenant(id=self.there, personas={"default": PERSONA}),
        }
        self.usage = UsageService(self.ledger, self.tenants, keep_s=40 * DAY_S)

    async def write(self, tenant: TenantId, *settlements: Settlement, written_at: datetime | None = None) -> None:
        """Write settlements, all at one moment of the store's clock, or each as its turn ended."""
        for number, one in enumerate(settlements):
            at = written_at or datetime.fromisoformat(one.ended_at)
            entry = f"{int(at.timestamp() * 1000)}-{number + 1}"
            await self.redis.call("XADD", Keys(tenant).settlements(), entry, "s", msgspec.json.encode(one))

    async def turns(self, asked: Asked, *tenants: TenantId) -> int:
        tally = await self.usage.report(tenants or [self.here], asked)
        return sum(row.sums.turns for row in tally.total())


@pytest.fixture
async def books(store_url: str) -> AsyncIterator[Books]:
    books = Books(store_url)
    yield books
    for tenant in books.tenants:
        await books.redis.call("DEL", Keys(tenant).settlements())
    await books.redis.aclose()


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def named(number: int, **fields: Any) -> Settlement:
    """A settlement that ended so many minutes ago, with an id of its own."""
    return settlement(ago(minutes=number), turn_id=TurnId(f"turn-{number}"), **fields)


async def refused(books: Books, asked: Asked) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await books.usage.report([books.here], asked)
    return caught.value


async def test_report_sums_what_ended_in_the_range(books: Books) -> None:
    """Of a range the settlements of its turns, each once, and of the tenants that are asked for alone."""
    await books.write(books.here, *(named(minute) for minute in range(50, 0, -1)))
    await books.write(books.there, named(5))
    assert await books.turns(Asked(from_=ago(hours=1).isoformat())) == 50
    middle = Asked(from_=ago(minutes=30, seconds=30).isoformat(), to=ago(minutes=10, seconds=30).isoformat())
    assert await books.turns(middle) == 20
    assert await books.turns(Asked(from_=ago(hours=1).isoformat()), books.here, books.there) == 51
    tally = await books.usage.report([books.here, books.there], Asked(from_=ago(hours=1).isoformat(), by="tenant"))
    assert [(row.values[0], row.sums.turns) for row in tally.rows()] == [(books.here, 50), (books.there, 1)]


async def test_report_reads_every_page_of_a_ledger(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a page's end none is left out and none comes twice, whether or not the last page is full."""
    monkeypatch.setattr(service, "PAGE", 10)
    for count in range(28, 33):
        await books.redis.call("DEL", Keys(books.here).settlements())
        await books.write(books.here, *(named(minute) for minute in range(count, 0, -1)))
        assert await books.turns(Asked(from_=ago(hours=1).isoformat())) == count


async def test_turn_counts_where_it_ended_whenever_it_was_settled(books: Books) -> None:
    """Tokens that were looked up later, or written by a clock that is behind, are of the day of the ending."""
    yesterday = f"{ago(days=1).astimezone(ZoneInfo('Europe/Berlin')):%Y-%m-%d}"
    midnight = datetime.fromisoformat(yesterday).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    early = settlement(midnight + timedelta(seconds=1))
    late = settlement(midnight + timedelta(hours=23))
    before = settlement(midnight - timedelta(seconds=1))
    await books.write(books.here, early, written_at=midnight - timedelta(minutes=9))  # the store's clock is behind
    await books.write(books.here, before, late, written_at=datetime.now(UTC))
    assert await books.turns(Asked(from_=yesterday, to=yesterday)) == 2
    tally = await books.usage.report([books.here], Asked(from_=yesterday, by="day"))
    assert [(row.values[0], row.sums.turns) for row in tally.rows()] == [(yesterday, 2)]


async def test_date_is_a_day_of_the_tenants_zone(books: Books) -> None:
    """The one tenant's zone, or the one that is asked for; of several tenants UTC."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for tenants, asked, zone in (
        ([books.here], Asked(from_=today), ZoneInfo("Europe/Berlin")),
        ([books.there], Asked(from_=today), UTC),
        ([books.here, books.there], Asked(from_=today), UTC),
        ([books.here], Asked(from_=today, timezone="America/New_York"), ZoneInfo("America/New_York")),
    ):
        past = Asked(from_=f"{ago(days=3):%Y-%m-%d}", to=f"{ago(days=2):%Y-%m-%d}", timezone=asked.timezone)
        span = books.usage.span(past, tenants)
        assert span.zone == zone
        assert span.begins.astimezone(zone).hour == span.ends.astimezone(zone).hour == 0
        assert span.ends.astimezone(zone).date() - span.begins.astimezone(zone).date() == timedelta(days=2)


@pytest.mark.parametrize(
    ("asked", "code", "field", "words"),
    [
        ({}, Code.MISSING_FIELD, "from", "date"),
        ({"from_": "yesterday"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "2026-02-30"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "20261122"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "2026-W47-7"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "2026-11-22T10:00:00"}, Code.INVALID_VALUE, "from", "offset"),
        ({"from_": "2026-11-22T25:00:00Z"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "0001-01-01T00:00:00+14:00"}, Code.INVALID_VALUE, "from", "no date"),
        ({"from_": "-1d", "to": "9999-12-31"}, Code.INVALID_VALUE, "to", "no date"),
        ({"from_": "-1d", "to": "x" * 5000}, Code.INVALID_VALUE, "to", "no date"),
        ({"from_": "-1d", "to": "-2d"}, Code.INVALID_VALUE, "to", "empty"),
        ({"from_": "-1d", "to": "-1d"}, Code.INVALID_VALUE, "to", "empty"),
        ({"from_": "+1d"}, Code.INVALID_VALUE, "from", "future"),
        ({"from_": "-3650d"}, Code.INVALID_VALUE, "from", "366 days"),
        ({"from_": "-3650d", "to": "-3640d"}, Code.INVALID_VALUE, "from", "kept for 40 days"),
        ({"from_": "-41d"}, Code.INVALID_VALUE, "from", "kept for 40 days"),
        ({"from_": "-1d", "to": "+3650d"}, Code.INVALID_VALUE, "to", "366 days"),
        ({"from_": "-1d", "by": "colour"}, Code.INVALID_VALUE, "by", "none of"),
        ({"from_": "-1d", "by": "day,,persona"}, Code.INVALID_VALUE, "by", "none of"),
        ({"from_": "-1d", "by": "day,turn"}, Code.INVALID_VALUE, "by", "by turn"),
        ({"from_": "-1d", "by": "day,day"}, Code.INVALID_VALUE, "by", "more than once"),
        ({"from_": "-1d", "timezone": "Mars/Crater"}, Code.INVALID_VALUE, "timezone", "time zone"),
        ({"from_": "-1d", "timezone": "../../etc/passwd"}, Code.INVALID_VALUE, "timezone", "time zone"),
    ],
)
async def test_report_that_makes_no_sense_is_refused(
    books: Books, asked: dict[str, str], code: Code, field: str, words: str
) -> None:
    """A range that is empty, endless, ahead or forgotten, and what nobody can group by: named by its field."""
    now = datetime.now(UTC)
    moments = {
        name: (now + timedelta(days=int(text[:-1]))).isoformat() if text[-1:] == "d" and text[0] in "+-" else text
        for name, text in asked.items()
    }
    error = await refused(books, Asked(**moments))
    assert (error.code, error.field) == (code, field)
    assert words in error.detail
    assert len(error.detail) < 300


async def test_range_may_begin_where_the_refusal_says(books: Books) -> None:
    """Whoever asks for more than is kept is told from when on, and that works."""
    error = await refused(books, Asked(from_=ago(days=41).isoformat()))
    earliest = error.detail.split("it may be ")[1].split(" or later")[0]
    assert await books.turns(Asked(from_=earliest)) == 0


async def test_report_with_too_many_groups_is_refused(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many groups as are allowed are told, one more is told to be too many."""
    monkeypatch.setattr(rules, "GROUPS_MAX", 3)
    await books.write(books.here, *(named(minute, owner=UserHash(f"u{minute}")) for minute in (3, 2, 1)))
    asked = Asked(from_=ago(hours=1).isoformat(), by="user")
    assert len((await books.usage.report([books.here], asked)).rows()) == 3
    await books.redis.call("XADD", Keys(books.here).settlements(), "*", "s", msgspec.json.encode(named(0)))
    error = await refused(books, asked)
    assert (error.code, error.field) == (Code.INVALID_VALUE, "by")


async def test_settlement_that_is_written_again_adds_nothing(books: Books) -> None:
    """A repeat whose answer was lost is known by the store, and the report has its turn once."""
    one = settlement(datetime.now(UTC), turn_id=TurnId(str(uuid.uuid4())), cost_micros=5, currency="EUR")
    assert [await books.ledger.add(books.here, one) for _ in range(3)] == [True, False, False]
    tally = await books.usage.report([books.here], Asked(from_=ago(hours=1).isoformat()))
    assert [(row.sums.turns, row.sums.cost_micros) for row in tally.total()] == [(1, 5)]


async def test_records_are_paged_without_a_gap_or_a_repeat(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the pages are cut, over tenants and while more is settled: each settlement once, in order."""
    monkeypatch.setattr(service, "PAGE", 4)
    await books.write(books.here, *(named(minute) for minute in range(20, 10, -1)))
    await books.write(books.there, *(named(minute) for minute in range(9, 2, -1)))
    asked = Asked(from_=ago(hours=1).isoformat(), by="turn")
    both = [books.here, books.there]
    for limit in (1, 3, 4, 5, 16, 17, 18):
        seen: list[tuple[TenantId, str]] = []
        cursor: str | None = None
        while True:
            page = await books.usage.records(both, asked, cursor, limit)
            assert len(page.records) <= limit
            seen += [(tenant, one.turn_id) for tenant, one in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [
            *((books.here, f"turn-{minute}") for minute in range(20, 10, -1)),
            *((books.there, f"turn-{minute}") for minute in range(9, 2, -1)),
        ]


@pytest.mark.parametrize(
    "cursor", ["", "x", "1-1", "{there}.1-1", "nobody.1-1", "{here}.1", "{here}.1-1-1", "{here}.-"]
)
async def test_cursor_that_the_list_did_not_give_is_refused(books: Books, cursor: str) -> None:
    """Another tenant's among them; nothing of it reaches the store."""
    named = cursor.format(here=books.here, there=books.there)
    with pytest.raises(GatewayError) as caught:
        await books.usage.records([books.here], Asked(from_=ago(hours=1).isoformat()), named, 10)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_CURSOR, "cursor")


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**9])
async def test_page_of_no_or_too_many_records_is_refused(books: Books, limit: int) -> None:
    """A page has a bound."""
    with pytest.raises(GatewayError) as caught:
        await books.usage.records([books.here], Asked(from_=ago(hours=1).isoformat()), None, limit)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, "limit")


async def test_tenant_that_is_gone_is_reported_while_its_ledger_is_there(books: Books) -> None:
    """What it cost until it was deleted can be billed; a name that never was is unknown."""
    gone = TenantId(f"gone-{uuid.uuid4().hex[:12]}")
    await books.write(gone, named(1))
    try:
        assert await books.usage.tenants(gone) == [gone]
        assert await books.turns(Asked(from_=ago(hours=1).isoformat()), gone) == 1
    finally:
        await books.redis.call("DEL", Keys(gone).settlements())
    for name in (gone, "Nobody", "", "x" * 999, "{a}"):
        with pytest.raises(GatewayError) as caught:
            await books.usage.tenants(name)
        assert (caught.value.code, caught.value.field) == (Code.NOT_FOUND, "tenant")
    assert await books.usage.tenants(None) == [books.here, books.there]


async def test_reports_of_one_tenant_wait_for_each_other(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's backend that asks for many at once holds nobody else up, and is told when it is too much."""
    await books.write(books.here, *(named(minute) for minute in range(50, 0, -1)))
    monkeypatch.setattr(service, "PAGE", 1)
    asked = Asked(from_=ago(hours=1).isoformat())
    reports = [asyncio.ensure_future(books.turns(asked)) for _ in range(service.WAITING_MAX + 3)]
    await asyncio.sleep(0)  # each has begun
    assert await books.turns(asked, books.there) == 0
    told = await asyncio.gather(*reports, return_exceptions=True)
    refusals = [one for one in told if isinstance(one, GatewayError)]
    assert [one for one in told if not isinstance(one, GatewayError)] == [50] * service.WAITING_MAX
    assert {one.code for one in refusals} == {Code.RATE_LIMITED}
    assert await books.turns(asked) == 50  # places are given back, also of those who were refused
    assert not books.usage._waiting
    assert not books.usage._turn_of


@pytest.mark.slow
async def test_report_of_a_large_ledger_lets_the_worker_go_on(books: Books) -> None:
    """While 100,000 settlements are read, nothing else on the loop waits for more than some milliseconds."""
    body = msgspec.json.encode(named(1, cost_micros=5, currency="EUR"))
    for _ in range(100):
        await asyncio.gather(
            *(books.redis.call("XADD", Keys(books.here).settlements(), "*", "s", body) for _ in range(1000))
        )
    waits: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - before)

    watcher = asyncio.ensure_future(watch())
    assert await books.turns(Asked(from_=ago(hours=1).isoformat(), by="day,persona,user")) == 100_000
    watcher.cancel()
    waits.sort()
    assert len(waits) > 200  # it came by between the pages
    assert waits[-len(waits) // 100] < 0.05
