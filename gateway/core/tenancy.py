"""Where tenants come from, and the ports to those that an operator keeps in the store."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from gateway.core.identity import TenantId


class Source(StrEnum):
    """Where a tenant is written. What is in the settings or in a file is changed there and nowhere else."""

    SETTINGS = "settings"
    FILE = "file"
    STORE = "store"


class TenantStore(Protocol):
    """Where tenants are kept that an operator made: a document each, JSON of the shape of a tenant's table in TOML.

    Raises GatewayError(store_unavailable).
    """

    async def put(self, tenant: TenantId, document: bytes) -> bool:
        """Keep a tenant and tell every worker; False when it was there.

        Raises GatewayError(invalid_value) when there are too many.
        """
        ...

    async def remove(self, tenant: TenantId) -> bool:
        """Forget a tenant and tell every worker; False when there was none."""
        ...

    async def load(self) -> Mapping[TenantId, bytes]:
        """Return all that are kept."""
        ...


class TenantHearer(Protocol):
    """Takes what is told to all workers. Methods return quickly and do not raise. Anything may be lost."""

    def tenants_changed(self) -> None:
        """The store's tenants are others now."""

    def heard(self) -> None:
        """From now on word arrives; what was told before may have been missed."""
