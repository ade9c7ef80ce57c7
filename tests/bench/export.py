"""What the export of a ledger to PostgreSQL costs: processor time a settlement, and how fast it catches up.

The exporter, the store and the database are real and on this machine; the exporter has this process to itself. The
loop's stalls are how long a batch keeps the worker from everything else.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.core.identity import TenantId, WorkerId
from gateway.options import LedgerSettings
from gateway.sections import Secret
from gateway.services.export import Exporter
from gateway.store.embedded import EmbeddedValkey
from gateway.store.ledger_tap import RedisLedgerTap
from gateway.store.redis import Keys, Redis
from gateway.telemetry.families import Families
from gateway.telemetry.ledger_export import LedgerExportMetrics
from gateway.warehouse.postgres import Postgres
from gateway.warehouse.target import Target
from tests.panel import value
from tests.postgres import PostgresServer, opened_postgres
from tests.warehouse.conftest import settlement

KEEP_S = 86_400.0
INTERVAL_S = 0.1


class Figures(NamedTuple):
    """Of one run. Times of the processor are this process's, in seconds."""

    settlements: int
    seconds: float
    cpu_s: float
    stall_s: float  # the 99th percentile of how late the loop was
    again_s: float  # to read all of it again, where the database has it all
    look_cpu_s: float  # a look at all tenants that finds nothing

    def __str__(self) -> str:
        return (
            f"{self.settlements / self.seconds:,.0f} settlements/s,"
            f" {self.cpu_s / self.settlements * 1e6:.1f} µs of the worker each,"
            f" loop late by {self.stall_s * 1e3:.1f} ms (p99);"
            f" read again: {self.settlements / self.again_s:,.0f}/s; a look in vain: {self.look_cpu_s * 1e3:.2f} ms"
        )


async def run(settlements: int, tenants: int, batch: int) -> Figures:
    """Export a ledger that is there already, then all of it once more, then nothing."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
        valkey = EmbeddedValkey(Path(directory))
        await valkey.open()
        try:
            async with opened_postgres() as server:
                return await _measure(valkey.url, server, settlements, tenants, batch)
        finally:
            await valkey.aclose()


async def _measure(redis_url: str, server: PostgresServer, settlements: int, tenants: int, batch: int) -> Figures:
    redis = Redis(redis_url, timeout_s=10.0, connections=4)
    names = [TenantId(f"t-{number}") for number in range(tenants)]
    for first in range(0, settlements, 1000):
        numbers = range(first, min(first + 1000, settlements))
        await asyncio.gather(*(_write(redis, names[number % tenants]) for number in numbers))
    families = Families()
    target = Target(LedgerSettings(url=Secret(server.url("postgres"))))
    await Postgres(target).open()
    exporter = Exporter(
        RedisLedgerTap(redis, WorkerId(uuid.uuid4().hex), post_s=20.0, keep_s=KEEP_S),
        Postgres(target),
        names,
        LedgerExportMetrics(families),
        interval_s=INTERVAL_S,
        batch=batch,
        keep_s=KEEP_S,
    )

    async def all_there() -> float:
        begun_s = time.perf_counter()
        while value(families, "gateway_ledger_exported_total") != settlements:
            await asyncio.sleep(0.02)
        return time.perf_counter() - begun_s

    stalls: list[float] = []
    watching = asyncio.create_task(_watch(stalls))
    cpu_s = time.process_time()
    exporter.open()
    seconds = await all_there()
    cpu_s = time.process_time() - cpu_s
    watching.cancel()
    idle_s = time.process_time()
    await asyncio.sleep(3.0)
    idle_s = (time.process_time() - idle_s) / 3.0 * INTERVAL_S
    await exporter.aclose()
    again_s = await _again(server, exporter, redis, names)
    await redis.aclose()
    return Figures(settlements, seconds, cpu_s, sorted(stalls)[len(stalls) * 99 // 100], again_s, idle_s)


async def _again(server: PostgresServer, exporter: Exporter, redis: Redis, names: list[TenantId]) -> float:
    """Have the marks forgotten, and wait until they are where they were."""
    await server.execute("postgres", "DELETE FROM hyperleap.marks")
    last = {
        name: (await redis.call("XREVRANGE", Keys(name).settlements(), "+", "-", "COUNT", 1))[0][0] for name in names
    }
    begun_s = time.perf_counter()
    exporter.open()
    while True:
        rows: list[dict[str, Any]] = await server.fetch("postgres", "SELECT tenant, entry FROM hyperleap.marks")
        if {row["tenant"]: row["entry"].encode() for row in rows} == last:
            break
        await asyncio.sleep(0.05)
    seconds = time.perf_counter() - begun_s
    await exporter.aclose()
    return seconds


async def _write(redis: Redis, tenant: TenantId) -> None:
    one = settlement(vendor_key="default", first_token_s=0.31, cost_micros=184, currency="USD")
    await redis.call("XADD", Keys(tenant).settlements(), "*", "s", msgspec.json.encode(one))


async def _watch(stalls: list[float]) -> None:
    while True:
        due_s = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        stalls.append(time.perf_counter() - due_s)
