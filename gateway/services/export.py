"""Exports the ledger: one worker of all follows every tenant's settlements into the warehouse.

The place from which it goes on is kept in the warehouse with the rows, so it does not matter who exports, what died in
the middle, or what is exported twice. A store that lost its last second may give places that were exported to other
settlements: the mark that is not where it was tells, and what lies behind an earlier one is exported again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.warehouse import LedgerTap, Mark, Page, Post, Trouble, Warehouse, WarehouseError
from gateway.telemetry.ledger_export import FAULT, STORE, LedgerExportMetrics
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

POST_S: Final = 20.0  # an exporter that is killed is succeeded after this; longer than a batch may take
LOOK_S: Final = 5.0  # between looks at whether the post is free
TENANTS_AT_ONCE: Final = 50  # read in one round trip, written in one transaction
PAUSE_S: Final = 1.0  # after a failure; doubled each time …
PAUSE_MAX_S: Final = 30.0
LATE_S: Final = 3600.0  # behind by more, somebody must know, long before the store lets go of anything
LAST_S: Final = 2.0  # for a last batch when the worker ends
MARKS_KEPT: Final = 4  # of a tenant …
MARKS_APART_MS: Final = 5000  # … and this far apart: how far a store went back that lost what it had not yet kept


class Trail:
    """A tenant's latest marks. Those of a store that went back are dropped until one is found that it still holds."""

    __slots__ = ("_marks", "stored")

    def __init__(self, stored: Mark | None) -> None:
        """``stored`` is what the warehouse has."""
        self.stored = stored
        self._marks: deque[Mark] = deque([stored] if stored is not None else (), MARKS_KEPT)

    @property
    def newest(self) -> Mark | None:
        """Behind this the export goes on; None: from the beginning."""
        return self._marks[-1] if self._marks else None

    def moved(self, mark: Mark) -> None:
        self.stored = mark
        if len(self._marks) > 1 and _ms(mark) - _ms(self._marks[-2]) < MARKS_APART_MS:
            self._marks.pop()
        self._marks.append(mark)

    def lost(self) -> None:
        """The store does not hold the newest mark any more."""
        self._marks.pop()


class Exporter:
    """Exports every ``interval_s``; on every worker, of which one at a time has the post.

    Whoever fails leaves the post and comes back after a growing pause, so that another may try from where it is.
    """

    def __init__(
        self,
        tap: LedgerTap,
        warehouse: Warehouse,
        tenants: Collection[TenantId],
        metrics: LedgerExportMetrics,
        *,
        interval_s: float,
        batch: int,
        keep_s: float,
        look_s: float = LOOK_S,
    ) -> None:
        """``tenants`` are those that this worker knows, at any time; ``keep_s``: how long settlements are kept."""
        self._tap = tap
        self._warehouse = warehouse
        self._tenants = tenants
        self._metrics = metrics
        self._interval_s = interval_s
        self._batch = batch
        self._keep_s = keep_s
        self._look_s = look_s
        self._trails: dict[TenantId, Trail] | None = None  # None: the warehouse is not open
        self._now_s = 0.0  # by the store's clock, at the last look
        self._looked_at_s = 0.0
        self._failures = 0
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._ending.clear()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Export what there is, if that can be done at once, and leave the post to another worker. Safe to repeat."""
        task, self._task = self._task, None
        if task is None:
            return
        self._ending.set()
        await asyncio.wait([task], timeout=LAST_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._leave()

    async def _run(self) -> None:
        while True:
            last = self._ending.is_set()
            if last and self._trails is None:
                return  # who does not export leaves it to whoever does
            try:
                pause_s = await self._export_all()
            except WarehouseError as error:
                _tell(error)
                pause_s = await self._failed(error.trouble)
            except GatewayError:
                pause_s = await self._failed(STORE)  # the store's own events say more
            except Exception as error:
                throttled(logger, "ledger.export_crashed", level=logging.ERROR, error=error)
                pause_s = await self._failed(FAULT)
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)

    async def _export_all(self) -> float:
        """Export all there is if the post is to be had; returns how long to wait for the next time, in seconds."""
        post = await self._look()
        if not post.held:
            await self._close()
            return self._look_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load
        if self._trails is None:
            marks = await self._warehouse.open()
            self._trails = {tenant: Trail(mark) for tenant, mark in marks.items()}
            log_event(logger, logging.INFO, "ledger.export_begun", tenants=len(marks))
        tenants = await self._tap.tenants(self._tenants)
        failures: list[GatewayError] = []
        for first in range(0, len(tenants), TENANTS_AT_ONCE):
            failures += await self._export(tenants[first : first + TENANTS_AT_ONCE])
        if failures:
            raise failures[0]
        await self._look(complete_s=post.now_s)
        self._failures = 0
        return self._interval_s

    async def _look(self, *, complete_s: float | None = None) -> Post:
        post = await self._tap.take_post(complete_s=complete_s)
        self._looked_at_s, self._now_s = asyncio.get_running_loop().time(), post.now_s
        lag_s = max(0.0, post.now_s - post.complete_s)
        self._metrics.lagged(lag_s)
        if post.held and lag_s > min(LATE_S, self._keep_s / 2):
            throttled(
                logger,
                "ledger.export_late",
                level=logging.ERROR,
                every_s=60.0,
                lag_s=round(lag_s),
                kept_s=round(self._keep_s),
                lost=lag_s > self._keep_s,
            )
        return post

    async def _export(self, tenants: Sequence[TenantId]) -> list[GatewayError]:
        """Export all that some tenants have; those that have much get all of a batch once the others are done.

        Returns why some could not be read, such as those on a node of a Cluster that is away; the others go on.
        """
        failures: list[GatewayError] = []
        while tenants:
            if asyncio.get_running_loop().time() - self._looked_at_s > self._look_s and not (await self._look()).held:
                raise WarehouseError(Trouble.STALE, "another worker has taken over the export")
            limit = max(1, self._batch // len(tenants))
            found = await asyncio.gather(*(self._read_or_fail(tenant, limit) for tenant in tenants))
            failures += [one for one in found if isinstance(one, GatewayError)]
            pages = [one for one in found if isinstance(one, Page)]
            if full := [page for page in pages if page.lines]:
                taken = await self._warehouse.take(full)
                self._metrics.exported(*taken)
                if taken.unreadable:
                    throttled(logger, "ledger.export_unreadable", level=logging.ERROR, entries=taken.unreadable)
                for page in full:
                    self._trail(page.tenant).moved(page.last)
            tenants = [page.tenant for page in pages if len(page.lines) == limit]
        return failures

    async def _read_or_fail(self, tenant: TenantId, limit: int) -> Page | GatewayError:
        try:
            return await self._read(tenant, limit)
        except GatewayError as error:
            return error

    async def _read(self, tenant: TenantId, limit: int) -> Page:
        trail = self._trail(tenant)
        while True:
            after = trail.newest
            reading = await self._tap.read(tenant, after, limit)
            if reading.intact:
                break
            trail.lost()
        stored, oldest_ms = trail.stored, (self._now_s - self._keep_s) * 1000
        if after != stored and reading.lines and stored is not None and _ms(stored) > oldest_ms:
            throttled(logger, "ledger.export_rewound", tenant=tenant)  # the store went back
        return Page(tenant, stored, reading.lines)

    def _trail(self, tenant: TenantId) -> Trail:
        assert self._trails is not None
        return self._trails.setdefault(tenant, Trail(None))

    async def _failed(self, reason: str) -> float:
        self._metrics.failed(reason)
        self._failures += 1
        await self._leave()
        longest_s = min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(self._failures - 1, 10))
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load

    async def _leave(self) -> None:
        await self._close()
        with contextlib.suppress(GatewayError):  # then it ends by itself
            await self._tap.leave_post()

    async def _close(self) -> None:
        if self._trails is not None:
            self._trails = None
            await self._warehouse.aclose()


def _tell(error: WarehouseError) -> None:
    passing = error.trouble in (Trouble.AWAY, Trouble.STALE)
    throttled(
        logger,
        f"ledger.export_failed {error.trouble}",
        "ledger.export_failed",
        level=logging.WARNING if passing else logging.ERROR,
        reason=error.trouble,
        detail=str(error),
    )


def _ms(mark: Mark) -> int:
    """Return when an entry was written, by the store's clock."""
    return int(mark.entry.partition("-")[0])
