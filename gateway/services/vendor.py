"""Hyperleap as a tenant's services ask it: with the tenant's own keys, and again with another where one is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.core.errors import GatewayError
from gateway.core.identity import Tenant
from gateway.core.turn import Upstream
from gateway.core.vendor_keys import KeyLabel, VendorKeys

T = TypeVar("T")

UNAUTHENTICATED: Final = 401


@dataclass(frozen=True, slots=True)
class Vendor:
    """The vendor and the keys to ask it with.

    A 401 says that the request's credential was not accepted (RFC 9110, 15.5.2): whom it is from was not known, so
    nothing was done, whatever it asked for. It is the one refusal after which a request, a chat too, is sent once
    more, with a key that works: another of the ring, or the same one where its file has a new one by now. A 403 may
    come from whoever knew the caller and looked at what was asked; it rests the key, but is not repeated.
    """

    upstream: Upstream
    keys: VendorKeys

    def key(self, tenant: Tenant) -> KeyLabel:
        """Return the key of the tenant's to ask with next."""
        return self.keys.candidates(tenant.vendor_keys)[0]

    def spare(self, tenant: Tenant, error: GatewayError | None) -> KeyLabel | None:
        """Return the key to send a refused request once more with; None where its refusal is what there is to tell."""
        if error is None or error.vendor_status != UNAUTHENTICATED:
            return None
        return self.keys.spare(tenant.vendor_keys)

    async def ask(self, tenant: Tenant, call: Callable[[KeyLabel], Awaitable[T]]) -> T:
        """Make a call that is answered as a whole; raises GatewayError with an ``upstream_*`` code."""
        try:
            return await call(self.key(tenant))
        except GatewayError as error:
            other = self.spare(tenant, error)
            if other is None:
                raise
        return await call(other)
