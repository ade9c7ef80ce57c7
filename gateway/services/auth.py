"""Credentials: long-lived keys kept as keyed hashes, short-lived session tokens, and visitors' signed ids.

A session token is ``hgt_`` followed by a JWT (HS256) of the gateway's own. It names the tenant and the user
and what they may reach; every request and every socket is checked against it. A visitor id (``hgv_``) only
says who an anonymous visitor was before; it opens nothing by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jwt

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import (
    KEY_PREFIX,
    USER_ID_MAX_CHARS,
    KeyKind,
    KeyRecord,
    KeyStore,
    Principal,
    Tenant,
    TenantId,
    UserHash,
    UserId,
    parse_key,
)
from gateway.options import SettingsError, normal_origin
from gateway.services.clock import timestamp
from gateway.telemetry.logging import event as log_event

logger = logging.getLogger(__name__)

TOKEN_PREFIX: Final = "hgt_"
VISITOR_PREFIX: Final = "hgv_"
AUDIENCE: Final = "hyperleap-gateway"
VISITOR_AUDIENCE: Final = "hyperleap-gateway-visitor"
LEEWAY_S: Final = 2.0  # between the clocks of workers
KEY_CACHE_S: Final = 5.0
KEY_CACHE_ENTRIES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """Bounds of session tokens."""

    ttl_s: int = 900
    ttl_min_s: int = 30
    ttl_max_s: int = 86_400
    token_max_bytes: int = 4096
    visitor_ttl_s: int = 365 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A minted token and what its holder needs to know."""

    token: str
    expires_at: str
    user_id: str
    visitor_id: str | None = None


class Signer:
    """Signs and reads the gateway's own JWTs; reads those of the previous key too while it is being rotated out."""

    def __init__(self, key: bytes, previous: bytes | None) -> None:
        self._kid = _kid(key)
        self._keys = {self._kid: key} | ({_kid(previous): previous} if previous is not None else {})

    def sign(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self._keys[self._kid], algorithm="HS256", headers={"kid": self._kid})

    def read(self, token: str, audience: str) -> dict[str, Any]:
        """Return the claims; raises jwt.InvalidTokenError."""
        key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
        if key is None:
            raise jwt.InvalidKeyError("unknown key")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["HS256"],
            audience=audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iat", "aud", "sub"]},
        )
        return claims


def _kid(key: bytes) -> str:
    return hashlib.sha256(b"kid\0" + key).hexdigest()[:8]


class Auth:
    """Proves who asks. Refusals never repeat what was shown."""

    def __init__(
        self, tenants: Mapping[TenantId, Tenant], keys: KeyStore, *, pepper: bytes, signer: Signer, rules: SessionRules
    ) -> None:
        self._tenants = dict(tenants)
        self._keys = keys
        self._pepper = pepper
        self._signer = signer
        self._rules = rules
        self._known: dict[tuple[TenantId, str], tuple[float, KeyRecord | None]] = {}
        self._own_origins: frozenset[str] = frozenset()

    @property
    def tenants(self) -> Mapping[TenantId, Tenant]:
        return self._tenants

    def allow_origins(self, origins: frozenset[str]) -> None:
        """Let every tenant's browsers in from these origins too (the gateway's own page)."""
        self._own_origins = origins

    def origin_known(self, origin: str) -> bool:
        """Whether any tenant lists an origin: what preflights and unauthenticated answers go by."""
        return origin in self._own_origins or any(origin in tenant.origins for tenant in self._tenants.values())

    def origin_allowed(self, principal: Principal, origin: str) -> bool:
        if origin in self._own_origins:
            return True
        if principal.origins is not None and origin not in principal.origins:
            return False
        return origin in principal.tenant.origins

    # --- session tokens ------------------------------------------------------------------------------------------

    def principal(self, credential: str, origin: str | None) -> Principal:
        """Prove a session token shown by a request or a socket.

        Raises GatewayError: credential_invalid, token_expired, forbidden (a key where a token belongs),
        origin_not_allowed.
        """
        if not credential.startswith(TOKEN_PREFIX):
            if credential.startswith(tuple(KEY_PREFIX.values())):
                raise GatewayError(
                    Code.FORBIDDEN, "Keys open sessions (POST /v1/sessions); send the session's token here."
                )
            raise GatewayError(Code.CREDENTIAL_INVALID)
        if len(credential) > self._rules.token_max_bytes or not credential.isascii():  # headers may hold surrogates
            raise GatewayError(Code.CREDENTIAL_INVALID)
        try:
            claims = self._signer.read(credential.removeprefix(TOKEN_PREFIX), AUDIENCE)
        except jwt.ExpiredSignatureError:
            raise GatewayError(Code.TOKEN_EXPIRED) from None
        except jwt.PyJWTError:  # InvalidKeyError (a key rotated out, or none named) is no InvalidTokenError
            raise GatewayError(Code.CREDENTIAL_INVALID) from None
        tenant = self._tenants.get(TenantId(str(claims.get("ten"))))
        if tenant is None:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        principal = Principal(
            tenant=tenant,
            user_id=UserId(claims["sub"]),
            user_hash=self.user_hash(tenant.id, claims["sub"]),
            expires_at_s=float(claims["exp"]),
            anonymous=bool(claims.get("anon")),
            personas=frozenset(claims["per"]) if "per" in claims else None,
            origins=frozenset(claims["org"]) if "org" in claims else None,
        )
        if origin is not None and not self.origin_allowed(principal, origin):
            raise GatewayError(Code.ORIGIN_NOT_ALLOWED)
        return principal

    async def open_session(
        self,
        credential: str,
        origin: str | None,
        *,
        user_id: str | None,
        ttl_s: int | None,
        personas: list[str] | None,
        origins: list[str] | None,
        visitor_id: str | None,
    ) -> Session:
        """Mint a session token for a secret key (a named user) or a publishable key (an anonymous visitor).

        Raises GatewayError: credential_invalid, forbidden, missing_field, unknown_field, invalid_value,
        persona_unknown, origin_not_allowed, anonymous_disabled, store_unavailable.
        """
        record, tenant = await self._proved(credential)
        ttl_s = self._checked_ttl(ttl_s)
        if record.kind is KeyKind.SECRET:
            if visitor_id is not None:
                raise GatewayError(Code.FORBIDDEN, "A secret key names its user in user_id.", field="visitor_id")
            user = _checked_user(user_id)
            _check_personas(tenant, personas)
            _check_origins(origins)
            return self._mint(tenant, user, ttl_s, personas=personas, origins=origins, anonymous=False)
        for name, value in (("user_id", user_id), ("personas", personas), ("origins", origins)):
            if value is not None:
                raise GatewayError(Code.FORBIDDEN, "A publishable key may not set this.", field=name)
        if not tenant.anonymous:
            raise GatewayError(Code.ANONYMOUS_DISABLED)
        if origin is None or not (origin in tenant.origins or origin in self._own_origins):
            raise GatewayError(
                Code.ORIGIN_NOT_ALLOWED, "A publishable key works in a browser, from an origin that its tenant lists."
            )
        visitor = self._visitor(tenant, visitor_id) or f"anon-{uuid.uuid4()}"
        session = self._mint(tenant, visitor, ttl_s, personas=None, origins=None, anonymous=True)
        return Session(
            token=session.token,
            expires_at=session.expires_at,
            user_id=session.user_id,
            visitor_id=self._visitor_id(tenant, visitor),
        )

    def user_hash(self, tenant: TenantId, user_id: str) -> UserHash:
        """The keyed hash under which a user is known to Redis, the logs and the vendor."""
        return UserHash(hmac.digest(self._pepper, f"user\0{tenant}\0{user_id}".encode(), hashlib.sha256).hex()[:32])

    def _mint(
        self,
        tenant: Tenant,
        user: str,
        ttl_s: int,
        *,
        personas: list[str] | None,
        origins: list[str] | None,
        anonymous: bool,
    ) -> Session:
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "aud": AUDIENCE,
            "ten": tenant.id,
            "sub": user,
            "iat": now_s,
            "exp": now_s + ttl_s,
            "jti": secrets.token_urlsafe(12),
        }
        if personas is not None:
            claims["per"] = personas
        if origins is not None:
            claims["org"] = origins
        if anonymous:
            claims["anon"] = 1
        token = TOKEN_PREFIX + self._signer.sign(claims)
        if len(token) > self._rules.token_max_bytes:
            raise GatewayError(
                Code.INVALID_VALUE, f"The token would be larger than {self._rules.token_max_bytes} bytes."
            )
        log_event(
            logger,
            logging.INFO,
            "session.opened",
            tenant=tenant.id,
            user=self.user_hash(tenant.id, user),
            anonymous=anonymous,
            ttl_s=ttl_s,
        )
        expires_at = datetime.fromtimestamp(now_s + ttl_s, UTC).isoformat().replace("+00:00", "Z")
        return Session(token=token, expires_at=expires_at, user_id=user)

    def _checked_ttl(self, ttl_s: int | None) -> int:
        rules = self._rules
        if ttl_s is None:
            return rules.ttl_s
        if not rules.ttl_min_s <= ttl_s <= rules.ttl_max_s:
            raise GatewayError(
                Code.INVALID_VALUE, f"ttl_s lies between {rules.ttl_min_s} and {rules.ttl_max_s}.", field="ttl_s"
            )
        return ttl_s

    def _visitor_id(self, tenant: Tenant, visitor: str) -> str:
        now_s = int(time.time())
        claims = {
            "aud": VISITOR_AUDIENCE,
            "ten": tenant.id,
            "sub": visitor,
            "iat": now_s,
            "exp": now_s + self._rules.visitor_ttl_s,
        }
        return VISITOR_PREFIX + self._signer.sign(claims)

    def _visitor(self, tenant: Tenant, visitor_id: str | None) -> str | None:
        """Read a visitor id sent back. One of another tenant, or worn out, starts a new visitor; a forged one fails."""
        if visitor_id is None:
            return None
        if not visitor_id.startswith(VISITOR_PREFIX) or len(visitor_id) > self._rules.token_max_bytes:
            raise GatewayError(Code.INVALID_VALUE, "This is not a visitor id.", field="visitor_id")
        try:
            claims = self._signer.read(visitor_id.removeprefix(VISITOR_PREFIX), VISITOR_AUDIENCE)
        except (jwt.ExpiredSignatureError, jwt.InvalidKeyError):
            return None
        except jwt.InvalidTokenError:
            raise GatewayError(Code.INVALID_VALUE, "This is not a visitor id.", field="visitor_id") from None
        return str(claims["sub"]) if claims.get("ten") == tenant.id else None

    # --- long-lived keys -----------------------------------------------------------------------------------------

    async def mint_key(self, tenant: TenantId, kind: KeyKind, label: str, *, replace: bool) -> str:
        """Make a key and return it, for the only time; ``replace`` removes older ones of its kind and label."""
        if replace:
            for known in await self._keys.list(tenant):
                if known.kind is kind and known.label == label:
                    await self._keys.remove(tenant, known.id)
                    self._known.pop((tenant, known.id), None)
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        await self._keys.add(
            KeyRecord(
                id=key_id,
                tenant=tenant,
                kind=kind,
                label=label,
                digest=self._digest(secret),
                created_at=timestamp(),
            )
        )
        return f"{KEY_PREFIX[kind]}{tenant}.{key_id}.{secret}"

    async def has_key(self, tenant: TenantId, label: str) -> bool:
        return any(record.label == label for record in await self._keys.list(tenant))

    async def _proved(self, credential: str) -> tuple[KeyRecord, Tenant]:
        if credential.startswith(TOKEN_PREFIX):
            raise GatewayError(Code.FORBIDDEN, "A session token cannot open sessions; a key can.")
        parsed = parse_key(credential)
        tenant = self._tenants.get(parsed.tenant) if parsed is not None else None
        if parsed is None or tenant is None:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        record = await self._record(parsed.tenant, parsed.id)
        # The digest is computed and compared whether or not the key is known, so that timing tells nothing.
        digest = self._digest(parsed.secret)
        proved = hmac.compare_digest(digest, record.digest if record is not None else "0" * 64)
        if record is None or not proved or record.kind is not parsed.kind:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        return record, tenant

    async def _record(self, tenant: TenantId, key_id: str) -> KeyRecord | None:
        now_s = time.monotonic()
        known = self._known.get((tenant, key_id))
        if known is not None and now_s - known[0] < KEY_CACHE_S:
            return known[1]
        record = await self._keys.find(tenant, key_id)
        if len(self._known) >= KEY_CACHE_ENTRIES:
            self._known.clear()
        self._known[tenant, key_id] = (now_s, record)
        return record

    def _digest(self, secret: str) -> str:
        return hmac.digest(self._pepper, secret.encode(), hashlib.sha256).hex()


def _checked_user(user_id: str | None) -> str:
    if user_id is None:
        raise GatewayError(Code.MISSING_FIELD, "A secret key mints tokens for a named user.", field="user_id")
    if not 0 < len(user_id) <= USER_ID_MAX_CHARS or not user_id.isprintable():
        raise GatewayError(
            Code.INVALID_VALUE, f"A user id has 1 to {USER_ID_MAX_CHARS} printable characters.", field="user_id"
        )
    return user_id


def _check_origins(origins: list[str] | None) -> None:
    """A token may be narrowed to origins; one that no browser sends would make it useless without a word."""
    for origin in origins or ():
        try:
            normal = normal_origin(origin)
        except SettingsError:
            normal = None
        if normal != origin:
            raise GatewayError(Code.INVALID_VALUE, "An origin is scheme://host[:port], in lower case.", field="origins")


def _check_personas(tenant: Tenant, personas: list[str] | None) -> None:
    for alias in personas or ():
        if alias not in tenant.personas:
            raise GatewayError(Code.PERSONA_UNKNOWN, field="personas")
