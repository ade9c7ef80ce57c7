"""Who may start something that costs the tenant money, now: a plain cap a minute until real limits come."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, Literal

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.limits import Limit, Limiter
from gateway.telemetry.metrics import Metrics

Action = Literal["turn", "create", "read", "score"]
PERIOD_S: Final = 60.0


class Admission:
    """Caps every action that reaches the vendor, each action on its own count: by tenant, by user, by address."""

    def __init__(self, limiter: Limiter, pepper: bytes, metrics: Metrics) -> None:
        self._limiter = limiter
        self._pepper = pepper
        self._metrics = metrics

    async def admit(self, principal: Principal, action: Action, address: str | None) -> None:
        """Charge one action against all caps; if any is used up, charge none and raise GatewayError(rate_limited)."""
        rates = principal.tenant.rates
        limits = [
            Limit("tenant", f"{action}:tenant", rates.tenant_per_min, PERIOD_S),
            Limit("user", f"{action}:user:{principal.user_hash}", rates.user_per_min, PERIOD_S),
        ]
        if address is not None:
            limits.append(Limit("address", f"{action}:addr:{self._hash(address)}", rates.address_per_min, PERIOD_S))
        decision = await self._limiter.admit(principal.tenant.id, limits)
        if decision.limit is not None:
            self._metrics.limit_refused(principal.tenant.id, decision.limit)
            raise GatewayError(
                Code.RATE_LIMITED,
                f"The cap of this {decision.limit} on requests of this kind is used up; try again later.",
                retry_after_s=decision.retry_after_s,
                extra={"limit": decision.limit},
            )

    def _hash(self, address: str) -> str:
        return hmac.digest(self._pepper, address.encode(), hashlib.sha256).hex()[:24]
