"""The rule behind the cap on turns: GCRA, which needs one number a key and no window to reset.

A bucket of ``limit`` per ``period_s`` lets ``limit`` through at once and then one every ``period_s / limit``.
The stored number is the *theoretical arrival time* (TAT) of the next conforming request. The same rule runs
as a Lua script in Redis; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from gateway.core.identity import TenantId

ROUNDING_S: Final = 1e-6  # a wait below this is an interval that is no exact number, not a request too many


class Limit(NamedTuple):
    """``limit`` requests per ``period_s``, counted under ``key`` (which must hold no user id in clear)."""

    name: str
    key: str
    limit: int
    period_s: float


class Decision(NamedTuple):
    """``limit`` names the limit that refused (None: admitted); a refusal charges nothing."""

    limit: str | None
    retry_after_s: float


def gcra(tat_s: float, now_s: float, limit: float, period_s: float) -> tuple[float, float]:
    """Return (the TAT after admitting, seconds to wait); admit when the wait is 0, else keep the old TAT."""
    interval_s = period_s / limit
    new_tat_s = max(tat_s, now_s) + interval_s
    wait_s = new_tat_s - period_s - now_s
    return new_tat_s, wait_s if wait_s > ROUNDING_S else 0.0


class Limiter(Protocol):
    """Decides several limits of one tenant together, charging all or none. Raises GatewayError(store_unavailable)."""

    async def admit(self, tenant: TenantId, limits: Sequence[Limit]) -> Decision: ...
