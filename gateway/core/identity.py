"""Who talks to the gateway: tenants, their personas, and the principal behind one credential."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, NewType, Protocol

from gateway.core.plan import Plan

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)
UserHash = NewType("UserHash", str)  # keyed hash of a user id: the only form that reaches Redis, logs or the vendor
WorkerId = NewType("WorkerId", str)  # one process of the gateway; never used again by another

TENANT_ID = re.compile(r"[a-z0-9-]{1,32}")
ALIAS = re.compile(r"[A-Za-z0-9_.-]{1,64}")
USER_ID_MAX_CHARS = 256


class KeyKind(StrEnum):
    """What a long-lived key may do."""

    SECRET = "secret"  # server to server: mints session tokens
    PUBLISHABLE = "publishable"  # in a browser, from a listed origin: opens anonymous sessions


KEY_PREFIX = {KeyKind.SECRET: "hgs_", KeyKind.PUBLISHABLE: "hgp_"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A vendor persona under the name that browsers use for it.

    ``replacements`` are the names of the template variables that a browser may set.
    """

    alias: str
    persona_id: str
    persona_version_id: str | None = None
    replacements: frozenset[str] = frozenset()


class DisconnectPolicy(StrEnum):
    """What becomes of an answer when nobody reads it any more. Stopping on purpose is another matter."""

    DETACH = "detach"  # goes on for a grace time, then as ``after_grace`` says
    STOP = "stop"  # ends it, and the vendor's work with it
    DRAIN = "drain"  # goes on to its end, so that the vendor's reported figures are learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """A tenant's rule for turns that nobody reads. ``after_grace`` is ``stop`` or ``drain``."""

    policy: DisconnectPolicy = DisconnectPolicy.DETACH
    grace_s: float = 120.0
    after_grace: DisconnectPolicy = DisconnectPolicy.STOP

    def __post_init__(self) -> None:
        if self.after_grace is DisconnectPolicy.DETACH or not self.grace_s >= 0:
            raise ValueError("after_grace is stop or drain, and grace_s is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer of the gateway: what its browsers may reach, from where and how often."""

    id: TenantId
    personas: Mapping[str, Persona]
    origins: frozenset[str] = frozenset()
    anonymous: bool = False
    plan: Plan = field(default_factory=Plan)
    disconnect: Disconnect = field(default_factory=Disconnect)

    def persona_named(self, persona_id: str | None) -> str | None:
        """Return the alias under which this tenant lists a vendor persona id, or None."""
        return next((p.alias for p in self.personas.values() if p.persona_id == persona_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A user of a tenant, proved by a session token. Every ownership check compares ``tenant.id`` and ``user_hash``."""

    tenant: Tenant
    user_id: UserId
    user_hash: UserHash
    expires_at_s: float  # Unix time; a socket outlives no token
    anonymous: bool = False
    personas: frozenset[str] | None = None  # None: all of the tenant's
    origins: frozenset[str] | None = None  # None: all of the tenant's

    @property
    def external_user_id(self) -> str:
        """How the vendor knows this user (``externalUserId``)."""
        return f"{self.tenant.id}:{self.user_hash}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is stored of a long-lived key. ``digest`` is HMAC-SHA256 of the secret under the pepper, in hex."""

    id: str
    tenant: TenantId
    kind: KeyKind
    label: str
    digest: str
    created_at: str


class ParsedKey(NamedTuple):
    """A key as a client shows it, ``hgs_<tenant>.<id>.<secret>``, taken apart but not yet proved."""

    kind: KeyKind
    tenant: TenantId
    id: str
    secret: str


_KEY = re.compile(r"(hgs|hgp)_([a-z0-9-]{1,32})\.([a-z0-9]{8,32})\.([A-Za-z0-9_-]{32,64})", re.ASCII)


def parse_key(value: str) -> ParsedKey | None:
    """Take a key apart; None when it does not look like one."""
    match = _KEY.fullmatch(value)
    if match is None:
        return None
    kind = KeyKind.SECRET if match[1] == "hgs" else KeyKind.PUBLISHABLE
    return ParsedKey(kind, TenantId(match[2]), match[3], match[4])


class KeyStore(Protocol):
    """Where tenants' keys are kept. Raises GatewayError(store_unavailable)."""

    async def add(self, record: KeyRecord) -> None: ...

    async def find(self, tenant: TenantId, key_id: str) -> KeyRecord | None: ...

    async def list(self, tenant: TenantId) -> list[KeyRecord]: ...

    async def remove(self, tenant: TenantId, key_id: str) -> None: ...
