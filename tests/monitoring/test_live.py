"""A real Prometheus beside a gateway under load: every panel has data, and every alert is fired by its fault.

One run for all of it, since objectives look back: healthy first, then faults of traffic, of Redis and of processes,
each with what it must fire, and mended again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import pytest

from gateway.core.identity import TenantId
from gateway.store.tenants import RedisTenants
from tests.monitoring.faults import conversations, few_files, late_answers, pauses, slow_turn, throttled, waiting
from tests.monitoring.files import ALL, alerts, filled, metrics_of, needs_prometheus, panels
from tests.monitoring.prometheus import STEP_S, Prometheus, eventually, faster_query, prometheus
from tests.monitoring.site import TENANTS, Site, site, tenant
from tests.monitoring.traffic import WELL, Traffic, User, idle_connections, stalled_readers, traffic
from tests.postgres import PostgresServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs_prometheus,
    pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc, and limits their files"),
]

TALKERS: Final = ("acme", "bounded", "careful", "patient")
OF_A_SLOW_MACHINE: Final = {"GatewayLoopLags", "GatewayRedisSlow"}  # which say so truly where it has no time to spare
BURNS: Final = ("GatewayAvailabilityFastBurn", "GatewayAvailabilitySlowBurn")


async def test_every_panel_has_data_and_every_alert_fires_by_its_fault_and_ends(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    """Nothing fires while all is well; each alert fires for what it is about, and ends when that is mended."""
    async with (
        site(tmp_path, own_postgres.url(await own_postgres.database())) as place,
        traffic(place) as users,
        prometheus(tmp_path / "prometheus", f"127.0.0.1:{place.internal_port}", place.url) as server,
    ):
        for name in TENANTS:
            await users.join(name, WELL if name in TALKERS else None)
        for name in ("acme", "careful"):
            users.visit(name)
        await all_is_well(server)
        own_postgres.kill()
        await traffic_fails(place, users, server)
        await server.fires("GatewayLedgerExportLags")
        await own_postgres.start()
        await redis_fails(place, users, server)
        await processes_fail(place, users, server)
        await gateway_ends(place, server)
        await hyperleap_ends(place, server)
        await server.fires("GatewayAvailabilityBudgetDwindles")
        await server.resolves("GatewayRollAbandoned", "GatewayLedgerExportLags")
        ever = await server.query('max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[10m]))')
        assert {series.labels["alertname"] for series in ever} == set(alerts())
        never = [
            f"{panel}: {query}"
            for panel in panels()
            for query in panel.queries
            if not await server.had(faster_query(filled(query, ALL)))
        ]
        assert not never, "\n".join(never)


async def all_is_well(server: Prometheus) -> None:
    """Rules are healthy, panels have data or what they wait for is there, and no alert fires."""
    await eventually(lambda: has(server, "gateway:slo_burn:rate6h", 3), "the objectives have no data")
    await asyncio.sleep(60 * STEP_S)  # a quarter of an hour, as rules have it
    rules = await server.rules()
    assert len(rules) > 40
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    told = await server.metadata()
    known = told | {f"{name}_{end}" for name in told for end in ("total", "bucket", "count", "sum")}
    known |= {rule["name"] for rule in rules} | {"up", "ALERTS"}
    empty = []
    for panel in panels():
        for query in panel.queries:
            assert metrics_of(query) <= known, panel
            if not await server.query(faster_query(filled(query, ALL))):
                empty.append(f"{panel}: {query}")
    assert len(empty) < 25
    assert (await server.firing()).keys() - OF_A_SLOW_MACHINE == set()


async def has(server: Prometheus, query: str, count: int) -> bool:
    return len(await server.query(query)) >= count


async def labelled(server: Prometheus, alert: str, **labels: str) -> None:
    """Of an alert that fires, every one is about this."""
    for told in (await server.firing())[alert]:
        assert told.items() >= labels.items(), told


async def traffic_fails(place: Site, users: Traffic, server: Prometheus) -> None:
    """Hyperleap fails in several ways, readers stall, tenants come and go, and one uses up its tokens."""
    acme = users.users["acme"]
    _, told = await acme.say("A book #tokens=60000 #rate=0")
    book = str(told["turn_id"])
    (worker, *_) = place.workers
    tables = dict(TENANTS)
    async with late_answers(users, 120), stalled_readers(place, acme, book, per_s=4), waiting(users, "narrow"):
        for name in TALKERS:
            users.about[name] = None  # so that late answers are most of all
        users.about["broken"] = "Hello #fault=500"
        users.about["limited"] = "Hello #fault=429:1"
        users.about["stale"] = WELL
        place.simulator.refuse_key(place.key("stale"))
        await RedisTenants(place.redis).put(TenantId("odd"), b'{"colour": 1}')
        await users.users["frugal"].say("Much #tokens=930")
        tables["late"] = tenant("late")
        place.write_tenants(tables.values())
        await eventually(lambda: joined(users, "late"), "a tenant of the file cannot sign in")
        await server.fires(
            *BURNS,
            *("GatewayFirstTokenFastBurn", "GatewayFirstTokenSlowBurn", "GatewayReadersSlow"),
            *("GatewayVendorKeyRefused", "GatewayVendorBreakerOpen", "GatewayVendorFailing", "GatewayVendorLimited"),
            *("GatewayVendorQueue", "GatewayBudgetNearlyUsed", "GatewayTenantsUnreadable", "GatewayTenantsUncounted"),
        )
        await labelled(server, "GatewayVendorKeyRefused", key="stale")
        await labelled(server, "GatewayVendorBreakerOpen", key="broken")
        await labelled(server, "GatewayVendorLimited", key="limited")
        await labelled(server, "GatewayVendorQueue", key="narrow")
        await labelled(server, "GatewayBudgetNearlyUsed", tenant="frugal", period="day")
        await leads_to_its_section(place, server, "GatewayVendorKeyRefused")
    for name in TALKERS:
        users.about[name] = WELL
    async with idle_connections(place, 400), few_files(worker):
        await server.fires("GatewayFilesNearLimit")
    await users.users["frugal"].say("More than is left #tokens=500 #rate=500")  # is cut off
    await acme.say("Odd #fault=cut-after-finish")
    for name in ("broken", "limited"):
        users.about[name] = WELL
    place.simulator.accept_key(place.key("stale"))
    await RedisTenants(place.redis).remove(TenantId("odd"))
    tables["frugal"] = tenant("frugal", budget=", tokens_per_day = 1000000")
    place.write_tenants(tables.values())
    users.about["frugal"] = WELL
    await server.resolves(
        *BURNS,
        *("GatewayFirstTokenFastBurn", "GatewayFilesNearLimit", "GatewayReadersSlow", "GatewayVendorKeyRefused"),
        *("GatewayVendorBreakerOpen", "GatewayVendorFailing", "GatewayVendorLimited", "GatewayVendorQueue"),
        *("GatewayBudgetNearlyUsed", "GatewayTenantsUnreadable"),
    )


async def redis_fails(place: Site, users: Traffic, server: Prometheus) -> None:
    """Redis is slow, refuses, forbids publishing, and stands still."""
    store = ("GatewayRedisSlow", "GatewayRedisFailing", "GatewayDeaf", "GatewayRedisAway", "GatewayLogLags")
    await server.resolves(*store)
    async with pauses(place.redis):
        await server.fires("GatewayRedisSlow")
    await place.redis.call("CONFIG", "SET", "maxmemory", "1mb")
    await place.redis.call("ACL", "SETUSER", "default", "resetchannels")
    await server.fires("GatewayRedisFailing", "GatewayDeaf")
    await place.redis.call("ACL", "SETUSER", "default", "allchannels")
    await place.redis.call("CONFIG", "SET", "maxmemory", "0")
    await server.resolves("GatewayRedisFailing", "GatewayDeaf", "GatewayRedisSlow")
    erin = await User.of(place, users.keys["acme"], "erin")
    await erin.converse()
    async with erin.reading("Long #tokens=600 #rate=20"):
        os.kill(place.store.pid, signal.SIGSTOP)
        try:
            async with conversations(users, "patient"):  # whose limits a worker keeps by itself meanwhile
                await server.fires("GatewayRedisAway", "GatewayLogLags")
        finally:
            os.kill(place.store.pid, signal.SIGCONT)
        await server.resolves("GatewayRedisAway", "GatewayLogLags")


async def processes_fail(place: Site, users: Traffic, server: Prometheus) -> None:
    """A worker is throttled, stands still, dies; a roll fails, and at last no worker can be started."""
    processes = ("GatewayLoopLags", "GatewayWorkerStalled", "GatewayWorkerLost", "GatewayAnswersLost")
    starts = ("GatewayTenantsFileInvalid", "GatewayRollAbandoned", "GatewayNoWorkerReady", "GatewayWorkerCrashLoop")
    await server.resolves(*processes, *starts)
    (worker, *_) = place.workers
    async with throttled(worker):
        await server.fires("GatewayLoopLags")
    running = [asyncio.create_task(slow_turn(users)) for _ in range(10)]
    await eventually(lambda: has(server, "min(gateway_leases_held) > 1", 1), "not every worker has turns")
    os.kill(worker, signal.SIGSTOP)
    await asyncio.sleep(4)  # two leases
    os.kill(worker, signal.SIGCONT)
    await server.fires("GatewayWorkerStalled")
    running += [asyncio.create_task(slow_turn(users)) for _ in range(10)]
    await eventually(lambda: has(server, "min(gateway_leases_held) > 1", 1), "not every worker has turns")
    os.kill(place.workers[0], signal.SIGKILL)
    await server.fires("GatewayWorkerLost", "GatewayAnswersLost")
    good = (place.directory / "tenants.toml").read_text("utf-8")
    place.write_tenants(["nonsense"])
    await server.fires("GatewayTenantsFileInvalid")
    os.kill(place.gateway.pid, signal.SIGHUP)
    await server.fires("GatewayRollAbandoned")
    for pid in place.workers:
        os.kill(pid, signal.SIGKILL)
    await server.fires("GatewayNoWorkerReady", "GatewayWorkerCrashLoop")
    place.write_tenants([good])
    os.kill(place.gateway.pid, signal.SIGHUP)
    await server.resolves(*processes, *(set(starts) - {"GatewayRollAbandoned"}))  # which it is for an hour
    await asyncio.gather(*running, return_exceptions=True)


async def gateway_ends(place: Site, server: Prometheus) -> None:
    """The only instance ends, and comes back."""
    await place.end()
    await server.fires("GatewayDown", "GatewayInstanceDown")
    await place.start()
    await server.resolves("GatewayDown", "GatewayInstanceDown")


async def hyperleap_ends(place: Site, server: Prometheus) -> None:
    """Hyperleap closes its connections in order, then takes none any more."""

    async def going() -> bool:
        place.simulator.goaway()
        return await has(server, "rate(gateway_upstream_goaways_total[5s]) > 0", 1)

    await eventually(going, "nobody saw a GOAWAY")
    await place.simulator.aclose()
    await eventually(lambda: has(server, "rate(gateway_upstream_connect_failures_total[5s]) > 0", 1), "none failed")
    await place.simulator.start()


async def joined(users: Traffic, name: str) -> bool:
    """Sign a user of a tenant in as soon as the tenant is known."""
    with contextlib.suppress(AssertionError):  # it is refused until then
        await users.join(name)
        return True
    return False


async def leads_to_its_section(place: Site, server: Prometheus, name: str) -> None:
    """The link of an alert is answered by the gateway itself, with the section on the page."""
    link = (await server.alert(name))["annotations"]["runbook_url"]
    async with place.http.get(link) as response:
        assert response.status == 200
        assert f'id="{link.rpartition("#")[2]}"' in await response.text()
