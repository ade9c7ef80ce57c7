"""Tenants' own tokens: JWTs of an issuer that the tenant names, proved by the keys that the issuer publishes.

RFC 8725 is what this keeps to: the algorithm is the issuer's and never the token's choice, the key must be of that
algorithm, issuer and audience must be those of the settings, and a header that demands what we do not know is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import USER_ID_MAX_CHARS, Tenant
from gateway.core.issuers import Issuer
from gateway.services.key_sets import KeySets
from gateway.services.registry import Registry


class Claimed(NamedTuple):
    """What a proved token of an issuer says, in our terms."""

    tenant: Tenant
    user_id: str
    personas: frozenset[str] | None
    token_id: str | None
    issued_at_s: float
    expires_at_s: float


class Issuers:
    """The issuers of all tenants."""

    def __init__(self, tenants: Registry, key_sets: KeySets, *, life_max_s: float, token_max_bytes: int) -> None:
        """``life_max_s``: a token that lives longer is refused, since a revocation is not kept for longer."""
        self._tenants = tenants
        self._known: dict[str, list[tuple[Tenant, Issuer]]] = {}
        self._key_sets = key_sets
        self._life_max_s = life_max_s
        self._token_max_bytes = token_max_bytes
        self._index()
        tenants.on_change.append(self._index)

    def _index(self) -> None:
        known: dict[str, list[tuple[Tenant, Issuer]]] = {}
        for tenant in self._tenants.values():
            for issuer in tenant.issuers:
                known.setdefault(issuer.issuer, []).append((tenant, issuer))
        self._known = known
        self._key_sets.keep(issuer.jwks_url for of_name in known.values() for _, issuer in of_name)

    async def prove(self, token: str) -> Claimed:
        """Prove a tenant's own token.

        Raises GatewayError: credential_invalid, token_expired, issuer_unavailable.
        """
        if not self._known or len(token) > self._token_max_bytes or not token.isascii():
            raise GatewayError(Code.CREDENTIAL_INVALID)
        try:
            header = jwt.get_unverified_header(token)
            shown = jwt.decode(token, options={"verify_signature": False, "verify_aud": False, "verify_iss": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise GatewayError(Code.CREDENTIAL_INVALID) from None
        tenant, issuer = self._issuer(shown)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):  # a stranger's header: of any type
            raise GatewayError(Code.CREDENTIAL_INVALID)
        if algorithm not in issuer.algorithms or "crit" in header:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        key = await self._key_sets.find(issuer.jwks_url, kid, algorithm)
        tenant, still = self._issuer(shown)  # meanwhile the tenant may have dropped it, or allows other things
        if still != issuer:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=issuer.leeway_s,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise GatewayError(Code.TOKEN_EXPIRED) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise GatewayError(Code.CREDENTIAL_INVALID) from None
        return self._claimed(tenant, issuer, claims)

    def _issuer(self, shown: Mapping[str, Any]) -> tuple[Tenant, Issuer]:
        """Choose whose keys to prove a token by; that it is of them is proved then."""
        name, audience = shown.get("iss"), shown.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        for tenant, issuer in self._known.get(name, ()) if isinstance(name, str) else ():
            if issuer.audience in audiences:
                return tenant, issuer
        raise GatewayError(Code.CREDENTIAL_INVALID)

    def _claimed(self, tenant: Tenant, issuer: Issuer, claims: Mapping[str, Any]) -> Claimed:
        user = claims.get(issuer.user_claim)
        if not isinstance(user, str) or not 0 < len(user) <= USER_ID_MAX_CHARS or not user.isprintable():
            raise GatewayError(Code.CREDENTIAL_INVALID, "The token names no user, where its tenant's settings say.")
        issued_at_s, expires_at_s = float(claims["iat"]), float(claims["exp"])
        if not expires_at_s - issued_at_s <= self._life_max_s:
            raise GatewayError(
                Code.CREDENTIAL_INVALID, f"The token lives longer than {self._life_max_s:.0f} s, which is the most."
            )
        token_id = claims.get("jti")
        return Claimed(
            tenant=tenant,
            user_id=user,
            personas=_personas(tenant, claims.get(issuer.personas_claim)) if issuer.personas_claim else None,
            token_id=token_id if isinstance(token_id, str) else None,
            issued_at_s=issued_at_s,
            expires_at_s=expires_at_s,
        )


def _personas(tenant: Tenant, claim: object) -> frozenset[str]:
    """Read aliases from a list, or from one text with spaces between as ``scope`` has them; none is none."""
    named = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(alias for alias in named if isinstance(alias, str) and alias in tenant.aliases)
