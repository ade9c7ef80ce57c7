"""Session tokens and visitors' ids: what the gateway signs, and reads back.

A session token is ``hgt_`` followed by a JWT (HS256) of the gateway's own. It names the tenant and the user
and what they may reach; every request and every socket is checked against it. A visitor id (``hgv_``) only
says who an anonymous visitor was before; it opens nothing by itself.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.plan import ScopeLimits
from gateway.core.uses import Uses
from gateway.services.clock import iso

TOKEN_PREFIX: Final = "hgt_"
VISITOR_PREFIX: Final = "hgv_"
AUDIENCE: Final = "hyperleap-gateway"
VISITOR_AUDIENCE: Final = "hyperleap-gateway-visitor"
LEEWAY_S: Final = 2.0  # between the clocks of workers
PROVED_MAX: Final = 4096  # tokens that a worker need not prove again; about 1 KiB each
SESSION_LIMITS: Final = ("requests_per_min", "tokens_per_min", "concurrent_turns")  # what a session can be limited in


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """Bounds of session tokens."""

    ttl_s: int = 900
    ttl_min_s: int = 30
    ttl_max_s: int = 86_400
    token_max_bytes: int = 4096
    visitor_ttl_s: int = 365 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a session token says of its holder. ``key_id`` is the key that opened the session, if one did."""

    tenant: TenantId
    user_id: str
    key_id: str | None
    personas: list[str] | None = None
    origins: list[str] | None = None
    anonymous: bool = False
    app: bool = False  # came in by a key of kind ``app``
    limits: ScopeLimits | None = None  # of ``SESSION_LIMITS``
    single_use: bool = False

    def claims(self) -> dict[str, Any]:
        """Return the claims that say it; what is not said takes no room."""
        claims: dict[str, Any] = {"ten": self.tenant, "sub": self.user_id}
        optional = {
            "key": self.key_id,
            "per": self.personas,
            "org": self.origins,
            "anon": self.anonymous or None,
            "app": self.app or None,
            "lim": limit_claim(self.limits),
            "once": self.single_use or None,
        }
        return claims | {name: value for name, value in optional.items() if value is not None}


def limit_claim(limits: ScopeLimits | None) -> dict[str, int] | None:
    """Return how limits are written into a token or a ticket."""
    if limits is None:
        return None
    return {name: value for name in SESSION_LIMITS if (value := getattr(limits, name))}


def claimed_limits(claims: Mapping[str, Any]) -> ScopeLimits | None:
    """Return the limits that a token or a ticket was given, if it was."""
    written = claims.get("lim")
    return ScopeLimits(**{name: written[name] for name in SESSION_LIMITS if name in written}) if written else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A minted token and what its holder needs to know."""

    token: str
    token_id: str
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
        """Return the claims; raises jwt.PyJWTError."""
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


class SessionTokens:
    """Mints and reads tokens and visitor ids within the rules; knows no tenant's settings."""

    def __init__(self, signer: Signer, uses: Uses, rules: SessionRules) -> None:
        self._signer = signer
        self._uses = uses
        self._rules = rules
        self._proved: dict[bytes, Mapping[str, Any]] = {}  # claims by the token's digest, the latest used last

    def life_s(self, asked_s: int | None) -> int:
        """Return how long a token lives; raises GatewayError(invalid_value) for a life out of bounds."""
        rules = self._rules
        if asked_s is None:
            return rules.ttl_s
        if not rules.ttl_min_s <= asked_s <= rules.ttl_max_s:
            raise GatewayError(
                Code.INVALID_VALUE, f"ttl_s lies between {rules.ttl_min_s} and {rules.ttl_max_s}.", field="ttl_s"
            )
        return asked_s

    def mint(self, grant: Grant, ttl_s: int) -> Session:
        """Sign a token; raises GatewayError(invalid_value) when it would be too large."""
        now_s = time.time()
        ends_s = int(now_s) + ttl_s
        token_id = secrets.token_urlsafe(12)
        # Issued at to the microsecond: revoking a user ends what was issued before, and nothing after.
        claims = {"aud": AUDIENCE, "jti": token_id, "iat": round(now_s, 6), "exp": ends_s, **grant.claims()}
        token = TOKEN_PREFIX + self._signer.sign(claims)
        if len(token) > self._rules.token_max_bytes:
            raise GatewayError(
                Code.INVALID_VALUE, f"The token would be larger than {self._rules.token_max_bytes} bytes."
            )
        return Session(token=token, token_id=token_id, expires_at=iso(ends_s), user_id=grant.user_id)

    def read(self, credential: str) -> Mapping[str, Any]:
        """Return a token's claims; raises GatewayError: credential_invalid, token_expired.

        A signature is proved once, since it cannot become wrong later (3 µs where it takes 57); the token's time is
        looked at whenever it is shown, and who may still use it is for the caller to see, whenever it is.
        """
        if len(credential) > self._rules.token_max_bytes or not credential.isascii():  # headers may hold surrogates
            raise GatewayError(Code.CREDENTIAL_INVALID)
        digest = hashlib.sha256(credential.encode()).digest()
        proved = self._proved.pop(digest, None)
        if proved is not None:
            if int(proved["exp"]) <= time.time() - LEEWAY_S:
                raise GatewayError(Code.TOKEN_EXPIRED)
            self._proved[digest] = proved
            return proved
        try:
            claims = self._signer.read(credential.removeprefix(TOKEN_PREFIX), AUDIENCE)
        except jwt.ExpiredSignatureError:
            raise GatewayError(Code.TOKEN_EXPIRED) from None
        except jwt.PyJWTError:  # InvalidKeyError (a key rotated out, or none named) is no InvalidTokenError
            raise GatewayError(Code.CREDENTIAL_INVALID) from None
        if not claims.get("once"):
            self._proved[digest] = claims
            if len(self._proved) > PROVED_MAX:
                del self._proved[next(iter(self._proved))]
        return claims

    async def use(self, claims: Mapping[str, Any]) -> None:
        """Use up a token that is good for one request or socket. Raises credential_used, store_unavailable."""
        if claims.get("once"):
            life_s = claims["exp"] - time.time() + LEEWAY_S
            if not await self._uses.claim(TenantId(claims["ten"]), claims["jti"], life_s):
                raise GatewayError(Code.CREDENTIAL_USED)

    def visitor_id(self, tenant: TenantId, visitor: str) -> str:
        """Sign who an anonymous visitor is."""
        now_s = int(time.time())
        claims = {
            "aud": VISITOR_AUDIENCE,
            "ten": tenant,
            "sub": visitor,
            "iat": now_s,
            "exp": now_s + self._rules.visitor_ttl_s,
        }
        return VISITOR_PREFIX + self._signer.sign(claims)

    def visitor(self, tenant: TenantId, visitor_id: str) -> str | None:
        """Read a visitor id sent back; None for one of another tenant, or worn out: then a new visitor begins.

        Raises GatewayError(invalid_value) for a forged one.
        """
        if not visitor_id.startswith(VISITOR_PREFIX) or len(visitor_id) > self._rules.token_max_bytes:
            raise GatewayError(Code.INVALID_VALUE, "This is not a visitor id.", field="visitor_id")
        try:
            claims = self._signer.read(visitor_id.removeprefix(VISITOR_PREFIX), VISITOR_AUDIENCE)
        except (jwt.ExpiredSignatureError, jwt.InvalidKeyError):
            return None
        except jwt.InvalidTokenError:
            raise GatewayError(Code.INVALID_VALUE, "This is not a visitor id.", field="visitor_id") from None
        return str(claims["sub"]) if claims.get("ten") == tenant else None
