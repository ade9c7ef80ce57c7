"""Who talks to the gateway: tenants, their personas, and the principal behind one credential."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, NewType, get_args

from gateway.core.issuers import Issuer
from gateway.core.plan import Plan, ScopeLimits
from gateway.core.prices import PriceTable
from gateway.core.vendor_keys import DEFAULT_KEY, KeyLabel

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)
UserHash = NewType("UserHash", str)  # keyed hash of a user id: the only form that reaches Redis, logs or the vendor
WorkerId = NewType("WorkerId", str)  # one process of the gateway; never used again by another
# By which a tenant's users may come in: the native door's two ways to follow answers, whose other calls need none, and
# the doors of other dialects as a whole.
Door = Literal["sse", "websocket", "hyperleap"]

TENANT_ID = re.compile(r"[a-z0-9-]{1,32}")
ALIAS = re.compile(r"[A-Za-z0-9_.-]{1,64}")
USER_ID_MAX_CHARS = 256
DOORS: Final[tuple[Door, ...]] = get_args(Door)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that conversations may be held with, without a persona of the vendor's.

    ``stated`` says which of ``system_message`` and ``configuration`` a client may state itself; of ``dataspaces`` it
    may name any.
    """

    ai_system: int  # the vendor's number of the provider, 0 to 6
    name: str
    system_message: str | None = None  # where the client states none
    stated: frozenset[str] = frozenset()
    dataspaces: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """A vendor persona, or a model in its place, under the name that browsers use for it.

    ``replacements`` are the names of the template variables that a browser may set.
    """

    alias: str
    persona_id: str | None = None  # None where there is a model
    persona_version_id: str | None = None
    replacements: frozenset[str] = frozenset()
    model: Model | None = None

    def __post_init__(self) -> None:
        if (self.persona_id is None) == (self.model is None):
            raise ValueError("a persona has the vendor's id, or a model in its place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt that is written at the vendor, under a name that no persona of the tenant has; see ``Persona``."""

    alias: str
    prompt_id: str
    prompt_version_id: str | None = None
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
class Moderation:
    """Whether a tenant has messages judged before they are sent, and ``open``: sent, too, where that cannot be had."""

    messages: bool = False
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer of the gateway: what its browsers may reach, from where and how often."""

    id: TenantId
    personas: Mapping[str, Persona]
    origins: frozenset[str] = frozenset()
    anonymous: bool = False
    doors: frozenset[Door] = frozenset(DOORS)
    plan: Plan = field(default_factory=Plan)
    disconnect: Disconnect = field(default_factory=Disconnect)
    openai_disconnect: Disconnect = field(default_factory=lambda: Disconnect(policy=DisconnectPolicy.STOP))
    hyperleap_disconnect: Disconnect = field(default_factory=lambda: Disconnect(policy=DisconnectPolicy.STOP))
    moderation: Moderation = field(default_factory=Moderation)
    issuers: tuple[Issuer, ...] = ()  # whose tokens are accepted beside the gateway's own
    vendor_keys: tuple[KeyLabel, ...] = (DEFAULT_KEY,)  # by which Hyperleap is asked for it; all of one workspace
    weight: int = 1  # its share of a vendor key that several tenants wait for
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    prices: PriceTable = field(default_factory=PriceTable)

    @property
    def aliases(self) -> frozenset[str]:
        """What tokens can be narrowed to: the personas and the prompts by their names."""
        return frozenset((*self.personas, *self.prompts))

    def persona_named(self, persona_id: str | None, model: str | None = None) -> str | None:
        """Return the alias under which this tenant lists a vendor persona id, or a model where there is no persona."""
        if persona_id is None:
            return next((p.alias for p in self.personas.values() if p.model and p.model.name == model), None)
        return next((p.alias for p in self.personas.values() if p.persona_id == persona_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A user of a tenant, proved by a session token. Every ownership check compares ``tenant.id`` and ``user_hash``."""

    tenant: Tenant
    user_id: UserId | None  # None where only the hash is known (a ticket)
    user_hash: UserHash
    expires_at_s: float  # Unix time; a socket outlives no token
    issued_at_s: float = 0.0  # Unix time
    token_id: str | None = None
    key_id: str | None = None  # of the key that opened the session
    anonymous: bool = False
    app: bool = False  # anonymous, by a key of kind ``app``
    limits: ScopeLimits | None = None  # of the session's own; of these and the plan's the lower holds
    personas: frozenset[str] | None = None  # None: all of the tenant's
    origins: frozenset[str] | None = None  # None: all of the tenant's

    @property
    def external_user_id(self) -> str:
        """How the vendor knows this user (``externalUserId``)."""
        return f"{self.tenant.id}:{self.user_hash}"

    def leaving(self, rule: Disconnect) -> Principal:
        """Return the same principal, whose turns go by another rule when nobody reads them, as a door may have one."""
        return replace(self, tenant=replace(self.tenant, disconnect=rule))

    def owns(self, owner: UserHash, persona: str) -> bool:
        """Whether what was found in this tenant is this user's, and of a persona that the token reaches."""
        return owner == self.user_hash and (self.personas is None or persona in self.personas)
