"""The export: every settlement is a row once, whoever exports, and whatever dies or forgets in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId, WorkerId
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnId, TurnState
from gateway.core.warehouse import Line, Mark, Page, Post, Reading, Taken
from gateway.options import LedgerSettings
from gateway.sections import Secret
from gateway.services.export import MARKS_KEPT, Exporter, Trail
from gateway.store.embedded import EmbeddedValkey
from gateway.store.ledger import RedisLedger
from gateway.store.ledger_tap import POST, TENANTS, RedisLedgerTap
from gateway.store.redis import Keys, Redis
from gateway.telemetry import logging
from gateway.telemetry.families import Families
from gateway.telemetry.ledger_export import LedgerExportMetrics
from gateway.telemetry.throttle import Throttle
from gateway.warehouse.postgres import Postgres
from gateway.warehouse.target import Target
from tests.panel import value
from tests.postgres import PostgresServer
from tests.warehouse.conftest import settlement

PATIENCE_S = 30.0
KEEP_S = 600.0


class Tap(RedisLedgerTap):
    """Counts what is read, and how often all tenants were gone over."""

    read_lines = 0
    passes = 0

    async def take_post(self, *, complete_s: float | None = None) -> Post:
        post = await super().take_post(complete_s=complete_s)
        self.passes += complete_s is not None
        return post

    async def read(self, tenant: TenantId, after: Mark | None, limit: int) -> Reading:
        reading = await super().read(tenant, after, limit)
        self.read_lines += len(reading.lines)
        return reading


class Counted(Postgres):
    """Counts batches, and how large they were."""

    def __init__(self, target: Target, **options: Any) -> None:
        super().__init__(target, **options)
        self.batches: list[int] = []

    async def take(self, pages: Any) -> Taken:
        self.batches.append(sum(len(page.lines) for page in pages))
        return await super().take(pages)


class Site:
    """A store, a database, and exporters between them."""

    def __init__(self, store: Redis, url: str, postgres: PostgresServer, database: str) -> None:
        self.store = store
        self.url = url
        self.families = Families()
        self.metrics = LedgerExportMetrics(self.families)
        self.exporters: list[Exporter] = []
        self.taps: list[Tap] = []
        self.warehouses: list[Counted] = []
        self._ledger = RedisLedger(store, ttl_s=KEEP_S, retries_s=())
        self._postgres = postgres
        self._database = database

    def exporter(self, tenants: Collection[TenantId], **options: Any) -> Exporter:
        """Begin to export."""
        post_s, url = options.pop("post_s", 20.0), options.pop("url", self.url)
        keep_s = options.setdefault("keep_s", KEEP_S)
        metrics = options.pop("metrics", self.metrics)
        tap = Tap(self.store, WorkerId(uuid.uuid4().hex), post_s=post_s, keep_s=keep_s)
        warehouse = Counted(Target(LedgerSettings(url=Secret(url))))
        options = {"interval_s": 0.02, "batch": 100, "look_s": 0.05} | options
        exporter = Exporter(tap, warehouse, tenants, metrics, **options)
        self.taps.append(tap)
        self.warehouses.append(warehouse)
        self.exporters.append(exporter)
        exporter.open()
        return exporter

    async def settle(self, tenant: TenantId, count: int = 1, **fields: Any) -> list[Settlement]:
        made = [settlement(**fields) for _ in range(count)]
        for one in made:
            assert await self._ledger.add(tenant, one)
        return made

    async def ledger(self, tenant: TenantId) -> set[TurnId]:
        """The turns that the ledger has."""
        found: set[TurnId] = set()
        cursor = None
        while page := await self._ledger.settled(tenant, cursor, 1000):
            found |= {one.turn_id for _, one in page}
            cursor = page[-1][0]
        return found

    async def exported(self, tenant: TenantId) -> dict[TurnId, int]:
        """The turns that the database has, with their tokens."""
        query = "SELECT turn_id, total_tokens FROM hyperleap.settlements WHERE tenant = $1"
        try:
            rows = await self._postgres.fetch(self._database, query, tenant)
        except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError):  # nobody has begun yet
            return {}
        return {TurnId(row["turn_id"]): row["total_tokens"] for row in rows}

    async def until_exported(self, tenant: TenantId) -> None:
        """Wait until the database has what the ledger has, and nothing else."""
        await until(lambda: self._same(tenant))

    async def _same(self, tenant: TenantId) -> bool:
        return (await self.exported(tenant)).keys() == await self.ledger(tenant)

    def told(self, name: str, **labels: str) -> float:
        return value(self.families, name, **labels)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event is held back because an earlier test was told it."""
    monkeypatch.setattr(logging, "_throttle", Throttle())


@pytest.fixture
def tenant() -> TenantId:
    return TenantId(f"t-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Redis]:
    """The store without what an earlier exporter kept there."""
    redis = Redis(store_url, timeout_s=5.0, connections=8)
    for key in (POST, TENANTS):
        await redis.call("DEL", key)
    yield redis
    await redis.aclose()


@pytest.fixture
async def site(store: Redis, postgres: PostgresServer) -> AsyncIterator[Site]:
    database = await postgres.database()
    site = Site(store, postgres.url(database), postgres, database)
    yield site
    for exporter in site.exporters:
        await exporter.aclose()


# --- in the ordinary way ------------------------------------------------------------------------------------------


async def test_settlements_become_rows_as_they_are_written(site: Site, tenant: TenantId) -> None:
    """What was settled before the start and what is settled later is exported, in batches no larger than asked for."""
    await site.settle(tenant, 250)
    site.exporter([tenant])
    await site.until_exported(tenant)
    for _ in range(3):
        await site.settle(tenant, 3)
        await site.until_exported(tenant)
    assert max(site.warehouses[0].batches) == 100
    assert site.taps[0].read_lines == 259
    assert site.told("gateway_ledger_exported_total") == 259


async def test_many_tenants_share_batches_and_none_waits_for_a_large_one(site: Site) -> None:
    """A hundred tenants with little and one with much: all is exported, in few transactions."""
    tenants = [TenantId(f"t-{uuid.uuid4().hex[:12]}") for _ in range(101)]
    for tenant in tenants:
        await site.settle(tenant, 2)
    await site.settle(tenants[50], 400)
    site.exporter(tenants)
    for tenant in tenants:
        await site.until_exported(tenant)
    assert sum(site.warehouses[0].batches) == 602
    assert max(site.warehouses[0].batches) <= 100
    assert len(site.warehouses[0].batches) < 20


async def test_lag_says_how_far_the_export_is(site: Site, tenant: TenantId) -> None:
    """While all goes well the lag is about the interval."""
    await site.settle(tenant)
    site.exporter([tenant])
    await site.until_exported(tenant)
    assert 0 <= site.told("gateway_ledger_export_lag_seconds") < PATIENCE_S


# --- who exports --------------------------------------------------------------------------------------------------


async def test_two_workers_one_exports_and_the_other_takes_over(site: Site, tenant: TenantId) -> None:
    """Nothing is read twice while one exports; when it ends the other goes on from its mark."""
    await site.settle(tenant, 30)
    for _ in range(2):
        site.exporter([tenant])
    await site.until_exported(tenant)
    assert sorted(tap.read_lines for tap in site.taps) == [0, 30]
    first = site.exporters[0 if site.taps[0].read_lines else 1]
    await first.aclose()
    await site.settle(tenant, 12)
    await site.until_exported(tenant)
    assert sorted(tap.read_lines for tap in site.taps) == [12, 30]


def cut_off(exporter: Exporter) -> None:
    """End an exporter in the middle of what it does, as the death of its worker would."""
    assert exporter._task is not None
    exporter._task.cancel()


async def test_worker_that_ends_exports_what_it_can(site: Site, tenant: TenantId) -> None:
    """A gateway that is stopped exports what it can at once; a database that is away does not hold it up."""
    exporter = site.exporter([tenant], interval_s=10.0)
    await until(lambda: begun(site))
    await site.settle(tenant, 5)
    await exporter.aclose()
    assert len(await site.exported(tenant)) == 5
    away = site.exporter([tenant], url="postgresql://u:p@127.0.0.1:1/x")
    await until(lambda: failed(site))
    async with asyncio.timeout(PATIENCE_S):
        await away.aclose()


async def begun(site: Site) -> bool:
    """Whether an exporter has gone over all tenants once."""
    return site.taps[0].passes > 0


async def test_worker_that_died_is_succeeded(site: Site, tenant: TenantId) -> None:
    """An exporter that is gone without a word (its task is, its post stays) holds nobody up for longer than that."""
    await site.settle(tenant, 5)
    dead = site.exporter([tenant], post_s=0.3)
    await site.until_exported(tenant)
    cut_off(dead)
    site.exporter([tenant])
    await site.settle(tenant, 5)
    await site.until_exported(tenant)


async def test_two_that_both_think_they_have_the_post_lose_and_double_nothing(site: Site, tenant: TenantId) -> None:
    """A post of no length is everybody's: whoever finds that another was faster begins anew from the marks."""
    panels = [Families(), Families()]
    for panel in panels:
        site.exporter([tenant], post_s=0.001, metrics=LedgerExportMetrics(panel))
    total = 0
    for _ in range(40):
        total += len(await site.settle(tenant, 5))
        await asyncio.sleep(0.005)
    await site.until_exported(tenant)
    assert len(await site.exported(tenant)) == total
    written = sum(value(panel, "gateway_ledger_exported_total") for panel in panels)
    assert written == total


async def test_exporter_cut_off_again_and_again_loses_and_doubles_nothing(site: Site, tenant: TenantId) -> None:
    """Exporters are ended in the middle of whatever they do while turns go on being settled."""

    async def settle_on() -> None:
        for _ in range(60):
            await site.settle(tenant, 5)

    settling = asyncio.create_task(settle_on())
    number = 0
    while not settling.done():
        exporter = site.exporter([tenant], batch=7)
        await asyncio.sleep(0.005 * (number % 9))
        if number % 2:
            cut_off(exporter)
        await exporter.aclose()
        number += 1
    await settling
    site.exporter([tenant])
    await site.until_exported(tenant)
    assert len(await site.exported(tenant)) == 300
    assert site.told("gateway_ledger_exported_total") <= 300


async def test_tenant_that_is_gone_is_exported_to_its_end(site: Site, tenant: TenantId) -> None:
    """What a deleted tenant cost is exported also by a gateway that has never heard of it."""
    other = TenantId(f"t-{uuid.uuid4().hex[:12]}")
    first = site.exporter([tenant, other])
    await site.settle(other)
    await site.until_exported(other)
    await first.aclose()
    await site.settle(tenant, 3)
    site.exporter([other])
    await site.until_exported(tenant)


# --- a store that forgets -----------------------------------------------------------------------------------------


async def rewind(site: Site, tenant: TenantId, dump: bytes) -> None:
    """Have the store forget what it wrote since the dump."""
    await site.store.call("RESTORE", Keys(tenant).settlements(), 0, dump, "REPLACE")


async def write(site: Site, tenant: TenantId, entry: str, one: Settlement) -> None:
    await site.store.call("XADD", Keys(tenant).settlements(), entry, "s", msgspec.json.encode(one))


async def test_settlements_after_a_loss_with_earlier_ids_are_exported(site: Site, tenant: TenantId) -> None:
    """A failover to a server whose clock is behind: what is written there bears ids that were exported already."""
    await site.settle(tenant, 3)
    dump = await site.store.call("DUMP", Keys(tenant).settlements())
    await site.settle(tenant, 2)  # the owners write these again
    lost = (await RedisLedger(site.store, ttl_s=KEEP_S, retries_s=()).settled(tenant, None, 10))[3:]
    site.exporter([tenant])
    await site.until_exported(tenant)
    await rewind(site, tenant, dump)
    kept_ms = int(
        (await RedisLedger(site.store, ttl_s=KEEP_S, retries_s=()).settled(tenant, None, 10))[2][0].split("-")[0]
    )
    await write(site, tenant, f"{kept_ms}-7", settlement())  # not exported, and its id is below the mark
    for number, (_, one) in enumerate(lost):
        await write(site, tenant, f"{kept_ms}-{8 + number}", one)
    await site.until_exported(tenant)
    assert len(await site.exported(tenant)) == 6
    assert site.told("gateway_ledger_exported_total") == 6


async def test_settlement_that_takes_the_id_of_a_lost_one_is_exported(site: Site, tenant: TenantId) -> None:
    """The mark's very id may be given a second time: its turn tells that it is another entry."""
    await write(site, tenant, "5-0", settlement())
    dump = await site.store.call("DUMP", Keys(tenant).settlements())
    (lost,) = await site.settle(tenant)
    ((_, _), (id_, _)) = await RedisLedger(site.store, ttl_s=KEEP_S, retries_s=()).settled(tenant, None, 10)
    site.exporter([tenant])
    await site.until_exported(tenant)
    await rewind(site, tenant, dump)
    await write(site, tenant, id_, settlement())
    await until(lambda: has(site, tenant, 3))
    assert lost.turn_id in await site.exported(tenant)  # what was exported stays


async def has(site: Site, tenant: TenantId, count: int) -> bool:
    return len(await site.exported(tenant)) == count


async def test_stream_that_is_gone_begins_anew(site: Site, tenant: TenantId) -> None:
    """A store that lost everything, or let a quiet tenant's stream run out, is followed from its first entry on."""
    site.exporter([tenant])
    for number in range(3):
        await write(site, tenant, f"{100 - number}-0", settlement())
        await until(lambda count=number + 1: has(site, tenant, count))  # type: ignore[misc]  # binds the number
        await site.store.call("DEL", Keys(tenant).settlements())
    assert site.told("gateway_ledger_export_errors_total", reason="fault") == 0


async def test_settlement_known_better_after_a_loss_replaces_the_row(site: Site, tenant: TenantId) -> None:
    """The row follows the ledger's later word."""
    dump_of = Keys(tenant).settlements()
    await site.settle(tenant)
    dump = await site.store.call("DUMP", dump_of)
    (lost,) = await site.settle(tenant, source="estimated", state=TurnState.FAILED)
    site.exporter([tenant])
    await site.until_exported(tenant)
    await rewind(site, tenant, dump)
    await write(site, tenant, "*", msgspec.structs.replace(lost, total_tokens=77, source="read_back"))

    async def replaced() -> bool:
        return (await site.exported(tenant))[lost.turn_id] == 77

    await until(replaced)


async def test_loss_is_made_up_from_a_late_mark_not_from_the_beginning(site: Site, tenant: TenantId) -> None:
    """Of a long ledger only what lies behind the last mark that the store still has is read again."""
    exporter_batch = 1000
    for number in range(500):
        await write(site, tenant, f"{number + 1}-0", settlement())
    site.exporter([tenant], batch=exporter_batch)
    await site.until_exported(tenant)
    dump = b""
    for number in range(1, 7):
        if number == 5:
            dump = await site.store.call("DUMP", Keys(tenant).settlements())
        await write(site, tenant, f"{number * 10_000}-0", settlement())
        await site.until_exported(tenant)
    assert site.taps[0].read_lines == 506
    await rewind(site, tenant, dump)
    await write(site, tenant, "45000-0", settlement())
    await until(lambda: has(site, tenant, 507))
    assert site.taps[0].read_lines == 507


def test_trail_keeps_a_few_marks_apart() -> None:
    """The newest is always there; those before it reach back for seconds, however often it moves."""
    trail = Trail(Mark("1000-0", "a"))
    for at_ms in range(1100, 30_000, 100):
        trail.moved(Mark(f"{at_ms}-0", "b"))
    found = []
    while trail.newest is not None:
        found.append(int(trail.newest.entry.split("-")[0]))
        trail.lost()
    assert len(found) == MARKS_KEPT
    assert found[0] == 29_900
    assert found[0] - found[-1] > 10_000
    assert trail.stored == Mark("29900-0", "b")


# --- a side that is away ------------------------------------------------------------------------------------------


async def test_database_that_is_killed_and_comes_back_has_everything(
    site: Site, own_postgres: PostgresServer, tenant: TenantId
) -> None:
    """``kill -9`` of PostgreSQL again and again while turns are settled: rows are the ledger, none is there twice."""
    there = Site(site.store, own_postgres.url("postgres"), own_postgres, "postgres")
    site.exporter([tenant], url=there.url, batch=10)

    async def settle_on() -> None:
        for _ in range(100):
            await site.settle(tenant, 3)
            await asyncio.sleep(0.01)

    settling = asyncio.create_task(settle_on())
    for _ in range(2):
        await until(lambda: growing(there, tenant))
        own_postgres.kill()
        await until(lambda: failed(site))
        await own_postgres.start()
    await settling
    await there.until_exported(tenant)
    assert len(await there.exported(tenant)) == 300


async def growing(there: Site, tenant: TenantId) -> bool:
    return bool(await there.exported(tenant))


async def failed(site: Site) -> bool:
    return site.told("gateway_ledger_export_errors_total", reason="away") > 0


async def test_database_that_is_away_at_the_start_is_waited_for(
    site: Site, own_postgres: PostgresServer, tenant: TenantId
) -> None:
    """The gateway begins without it; the lag grows and says so, and falls when all has been made up."""
    there = Site(site.store, own_postgres.url("postgres"), own_postgres, "postgres")
    await own_postgres.stop()
    await site.settle(tenant, 5)
    site.exporter([tenant], url=there.url)
    await until(lambda: failed(site))

    async def late() -> bool:
        return site.told("gateway_ledger_export_lag_seconds") > 0.3

    await until(late)
    await own_postgres.start()
    await there.until_exported(tenant)

    async def made_up() -> bool:
        return site.told("gateway_ledger_export_lag_seconds") < 0.3

    await until(made_up)


async def test_store_that_is_killed_and_comes_back_is_followed_on(
    site: Site, postgres: PostgresServer, tenant: TenantId, tmp_path: Path
) -> None:
    """While Redis is away the export waits; it goes on with what was settled afterwards."""
    valkey = EmbeddedValkey(tmp_path / "valkey")
    await valkey.open()
    redis = Redis(valkey.url, timeout_s=5.0, connections=8)
    database = await postgres.database()
    there = Site(redis, postgres.url(database), postgres, database)
    try:
        await there.settle(tenant, 5)
        there.exporter([tenant])
        await there.until_exported(tenant)
        os.kill(json.loads((tmp_path / "valkey" / "valkey.json").read_bytes())["pid"], signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(valkey.died), PATIENCE_S)

        async def noticed() -> bool:
            return there.told("gateway_ledger_export_errors_total", reason="store") > 0

        await until(noticed)
        await valkey.restart()
        while True:
            with contextlib.suppress(GatewayError):
                await there.settle(tenant, 5)
                break
            await asyncio.sleep(0.05)
        await there.until_exported(tenant)
        assert len(await there.exported(tenant)) == 10
    finally:
        for exporter in there.exporters:
            await exporter.aclose()
        await redis.aclose()
        await valkey.aclose()


async def test_tenant_whose_ledger_cannot_be_read_holds_up_no_other(site: Site, tenant: TenantId) -> None:
    """As where a node of a Cluster is away: its tenants wait, the others are exported; it is not complete."""
    broken = TenantId(f"s-{uuid.uuid4().hex[:12]}")
    await site.store.call("SET", Keys(broken).settlements(), "not a stream")
    await site.settle(tenant, 5)
    site.exporter([broken, tenant])
    await site.until_exported(tenant)

    async def told() -> bool:
        return site.told("gateway_ledger_export_errors_total", reason="store") > 0

    await until(told)
    assert site.taps[0].passes == 0
    await site.store.call("DEL", Keys(broken).settlements())
    await site.settle(broken, 5)
    await site.until_exported(broken)


async def test_refusal_of_the_database_is_logged_by_its_reason_and_without_its_password(
    site: Site, tenant: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator is told what is wrong, at the level of an error, and nobody is told a password."""
    wrong = "another-password-that-no-log-may-show"
    site.exporter([tenant], url=site.url.replace("password-of-the-tests-that-no-log-may-show", wrong))

    async def told() -> bool:
        return site.told("gateway_ledger_export_errors_total", reason="refused") > 0

    await until(told)
    records = [record for record in caplog.records if record.getMessage() == "ledger.export_failed"]
    assert [record.levelname for record in records] == ["ERROR"]
    fields = records[0].fields  # type: ignore[attr-defined]  # set by ``event``
    assert fields["reason"] == "refused"
    assert "password authentication failed" in fields["detail"]
    assert all(wrong not in str(record.__dict__) for record in caplog.records)


async def test_export_that_falls_behind_what_is_kept_is_told_as_an_error(
    site: Site, tenant: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the store lets go of settlements that were not exported, the log says so."""
    await site.settle(tenant)
    site.exporter([tenant], url="postgresql://u:p@127.0.0.1:1/x", keep_s=0.2)

    async def told() -> bool:
        return any(record.getMessage() == "ledger.export_late" for record in caplog.records)

    await until(told)
    record = next(record for record in caplog.records if record.getMessage() == "ledger.export_late")
    assert record.levelname == "ERROR"


async def test_export_that_is_an_hour_late_is_told_as_an_error(
    site: Site, tenant: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    """However long settlements are kept, an hour is long enough to be woken up."""
    site.exporter([tenant], url="postgresql://u:p@127.0.0.1:1/x")
    await until(lambda: failed(site))
    now_s = (await site.taps[0].take_post()).now_s
    await site.store.call("HSET", POST, "complete", int((now_s - 3700) * 1000))

    async def told() -> bool:
        return any(record.getMessage() == "ledger.export_late" for record in caplog.records)

    await until(told)
    assert site.told("gateway_ledger_export_lag_seconds") == pytest.approx(3700, abs=PATIENCE_S)


def test_page_knows_its_last_mark() -> None:
    """A page of lines that are no settlement has a mark too: the entry, and no turn."""
    assert Page(TenantId("t"), None, [Line("1-0", b"{"), Line("2-0", b"[]")]).last == Mark("2-0", "")
