"""Tenants as they are written: tables of plans and tenants, read from a file, and the tenants that they make."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from gateway.core.identity import Disconnect, DisconnectPolicy, Model, Moderation, Persona, Prompt, Tenant, TenantId
from gateway.core.issuers import Issuer
from gateway.core.plan import Plan, ScopeLimits, StoreAway
from gateway.core.prices import PriceTable
from gateway.price_options import PriceSettings, price_table
from gateway.sections import Section, SettingsError, build, reason
from gateway.tenant_options import (
    DisconnectSettings,
    LimitSettings,
    PlanSettings,
    ScopeLimitSettings,
    TenantSettings,
    check_tenant_id,
    key_ring,
    time_zone,
)

TENANTS_FILE_MAX_BYTES: Final = 4_194_304


class TenantTables(Section, frozen=True, kw_only=True):
    """Tenants, the plans that they may have and the prices of all, as they are written in one place."""

    prices: PriceSettings = PriceSettings()
    plans: dict[str, PlanSettings] = msgspec.field(default_factory=dict)
    tenants: dict[str, TenantSettings] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for tenant_id, tenant in self.tenants.items():
            check_tenant_id(tenant_id)
            try:
                self.check_plan(tenant)
            except SettingsError as error:
                raise SettingsError(f"tenants.{tenant_id}.{error.key}", error.message) from None
        claimed: dict[tuple[str, str], str] = {}
        for tenant_id, tenant in self.tenants.items():
            for name, issuer in tenant.issuers.items():
                key = f"tenants.{tenant_id}.issuers.{name}"
                other = claimed.setdefault((issuer.issuer, issuer.audience), key)
                if other != key:  # whose user would it be?
                    raise SettingsError(key, f"has the issuer and the audience of {other}")
        self._check_prices()

    def _check_prices(self) -> None:
        """Refuse prices of aliases that no tenant has: most likely a name that was written otherwise."""
        if not self.tenants:  # all are of the store, and may come later
            return
        aliases = {a for one in self.tenants.values() for a in (*one.personas, *one.models, *one.prompts)}
        for at, prices in {
            "prices": self.prices,
            **{f"plans.{name}.prices": plan.prices for name, plan in self.plans.items()},
        }.items():
            try:
                prices.check_known(aliases, "no tenant here has a persona, model or prompt of that name")
            except SettingsError as error:
                raise SettingsError(f"{at}.{error.key}", error.message) from None

    def check_plan(self, tenant: TenantSettings) -> None:
        """Raise SettingsError for a tenant whose plan is not among these."""
        if tenant.plan is not None and tenant.plan not in self.plans:
            raise SettingsError("plan", f"there is no [plans.{tenant.plan}]")

    def tenant(self, tenant_id: TenantId, settings: TenantSettings) -> Tenant:
        """Return the tenant that its settings and these plans make."""
        plan = self.plans[settings.plan] if settings.plan is not None else PlanSettings()
        aliases = (*settings.personas, *settings.models, *settings.prompts)
        prices = price_table((settings.prices, plan.prices, self.prices), aliases)
        return _tenant(tenant_id, settings, plan, prices)


def read_tenants(path: Path) -> TenantTables:
    """Read a tenants file: ``[tenants.<id>]``, ``[plans.<name>]`` and ``[prices]`` as in the settings' own file.

    Raises SettingsError, keyed by the file's name and the field. A file that names no tenant is refused: whoever writes
    one anew has just begun.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(TENANTS_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(path.name, f"cannot be read: {reason(error)}") from None
    if len(raw) > TENANTS_FILE_MAX_BYTES:
        raise SettingsError(path.name, f"is larger than {TENANTS_FILE_MAX_BYTES} bytes")
    try:
        tables = build(TenantTables, tomllib.loads(raw.decode("utf-8")), "", path.parent)
    except UnicodeDecodeError as error:
        raise SettingsError(path.name, f"cannot be read: {reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(path.name, f"is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(path.name, "is nested too deeply") from None
    except SettingsError as error:
        raise SettingsError(f"{path.name}: {error.key}", error.message) from None
    if not tables.tenants:
        raise SettingsError(path.name, "names no tenant")
    return tables


def parse_tenant(raw: object) -> TenantSettings:
    """Read one tenant's table, as an operator gives it or the store keeps it; raises SettingsError with the field."""
    try:
        return build(TenantSettings, raw, "", Path())
    except RecursionError:
        raise SettingsError("", "is nested too deeply") from None


def _plan(own: LimitSettings, plan: LimitSettings, zone: str) -> Plan:
    """Join what a tenant sets, what its plan sets and the defaults, limit by limit."""

    def scope(name: str) -> ScopeLimits:
        levels = getattr(own, name), getattr(plan, name), getattr(Plan(), name)
        return ScopeLimits(
            **{
                limit: next(value for level in levels if (value := getattr(level, limit)) is not None)
                for limit in ScopeLimitSettings.__struct_fields__
            }
        )

    return Plan(
        tenant=scope("tenant"),
        user=scope("user"),
        anonymous=scope("anonymous"),
        app=scope("app"),
        persona=scope("persona"),
        address=scope("address"),
        zone=time_zone(zone),
        store_away=StoreAway(own.store_away or plan.store_away or StoreAway.CLOSED),
        away_share=own.away_share or plan.away_share or Plan().away_share,
    )


def _tenant(tenant_id: TenantId, settings: TenantSettings, plan: LimitSettings, prices: PriceTable) -> Tenant:
    return Tenant(
        id=tenant_id,
        personas={
            alias: Persona(
                alias=alias,
                persona_id=persona.persona_id,
                persona_version_id=persona.persona_version_id,
                replacements=frozenset(persona.replacements),
            )
            for alias, persona in settings.personas.items()
        }
        | {
            alias: Persona(
                alias=alias,
                replacements=frozenset(model.replacements),
                model=Model(
                    ai_system=model.ai_system,
                    name=model.model,
                    system_message=model.system_message,
                    stated=frozenset(model.stated),
                    dataspaces=frozenset(model.dataspaces),
                ),
            )
            for alias, model in settings.models.items()
        },
        prompts={
            alias: Prompt(
                alias=alias,
                prompt_id=prompt.prompt_id,
                prompt_version_id=prompt.prompt_version_id,
                replacements=frozenset(prompt.replacements),
            )
            for alias, prompt in settings.prompts.items()
        },
        issuers=tuple(
            Issuer(
                issuer=issuer.issuer,
                audience=issuer.audience,
                jwks_url=issuer.jwks_url,
                algorithms=frozenset(issuer.algorithms),
                user_claim=issuer.user_claim,
                personas_claim=issuer.personas_claim,
                leeway_s=issuer.leeway_s,
            )
            for issuer in settings.issuers.values()
        ),
        origins=frozenset(settings.origins),
        anonymous=settings.anonymous,
        doors=frozenset(settings.doors),
        plan=_plan(settings.limits, plan, settings.timezone),
        moderation=Moderation(
            messages=settings.moderation.messages, open=settings.moderation.when_unavailable == "open"
        ),
        disconnect=_disconnect(settings.disconnect, settings.disconnect.policy),
        openai_disconnect=_disconnect(settings.disconnect, settings.disconnect.openai),
        hyperleap_disconnect=_disconnect(settings.disconnect, settings.disconnect.hyperleap),
        vendor_keys=key_ring(settings.vendor_keys),
        weight=settings.weight,
        prices=prices,
    )


def _disconnect(settings: DisconnectSettings, policy: str) -> Disconnect:
    """Return the rule of a door with this policy; the grace is the same for all."""
    return Disconnect(
        policy=DisconnectPolicy(policy),
        grace_s=settings.grace_s,
        after_grace=DisconnectPolicy(settings.after_grace),
    )
