"""An operator's desk: keys, tokens and tenants of the store that gateways use, which may be running meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from gateway.app import REVOCATION_EXTRA_S, session_rules
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Tenant, TenantId
from gateway.core.keys import KeyRecord, parse_key
from gateway.core.revocation import Revocation, Revoked
from gateway.secret_files import find as find_secrets
from gateway.services.auth import Auth
from gateway.services.issuers import Issuers
from gateway.services.key_sets import KeySets
from gateway.services.keys import ApiKeys
from gateway.services.registry import Registry
from gateway.services.revocations import Revocations
from gateway.services.sessions import Sessions
from gateway.services.tickets import TicketRules, Tickets
from gateway.services.tokens import SessionTokens, Signer
from gateway.settings import DEFAULT_TENANT, Settings, SettingsError
from gateway.store.embedded import running_url
from gateway.store.redis import Redis
from gateway.store.revocations import RedisRevocations
from gateway.store.tenants import RedisKeys
from gateway.store.uses import RedisUses
from gateway.upstream.key_sets import HttpKeySets


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What an operator works with. What is changed here holds on every worker within 2 s."""

    auth: Auth
    sessions: Sessions

    @property
    def tenants(self) -> Mapping[TenantId, Tenant]:
        return self.auth.tenants

    def tenant(self, name: str | None) -> TenantId:
        """Return the tenant that is meant: the only one where none is named. Raises GatewayError(not_found)."""
        if name is None:
            if len(self.tenants) == 1:
                return next(iter(self.tenants))
            raise GatewayError(Code.MISSING_FIELD, f"Say which tenant is meant: {', '.join(self.tenants)}.")
        if TenantId(name) not in self.tenants:
            raise GatewayError(Code.NOT_FOUND, f"There is no tenant {name}; there is {', '.join(self.tenants)}.")
        return TenantId(name)

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

    async def revoke_key(self, record: KeyRecord) -> None:
        """End a key and the sessions that it opened; raises GatewayError(store_unavailable)."""
        await self.auth.keys.revoke(record.tenant, record.id)
        await self.auth.revocations.revoke(Revoked.KEY, record.tenant, record.id)

    async def revoke_user(self, tenant: TenantId, user_id: str) -> Revocation:
        return await self.auth.revocations.revoke(Revoked.USER, tenant, self.auth.user_hash(tenant, user_id))

    def token_id(self, token: str) -> tuple[TenantId, str]:
        """Return whose a session token is and its id; raises GatewayError: credential_invalid, token_expired."""
        claims = self.auth.tokens.read(token)
        return TenantId(claims["ten"]), claims["jti"]


@contextlib.asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """Open the desk on the store of the settings, or on the embedded one that runs in the data directory.

    Raises SettingsError that says what is missing, GatewayError(store_unavailable).
    """
    data_dir = settings.server.data_dir
    url = settings.redis.url.reveal() if settings.redis.url is not None else running_url(data_dir)
    if url is None:
        raise SettingsError(
            "GATEWAY_REDIS_URL", f"is not set, and no gateway keeps a store in {data_dir} (GATEWAY_DATA_DIR) just now"
        )
    secrets = find_secrets(settings)
    tenants = Registry(_tenants(settings))
    redis = Redis(url, timeout_s=settings.redis.timeout_s, connections=1)
    rules = session_rules(settings)
    signer, uses, source = Signer(secrets.signing_key, secrets.previous_signing_key), RedisUses(redis), HttpKeySets()
    revocations = Revocations(RedisRevocations(redis, life_s=rules.ttl_max_s + REVOCATION_EXTRA_S), hears=lambda: False)
    auth = Auth(
        tenants,
        ApiKeys(RedisKeys(redis), pepper=secrets.pepper),
        SessionTokens(signer, uses, rules),
        Tickets(signer, uses, TicketRules()),
        Issuers(tenants, KeySets(source), life_max_s=rules.ttl_max_s, token_max_bytes=rules.token_max_bytes),
        revocations,
        pepper=secrets.pepper,
    )
    try:
        await revocations.load()
        yield Desk(auth=auth, sessions=Sessions(auth))
    finally:
        await revocations.aclose()
        await redis.aclose()


def _tenants(settings: Settings) -> Mapping[TenantId, Tenant]:
    """Return the tenants; the default one is there also for a command that was not told its persona."""
    if not (settings.tenants or settings.server.tenants_file or settings.upstream.persona_id):
        return {DEFAULT_TENANT: Tenant(id=DEFAULT_TENANT, personas={})}
    return settings.tenant_values()
