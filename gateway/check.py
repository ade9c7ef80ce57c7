"""``hyperleap-gateway check``: what is set, and whether Redis and the upstream can be reached. Spends no call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.warehouse import WarehouseError
from gateway.secret_files import load, read
from gateway.sections import SettingsError
from gateway.settings import Settings
from gateway.store.embedded import find_servers
from gateway.store.facts import store_fault, store_name
from gateway.store.redis import Redis
from gateway.upstream.client import HyperleapClient
from gateway.upstream.errors import ConnectFailed
from gateway.upstream.key_files import KeyFiles, labels_of
from gateway.warehouse.target import Target

TENANTS_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    words: str


def check_tenants(settings: Settings) -> Finding:
    """Read the tenants that are fixed, from the tenants file where one is set."""
    try:
        tenants = settings.tenant_values()
    except SettingsError as error:
        return Finding("tenants", False, str(error))
    named = ", ".join(sorted(tenants)[:TENANTS_SHOWN]) + (", …" if len(tenants) > TENANTS_SHOWN else "")
    where = settings.server.tenants_file or settings.tenant_source
    return Finding("tenants", True, f"{named} ({where})" if tenants else "none here; the admin API makes them")


def check_secrets(settings: Settings) -> Finding:
    """Look at the files with pepper, signing key and admin token; those that a first start makes are not made here."""
    if settings.server.admin_token_file is not None:
        try:
            read(settings.server.admin_token_file, "GATEWAY_ADMIN_TOKEN_FILE")
        except SettingsError as error:
            return Finding("secrets", False, str(error))
    if settings.redis.url is None:
        return Finding("secrets", True, f"made once in {settings.server.data_dir} unless given")
    try:
        load(settings, embedded=False)
    except SettingsError as error:
        return Finding("secrets", False, str(error))
    return Finding("secrets", True, "pepper and signing key can be read")


def check_keys(settings: Settings) -> list[Finding]:
    """Say of each vendor key that a tenant asks with where it is and whether it can be read."""
    files, tenants = KeyFiles(settings.upstream), settings.tenant_values()
    findings = []
    for label in labels_of(tenants):
        users = ", ".join(tenant.id for tenant in tenants.values() if label in tenant.vendor_keys)
        try:
            files.read(label)
        except SettingsError as error:
            findings.append(Finding(f"vendor key {label}", False, f"{error} (tenants: {users})"))
        else:
            limit = settings.plan_limit(label)
            words = f"{files.place(label)} can be read, plan limit {limit} (tenants: {users})"
            findings.append(Finding(f"vendor key {label}", True, words))
    return findings


async def check_store(settings: Settings) -> Finding:
    """Ask the Redis that would be used for its version, or say which server would be started."""
    if settings.redis.url is None:
        servers = find_servers()
        if not servers:
            return Finding("store", False, 'no server to embed: pip install "hyperleap-gateway[embedded]"')
        return Finding("store", True, f"embedded {servers[0]}")
    redis = Redis(settings.redis.url.reveal(), timeout_s=settings.redis.timeout_s, connections=1)
    try:
        facts = await redis.server_facts()
    except GatewayError as error:
        return Finding("store", False, f"{settings.redis.address()}: {error.detail}")
    finally:
        await redis.aclose()
    words = f"{store_name(facts)} at {settings.redis.address()}"
    if fault := store_fault(facts):
        return Finding("store", False, f"{words}: {fault}")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return Finding("store", False, f"{words}: maxmemory-policy is {policy}; logs could vanish, set noeviction")
    return Finding("store", True, words)


async def check_ledger(settings: Settings) -> Finding | None:
    """Connect to the database that settlements are exported to, and say what is there; changes nothing in it."""
    if settings.ledger.url is None and settings.ledger.url_file is None:
        return None
    target = Target(settings.ledger)
    try:
        address = target.require().address
        from gateway.warehouse.postgres import Postgres  # its driver is an extra

        warehouse = Postgres(target)
        facts = await warehouse.inspect()
        await warehouse.aclose()
    except (SettingsError, WarehouseError) as error:
        return Finding("ledger export", False, str(error))
    return Finding("ledger export", True, f"{address}: {facts}")


async def check_upstream(client: HyperleapClient, base_url: str) -> Finding:
    """Connect, shake hands and leave again."""
    try:
        facts = await client.probe()
    except ConnectFailed as error:
        return Finding("upstream", False, f"{base_url}: {error}")
    how = f"{facts.tls_version}, ALPN {facts.alpn}" if facts.tls_version else "no TLS, HTTP/2 by prior knowledge"
    streams = facts.max_concurrent_streams
    limit = f"{streams} streams a connection" if streams is not None else "no stream limit"
    return Finding("upstream", True, f"{base_url}: {how}, {limit}, {facts.connect_s * 1000:.0f} ms")
