"""An operator's desk: tenants, keys, tokens and usage, as the admin API and the command line handle them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Tenant, TenantId
from gateway.core.keys import KeyRecord, KeyState, parse_key
from gateway.core.plan import SCOPES, ScopeLimits
from gateway.core.revocation import Revocation, Revoked
from gateway.sections import written
from gateway.services.auth import Auth
from gateway.services.sessions import Sessions, checked_user
from gateway.services.tenants import Enrolled, Tenants
from gateway.services.usage import UsageService

NAMED_MAX: Final = 20  # tenants that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What an operator works with. What is changed here holds on every worker within 2 s."""

    auth: Auth
    sessions: Sessions
    enrolment: Tenants
    usage: UsageService

    @property
    def tenants(self) -> Mapping[TenantId, Tenant]:
        return self.auth.tenants

    # --- tenants -------------------------------------------------------------------------------------------------

    def tenant(self, name: str | None) -> TenantId:
        """Return the tenant that is meant: the only one where none is named.

        Raises GatewayError: not_found, missing_field.
        """
        named = ", ".join(sorted(self.tenants)[:NAMED_MAX]) or "none"
        if name is None:
            if len(self.tenants) == 1:
                return next(iter(self.tenants))
            raise GatewayError(Code.MISSING_FIELD, f"Say which tenant is meant: {named}.")
        if TenantId(name) not in self.tenants:
            raise GatewayError(Code.NOT_FOUND, f"There is no tenant {name[:64]}; there is {named}.")
        return TenantId(name)

    async def find(self, name: str) -> TenantId:
        """Return a tenant, also one that another worker was told of just now.

        Raises GatewayError: not_found, store_unavailable.
        """
        if TenantId(name) not in self.tenants:
            await self.enrolment.load()
        return self.tenant(name)

    async def put_tenant(self, name: TenantId, table: object) -> bool:
        """Make a tenant, or another one of it, from its table; False when there was one.

        Raises GatewayError: tenant_fixed, invalid_value (naming the field), store_unavailable.
        """
        return await self.enrolment.put(name, table)

    async def delete_tenant(self, name: TenantId) -> None:
        """Delete a stored tenant: its keys are revoked, and what its users hold opens nothing, now or ever.

        What it said and what it cost is forgotten when its time is over. Safe to repeat after a failure.
        Raises GatewayError: not_found, tenant_fixed, store_unavailable.
        """
        await self.enrolment.load()
        self.enrolment.check_free(name)
        if name not in self.enrolment.stored:
            raise GatewayError(Code.NOT_FOUND, "There is no such tenant in the store.")
        now_s = time.time()
        for record in await self.auth.keys.list(name):
            if record.state(now_s) is KeyState.ACTIVE:
                await self.auth.keys.revoke(name, record.id)
        await self.auth.revocations.revoke(Revoked.SESSIONS, name)
        await self.enrolment.remove(name)
        # Again: a worker that remembered a key has minted by it until now. And another of this name is not shut out.
        await self.auth.revocations.revoke(Revoked.SESSIONS, name)
        await self.auth.revocations.lift(name)

    async def revoke_tenant(self, name: TenantId) -> Revocation:
        return await self.auth.revocations.revoke(Revoked.TENANT, name)

    async def restore_tenant(self, name: TenantId) -> bool:
        """Let a tenant in again; False when it was not shut out."""
        return await self.auth.revocations.lift(name)

    def facts(self, name: TenantId) -> dict[str, Any]:
        """What is shown of a tenant; raises GatewayError(not_found)."""
        tenant, source, settings = self._enrolled(name)
        return {
            "tenant": str(name),
            "source": source,
            "state": "revoked" if self.auth.tenant_revoked(name) else "active",
            "plan": settings.plan,
            "personas": sorted(tenant.personas),
            "prompts": sorted(tenant.prompts),
            "origins": sorted(tenant.origins),
            "anonymous": tenant.anonymous,
            "doors": sorted(tenant.doors),
            "limits": {scope: limits for scope in SCOPES if (limits := _set(tenant.plan.of(scope)))},
            "disconnect": str(tenant.disconnect.policy),
            "issuers": [issuer.issuer for issuer in tenant.issuers],
        }

    def table(self, name: TenantId) -> dict[str, Any]:
        """Return a tenant's table, as it could be put; raises GatewayError(not_found)."""
        return written(self._enrolled(name).settings)

    def _enrolled(self, name: TenantId) -> Enrolled:
        enrolled = self.enrolment.enrolled.get(name)
        if enrolled is None:
            raise GatewayError(Code.NOT_FOUND, "There is no such tenant.")
        return enrolled

    # --- keys ----------------------------------------------------------------------------------------------------

    async def key(self, named: str, tenant: str | None) -> KeyRecord:
        """Find a key by its id, by what it begins with (``hgs_<tenant>.<id>``) or by all of it.

        Raises GatewayError: not_found, missing_field, store_unavailable.
        """
        parsed = parse_key(named)
        begins = f"{parsed.prefix}{parsed.tenant}.{parsed.id}" if parsed is not None else named.rstrip("….")
        for name in self.tenants if tenant is None else [self.tenant(tenant)]:
            for record in await self.auth.keys.list(name):
                if begins in (record.id, record.prefix):
                    return record
        raise GatewayError(Code.NOT_FOUND, "There is no such key; `keys list` shows those that there are.")

    async def revoke_key(self, tenant: TenantId, key_id: str) -> None:
        """End a key and the sessions that it opened; raises GatewayError: not_found, store_unavailable."""
        await self.auth.keys.revoke(tenant, key_id)
        await self.auth.revocations.revoke(Revoked.KEY, tenant, key_id)

    # --- users and tokens ----------------------------------------------------------------------------------------

    async def revoke_user(self, tenant: TenantId, user_id: str) -> Revocation:
        """End what a user was given so far; raises GatewayError: invalid_value, store_unavailable."""
        user = self.auth.user_hash(tenant, checked_user(user_id))
        return await self.auth.revocations.revoke(Revoked.USER, tenant, user)

    async def revoke_token(self, tenant: TenantId, token_id: str) -> Revocation:
        return await self.auth.revocations.revoke(Revoked.TOKEN, tenant, token_id)

    def token_id(self, token: str) -> tuple[TenantId, str]:
        """Return whose a session token is and its id; raises GatewayError: credential_invalid, token_expired."""
        claims = self.auth.tokens.read(token)
        return TenantId(claims["ten"]), claims["jti"]


def _set(limits: ScopeLimits) -> dict[str, int]:
    return {name: value for name, value in asdict(limits).items() if value}
