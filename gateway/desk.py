"""Opens an operator's desk on the store that gateways use, which may be running meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from gateway.app import REVOCATION_EXTRA_S
from gateway.parts import session_rules
from gateway.secret_files import find as find_secrets
from gateway.sections import SettingsError
from gateway.services.auth import Auth
from gateway.services.desk import Desk
from gateway.services.issuers import Issuers
from gateway.services.key_sets import KeySets
from gateway.services.keys import ApiKeys
from gateway.services.registry import Registry
from gateway.services.revocations import Revocations
from gateway.services.sessions import Sessions
from gateway.services.tenants import Tenants
from gateway.services.tickets import TicketRules, Tickets
from gateway.services.tokens import SessionTokens, Signer
from gateway.services.usage import UsageService
from gateway.settings import DEFAULT_ALIAS, DEFAULT_TENANT, Settings
from gateway.store.embedded import running_url
from gateway.store.ledger import RedisLedger
from gateway.store.redis import Redis
from gateway.store.revocations import RedisRevocations
from gateway.store.tenants import RedisKeys, RedisTenants
from gateway.store.uses import RedisUses
from gateway.tenant_options import PersonaSettings, TenantSettings
from gateway.tenant_tables import TenantTables
from gateway.upstream.key_sets import HttpKeySets


@contextlib.asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """Open the desk on the store of the settings, or on the embedded one that runs in the data directory.

    Raises SettingsError that says what is missing, GatewayError(store_unavailable).
    """
    data_dir = settings.server.data_dir
    kept = running_url(data_dir)
    url = settings.redis.url.reveal() if settings.redis.url is not None else kept
    if url is None:
        raise SettingsError(
            "GATEWAY_REDIS_URL", f"is not set, and no gateway keeps a store in {data_dir} (GATEWAY_DATA_DIR) just now"
        )
    secrets = find_secrets(settings, embedded=url == kept)
    tables = _tables(settings)
    redis = Redis(url, timeout_s=settings.redis.timeout_s, connections=1)
    rules = session_rules(settings)
    signer, uses, source = Signer(secrets.signing_key, secrets.previous_signing_key), RedisUses(redis), HttpKeySets()
    revocations = Revocations(RedisRevocations(redis, life_s=rules.ttl_max_s + REVOCATION_EXTRA_S), hears=lambda: False)
    registry = Registry()
    tenants = Tenants(registry, RedisTenants(redis), tables, settings.tenant_source)
    auth = Auth(
        registry,
        ApiKeys(RedisKeys(redis), pepper=secrets.pepper),
        SessionTokens(signer, uses, rules),
        Tickets(signer, uses, TicketRules()),
        Issuers(registry, KeySets(source), life_max_s=rules.ttl_max_s, token_max_bytes=rules.token_max_bytes),
        revocations,
        pepper=secrets.pepper,
    )
    try:
        await revocations.load()
        await tenants.load()
        yield Desk(
            auth=auth,
            sessions=Sessions(auth),
            enrolment=tenants,
            usage=UsageService(
                RedisLedger(redis, ttl_s=settings.ledger.keep_s, retries_s=()), registry, keep_s=settings.ledger.keep_s
            ),
        )
    finally:
        await revocations.aclose()
        await redis.aclose()


def _tables(settings: Settings) -> TenantTables:
    """Return the fixed tenants; the default one is there also for a command that was not told its persona."""
    server = settings.server
    if settings.tenants or settings.upstream.persona_id or server.tenants_file or server.admin_token_file:
        return settings.tenant_tables()
    nobody = PersonaSettings(persona_id="00000000-0000-0000-0000-000000000000")
    return TenantTables(
        prices=settings.prices,
        plans=settings.plans,
        tenants={DEFAULT_TENANT: TenantSettings(personas={DEFAULT_ALIAS: nobody})},
    )
