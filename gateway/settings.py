"""Settings: one frozen tree from a TOML file, the environment and the command line, the later ones winning."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from gateway.core.identity import Disconnect, DisconnectPolicy, Persona, Tenant, TenantId
from gateway.core.issuers import Issuer
from gateway.core.plan import Plan, ScopeLimits, StoreAway
from gateway.core.tenancy import Source
from gateway.core.vendor_keys import KEY_LABEL, KeyLabel, PlanLimit
from gateway.options import (
    MASK,
    DefaultTenantSettings,
    DisconnectSettings,
    IssuerSettings,
    LedgerSettings,
    LimitSettings,
    LoggingSettings,
    PersonaSettings,
    RedisSettings,
    ScopeLimitSettings,
    Secret,
    Section,
    ServerSettings,
    SessionSettings,
    SettingsError,
    StreamSettings,
    TenantSettings,
    TurnSettings,
    UpstreamSettings,
    VendorKeySettings,
    WebSocketSettings,
    check_tenant_id,
    default_data_dir,
    field_metas,
    key_ring,
    plan_limit,
    reason,
    time_zone,
)

__all__ = [
    "DefaultTenantSettings",
    "DisconnectSettings",
    "IssuerSettings",
    "LedgerSettings",
    "LimitSettings",
    "LoggingSettings",
    "PersonaSettings",
    "RedisSettings",
    "ScopeLimitSettings",
    "Secret",
    "ServerSettings",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "StreamSettings",
    "TenantSettings",
    "TenantTables",
    "TurnSettings",
    "UpstreamSettings",
    "VendorKeySettings",
    "WebSocketSettings",
    "load",
    "parse_tenant",
    "read_tenants",
    "reference",
    "written",
]

DEFAULT_TENANT = TenantId("default")
DEFAULT_ALIAS = "default"

ENV_PREFIX = {
    "server": "GATEWAY_",
    "redis": "GATEWAY_REDIS_",
    "upstream": "HYPERLEAP_",
    "default_tenant": "GATEWAY_",
    "turns": "GATEWAY_TURNS_",
    "ledger": "GATEWAY_LEDGER_",
    "streams": "GATEWAY_STREAMS_",
    "websocket": "GATEWAY_WEBSOCKET_",
    "sessions": "GATEWAY_SESSIONS_",
    "logging": "GATEWAY_LOG_",
}
ENV_SHORT = {
    "sessions.pepper_file": "GATEWAY_PEPPER_FILE",
    "sessions.signing_key_file": "GATEWAY_SIGNING_KEY_FILE",
    "sessions.previous_signing_key_file": "GATEWAY_PREVIOUS_SIGNING_KEY_FILE",
}
CONFIG_ENV = "GATEWAY_CONFIG"
TENANTS_FILE_MAX_BYTES = 4_194_304
# What `--env-file` writes; a shell that has sourced such a file must still be able to start a gateway.
NOT_SETTINGS = frozenset({"GATEWAY_URL", "GATEWAY_INTERNAL_URL", "GATEWAY_SECRET_KEY", "GATEWAY_PUBLISHABLE_KEY"})
# Kubernetes puts these into every container for each Service of the namespace; a Service named "gateway" or
# "hyperleap-gateway" makes them begin with our prefixes.
SERVICE_LINK = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")


class TenantTables(Section, frozen=True, kw_only=True):
    """Tenants and the plans that they may have, as they are written in one place."""

    plans: dict[str, LimitSettings] = msgspec.field(default_factory=dict)
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

    def check_plan(self, tenant: TenantSettings) -> None:
        """Raise SettingsError for a tenant whose plan is not among these."""
        if tenant.plan is not None and tenant.plan not in self.plans:
            raise SettingsError("plan", f"there is no [plans.{tenant.plan}]")

    def tenant(self, tenant_id: TenantId, settings: TenantSettings) -> Tenant:
        """Return the tenant that its settings and these plans make."""
        plan = self.plans[settings.plan] if settings.plan is not None else LimitSettings()
        return _tenant(tenant_id, settings, plan)


class Settings(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    redis: RedisSettings = RedisSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    default_tenant: DefaultTenantSettings = DefaultTenantSettings()
    turns: TurnSettings = TurnSettings()
    ledger: LedgerSettings = LedgerSettings()
    streams: StreamSettings = StreamSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    sessions: SessionSettings = SessionSettings()
    logging: LoggingSettings = LoggingSettings()
    vendor_keys: dict[str, VendorKeySettings] = msgspec.field(default_factory=dict)
    plans: dict[str, LimitSettings] = msgspec.field(default_factory=dict)
    tenants: dict[str, TenantSettings] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for label in self.vendor_keys:
            if not KEY_LABEL.fullmatch(label):
                raise SettingsError(f"vendor_keys.{label}", f"a key's label must match {KEY_LABEL.pattern}")
        TenantTables(plans=self.plans, tenants=self.tenants)  # which checks them
        if self.server.tenants_file is not None:
            where = "[tenants] are in server.tenants_file"
            for name in ("tenants", "plans"):
                if getattr(self, name):
                    raise SettingsError(name, f"must not be written, since {where}")
        elif self.tenants:
            where = "[tenants] are written"
        else:
            return
        if self.upstream.persona_id is not None:
            raise SettingsError("upstream.persona_id", f"is for the default tenant, but {where}")
        for name in DefaultTenantSettings.__struct_fields__:
            if getattr(self.default_tenant, name) != getattr(DefaultTenantSettings(), name):
                raise SettingsError(f"default_tenant.{name}", f"is for the default tenant, but {where}")

    @property
    def tenant_source(self) -> Source:
        """Where the fixed tenants are written."""
        return Source.FILE if self.server.tenants_file is not None else Source.SETTINGS

    def tenant_tables(self) -> TenantTables:
        """Return the tenants that are fixed, with their plans; reads the tenants file where one is set.

        There are none where the admin API can make some. Raises SettingsError, also when there is none at all.
        """
        if self.server.tenants_file is not None:
            return read_tenants(self.server.tenants_file)
        if self.tenants or (self.upstream.persona_id is None and self.server.admin_token_file is not None):
            return TenantTables(plans=self.plans, tenants=self.tenants)
        if self.upstream.persona_id is None:
            raise SettingsError(
                "HYPERLEAP_PERSONA_ID",
                "no tenant: name a persona, write [tenants] in a TOML file, or allow the admin API",
            )
        default = self.default_tenant
        persona = PersonaSettings(persona_id=self.upstream.persona_id, replacements=default.replacements)
        tenant = TenantSettings(
            personas={DEFAULT_ALIAS: persona},
            origins=default.origins,
            anonymous=default.anonymous,
            timezone=default.timezone,
            doors=default.doors,
            limits=default.limits,
            disconnect=default.disconnect,
            vendor_keys=default.vendor_keys,
        )
        return TenantTables(plans=self.plans, tenants={DEFAULT_TENANT: tenant})

    def tenant_values(self) -> dict[TenantId, Tenant]:
        """Return the tenants that are fixed; raises SettingsError, see ``tenant_tables``."""
        tables = self.tenant_tables()
        return {TenantId(name): tables.tenant(TenantId(name), tenant) for name, tenant in tables.tenants.items()}

    def plan_limit(self, label: KeyLabel) -> PlanLimit:
        """Return what the vendor's plan grants a key: its own limit, else that of every key."""
        own = self.vendor_keys.get(label)
        return plan_limit(own.plan_limit if own is not None and own.plan_limit else self.upstream.plan_limit)

    def effective(self) -> dict[str, Any]:
        """Return the tree as plain values for printing, secrets masked, a Redis URL without its password."""
        tree: dict[str, Any] = _plain(self)
        tree["redis"]["url"] = self.redis.address()
        return tree


def load(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the settings: ``config`` (or ``GATEWAY_CONFIG``), then the environment, then ``overrides`` by dotted key.

    An override of None and an empty environment variable count as not given. Relative paths in the file are
    relative to the file, others to the working directory. Raises SettingsError on the first thing that is wrong.
    """
    raw: dict[str, Any] = {}
    base = Path()
    if config is None and environ.get(CONFIG_ENV):
        config = Path(environ[CONFIG_ENV])
    if config is not None:
        raw, base = _read_toml(config), config.parent
    sources: dict[str, str] = {}
    for key, name, text in _from_environment(environ):
        sources[key] = name
        _put(raw, key, _Text(text))
    for key, value in (overrides or {}).items():
        if value is not None:
            if key not in _ENV_BY_KEY and key != "tenants":
                raise _unknown(key, _ENV_BY_KEY)
            sources.pop(key, None)
            _put(raw, key, _Text(value) if isinstance(value, str) else value)
    if isinstance(raw.setdefault("server", {}), dict):
        raw["server"].setdefault("data_dir", default_data_dir(environ))
    try:
        return _build(Settings, raw, "", base)
    except SettingsError as error:
        raise SettingsError(sources.get(error.key, error.key), error.message) from None


def read_tenants(path: Path) -> TenantTables:
    """Read a tenants file: ``[tenants.<id>]`` and ``[plans.<name>]`` as in the settings' own file, and nothing else.

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
        tables = _build(TenantTables, tomllib.loads(raw.decode("utf-8")), "", path.parent)
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
        return _build(TenantSettings, raw, "", Path())
    except RecursionError:
        raise SettingsError("", "is nested too deeply") from None


def written(section: Section) -> dict[str, Any]:
    """Return the table that makes a section: its fields as plain values, those left out that are as they are unset."""
    return {
        name: {item: written(part) for item, part in value.items()}
        if isinstance(value, dict)
        else (written(value) if isinstance(value, Section) else _plain(value))
        for name in section.__struct_fields__
        if (value := getattr(section, name)) != _unset(type(section), name)
    }


class _Text(str):
    """A value written as text (environment, command line): numbers, booleans and lists are read out of it."""

    __slots__ = ()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"cannot be read: {reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(str(path), f"is not valid TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, name, text) of the variables that are ours; refuse those that only look like it."""
    for name, text in environ.items():
        if not name.startswith(("GATEWAY_", "HYPERLEAP_")) or name in NOT_SETTINGS or name == CONFIG_ENV:
            continue
        if SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and SERVICE_LINK_URL.match(text)):
            continue
        if name not in _KEY_BY_ENV:
            raise _unknown(name, [*_KEY_BY_ENV, CONFIG_ENV])
        if text.strip():
            yield _KEY_BY_ENV[name], name, text.strip()


def _put(raw: dict[str, Any], key: str, value: object) -> None:
    *parents, leaf = key.split(".")
    table: Any = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return  # a section that is no table: _build says so
    table[leaf] = value


S = TypeVar("S", bound=Section)
_hints = cache(get_type_hints)  # of a section: they take longer to find out than all the rest of building it


def _build(kind: type[S], raw: object, at: str, base: Path) -> S:
    """Build a section field by field, so that an error names the tenant, the alias and the field."""
    prefix = f"{at}." if at else ""
    if not isinstance(raw, Mapping):
        raise SettingsError(at, "must be a table")
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise _unknown(
                key, [f"{prefix}{known}" for known in hints] + (list(_ENV_BY_KEY) if kind is Settings else [])
            )
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Section):
            values[name] = _build(hint, value, key, base)
        elif get_origin(hint) is dict:
            if not isinstance(value, Mapping):
                raise SettingsError(key, "must be a table")
            values[name] = {
                item: _build(get_args(hint)[1], table, f"{key}.{item}", base) for item, table in value.items()
            }
        else:
            values[name] = _convert(value, hint, key, base)
    for required in kind.__struct_fields__:
        if required not in values and _default(kind, required) is msgspec.NODEFAULT:
            raise SettingsError(f"{prefix}{required}", "is required")
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{prefix}{error.key}", error.message) from None


def _convert(value: object, hint: Any, key: str, base: Path) -> object:
    text = isinstance(value, _Text)
    if isinstance(value, _Text):
        if get_origin(hint) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif hint is bool:
            value = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), str(value))
        base = Path()

    def custom(kind: type, item: object) -> object:
        if isinstance(item, kind):
            return item
        if not isinstance(item, str):
            raise ValueError(f"expected text, got {type(item).__name__}")
        if kind is Path:
            if not item:
                raise ValueError("must not be empty")
            return base / Path(item).expanduser()
        return kind(str(item))

    try:
        return msgspec.convert(value, hint, strict=not text, dec_hook=custom)
    except (msgspec.ValidationError, RuntimeError) as error:
        message = re.sub(r" - at `.*`$", "", str(error))
        raise SettingsError(key, message[:1].lower() + message[1:]) from None


def _unknown(name: str, known: Any) -> SettingsError:
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
    return SettingsError(name, f"there is no such setting; the nearest is {nearest}")


@cache
def _default(kind: type[msgspec.Struct], name: str) -> Any:
    field = next(field for field in msgspec.structs.fields(kind) if field.name == name)
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory


def _unset(kind: type[msgspec.Struct], name: str) -> Any:
    default = _default(kind, name)
    return default() if isinstance(default, type) else default


def _plain(value: object) -> Any:
    match value:
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case Secret():
            return MASK
        case Path():
            return str(value)
        case _:
            return value


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


def _tenant(tenant_id: TenantId, settings: TenantSettings, plan: LimitSettings) -> Tenant:
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
        disconnect=Disconnect(
            policy=DisconnectPolicy(settings.disconnect.policy),
            grace_s=settings.disconnect.grace_s,
            after_grace=DisconnectPolicy(settings.disconnect.after_grace),
        ),
        vendor_keys=key_ring(settings.vendor_keys),
        weight=settings.weight,
    )


def _leaves(kind: type[msgspec.Struct], at: str, env: str) -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(kind).items():
        key = f"{at}.{name}"
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _leaves(hint, key, f"{env}{name.upper()}_")
        else:
            yield key, ENV_SHORT.get(key, f"{env}{name.upper()}")


_SECTIONS = {name: hint for name, hint in get_type_hints(Settings).items() if name in ENV_PREFIX}
_ENV_BY_KEY = {k: env for name, kind in _SECTIONS.items() for k, env in _leaves(kind, name, ENV_PREFIX[name])}
_KEY_BY_ENV = {env: key for key, env in _ENV_BY_KEY.items()}


def reference() -> str:
    """Return the page `docs/settings.md`."""
    lines = [_PREAMBLE]
    for name, kind in _SECTIONS.items():
        lines += ["", f"## `[{name}]`", "", (kind.__doc__ or "").strip(), ""]
        lines += ["| key | variable | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{key}` | `{env}` | {default} | {text} |"
            for key, env, default, text in _rows(kind, name, ENV_PREFIX[name])
        ]
    tables: dict[str, type[Section]] = {
        "vendor_keys.<label>": VendorKeySettings,
        "plans.<name>": LimitSettings,
        "tenants.<id>": TenantSettings,
        "tenants.<id>.personas.<alias>": PersonaSettings,
        "tenants.<id>.issuers.<name>": IssuerSettings,
    }
    for name, table in tables.items():
        lines += ["", f"## `[{name}]`", "", (table.__doc__ or "").strip(), ""]
        lines += ["| key | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{key}` | {default} | {text} |" for key, _, default, text in _rows(table, "", "")]
    return "\n".join(lines) + "\n"


def _rows(kind: type[msgspec.Struct], at: str, env: str) -> Iterator[tuple[str, str, str, str]]:
    for name, hint in get_type_hints(kind).items():
        key = f"{at}.{name}" if at else name
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _rows(hint, key, f"{env}{name.upper()}_")
            continue
        text = "; ".join(meta.description for meta in field_metas(kind)[name] if meta.description)
        yield key, ENV_SHORT.get(key, f"{env}{name.upper()}"), _shown(_default(kind, name)), text


def _shown(default: object) -> str:
    if default is default_data_dir:
        return "`$XDG_STATE_HOME/hyperleap-gateway`"
    if default is msgspec.NODEFAULT:
        return "required"
    if default is None or default == () or default is dict:
        return "–"
    if isinstance(default, tuple):
        return f"`{','.join(f'{item:g}' if isinstance(item, float) else str(item) for item in default)}`"
    if isinstance(default, float):
        return f"`{default:.10g}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


_PREAMBLE = """# Settings

Generated by `python -m gateway.settings`; do not edit.

Settings come from a TOML file (`--config` or `GATEWAY_CONFIG`), from environment variables, which win over the file,
and from the command line, which wins over both. An unknown key, or an unknown variable that begins with `GATEWAY_` or
`HYPERLEAP_`, stops the start and names the nearest valid name. Names end in their unit: `_s` seconds, `_ms`
milliseconds, `_bytes`, `_chars` code points. Lists in variables are separated by commas; an empty variable counts as
unset. Relative paths in the file are relative to the file. Secrets are best given as files, by the `_file` settings."""


if __name__ == "__main__":
    sys.stdout.write(reference())
