"""Hyperleap as a tenant's services ask it: past the gate of one of its keys, again with another if one is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.core.errors import GatewayError
from gateway.core.identity import Tenant
from gateway.core.turn import Upstream
from gateway.core.vendor_keys import KeyLabel, VendorKeys
from gateway.services.vendor_gate import VendorGate

T = TypeVar("T")

UNAUTHENTICATED: Final = 401


@dataclass(frozen=True, slots=True)
class Vendor:
    """The vendor, the keys to ask it with, and the gate in front of them.

    A 401 says that the request's credential was not accepted (RFC 9110, 15.5.2): whom it is from was not known, so
    nothing was done, whatever it asked for. It is the one refusal after which a request, a chat too, is sent once
    more, with a key that works: another of the ring, or the same one where its file has a new one by now. A 403 may
    come from whoever knew the caller and looked at what was asked; it rests the key, but is not repeated.
    """

    upstream: Upstream
    keys: VendorKeys
    gate: VendorGate

    def spare(self, tenant: Tenant, error: GatewayError | None) -> KeyLabel | None:
        """Return the key to send a refused request once more with; None where its refusal is what there is to tell."""
        if error is None or error.vendor_status != UNAUTHENTICATED:
            return None
        return self.keys.spare(tenant.vendor_keys)

    async def ask(self, tenant: Tenant, call: Callable[[KeyLabel], Awaitable[T]], *, waits: bool = True) -> T:
        """Make a call that is answered as a whole, once there is room for it; not ``waits``: if there is room now.

        Raises GatewayError with an ``upstream_*`` code, or store_unavailable.
        """
        try:
            async with self.gate.call(tenant, waits=waits) as key:
                return await call(key)
        except GatewayError as error:
            other = self.spare(tenant, error)
            if other is None:
                raise
        async with self.gate.call(tenant, ring=(other,), waits=waits) as key:
            return await call(key)
