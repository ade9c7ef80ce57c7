"""What limits decide, and what is left of tenants' budgets."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Literal

from gateway.core.plan import SCOPES, ScopeLimits
from gateway.telemetry.families import OTHER, Axis, Families
from gateway.telemetry.labels import Labels

LIMITS = frozenset(f"{scope}_{limit}" for scope in SCOPES for limit in ScopeLimits.__slots__)
Period = Literal["day", "month"]
PERIODS: tuple[Period, ...] = ("day", "month")


class LimitMetrics:
    """Verbs of admission. A limit is told by its name in the plan, after its scope: ``user_requests_per_min``."""

    def __init__(self, make: Families, labels: Labels) -> None:
        self._labels = labels
        tenant, period = labels.tenant, Axis(("period",), len(PERIODS))
        self._decisions = make.counter(
            "gateway_limit_decisions_total",
            "Requests that a limit allowed, or refused; of a refused one only the limit with the longest wait counts",
            tenant,
            Axis(("limit",), len(LIMITS) + 1),
            Axis(("decision",), 2),
            unit="requests",
        )
        self._alone = make.counter(
            "gateway_limit_decisions_alone_total",
            "Requests that this worker decided by itself, under its share of the limits, while Redis was away",
            tenant,
            unit="requests",
        )
        self._budget = make.gauge(
            "gateway_budget_tokens", "A tenant's budget for the running period (day, month)", tenant, period
        )
        self._left = make.gauge(
            "gateway_budget_left_tokens",
            "What is left of it, less what running turns have reserved; every worker tells the same, a few seconds old",
            tenant,
            period,
        )

    def allowed(self, tenant: str, limits: Iterable[str]) -> None:
        """A request was charged under all of these limits."""
        tenant = self._labels.of_tenant(tenant)
        for limit in limits:
            self._decisions.add(1, tenant, limit if limit in LIMITS else OTHER, "allowed")

    def refused(self, tenant: str, limit: str) -> None:
        self._decisions.add(1, self._labels.of_tenant(tenant), limit if limit in LIMITS else OTHER, "refused")

    def decided_alone(self, tenant: str) -> None:
        self._alone.add(1, self._labels.of_tenant(tenant))

    def budgets_of(self, tenants: Container[str]) -> None:
        """Tell the budgets of no other tenants any more."""
        for tenant, period in self._budget.known():
            if tenant not in tenants:
                self._budget.drop(tenant, period)
                self._left.drop(tenant, period)

    def budgets_known(self, tenant: str, budgets: Mapping[Period, tuple[int, int]]) -> None:
        """How all budgets of a tenant stand: the whole and what is left. Of tenants that are no labels none is told."""
        for period in PERIODS:
            if period in budgets and self._labels.of_tenant(tenant) == tenant:
                limit, left = budgets[period]
                self._budget.put(limit, tenant, period)
                self._left.put(left, tenant, period)
            else:
                self._budget.drop(tenant, period)
                self._left.drop(tenant, period)
