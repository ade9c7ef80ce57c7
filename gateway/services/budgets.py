"""What is left of tenants' budgets, looked up now and then for the metrics: the same at every worker, turns or none."""

from __future__ import annotations

import time

from gateway.core.identity import Tenant
from gateway.core.limits import Limiter
from gateway.core.plan import calendar
from gateway.services.admission import DAY_KEY, MONTH_KEY
from gateway.telemetry.limits import LimitMetrics, Period


class Budgets:
    """Tells the metrics how each tenant's budgets stand. Those of its users and personas are told to them alone."""

    def __init__(self, limiter: Limiter, metrics: LimitMetrics) -> None:
        self._limiter = limiter
        self._metrics = metrics

    async def sweep(self, tenant: Tenant) -> None:
        """Look up what is used of a tenant's budgets; raises store_unavailable."""
        whole: dict[Period, int] = {
            "day": tenant.plan.tenant.tokens_per_day,
            "month": tenant.plan.tenant.tokens_per_month,
        }
        whole = {period: limit for period, limit in whole.items() if limit}
        known: dict[Period, tuple[int, int]] = {}
        if whole:
            today = calendar(time.time_ns() // 1000, tenant.plan.zone)
            keys = {"day": f"{DAY_KEY}:{today.day}:tenant", "month": f"{MONTH_KEY}:{today.month}:tenant"}
            spent = await self._limiter.spent(tenant.id, [keys[period] for period in whole])
            known = {
                period: (limit, max(0, limit - used))
                for (period, limit), used in zip(whole.items(), spent, strict=True)
            }
        self._metrics.budgets_known(tenant.id, known)
