"""What tests of keys, tokens and principals share: a counted key store, tenants, and a gateway's auth over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Persona, Tenant, TenantId
from gateway.core.issuers import KeySetSource
from gateway.core.keys import KeyKind, KeyRecord
from gateway.services.auth import Auth
from gateway.services.issuers import Issuers
from gateway.services.key_sets import KeySets
from gateway.services.keys import ApiKeys
from gateway.services.registry import Registry
from gateway.services.revocations import Revocations
from gateway.services.sessions import Sessions
from gateway.services.tickets import TicketRules, Tickets
from gateway.services.tokens import Session, SessionRules, SessionTokens, Signer
from gateway.store.redis import Redis
from gateway.store.revocations import RedisRevocations
from gateway.store.tenants import RedisKeys
from gateway.store.uses import RedisUses

KEY, OLD_KEY, OTHER_KEY = b"k" * 32, b"o" * 32, b"x" * 32
PEPPER = b"pepper-of-the-tests"
ORIGIN, FOREIGN = "https://app.example", "https://evil.example"


class CountedKeys(RedisKeys):
    """The key store, counting how often it is asked."""

    finds = 0

    @property
    def redis(self) -> Redis:
        return self._redis

    async def find(self, tenant: TenantId, key_id: str) -> KeyRecord | None:
        self.finds += 1
        return await super().find(tenant, key_id)


def tenant_named(name: str, **fields: Any) -> Tenant:
    personas = {alias: Persona(alias=alias, persona_id=f"p-{alias}") for alias in ("default", "other")}
    wanted: dict[str, Any] = {"personas": personas, "origins": frozenset({ORIGIN}), "anonymous": True, **fields}
    return Tenant(id=TenantId(name), **wanted)


class NoKeySets:
    """A KeySetSource that nothing may ask."""

    async def fetch(self, url: str) -> bytes:
        raise AssertionError(url)


def auth_of(
    keys: CountedKeys,
    *tenants: Tenant,
    key: bytes = KEY,
    previous: bytes | None = None,
    clock: Callable[[], float] = time.time,
    source: KeySetSource | None = None,
    **rules: Any,
) -> Auth:
    signer = Signer(key, previous)
    uses = RedisUses(keys.redis)
    tokens, tickets = SessionTokens(signer, uses, SessionRules(**rules)), Tickets(signer, uses, TicketRules())
    revocations = Revocations(RedisRevocations(keys.redis, life_s=86_460), hears=lambda: True)
    api_keys = ApiKeys(keys, pepper=PEPPER, clock=clock)
    known = Registry({tenant.id: tenant for tenant in tenants})
    issuers = Issuers(known, KeySets(source or NoKeySets()), life_max_s=86_400, token_max_bytes=4096)
    return Auth(known, api_keys, tokens, tickets, issuers, revocations, pepper=PEPPER)


async def session(auth: Auth, credential: str, origin: str | None = None, **fields: Any) -> Session:
    wanted: dict[str, Any] = dict.fromkeys(("user_id", "ttl_s", "personas", "origins", "visitor_id"))
    return await Sessions(auth).open(credential, origin, **(wanted | fields))


async def user_token(auth: Auth, tenant: Tenant, **fields: Any) -> str:
    key = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    return (await session(auth, key, **({"user_id": "u1"} | fields))).token


async def refused(auth: Auth, credential: str, origin: str | None = None) -> Code:
    with pytest.raises(GatewayError) as error:
        await auth.principal(credential, origin)
    assert credential[4:] not in f"{error.value} {error.value.detail}" or len(credential) < 8
    return error.value.code


async def refusal(work: object) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work  # type: ignore[misc]  # any awaitable
    return error.value


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token.removeprefix("hgt_"), options={"verify_signature": False})


def signed(claims: dict[str, Any], key: bytes = KEY, **header: Any) -> str:
    """Sign claims as the gateway would, or not quite."""
    signer = Signer(key, None)
    wanted = {"kid": signer._kid} | header
    return "hgt_" + jwt.encode(claims, key, algorithm="HS256", headers=wanted)
