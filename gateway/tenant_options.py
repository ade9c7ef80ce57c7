"""The sections of a tenant and its plan: every field with its unit, default, bounds and documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, tzinfo
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.structs import force_setattr

from gateway.core.identity import ALIAS, DOORS, TENANT_ID, Door
from gateway.core.issuers import ALGORITHMS
from gateway.core.limits import BUDGET_MAX, CONCURRENT_TURNS_MAX, LIMIT_MAX, REQUESTS_PER_MIN_MAX
from gateway.core.vendor_keys import DEFAULT_KEY, KEY_LABEL, RING_MAX, WEIGHT_MAX, KeyLabel
from gateway.price_options import PriceSettings
from gateway.sections import Section, SettingsError, doc, normal_uuid, web_url


class ScopeLimitSettings(Section, frozen=True, kw_only=True):
    """What one of its kind may use. Unset: as the plan says, else the default; 0: no limit."""

    requests_per_s: Annotated[
        int | None, doc("Requests a second, each kind (see [limits](limits.md)) by itself", ge=0, le=100_000)
    ] = None
    requests_per_min: Annotated[int | None, doc("Requests a minute, as above", ge=0, le=REQUESTS_PER_MIN_MAX)] = None
    tokens_per_min: Annotated[int | None, doc("Tokens a minute, prompts included", ge=0, le=LIMIT_MAX)] = None
    concurrent_turns: Annotated[int | None, doc("Turns that run at a time", ge=0, le=CONCURRENT_TURNS_MAX)] = None
    tokens_per_day: Annotated[int | None, doc("Tokens a calendar day", ge=0, le=BUDGET_MAX)] = None
    tokens_per_month: Annotated[int | None, doc("Tokens a calendar month", ge=0, le=BUDGET_MAX)] = None


class LimitSettings(Section, frozen=True, kw_only=True):
    """Limits and budgets ([limits](limits.md)): all must admit a request. A tenant's own win over its plan's."""

    tenant: Annotated[ScopeLimitSettings, doc("The whole tenant")] = ScopeLimitSettings()
    user: Annotated[ScopeLimitSettings, doc("Each user with a session of its own")] = ScopeLimitSettings()
    anonymous: Annotated[ScopeLimitSettings, doc("Each anonymous visitor")] = ScopeLimitSettings()
    app: Annotated[
        ScopeLimitSettings, doc("Each visitor by a key of kind `app`; of this and `anonymous` the lower holds")
    ] = ScopeLimitSettings()
    persona: Annotated[ScopeLimitSettings, doc("Each persona")] = ScopeLimitSettings()
    address: Annotated[ScopeLimitSettings, doc("Anonymous visitors of one network (/24, /56)")] = ScopeLimitSettings()
    store_away: Annotated[
        Literal["closed", "open"] | None,
        doc("While Redis is away: `closed` refuses, `open` goes on under each worker's share; unset: `closed`"),
    ] = None
    away_share: Annotated[
        float | None, doc("Share of each limit that one worker grants by itself then; unset: 0.25", gt=0, le=1)
    ] = None


class PlanSettings(LimitSettings, frozen=True, kw_only=True):
    """A plan that tenants may have: limits and budgets ([limits](limits.md)), and prices."""

    prices: Annotated[PriceSettings, doc("What turns of its tenants cost")] = PriceSettings()


class DisconnectSettings(Section, frozen=True, kw_only=True):
    """What becomes of an answer when nobody reads it any more."""

    policy: Annotated[
        Literal["detach", "stop", "drain"],
        doc("`detach`: goes on for the grace; `stop`: ends; `drain`: goes on to its end"),
    ] = "detach"
    grace_s: Annotated[float, doc("How long a detached answer goes on without a reader", ge=0)] = 120.0
    after_grace: Annotated[Literal["stop", "drain"], doc("What happens after the grace")] = "stop"
    openai: Annotated[
        Literal["detach", "stop", "drain"],
        doc("The policy for answers that were asked for by the OpenAI door, whose clients do not come back for them"),
    ] = "stop"
    hyperleap: Annotated[
        Literal["detach", "stop", "drain"],
        doc("Likewise for the drop-in, whose apps know no way back, and send the next message to the conversation"),
    ] = "stop"


class ModerationSettings(Section, frozen=True, kw_only=True):
    """Hyperleap's moderation of messages ([tenants](tenants.md#moderation)), one call for each."""

    messages: Annotated[bool, doc("Messages are judged before they are sent; a flagged one is refused")] = False
    when_unavailable: Annotated[
        Literal["closed", "open"],
        doc("A message that cannot be judged is refused (`closed`), or sent all the same (`open`)"),
    ] = "closed"


class PersonaSettings(Section, frozen=True, kw_only=True):
    """A vendor persona behind an alias; browsers know only the alias."""

    persona_id: Annotated[str, doc("The vendor's id (UUID)")]
    persona_version_id: Annotated[str | None, doc("A version to pin (UUID)")] = None
    replacements: Annotated[tuple[str, ...], doc("Template variables that a browser may set")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "persona_id", normal_uuid("persona_id", self.persona_id))
        if self.persona_version_id is not None:
            force_setattr(self, "persona_version_id", normal_uuid("persona_version_id", self.persona_version_id))
        if not all(self.replacements):
            raise SettingsError("replacements", "must not hold an empty name")


class ModelSettings(Section, frozen=True, kw_only=True):
    """A model behind an alias, for conversations without a persona of the vendor's."""

    ai_system: Annotated[int, doc("The vendor's number of the provider (`aiSystem`)", ge=0, le=6)]
    model: Annotated[str, doc("The model's name at the vendor; one alias a name")]
    system_message: Annotated[str | None, doc("What a conversation begins with where the client states nothing")] = None
    stated: Annotated[
        tuple[Literal["system_message", "configuration"], ...],
        doc("Which of `system_message` and `configuration` a client may state itself, to the cost of the tenant"),
    ] = ()
    dataspaces: Annotated[tuple[str, ...], doc("Dataspaces (UUIDs) that a client may name")] = ()
    replacements: Annotated[tuple[str, ...], doc("Template variables that a browser may set")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.strip():
            raise SettingsError("model", "must not be empty")
        if not all(self.replacements):
            raise SettingsError("replacements", "must not hold an empty name")
        force_setattr(self, "dataspaces", tuple(normal_uuid("dataspaces", one) for one in self.dataspaces))


class PromptSettings(Section, frozen=True, kw_only=True):
    """A prompt that is written at the vendor, behind an alias that no persona has."""

    prompt_id: Annotated[str, doc("The vendor's id (UUID)")]
    prompt_version_id: Annotated[str | None, doc("A version to pin (UUID)")] = None
    replacements: Annotated[tuple[str, ...], doc("Template variables that a browser may set")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "prompt_id", normal_uuid("prompt_id", self.prompt_id))
        if self.prompt_version_id is not None:
            force_setattr(self, "prompt_version_id", normal_uuid("prompt_version_id", self.prompt_version_id))
        if not all(self.replacements):
            raise SettingsError("replacements", "must not hold an empty name")


class IssuerSettings(Section, frozen=True, kw_only=True):
    """Tokens of a tenant's own that are accepted beside the gateway's: JWTs whose keys the issuer publishes (JWKS)."""

    issuer: Annotated[str, doc("The `iss` claim, to the letter")]
    audience: Annotated[str, doc("What the `aud` claim must be or hold")]
    jwks_url: Annotated[str, doc("Where the issuer publishes its keys; `https://`, on this machine also `http://`")]
    algorithms: Annotated[
        tuple[Literal["RS256", "ES256", "EdDSA"], ...], doc("Signature algorithms that are accepted")
    ] = ALGORITHMS
    user_claim: Annotated[str, doc("The claim that is the user's id")] = "sub"
    personas_claim: Annotated[
        str | None, doc("The claim with persona aliases, a list or text with spaces; unset: all of the tenant's")
    ] = None
    leeway_s: Annotated[float, doc("How far the issuer's clock may be off", ge=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("issuer", "audience", "user_claim"):
            if not getattr(self, name).strip():
                raise SettingsError(name, "must not be empty")
        if not self.algorithms:
            raise SettingsError("algorithms", "name at least one")
        force_setattr(self, "jwks_url", web_url("jwks_url", self.jwks_url, ("https", "http")))
        parts = urlsplit(self.jwks_url)
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise SettingsError("jwks_url", "must be https://: whoever can change the keys on their way can be anybody")


class TenantSettings(Section, frozen=True, kw_only=True):
    """One customer of the gateway."""

    plan: Annotated[str | None, doc("One of `[plans]`, whose limits hold where none are set here")] = None
    personas: Annotated[dict[str, PersonaSettings], doc("Personas by alias, at least one")]
    origins: Annotated[tuple[str, ...], doc("Web origins that may use the gateway, each `scheme://host[:port]`")] = ()
    anonymous: Annotated[bool, doc("A publishable key opens anonymous sessions from these origins")] = False
    timezone: Annotated[
        str, doc("Zone of the days by which budgets and usage are counted, such as `Europe/Berlin`")
    ] = "UTC"
    doors: Annotated[
        tuple[Door, ...],
        doc("Which are open of `sse`, `websocket` (native answers) and `hyperleap`, see [doors](tenants.md#doors)"),
    ] = DOORS
    limits: Annotated[LimitSettings, doc("Limits and budgets")] = LimitSettings()
    disconnect: Annotated[DisconnectSettings, doc("What becomes of an answer that nobody reads")] = DisconnectSettings()
    moderation: Annotated[ModerationSettings, doc("Judging messages before they are sent")] = ModerationSettings()
    vendor_keys: Annotated[
        tuple[str, ...], doc("Labels of the vendor keys that are used in turn, all of one workspace of the vendor's")
    ] = (DEFAULT_KEY,)
    weight: Annotated[
        int, doc("Share of a vendor key for which several tenants wait, relative to theirs", ge=1, le=WEIGHT_MAX)
    ] = 1
    issuers: Annotated[dict[str, IssuerSettings], doc("Issuers of tokens of the tenant's own, by a name of yours")] = (
        msgspec.field(default_factory=dict)
    )
    prompts: Annotated[dict[str, PromptSettings], doc("Prompts by alias")] = msgspec.field(default_factory=dict)
    models: Annotated[dict[str, ModelSettings], doc("Models for conversations without a persona, by alias")] = (
        msgspec.field(default_factory=dict)
    )
    prices: Annotated[PriceSettings, doc("What its turns cost")] = PriceSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.personas:
            raise SettingsError("personas", "a tenant needs at least one persona")
        known: set[str] = set()
        named: dict[str, Mapping[str, Section]] = {
            "personas": self.personas,
            "models": self.models,
            "prompts": self.prompts,
        }
        for kind, aliases in named.items():
            for alias in aliases:
                if not ALIAS.fullmatch(alias):
                    raise SettingsError(f"{kind}.{alias}", f"an alias must match {ALIAS.pattern}")
                if alias in known:
                    raise SettingsError(f"{kind}.{alias}", "is the alias of something else")
                known.add(alias)
        models = [model.model for model in self.models.values()]
        for alias, model in self.models.items():
            if models.count(model.model) > 1:  # by the name alone the vendor's records tell which it was
                raise SettingsError(f"models.{alias}.model", "has an alias already")
        try:
            self.prices.check_known(known, "the tenant has no persona, model or prompt of that name")
        except SettingsError as error:
            raise SettingsError(f"prices.{error.key}", error.message) from None
        force_setattr(self, "origins", tuple(dict.fromkeys(normal_origin(origin) for origin in self.origins)))
        time_zone(self.timezone)
        key_ring(self.vendor_keys)


class DefaultTenantSettings(Section, frozen=True, kw_only=True):
    """The tenant ``default`` with the persona alias ``default``, which exists when no ``[tenants]`` are written."""

    origins: Annotated[tuple[str, ...], doc("Web origins that may use the gateway, each `scheme://host[:port]`")] = ()
    anonymous: Annotated[bool, doc("A publishable key opens anonymous sessions from these origins")] = False
    replacements: Annotated[tuple[str, ...], doc("Template variables that a browser may set")] = ()
    timezone: Annotated[
        str, doc("Zone of the days by which budgets and usage are counted, such as `Europe/Berlin`")
    ] = "UTC"
    doors: Annotated[
        tuple[Door, ...],
        doc("Which are open of `sse`, `websocket` (native answers) and `hyperleap`, see [doors](tenants.md#doors)"),
    ] = DOORS
    limits: Annotated[LimitSettings, doc("Limits and budgets")] = LimitSettings()
    disconnect: Annotated[DisconnectSettings, doc("What becomes of an answer that nobody reads")] = DisconnectSettings()
    moderation: Annotated[ModerationSettings, doc("Judging messages before they are sent")] = ModerationSettings()
    vendor_keys: Annotated[
        tuple[str, ...], doc("Labels of the vendor keys that are used in turn, all of one workspace of the vendor's")
    ] = (DEFAULT_KEY,)

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "origins", tuple(dict.fromkeys(normal_origin(origin) for origin in self.origins)))
        time_zone(self.timezone)
        key_ring(self.vendor_keys)


def key_ring(labels: tuple[str, ...]) -> tuple[KeyLabel, ...]:
    """Return the labels of a tenant's vendor keys; raises SettingsError."""
    if not 1 <= len(labels) <= RING_MAX:
        raise SettingsError("vendor_keys", f"name 1 to {RING_MAX} keys")
    for label in labels:
        if not KEY_LABEL.fullmatch(label):
            raise SettingsError(
                "vendor_keys", f"{label[:64]!r} is no label of a key; one must match {KEY_LABEL.pattern}"
            )
        if labels.count(label) > 1:
            raise SettingsError("vendor_keys", f"names {label} more than once")
    return tuple(KeyLabel(label) for label in labels)


def time_zone(name: str) -> tzinfo:
    """Return a time zone by its name in the IANA database; raises SettingsError."""
    if name == "UTC":
        return UTC  # known on a system without that database, too
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise SettingsError("timezone", f"{name!r} is no time zone of this system's database (tzdata)") from None


def check_tenant_id(tenant_id: str) -> None:
    if not TENANT_ID.fullmatch(tenant_id):
        raise SettingsError(f"tenants.{tenant_id}", f"a tenant's id must match {TENANT_ID.pattern}")


def normal_origin(text: str) -> str:
    """Return an origin as browsers send it (RFC 6454, 6.2): lower case, punycode, no default port.

    Raises SettingsError.
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:
        raise SettingsError("origins", f"{text!r} is not scheme://host[:port]") from None
    host = f"[{host}]" if ":" in host else host
    scheme = parts.scheme
    if "*" in text:
        raise SettingsError("origins", f"{text!r} has a wildcard; list every origin by itself")
    if not re.fullmatch(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+", host) or not scheme or parts.username is not None:
        raise SettingsError("origins", f"{text!r} is not scheme://host[:port]")
    origin = f"{scheme}://{host}" + (
        f":{port}" if port is not None and port != {"http": 80, "https": 443}.get(scheme) else ""
    )
    if parts.path or parts.query or parts.fragment or text.strip()[-1] in "/?#":
        raise SettingsError("origins", f"{text!r} has more than an origin; write {origin!r}")
    return origin
