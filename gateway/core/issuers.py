"""Issuers: whose signed tokens a tenant accepts beside the gateway's own, and the port to their published keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")  # asymmetric ones only: a published key can sign nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One issuer of JWTs (RFC 7519) for one audience. ``personas_claim`` None: all of the tenant's personas."""

    issuer: str
    audience: str
    jwks_url: str
    algorithms: frozenset[str] = frozenset(ALGORITHMS)
    user_claim: str = "sub"
    personas_claim: str | None = None
    leeway_s: float = 5.0


class KeySetUnavailable(Exception):
    """A key set could not be read. The words are ours: no address, nothing that a server said."""


class KeySetSource(Protocol):
    """Where key sets (RFC 7517 section 5) are fetched. Bounded in time and size; follows no redirect."""

    async def fetch(self, url: str) -> bytes:
        """Return the document; raises KeySetUnavailable."""
        ...
