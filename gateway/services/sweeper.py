"""Does for every tenant, now and then, what nobody may have asked for: takes over lost turns, settles tokens."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.core.errors import GatewayError
from gateway.core.identity import Tenant, TenantId
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

Duty = Callable[[Tenant], Awaitable[None]]


class Sweeper:
    """Runs its duties for each tenant every ``interval_s``, spread so that workers do not all come at once.

    Each duty has a task of its own: one that waits for the vendor keeps no other waiting.
    """

    def __init__(self, tenants: Mapping[TenantId, Tenant], duties: Sequence[Duty], *, interval_s: float) -> None:
        self._tenants = tenants
        self._duties = duties
        self._interval_s = interval_s
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(duty)) for duty in self._duties]

    async def aclose(self) -> None:
        """Safe to repeat."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _run(self, duty: Duty) -> None:
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
            for tenant in tuple(self._tenants.values()):
                try:
                    await duty(tenant)
                except GatewayError:
                    continue  # the store or the vendor is away; the next sweep does it
                except Exception as error:
                    throttled(logger, "sweep.failed", level=logging.ERROR, error=error, tenant=tenant.id)
