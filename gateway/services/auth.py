"""Turns a credential into a principal: who asks, in which tenant, and what they may reach. Refusals never repeat it."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Door, Principal, Tenant, TenantId, UserHash, UserId
from gateway.core.keys import KEY_PREFIX
from gateway.core.revocation import NEVER, Holder
from gateway.services.issuers import Issuers
from gateway.services.keys import ApiKeys
from gateway.services.registry import Registry
from gateway.services.revocations import Revocations
from gateway.services.tickets import TICKET_PREFIX, Tickets
from gateway.services.tokens import PROVED_MAX, TOKEN_PREFIX, SessionTokens, claimed_limits

logger = logging.getLogger(__name__)


class Auth:
    """Proves who asks."""

    def __init__(
        self,
        tenants: Registry,
        keys: ApiKeys,
        tokens: SessionTokens,
        tickets: Tickets,
        issuers: Issuers,
        revocations: Revocations,
        *,
        pepper: bytes,
    ) -> None:
        self.tenants = tenants
        self.keys = keys
        self.tokens = tokens
        self.tickets = tickets
        self._issuers = issuers
        self.revocations = revocations
        self._pepper = pepper
        self.own_origins: frozenset[str] = frozenset()
        self._holders: dict[str | None, tuple[Mapping[str, Any], Principal]] = {}  # by the token's id, the latest last

    def allow_origins(self, origins: frozenset[str]) -> None:
        """Let every tenant's browsers in from these origins too (the gateway's own page)."""
        self.own_origins = origins

    def origin_known(self, origin: str) -> bool:
        """Whether any tenant lists an origin: what preflights and unauthenticated answers go by."""
        return origin in self.own_origins or origin in self.tenants.origins

    def origin_allowed(self, principal: Principal, origin: str) -> bool:
        if origin in self.own_origins:
            return True
        if principal.origins is not None and origin not in principal.origins:
            return False
        return origin in principal.tenant.origins

    def user_hash(self, tenant: TenantId, user_id: str) -> UserHash:
        """The keyed hash under which a user is known to Redis, the logs and the vendor."""
        return UserHash(hmac.digest(self._pepper, f"user\0{tenant}\0{user_id}".encode(), hashlib.sha256).hex()[:32])

    async def principal(self, credential: str, origin: str | None) -> Principal:
        """Prove a session token, or one of a tenant's own issuer, shown by a request or a socket.

        A token that is good for one use has had it then.
        Raises GatewayError: credential_invalid, token_expired, revoked, forbidden (a key where a token belongs),
        origin_not_allowed, credential_used, issuer_unavailable, store_unavailable.
        """
        if not credential.startswith(TOKEN_PREFIX):
            if credential.startswith(tuple(KEY_PREFIX.values())):
                raise GatewayError(
                    Code.FORBIDDEN, "Keys open sessions (POST /v1/sessions); send the session's token here."
                )
            if credential.startswith(TICKET_PREFIX):
                raise GatewayError(Code.FORBIDDEN, "A ticket belongs in the URL that it is for, as `?ticket=`.")
            return await self._issuers_user(credential, origin)
        claims = self.tokens.read(credential)
        tenant = self._tenant(claims)
        principal = self._holder(claims, tenant)
        self._check(principal, origin)
        if claims.get("once"):
            await self.tokens.use(claims)
            self._check(principal, origin)  # meanwhile
        return principal

    def _holder(self, claims: Mapping[str, Any], tenant: Tenant) -> Principal:
        """Return whom a token's claims name; the same one for the same claims, while their tenant is the same.

        Nothing of it can have changed then, and to make one, with the user's hash, takes thirty times as long as to
        find it.
        """
        token_id = claims.get("jti")
        proved, known = self._holders.pop(token_id, (None, None))
        if known is None or proved is not claims or known.tenant is not tenant:
            known = Principal(
                tenant=tenant,
                user_id=UserId(claims["sub"]),
                user_hash=self.user_hash(tenant.id, claims["sub"]),
                expires_at_s=float(claims["exp"]),
                anonymous=bool(claims.get("anon")),
                app=bool(claims.get("app")),
                limits=claimed_limits(claims),
                token_id=claims.get("jti"),
                key_id=claims.get("key"),
                issued_at_s=float(claims["iat"]),
                personas=frozenset(claims["per"]) if "per" in claims else None,
                origins=frozenset(claims["org"]) if "org" in claims else None,
            )
        if token_id is not None and not claims.get("once"):
            self._holders[token_id] = claims, known
            if len(self._holders) > PROVED_MAX:
                del self._holders[next(iter(self._holders))]
        return known

    async def _issuers_user(self, token: str, origin: str | None) -> Principal:
        """Prove a token of a tenant's own issuer."""
        claimed = await self._issuers.prove(token)
        principal = Principal(
            tenant=claimed.tenant,
            user_id=UserId(claimed.user_id),
            user_hash=self.user_hash(claimed.tenant.id, claimed.user_id),
            expires_at_s=claimed.expires_at_s,
            issued_at_s=claimed.issued_at_s,
            token_id=claimed.token_id,
            personas=claimed.personas,
        )
        self._check(principal, origin)
        return principal

    async def ticket_holder(self, ticket: str, path: str, origin: str | None) -> Principal:
        """Prove a ticket shown at a path, and use it up where it opens one connection only.

        Raises GatewayError: credential_invalid, token_expired, revoked, credential_used, origin_not_allowed,
        store_unavailable.
        """
        claims = self.tickets.read(ticket, path)
        tenant = self._tenant(claims)
        principal = Principal(
            tenant=tenant,
            user_id=None,
            user_hash=UserHash(claims["sub"]),
            expires_at_s=float(claims["sexp"]),
            issued_at_s=float(claims["siat"]),
            token_id=claims.get("sjti"),
            key_id=claims.get("key"),
            anonymous=bool(claims.get("anon")),
            app=bool(claims.get("app")),
            limits=claimed_limits(claims),
            personas=frozenset(claims["per"]) if "per" in claims else None,
            origins=frozenset(claims["org"]) if "org" in claims else None,
        )
        self._check(principal, origin)
        await self.tickets.use(claims)
        self._check(principal, origin)  # meanwhile
        return principal

    def _tenant(self, claims: Mapping[str, Any]) -> Tenant:
        tenant = self.tenants.get(TenantId(str(claims.get("ten"))))
        if tenant is None:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        return tenant

    def _check(self, principal: Principal, origin: str | None) -> None:
        if origin is not None and not self.origin_allowed(principal, origin):
            raise GatewayError(Code.ORIGIN_NOT_ALLOWED)
        if self.revoked(principal):
            raise GatewayError(Code.REVOKED)

    def current(self, principal: Principal) -> Principal:
        """Return a principal that was proved before with its tenant as it is now, or was last (see ``revoked``)."""
        tenant = self.tenants.get(principal.tenant.id, principal.tenant)
        return principal if tenant is principal.tenant else replace(principal, tenant=tenant)

    def lost(self, principal: Principal, origin: str | None, door: Door | None) -> GatewayError | None:
        """Return why an open connection must end: access was lost, or what its tenant allows has changed."""
        if self.revoked(principal):
            return GatewayError(Code.REVOKED)
        now = self.current(principal)
        if origin is not None and not self.origin_allowed(now, origin):
            return GatewayError(Code.ORIGIN_NOT_ALLOWED)
        if door is not None and door not in now.tenant.doors:
            return GatewayError(Code.DOOR_CLOSED)
        return None

    def revoked(self, principal: Principal) -> bool:
        """Whether a principal that was proved before has lost access since."""
        return self.covers(Holder.of(principal))

    def covers(self, holder: Holder) -> bool:
        """Whether what somebody holds was taken back, or is of a tenant that is gone."""
        return holder.tenant not in self.tenants or self.revocations.cover(holder)

    def tenant_revoked(self, tenant: TenantId) -> bool:
        """Whether a tenant is shut out, or gone."""
        return self.covers(Holder(tenant, UserHash(""), issued_at_s=NEVER))
