"""Credentials that are good for one use: the port to where it is kept that they have had it."""

from __future__ import annotations

from typing import Protocol

from gateway.core.identity import TenantId


class Uses(Protocol):
    """Remembers what was used. Raises GatewayError(store_unavailable): then it may have been used or not."""

    async def claim(self, tenant: TenantId, id_: str, life_s: float) -> bool:
        """Use something up, on all workers at once; False when it was before. It is remembered for ``life_s``."""
        ...
