"""The slots that this worker's turns hold: their leases are renewed together, one call a tenant on each beat.

A turn gives its slots back in the step that ends it (see ``EventLog.finish``), so nothing is to be done then. One whose
worker is gone, or that another worker took over, is not renewed any more: its lease ends within ``SLOT_LEASE_US``. A
turn that is rescued from the vendor's copy needs none, for the vendor no longer works on it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.limits import SLOT_LEASE_US, US_PER_S, Limiter, Slot
from gateway.core.turn import TurnId

BEATS_A_LEASE: Final = 4  # three may fail before a slot is lost


class Holdings:
    """Keeps slots from when they were charged until ``drop``. ``aclose`` it last."""

    def __init__(self, limiter: Limiter, *, lease_us: int = SLOT_LEASE_US) -> None:
        self._limiter = limiter
        self._beat_s = lease_us / US_PER_S / BEATS_A_LEASE
        self._held: dict[TenantId, dict[TurnId, tuple[Slot, ...]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._renewals: set[asyncio.Task[None]] = set()

    def hold(self, tenant: TenantId, turn_id: TurnId, slots: tuple[Slot, ...]) -> None:
        """Renew a turn's slots from now on."""
        if not slots:
            return
        self._held.setdefault(tenant, {})[turn_id] = slots
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)

    def drop(self, tenant: TenantId, turn_id: TurnId) -> None:
        """Renew a turn's slots no more. Safe to repeat; gives nothing back by itself."""
        turns = self._held.get(tenant)
        if turns is not None:
            turns.pop(turn_id, None)
            if not turns:
                del self._held[tenant]

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for renewal in self._renewals:
            renewal.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)

    def _beat(self) -> None:
        self._timer = None
        if not self._held:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._beat_s, self._beat)
        for tenant, turns in self._held.items():
            renewal = loop.create_task(self._renew(tenant, [slot for slots in turns.values() for slot in slots]))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)

    async def _renew(self, tenant: TenantId, slots: list[Slot]) -> None:
        try:
            await self._limiter.renew(tenant, slots)
        except GatewayError:
            return  # the store is away, which its client has told; the next beat comes before the lease is over
