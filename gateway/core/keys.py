"""Long-lived keys of tenants: what they look like, what is stored of them, and the port to where they are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.core.identity import TenantId

LABEL_MAX_CHARS = 64
ENDING_CHARS = 4  # of the secret, kept in clear: they tell a key in hand from others, and leave 234 bits to guess


class KeyKind(StrEnum):
    """What a long-lived key may do."""

    SECRET = "secret"  # server to server: mints session tokens
    PUBLISHABLE = "publishable"  # in a browser, from a listed origin: opens anonymous sessions
    APP = "app"  # in a native app, which has no origin to check: opens anonymous sessions with tighter limits


KEY_PREFIX = {KeyKind.SECRET: "hgs_", KeyKind.PUBLISHABLE: "hgp_", KeyKind.APP: "hgp_"}


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is stored of a key. ``digest`` is HMAC-SHA256 of the secret under the pepper, in hex; times are Unix time.

    ``ending`` is the secret's last characters.
    """

    id: str
    tenant: TenantId
    kind: KeyKind
    label: str
    digest: str
    created_at: str
    ending: str = ""
    expires_at_s: float | None = None
    revoked_at_s: float | None = None

    @property
    def prefix(self) -> str:
        """What the key begins with, which names it without being of use to anybody."""
        return f"{KEY_PREFIX[self.kind]}{self.tenant}.{self.id}"

    def state(self, now_s: float) -> KeyState:
        if self.revoked_at_s is not None:
            return KeyState.REVOKED
        return KeyState.EXPIRED if self.expires_at_s is not None and now_s >= self.expires_at_s else KeyState.ACTIVE


class ParsedKey(NamedTuple):
    """A key as a client shows it, ``hgs_<tenant>.<id>.<secret>``, taken apart but not yet proved."""

    prefix: str
    tenant: TenantId
    id: str
    secret: str


_KEY = re.compile(r"(hgs_|hgp_)([a-z0-9-]{1,32})\.([a-z0-9]{8,32})\.([A-Za-z0-9_-]{32,64})", re.ASCII)


def parse_key(value: str) -> ParsedKey | None:
    """Take a key apart; None when it does not look like one."""
    match = _KEY.fullmatch(value)
    return None if match is None else ParsedKey(match[1], TenantId(match[2]), match[3], match[4])


class KeyStore(Protocol):
    """Where tenants' keys are kept. Raises GatewayError(store_unavailable)."""

    async def add(self, record: KeyRecord) -> None: ...

    async def find(self, tenant: TenantId, key_id: str) -> KeyRecord | None: ...

    async def list(self, tenant: TenantId) -> list[KeyRecord]:
        """Return a tenant's keys, those that ended within the last weeks included, by id."""
        ...

    async def expire(self, tenant: TenantId, key_id: str, at_s: float) -> bool:
        """Let a key end at a time (Unix), if it would not end before; False when there is no such key."""
        ...

    async def revoke(self, tenant: TenantId, key_id: str, at_s: float) -> bool:
        """Mark a key as revoked, for good; False when there is no such key."""
        ...

    async def remove(self, tenant: TenantId, key_id: str) -> None: ...
