"""Settings: one frozen tree from a TOML file, the environment and the command line, the later ones winning."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import msgspec
from msgspec.structs import force_setattr

from gateway.core.identity import Tenant, TenantId
from gateway.core.tenancy import Source
from gateway.core.vendor_keys import KEY_LABEL, KeyLabel, PlanLimit
from gateway.options import (
    LedgerSettings,
    LoggingSettings,
    RedisSettings,
    ServerSettings,
    SessionSettings,
    StreamSettings,
    TracingSettings,
    TurnSettings,
    UpstreamSettings,
    VendorKeySettings,
    WebSocketSettings,
    default_data_dir,
    plan_limit,
)
from gateway.price_options import PersonaPriceSettings, PriceSettings
from gateway.sections import Section, SettingsError, Text, build, default_of, field_metas, plain, reason, unknown
from gateway.tenant_options import (
    DefaultTenantSettings,
    IssuerSettings,
    ModelSettings,
    PersonaSettings,
    PlanSettings,
    PromptSettings,
    TenantSettings,
)
from gateway.tenant_tables import TenantTables, read_tenants

DEFAULT_TENANT = TenantId("default")
DEFAULT_ALIAS = "default"

ENV_PREFIX = {
    "server": "GATEWAY_",
    "redis": "GATEWAY_REDIS_",
    "upstream": "HYPERLEAP_",
    "default_tenant": "GATEWAY_",
    "turns": "GATEWAY_TURNS_",
    "ledger": "GATEWAY_LEDGER_",
    "prices": "GATEWAY_PRICES_",
    "streams": "GATEWAY_STREAMS_",
    "websocket": "GATEWAY_WEBSOCKET_",
    "sessions": "GATEWAY_SESSIONS_",
    "logging": "GATEWAY_LOG_",
    "tracing": "GATEWAY_TRACING_",
}
ENV_SHORT = {
    "sessions.pepper_file": "GATEWAY_PEPPER_FILE",
    "sessions.signing_key_file": "GATEWAY_SIGNING_KEY_FILE",
    "sessions.previous_signing_key_file": "GATEWAY_PREVIOUS_SIGNING_KEY_FILE",
    "logging.audit_file": "GATEWAY_AUDIT_LOG",
    "tracing.export": "GATEWAY_TRACING",
}
CONFIG_ENV = "GATEWAY_CONFIG"
# What `--env-file` writes; a shell that has sourced such a file must still be able to start a gateway.
NOT_SETTINGS = frozenset(
    {"GATEWAY_URL", "GATEWAY_INTERNAL_URL", "GATEWAY_SECRET_KEY", "GATEWAY_PUBLISHABLE_KEY", "GATEWAY_TOKEN"}
)
# Kubernetes puts these into every container for each Service of the namespace; a Service named "gateway" or
# "hyperleap-gateway" makes them begin with our prefixes.
SERVICE_LINK = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")


class Settings(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    redis: RedisSettings = RedisSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    default_tenant: DefaultTenantSettings = DefaultTenantSettings()
    turns: TurnSettings = TurnSettings()
    ledger: LedgerSettings = LedgerSettings()
    prices: PriceSettings = PriceSettings()
    streams: StreamSettings = StreamSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    sessions: SessionSettings = SessionSettings()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()
    vendor_keys: dict[str, VendorKeySettings] = msgspec.field(default_factory=dict)
    plans: dict[str, PlanSettings] = msgspec.field(default_factory=dict)
    tenants: dict[str, TenantSettings] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for label in self.vendor_keys:
            if not KEY_LABEL.fullmatch(label):
                raise SettingsError(f"vendor_keys.{label}", f"a key's label must match {KEY_LABEL.pattern}")
        TenantTables(prices=self.prices, plans=self.plans, tenants=self.tenants)  # which checks them
        if self.server.tenants_file is not None:
            where = "[tenants] are in server.tenants_file"
            for name, unset in {"tenants": {}, "plans": {}, "prices": PriceSettings()}.items():
                if getattr(self, name) != unset:
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
            return TenantTables(prices=self.prices, plans=self.plans, tenants=self.tenants)
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
            moderation=default.moderation,
            vendor_keys=default.vendor_keys,
        )
        return TenantTables(prices=self.prices, plans=self.plans, tenants={DEFAULT_TENANT: tenant})

    def tenant_values(self) -> dict[TenantId, Tenant]:
        """Return the tenants that are fixed; raises SettingsError, see ``tenant_tables``."""
        tables = self.tenant_tables()
        return {TenantId(name): tables.tenant(TenantId(name), tenant) for name, tenant in tables.tenants.items()}

    def plan_limit(self, label: KeyLabel) -> PlanLimit:
        """Return what the vendor's plan grants a key: its own limit, else that of every key."""
        own = self.vendor_keys.get(label)
        return plan_limit(own.plan_limit if own is not None and own.plan_limit else self.upstream.plan_limit)

    def effective(self) -> dict[str, Any]:
        """Return the tree as plain values for printing, secrets masked, URLs of servers without their passwords."""
        tree: dict[str, Any] = plain(self)
        tree["redis"]["url"] = self.redis.address()
        tree["ledger"]["url"] = self.ledger.address()
        return tree


def load(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the settings: ``config`` (or ``GATEWAY_CONFIG``), then the environment, then ``overrides`` by dotted key.

    An override of None and an empty environment variable count as not given. Relative paths in the file are
    relative to the file, others to the working directory. The URL in ``redis.url_file`` is read into ``redis.url``.
    Raises SettingsError on the first thing that is wrong.
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
        _put(raw, key, Text(text))
    for key, value in (overrides or {}).items():
        if value is not None:
            if key not in _ENV_BY_KEY and key != "tenants":
                raise unknown(key, _ENV_BY_KEY)
            sources.pop(key, None)
            _put(raw, key, Text(value) if isinstance(value, str) else value)
    if isinstance(raw.setdefault("server", {}), dict):
        raw["server"].setdefault("data_dir", default_data_dir(environ))
    try:
        settings = build(Settings, raw, "", base, also_known=_ENV_BY_KEY)
        if settings.redis.url_file is not None:
            force_setattr(settings.redis, "url", settings.redis.url_in_file())
        return settings
    except SettingsError as error:
        raise SettingsError(sources.get(error.key, error.key), error.message) from None


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
            raise unknown(name, [*_KEY_BY_ENV, CONFIG_ENV])
        if text.strip():
            yield _KEY_BY_ENV[name], name, text.strip()


def _put(raw: dict[str, Any], key: str, value: object) -> None:
    *parents, leaf = key.split(".")
    table: Any = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return  # a section that is no table: build says so
    table[leaf] = value


def _leaves(kind: type[msgspec.Struct], at: str, env: str) -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(kind).items():
        key = f"{at}.{name}"
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _leaves(hint, key, f"{env}{name.upper()}_")
        elif get_origin(hint) is not dict:  # tables by name are written in the file
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
            f"| `{key}` | {f'`{env}`' if env else '–'} | {default} | {text} |"
            for key, env, default, text in _rows(kind, name, ENV_PREFIX[name])
        ]
    tables: dict[str, type[Section]] = {
        "vendor_keys.<label>": VendorKeySettings,
        "prices.personas.<alias>": PersonaPriceSettings,
        "plans.<name>": PlanSettings,
        "tenants.<id>": TenantSettings,
        "tenants.<id>.personas.<alias>": PersonaSettings,
        "tenants.<id>.models.<alias>": ModelSettings,
        "tenants.<id>.prompts.<alias>": PromptSettings,
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
        variable = "" if get_origin(hint) is dict else ENV_SHORT.get(key, f"{env}{name.upper()}")
        yield key, variable, _shown(default_of(kind, name)), text


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
