"""Revocations: what is taken back, from whom, and the ports to where that is kept and how workers learn of it.

A token or a key is taken back for good. A user is taken back as of now: what was issued before opens nothing, what is
issued after does, so whoever mints tokens decides whether there are new ones. A tenant stays out until it is let in.
All sessions of one that is deleted are taken back as of now, so that another of its name begins with none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from gateway.core.identity import Principal, TenantId, UserHash

NEVER: Final = math.inf


class Revoked(StrEnum):
    """What a revocation is of."""

    TENANT = "tenant"
    USER = "user"
    KEY = "key"  # and with it the sessions that it opened
    TOKEN = "token"
    SESSIONS = "sessions"  # all that a tenant's users hold, as of now


class Revocation(NamedTuple):
    """``id`` is the token's or the key's, or the user's hash; empty for what is of a whole tenant.

    Times are Unix, by the store's clock. After ``until_s`` nothing that it is about can be valid any more (infinite for
    a tenant).
    """

    what: Revoked
    tenant: TenantId
    id: str
    at_s: float
    until_s: float


class Holder(NamedTuple):
    """Who holds something that may be taken back: a request, a connection, a running turn.

    ``token_id`` and ``key_id`` are None where nobody knows by what it was opened; ``issued_at_s`` is then 0.
    """

    tenant: TenantId
    user: UserHash
    token_id: str | None = None
    key_id: str | None = None
    issued_at_s: float = 0.0

    @staticmethod
    def of(principal: Principal) -> Holder:
        return Holder(
            principal.tenant.id, principal.user_hash, principal.token_id, principal.key_id, principal.issued_at_s
        )


class RevokedSet:
    """The revocations in force. Pure; looked at on every request, so it is a few look-ups in a dictionary."""

    def __init__(self) -> None:
        self._in_force: dict[tuple[Revoked, TenantId, str], Revocation] = {}

    def __len__(self) -> int:
        return len(self._in_force)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(tuple(self._in_force.values()))

    def add(self, revocation: Revocation) -> bool:
        """Put one in force; False when it, or a later one of the same, was already."""
        key = (revocation.what, revocation.tenant, revocation.id)
        known = self._in_force.get(key)
        if known is not None and known.at_s >= revocation.at_s:
            return False
        self._in_force[key] = revocation
        return True

    def lift(self, tenant: TenantId) -> bool:
        """Let a tenant in again; False when it was not out."""
        return self._in_force.pop((Revoked.TENANT, tenant, ""), None) is not None

    def prune(self, now_s: float) -> None:
        """Forget those that are about nothing valid any more."""
        for key in [key for key, revocation in self._in_force.items() if revocation.until_s < now_s]:
            del self._in_force[key]

    def cover(self, holder: Holder) -> bool:
        """Whether what somebody holds has been taken back."""
        in_force = self._in_force
        if not in_force:
            return False
        tenant = holder.tenant
        if (Revoked.TENANT, tenant, "") in in_force:
            return True
        if holder.token_id is not None and (Revoked.TOKEN, tenant, holder.token_id) in in_force:
            return True
        if holder.key_id is not None and (Revoked.KEY, tenant, holder.key_id) in in_force:
            return True
        for dated in ((Revoked.USER, tenant, holder.user), (Revoked.SESSIONS, tenant, "")):
            revocation = in_force.get(dated)
            if revocation is not None and holder.issued_at_s <= revocation.at_s:
                return True
        return False


class RevocationStore(Protocol):
    """Where revocations are kept for as long as they matter, and from where all workers are told.

    Raises GatewayError(store_unavailable).
    """

    async def revoke(self, what: Revoked, tenant: TenantId, id_: str) -> Revocation:
        """Keep a revocation and tell every worker; raises GatewayError(invalid_value) when there are too many."""
        ...

    async def lift(self, tenant: TenantId) -> bool:
        """Let a tenant in again and tell every worker; False when it was not out."""
        ...

    async def keep(self, revocation: Revocation) -> None:
        """Keep one that the store may have lost. Safe to repeat."""
        ...

    async def load(self) -> list[Revocation]:
        """Return all that are kept."""
        ...


class RevocationHearer(Protocol):
    """Takes what is told to all workers. Methods return quickly and do not raise. Anything may be lost."""

    def revoked(self, revocation: Revocation, /) -> None: ...

    def lifted(self, tenant: TenantId, /) -> None: ...

    def heard(self) -> None:
        """From now on word arrives; what was told before may have been missed."""
