"""Opens sessions: what a key may mint, for whom, and within which bounds."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import USER_ID_MAX_CHARS, Principal, Tenant, TenantId, UserId
from gateway.core.keys import KeyKind, KeyRecord, parse_key
from gateway.core.limits import CONCURRENT_TURNS_MAX, LIMIT_MAX, REQUESTS_PER_MIN_MAX
from gateway.core.plan import ScopeLimits
from gateway.sections import SettingsError
from gateway.services.admission import TOLD
from gateway.services.auth import Auth
from gateway.services.tokens import SESSION_LIMITS, TOKEN_PREFIX, Grant, Session
from gateway.telemetry import audit
from gateway.tenant_options import normal_origin

PERSONAS_MAX: Final = 64
ORIGINS_MAX: Final = 32
LIMITS_MAX: Final = dict(zip(SESSION_LIMITS, (REQUESTS_PER_MIN_MAX, LIMIT_MAX, CONCURRENT_TURNS_MAX), strict=True))
NOBODY: Final = "\0"  # whom a secret key acts for that names no user; no user's id can be this


class Caller(NamedTuple):
    """Who asks, without a session; ``named`` says whether it is one user who can come back."""

    principal: Principal
    named: bool


class Sessions:
    """Mints session tokens for those who show a key, and lets them act without one."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def open(
        self,
        credential: str,
        origin: str | None,
        *,
        user_id: str | None,
        ttl_s: int | None,
        personas: list[str] | None,
        origins: list[str] | None,
        visitor_id: str | None,
        limits: Mapping[str, int] | None = None,
        single_use: bool | None = None,
    ) -> Session:
        """Mint a session token for a secret key (a named user) or a publishable key (an anonymous visitor).

        Raises GatewayError: credential_invalid, revoked, forbidden, missing_field, unknown_field, invalid_value,
        persona_unknown, origin_not_allowed, anonymous_disabled, store_unavailable.
        """
        record, tenant = await self._proved(credential)
        if record.kind is KeyKind.SECRET:
            if visitor_id is not None:
                raise GatewayError(Code.FORBIDDEN, "A secret key names its user in user_id.", field="visitor_id")
            session = self.for_user(
                tenant.id,
                key_id=record.id,
                user_id=user_id,
                ttl_s=ttl_s,
                personas=personas,
                origins=origins,
                limits=limits,
                single_use=bool(single_use),
            )
        else:
            decided: dict[str, object] = {"user_id": user_id, "personas": personas, "origins": origins}
            decided |= {f"limits.{name}": value for name, value in (limits or {}).items()} | {"single_use": single_use}
            for name, value in decided.items():
                if value is not None:
                    raise GatewayError(Code.FORBIDDEN, "A publishable key may not set this.", field=name)
            session = self._open_anonymous(record, tenant, origin, self._auth.tokens.life_s(ttl_s), visitor_id)
        return session

    def for_user(
        self,
        tenant_id: TenantId,
        *,
        user_id: str | None,
        ttl_s: int | None = None,
        personas: list[str] | None = None,
        origins: list[str] | None = None,
        limits: Mapping[str, int] | None = None,
        single_use: bool = False,
        key_id: str | None = None,
    ) -> Session:
        """Mint a token for a named user of a tenant.

        Raises GatewayError: revoked (there is no such tenant any more), missing_field, invalid_value, persona_unknown.
        """
        tenant = self._auth.tenants.get(tenant_id)
        if tenant is None:
            raise GatewayError(Code.REVOKED)
        life_s = self._auth.tokens.life_s(ttl_s)
        user = checked_user(user_id)
        _check_personas(tenant, personas)
        _check_origins(origins)
        own_limits = _checked_limits(tenant, limits)
        grant = Grant(
            tenant=tenant.id,
            user_id=user,
            key_id=key_id,
            personas=personas,
            origins=origins,
            limits=own_limits,
            single_use=single_use,
        )
        session = self._auth.tokens.mint(grant, life_s)
        audit.record("session.opened", **self._told(session, grant))
        return session

    def _told(self, session: Session, grant: Grant) -> dict[str, Any]:
        """What the audit stream is told of a session."""
        return {
            "tenant": grant.tenant,
            "user": self._auth.user_hash(grant.tenant, grant.user_id),
            "key_id": grant.key_id,
            "token_id": session.token_id,
            "anonymous": grant.anonymous,
            "expires_at": session.expires_at,
        }

    async def caller(self, credential: str, origin: str | None, user_id: str | None) -> Caller:
        """Let who shows a key act at once, as by a session that it would open; ``user_id`` is who it acts for.

        A secret key names a user, or nobody: what it begins then is the key's tenant's own. A publishable key names
        a visitor by his visitor id, or is a new one each time.
        Raises GatewayError: credential_invalid, revoked, invalid_value, origin_not_allowed, anonymous_disabled,
        store_unavailable.
        """
        record, tenant = await self._proved(credential)
        user = NOBODY
        if record.kind is not KeyKind.SECRET:
            user = self._visitor(record, tenant, origin, user_id)
        elif user_id is not None:
            user = checked_user(user_id)
        principal = Principal(
            tenant=tenant,
            user_id=UserId(user) if user != NOBODY else None,
            user_hash=self._auth.user_hash(tenant.id, user),
            expires_at_s=record.expires_at_s or math.inf,
            issued_at_s=time.time(),
            key_id=record.id,
            anonymous=record.kind is not KeyKind.SECRET,
            app=record.kind is KeyKind.APP,
        )
        lost = self._auth.lost(principal, origin, None)
        if lost is not None:
            raise lost
        return Caller(principal, named=user_id is not None)

    async def backend(self, credential: str) -> Tenant:
        """Return whose secret key somebody shows: a tenant's own backend, which speaks for all of its users.

        Raises GatewayError: credential_invalid, revoked, forbidden, store_unavailable.
        """
        if credential.startswith(TOKEN_PREFIX):
            raise GatewayError(Code.FORBIDDEN, "This is for the tenant's backend; send its secret key.")
        record, tenant = await self._proved(credential)
        if record.kind is not KeyKind.SECRET:
            raise GatewayError(Code.FORBIDDEN, "This is for the tenant's backend; send its secret key.")
        return tenant

    def _open_anonymous(
        self, record: KeyRecord, tenant: Tenant, origin: str | None, ttl_s: int, visitor_id: str | None
    ) -> Session:
        visitor = self._visitor(record, tenant, origin, visitor_id)
        app = record.kind is KeyKind.APP
        grant = Grant(tenant=tenant.id, user_id=visitor, key_id=record.id, anonymous=True, app=app)
        session = self._auth.tokens.mint(grant, ttl_s)
        audit.flooded("session.opened", outcome="done", **self._told(session, grant))
        return replace(session, visitor_id=self._auth.tokens.visitor_id(tenant.id, visitor))

    def _visitor(self, record: KeyRecord, tenant: Tenant, origin: str | None, visitor_id: str | None) -> str:
        """Return who a visitor with a publishable key is, the same as before where he says so."""
        if not tenant.anonymous:
            raise GatewayError(Code.ANONYMOUS_DISABLED)
        app = record.kind is KeyKind.APP
        if not (app and origin is None) and origin not in tenant.origins | self._auth.own_origins:
            raise GatewayError(
                Code.ORIGIN_NOT_ALLOWED, "A publishable key works in a browser, from an origin that its tenant lists."
            )
        known = self._auth.tokens.visitor(tenant.id, visitor_id) if visitor_id is not None else None
        return known or f"anon-{uuid.uuid4()}"

    async def _proved(self, credential: str) -> tuple[KeyRecord, Tenant]:
        if credential.startswith(TOKEN_PREFIX):
            raise GatewayError(Code.FORBIDDEN, "A session token cannot open sessions; a key can.")
        parsed = parse_key(credential)
        tenant = self._auth.tenants.get(parsed.tenant) if parsed is not None else None
        if parsed is None or tenant is None:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        record = await self._auth.keys.prove(parsed)
        if (told := TOLD.get()) is not None:
            told.tenant = tenant.id
        if self._auth.tenant_revoked(tenant.id):
            raise GatewayError(Code.REVOKED)
        return record, self._auth.tenants[tenant.id]  # as it is now


def checked_user(user_id: str | None) -> str:
    """Return a user's id; raises GatewayError: missing_field, invalid_value."""
    if user_id is None:
        raise GatewayError(Code.MISSING_FIELD, "A secret key mints tokens for a named user.", field="user_id")
    if not 0 < len(user_id) <= USER_ID_MAX_CHARS or not user_id.isprintable():
        raise GatewayError(
            Code.INVALID_VALUE, f"A user id has 1 to {USER_ID_MAX_CHARS} printable characters.", field="user_id"
        )
    return user_id


def _check_origins(origins: list[str] | None) -> None:
    """A token may be narrowed to origins; one that no browser sends would make it useless without a word."""
    if origins is not None and len(origins) > ORIGINS_MAX:
        raise GatewayError(Code.INVALID_VALUE, f"A token names at most {ORIGINS_MAX} origins.", field="origins")
    for origin in origins or ():
        try:
            normal = normal_origin(origin)
        except SettingsError:
            normal = None
        if normal != origin:
            raise GatewayError(Code.INVALID_VALUE, "An origin is scheme://host[:port], in lower case.", field="origins")


def _checked_limits(tenant: Tenant, limits: Mapping[str, int] | None) -> ScopeLimits | None:
    """A session's limits lie within its tenant's plan; where that has none, within what a limit can be."""
    for name, value in (limits or {}).items():
        most = getattr(tenant.plan.user, name) or LIMITS_MAX[name]
        if not 1 <= value <= most:
            raise GatewayError(
                Code.INVALID_VALUE,
                f"A session's limit lies between 1 and what the tenant lets a user do, {most}.",
                field=f"limits.{name}",
            )
    return ScopeLimits(**limits) if limits else None


def _check_personas(tenant: Tenant, personas: list[str] | None) -> None:
    if personas is not None and not 1 <= len(personas) <= PERSONAS_MAX:
        raise GatewayError(Code.INVALID_VALUE, f"A token names 1 to {PERSONAS_MAX} personas.", field="personas")
    for alias in personas or ():
        if alias not in tenant.aliases:
            raise GatewayError(Code.PERSONA_UNKNOWN, field="personas")
