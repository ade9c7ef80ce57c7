"""What this worker knows of revocations, so that no request has to ask the store; who has lost access is ended.

Word of a revocation comes over the workers' common channel. What is kept of it is looked at when the worker starts,
whenever it begins to hear (again), and now and then; once a second while it hears nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.revocation import Holder, Revocation, RevocationStore, Revoked, RevokedSet
from gateway.telemetry import audit
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

LOOK_S: Final = 30.0  # between looks at what is kept …
DEAF_LOOK_S: Final = 1.0  # … and while nothing is heard
GATHER_S: Final = 0.05  # revocations that come together are carried out together: each looks at every connection
LOST_S: Final = 60.0  # a store that failed over has lost what it took within its last seconds


class Revocations:
    """The RevocationHearer of a worker. ``load`` before it serves anybody, then ``open``; ``aclose`` at the end."""

    def __init__(self, store: RevocationStore, *, hears: Callable[[], bool]) -> None:
        """``hears``: whether word from other workers arrives here."""
        self._store = store
        self._hears = hears
        self._set = RevokedSet()
        self._lifts = 0
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._carrying_out: asyncio.TimerHandle | None = None
        self.on_change: list[Callable[[], None]] = []  # each ends what ``cover`` covers now

    def open(self) -> None:
        """Begin to look at what is kept, in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Safe to repeat."""
        if self._carrying_out is not None:
            self._carrying_out.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def cover(self, holder: Holder) -> bool:
        """Whether what somebody holds has been taken back."""
        return self._set.cover(holder)

    async def revoke(self, what: Revoked, tenant: TenantId, id_: str = "") -> Revocation:
        """Take something back on every worker; raises GatewayError: invalid_value (too many), store_unavailable."""
        with audit.change("access.revoked", tenant=tenant, what=what, id=id_ or None):
            revocation = await self._store.revoke(what, tenant, id_)
        self.revoked(revocation)
        return revocation

    async def lift(self, tenant: TenantId) -> bool:
        """Let a tenant in again; False when it was not out. Raises GatewayError(store_unavailable)."""
        with audit.change("access.restored", tenant=tenant) as told:
            told["lifted"] = lifted = await self._store.lift(tenant)
        self.lifted(tenant)
        return lifted

    async def load(self) -> None:
        """Take in what is kept, and keep again what the store has lost. Raises GatewayError(store_unavailable)."""
        while True:  # word may arrive while the answer is on its way, and is newer then
            before, lifts = tuple(self._set), self._lifts
            kept = await self._store.load()
            if lifts == self._lifts:
                break
        now_s = time.time()
        known = set(kept)
        for revocation in before:
            if revocation in known:
                continue
            if revocation.what is Revoked.TENANT:
                self._set.lift(revocation.tenant)  # lifted while this worker was deaf
            elif revocation.at_s > now_s - LOST_S:
                await self._store.keep(revocation)
        added = [revocation for revocation in kept if revocation.until_s >= now_s and self._set.add(revocation)]
        if added:
            self._changed()
        self._set.prune(now_s)

    # --- RevocationHearer ----------------------------------------------------------------------------------------

    def revoked(self, revocation: Revocation, /) -> None:
        if self._set.add(revocation):
            log_event(logger, logging.WARNING, "revocation.heard", what=revocation.what, tenant=revocation.tenant)
            self._changed()

    def lifted(self, tenant: TenantId, /) -> None:
        self._lifts += 1
        if self._set.lift(tenant):
            log_event(logger, logging.WARNING, "revocation.lifted", tenant=tenant)

    def heard(self) -> None:
        self._look.set()

    def _changed(self) -> None:
        if self._carrying_out is None:
            self._carrying_out = asyncio.get_running_loop().call_later(GATHER_S, self._carry_out)

    def _carry_out(self) -> None:
        self._carrying_out = None
        for end in self.on_change:
            end()

    async def _run(self) -> None:
        while True:
            self._look.clear()
            try:
                await self.load()
            except GatewayError as error:
                throttled(logger, "revocations.unread", error=error)
            except Exception:  # a mistake of ours must not leave the worker without news
                logger.exception("revocations.crashed")
            # Not wait_for, which until Python 3.12 may lose a cancellation that comes in the moment of the word.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._hears() else DEAF_LOOK_S):
                    await self._look.wait()
