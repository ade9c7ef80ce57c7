"""Settings: the sources and their order, what is refused and how it is named, and what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest

from gateway import settings as settings_module
from gateway.core.plan import Plan, ScopeLimits, StoreAway
from gateway.core.prices import Price
from gateway.core.tenancy import Source
from gateway.core.vendor_keys import DEFAULT_KEY, KeyLabel, PlanLimit
from gateway.options import ServerSettings, SessionSettings, TurnSettings
from gateway.sections import Secret, SettingsError, written
from gateway.settings import Settings, load, reference
from gateway.tenant_options import normal_origin
from gateway.tenant_tables import parse_tenant, read_tenants

PERSONA = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
HOME = {"HOME": "/home/someone"}
ROW = "prompt_per_million = '1'\ncompletion_per_million = '1'\n"
PRICES = "[prices]\ncurrency = 'EUR'\nprompt_per_million = '{}'\ncompletion_per_million = '{}'\n"
MODEL = "[tenants.acme.models.{}]\nai_system = {}\nmodel = 'm'\n"
TENANTS = f"""
[tenants.acme]
origins = ["https://Chat.ACME.example:443"]
anonymous = true

[tenants.acme.personas.support]
persona_id = "{PERSONA.upper()}"
replacements = ["name"]

[tenants.acme.limits.user]
requests_per_min = 7
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    return path


def refused(config: Path | None = None, environ: Mapping[str, str] = {}, **overrides: object) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(config, {**HOME, **environ}, {key.replace("__", "."): value for key, value in overrides.items()})
    return caught.value


def test_load_nothing_given_gives_documented_defaults() -> None:
    """Without any source the tree has the constants of the design page."""
    settings = load(None, HOME)
    assert (settings.server.host, settings.server.port, settings.server.internal_port) == ("127.0.0.1", 8080, 9090)
    assert settings.server.data_dir == Path("/home/someone/.local/state/hyperleap-gateway")
    assert settings.server.body_max_bytes == 1_048_576
    assert (settings.turns.answer_max_chars, settings.turns.message_max_chars) == (1_000_000, 32_000)
    assert (settings.turns.log_ttl_s, settings.turns.idempotency_ttl_s) == (3600, 86_400)
    assert (settings.turns.lease_s, settings.turns.heartbeat_s) == (5, 1.5)
    assert (settings.streams.keepalive_s, settings.streams.reader_lag_s) == (15, 30)
    assert (settings.upstream.connect_timeout_s, settings.upstream.turn_timeout_s) == (5, 600)
    assert (settings.sessions.ttl_s, settings.sessions.token_max_bytes) == (900, 4096)
    assert (settings.websocket.subscriptions_max, settings.websocket.frame_max_bytes) == (64, 262_144)
    assert settings.redis.url is None
    assert settings.upstream.base_url == "https://api.hyperleapai.com"


def test_redis_url_in_a_file_is_taken_and_shown_without_its_password(tmp_path: Path) -> None:
    """The URL of the file is the store's, by a path beside the settings; a bad one is refused without being quoted."""
    config = write(tmp_path, "[redis]\nurl_file = 'redis-url'\n")
    (tmp_path / "redis-url").write_text("redis://:hush-hush@redis.example:6379/2\n")
    settings = load(config, HOME)
    assert settings.redis.url == Secret("redis://:hush-hush@redis.example:6379/2")
    assert settings.effective()["redis"]["url"] == "redis://redis.example:6379/2"
    (tmp_path / "redis-url").write_text("http://:hush-hush@redis.example\n")
    for error in (refused(config), refused(environ={"GATEWAY_REDIS_URL_FILE": str(tmp_path / "redis-url")})):
        assert error.key in ("redis.url_file", "GATEWAY_REDIS_URL_FILE")
        assert "must begin with redis://" in error.message
        assert "hush" not in str(error)


def test_load_every_source_later_one_wins(tmp_path: Path) -> None:
    """The environment wins over the file and the command line over both; what only one says is kept."""
    config = write(tmp_path, "[server]\nport = 1\ninternal_port = 2\nhost = '0.0.0.0'\n[turns]\nlease_s = 8\n")
    environ = {**HOME, "GATEWAY_PORT": "3", "GATEWAY_INTERNAL_PORT": "4"}
    settings = load(config, environ, {"server.port": 5, "redis.url": None})
    assert (settings.server.port, settings.server.internal_port, settings.server.host) == (5, 4, "0.0.0.0")
    assert settings.turns.lease_s == 8.0
    assert settings.redis.url is None


def test_load_config_named_by_environment_is_read(tmp_path: Path) -> None:
    """GATEWAY_CONFIG names the file when the command line does not."""
    config = write(tmp_path, "[server]\nport = 1234\n")
    assert load(None, {**HOME, "GATEWAY_CONFIG": str(config)}).server.port == 1234


def test_load_text_values_become_their_types() -> None:
    """Numbers, booleans, paths and lists are read out of environment text."""
    settings = load(
        None,
        {
            **HOME,
            "GATEWAY_ANONYMOUS": "yes",
            "GATEWAY_PAGE": "0",
            "GATEWAY_ORIGINS": "https://a.example, http://localhost:3000",
            "GATEWAY_REPLACEMENTS": "name,plan",
            "GATEWAY_TURNS_LEASE_S": "9.5",
            "GATEWAY_LIMITS_USER_REQUESTS_PER_MIN": "3",
            "GATEWAY_DATA_DIR": "~/x",
            "GATEWAY_HOST": "127.0.0.2",
            "GATEWAY_LEDGER_LOOK_UP_S": "1,2.5",
            "GATEWAY_LOG_LEVEL": "debug",
            "GATEWAY_REDIS_URL": "",
            "HYPERLEAP_PERSONA_ID": PERSONA,
            "HYPERLEAP_BLOB_HOSTS": "Blob.example",
        },
    )
    assert settings.server.page is False
    assert settings.server.data_dir == Path("~/x").expanduser()
    assert settings.turns.lease_s == 9.5
    assert settings.ledger.look_up_s == (1.0, 2.5)
    assert settings.logging.level == "debug"
    assert type(settings.server.host) is str  # and no kind of it, which encoders would not take
    assert settings.redis.url is None
    assert settings.upstream.blob_hosts == ("blob.example",)
    tenant = settings.tenant_values()[settings_module.DEFAULT_TENANT]
    assert tenant.anonymous
    assert tenant.origins == {"https://a.example", "http://localhost:3000"}
    assert tenant.personas["default"].persona_id == PERSONA
    assert tenant.personas["default"].replacements == {"name", "plan"}
    assert (tenant.plan.user.requests_per_min, tenant.plan.tenant.requests_per_min) == (3, 6000)


@pytest.mark.parametrize(
    ("environ", "data_dir"),
    [
        ({"XDG_STATE_HOME": "/state", "HOME": "/h"}, "/state/hyperleap-gateway"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/hyperleap-gateway"),
        ({}, "/var/lib/hyperleap-gateway"),
    ],
)
def test_load_data_dir_follows_xdg(environ: dict[str, str], data_dir: str) -> None:
    """State lives where the XDG rules say, and somewhere sensible for an account without a home."""
    assert load(None, environ).server.data_dir == Path(data_dir)


def test_load_relative_path_in_file_is_relative_to_file(tmp_path: Path) -> None:
    """A path in the file means the same from every working directory; one in the environment is the shell's."""
    config = write(tmp_path, "[sessions]\npepper_file = 'pepper'\nsigning_key_file = '/abs/key'\n")
    settings = load(config, {**HOME, "HYPERLEAP_CA_FILE": "ca.pem"})
    assert settings.sessions.pepper_file == tmp_path / "pepper"
    assert settings.sessions.signing_key_file == Path("/abs/key")
    assert settings.upstream.ca_file == Path("ca.pem")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[server]\nprot = 1\n", "server.prot", "server.port"),
        ("[severs]\nport = 1\n", "severs", "server"),
        ("port = 1\n", "port", "server.port"),
        (
            TENANTS + "request_per_min = 1\n",
            "tenants.acme.limits.user.request_per_min",
            "tenants.acme.limits.user.requests_per_min",
        ),
        ("[tenants.acme]\norigin = []\n", "tenants.acme.origin", "tenants.acme.origins"),
    ],
)
def test_load_unknown_key_is_refused_with_nearest(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    """A misspelt key stops the start and names what was probably meant."""
    error = refused(write(tmp_path, text))
    assert error.key == key
    assert error.message.endswith(f"the nearest is {nearest}")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GATEWAY_PROT", "GATEWAY_PORT"),
        ("HYPERLEAP_APIKEY", "HYPERLEAP_API_KEY"),
        ("GATEWAY_TURN_LEASE_S", "GATEWAY_TURNS_LEASE_S"),
        ("GATEWAY_CONFG", "GATEWAY_CONFIG"),
    ],
)
def test_load_unknown_variable_is_refused_with_nearest(name: str, nearest: str) -> None:
    """A misspelt variable with one of our prefixes stops the start, even when it is empty."""
    error = refused(environ={name: ""})
    assert (error.key, error.message.rpartition(" ")[2]) == (name, nearest)


def test_load_unknown_override_is_refused() -> None:
    """A dotted key that does not exist is an error of the caller."""
    assert refused(server__prt=1).message.endswith("server.port")


def test_load_foreign_variables_are_ignored() -> None:
    """What an env-file holds, what Kubernetes injects for a Service of our name, and other prefixes are no settings."""
    environ = {
        **HOME,
        "GATEWAY_URL": "http://127.0.0.1:8080",
        "GATEWAY_INTERNAL_URL": "http://127.0.0.1:9090",
        "GATEWAY_SECRET_KEY": "hgs_x",
        "GATEWAY_PUBLISHABLE_KEY": "hgp_x",
        "SIMULATOR_URL": "https://127.0.0.1:1",
        "GATEWAY_PORT": "tcp://10.0.0.1:80",
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "GATEWAY_SERVICE_PORT_HTTP": "80",
        "GATEWAY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "HYPERLEAP_GATEWAY_SERVICE_PORT": "80",
        "HYPERLEAP_GATEWAY_PORT": "tcp://10.0.0.1:80",
        "MY_GATEWAY_PORT": "x",
    }
    assert load(None, environ) == load(None, HOME)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[server]\nport = '8080'\n", "server.port", "expected `int`"),
        ("[server]\nport = true\n", "server.port", "expected `int`"),
        ("[server]\nport = 65536\n", "server.port", "at most 65535"),
        ("[server]\nport = 9090\n", "server.internal_port", "differ"),
        ("[server]\nhost = ' '\n", "server.host", "address"),
        ("[server]\npublic_url = 'chat.example'\n", "server.public_url", "https://"),
        ("[server]\ndata_dir = 3\n", "server.data_dir", "text"),
        ("[server]\ndrain_s = -1\n", "server.drain_s", "at least 0"),
        ("server = 3\n", "server", "table"),
        ("[turns]\nlease_s = nan\n", "turns.lease_s", "finite"),
        ("[turns]\nlease_s = inf\n", "turns.lease_s", "finite"),
        ("[turns]\nlog_ttl_s = 0\n", "turns.log_ttl_s", "above 0"),
        ("[turns]\nheartbeat_s = 3\n", "turns.heartbeat_s", "half of lease_s"),
        ("[sessions]\nttl_s = 10\n", "sessions.ttl_s", "ttl_min_s"),
        ("[redis]\nurl = 'localhost:6379'\n", "redis.url", "redis://"),
        ("[redis]\nurl = ''\n", "redis.url", "empty"),
        ("[redis]\nurl = 'redis+sentinel://cache:26379'\n", "redis.url", "service"),
        ("[redis]\nurl = 'redis+cluster://cache/1'\n", "redis.url", "database"),
        ("[redis]\nurl = 'redis://cache?socket_timeout=5'\n", "redis.url", "socket_timeout"),
        ("[upstream]\nbase_url = 'http://x'\n", "upstream.base_url", "https:// or h2c://"),
        ("[upstream]\nbase_url = 'https://u:p@x'\n", "upstream.base_url", "user"),
        ("[upstream]\nbase_url = 'https://x:99999'\n", "upstream.base_url", "URL"),
        ("[upstream]\npersona_id = 'me'\n", "upstream.persona_id", "UUID"),
        ("[upstream]\nauth_header = 'cookie'\n", "upstream.auth_header", "invalid enum"),
        ("[upstream]\napi_key = 'k'\napi_key_file = 'f'\n", "upstream.api_key_file", "one of them"),
        ("[upstream]\nblob_hosts = ['https://x']\n", "upstream.blob_hosts", "host name"),
        ("[upstream]\nplan_limit = '10/s'\n", "upstream.plan_limit", "<requests>/h"),
        ("[vendor_keys.acme]\nplan_limit = '0/h'\n", "vendor_keys.acme.plan_limit", "between 1 and"),
        ("[vendor_keys.Acme]\n", "vendor_keys.Acme", "must match"),
        ("[default_tenant]\nvendor_keys = []\n", "default_tenant.vendor_keys", "1 to 16"),
        (TENANTS.replace("anonymous = true", "vendor_keys = ['../x']"), "tenants.acme.vendor_keys", "no label"),
        (TENANTS.replace("anonymous = true", "vendor_keys = ['a', 'a']"), "tenants.acme.vendor_keys", "more than once"),
        (TENANTS.replace("anonymous = true", "weight = 0"), "tenants.acme.weight", "at least 1"),
        (TENANTS.replace("anonymous = true", "weight = 101"), "tenants.acme.weight", "at most 100"),
        ("[ledger]\nlook_up_s = []\n", "ledger.look_up_s", "one or more"),
        ("[ledger]\nlook_up_s = [2.0, 0.0]\n", "ledger.look_up_s", "above 0"),
        ("[ledger]\nurl = 'mysql://u:p@db/x'\n", "ledger.url", "postgresql://"),
        ("[ledger]\nurl = 'postgresql://u:p@db'\n", "ledger.url", "database"),
        ("[redis]\nurl = 'redis://:p@db'\nurl_file = 'f'\n", "redis.url_file", "one of them"),
        ("[redis]\nurl_file = 'not-there'\n", "redis.url_file", "cannot read"),
        ("[ledger]\nurl = 'postgresql://u:p@db/x'\nurl_file = 'f'\n", "ledger.url_file", "one of them"),
        ("[ledger]\nschema = 'a b'\n", "ledger.schema", "plain name"),
        ("[ledger]\nschema = 'pg_usage'\n", "ledger.schema", "pg_"),
        ("[ledger]\nexport_batch = 0\n", "ledger.export_batch", "at least 1"),
        ("[ledger]\nexport_interval_s = 0\n", "ledger.export_interval_s", "above 0"),
        ("[logging]\nlevel = 'loud'\n", "logging.level", "invalid enum"),
        ("[default_tenant]\norigins = ['*']\n", "default_tenant.origins", "wildcard"),
        ("[tenants.Acme]\n", "tenants.Acme.personas", "required"),
        (TENANTS.replace("acme", "Acme"), "tenants.Acme", "must match"),
        (TENANTS.replace("support", '"a b"'), "tenants.acme.personas.a b", "alias"),
        (TENANTS.replace("= 7", "= -1"), "tenants.acme.limits.user.requests_per_min", "at least 0"),
        (TENANTS.replace("anonymous = true", "plan = 'gold'"), "tenants.acme.plan", "no [plans.gold]"),
        (TENANTS.replace("anonymous = true", "timezone = 'Mars/Crater'"), "tenants.acme.timezone", "time zone"),
        (TENANTS + "[plans.gold.user]\ntokens_per_min = 200_000_000\n", "plans.gold.user.tokens_per_min", "at most"),
        ("[server]\ntrusted_proxies = ['10.0.0.1/8']\n", "server.trusted_proxies", "not a network"),
        (TENANTS.replace(PERSONA.upper(), "x"), "tenants.acme.personas.support.persona_id", "UUID"),
        ("[tenants.acme]\npersonas = {}\n", "tenants.acme.personas", "at least one"),
        (TENANTS + "[tenants.acme.prompts.a]\nprompt_id = 'x'\n", "tenants.acme.prompts.a.prompt_id", "UUID"),
        (
            TENANTS + f"[tenants.acme.prompts.support]\nprompt_id = '{PERSONA}'\n",
            "tenants.acme.prompts.support",
            "alias",
        ),
        (TENANTS + f"[tenants.acme.prompts.'a b']\nprompt_id = '{PERSONA}'\n", "tenants.acme.prompts.a b", "alias"),
        (TENANTS + MODEL.format("a", 7), "tenants.acme.models.a.ai_system", "at most 6"),
        (TENANTS + MODEL.format("support", 1), "tenants.acme.models.support", "alias of something else"),
        (TENANTS + MODEL.format("a", 1) + MODEL.format("b", 2), "tenants.acme.models.a.model", "alias already"),
        (TENANTS + MODEL.format("a", 1) + "dataspaces = ['x']\n", "tenants.acme.models.a.dataspaces", "UUID"),
        (TENANTS + MODEL.format("a", 1) + "stated = ['model']\n", "tenants.acme.models.a.stated", "invalid enum"),
        ("tenants = 3\n", "tenants", "table"),
        ("[prices]\nprompt_per_million = '1'\ncompletion_per_million = '1'\n", "prices.currency", "required"),
        (PRICES.format("-1", "1"), "prices.prompt_per_million", "negative"),
        (PRICES.format("1", "dear"), "prices.completion_per_million", "decimal number"),
        (PRICES.format("1", "1").replace("'1'", "1"), "prices.prompt_per_million", "expected `str | null`"),
        (PRICES.format("1", "1") + "per_turn = '0.0000001'\n", "prices.per_turn", "6 decimals"),
        ("[prices]\ncurrency = 'EUR'\nprompt_per_million = '1'\n", "prices.completion_per_million", "required"),
        ("[prices]\ncurrency = 'EUR'\nper_turn = '1'\n", "prices.prompt_per_million", "required"),
        ("[prices]\ncurrency = 'eur'\n", "prices.currency", "three capital letters"),
        ("[prices]\ncurrency = 'Dollars'\n", "prices.currency", "three capital letters"),
        (
            "[prices.personas.support]\nprompt_per_million = '1'\n",
            "prices.personas.support.completion_per_million",
            "required",
        ),
        ("[prices.personas.'a b']\n" + ROW, "prices.personas.a b", "alias"),
        (TENANTS + "[prices]\ncurrency = 'EUR'\n[prices.personas.sales]\n" + ROW, "prices.personas.sales", "no tenant"),
        (
            TENANTS + "[plans.gold.prices]\ncurrency = 'EUR'\n[plans.gold.prices.personas.sales]\n" + ROW,
            "plans.gold.prices.personas.sales",
            "no tenant",
        ),
        (
            TENANTS + "[tenants.acme.prices]\ncurrency = 'EUR'\n[tenants.acme.prices.personas.sales]\n" + ROW,
            "tenants.acme.prices.personas.sales",
            "the tenant has no",
        ),
        (
            TENANTS + "[tenants.acme.prices.personas.support]\n" + ROW.replace("'1'", "'-1'"),
            "tenants.acme.prices.personas.support.prompt_per_million",
            "negative",
        ),
        (TENANTS + "[tenants.acme.limits.prices]\n", "tenants.acme.limits.prices", "no such setting"),
        (TENANTS + f"[upstream]\npersona_id = '{PERSONA}'\n", "upstream.persona_id", "default tenant"),
        (TENANTS + "[default_tenant]\nanonymous = true\n", "default_tenant.anonymous", "default tenant"),
    ],
)
def test_load_nonsense_is_refused_by_name(tmp_path: Path, text: str, key: str, words: str) -> None:
    """Every value that cannot work is refused, and the error names the tenant, the alias and the field."""
    error = refused(write(tmp_path, text))
    assert error.key == key
    assert words in error.message


def test_load_nonsense_from_environment_names_the_variable() -> None:
    """An error in a variable names the variable, not the key in a file that nobody wrote."""
    assert refused(environ={"GATEWAY_PORT": "http"}).key == "GATEWAY_PORT"
    assert refused(environ={"GATEWAY_TURNS_LEASE_S": "0"}).key == "GATEWAY_TURNS_LEASE_S"
    assert refused(environ={"GATEWAY_ORIGINS": "*"}).key == "GATEWAY_ORIGINS"
    assert refused(environ={"GATEWAY_PORT": "1"}, server__port="x").key == "server.port"


def test_load_file_missing_or_broken_is_refused(tmp_path: Path) -> None:
    """A file that is absent, no TOML or no text is an error that names the file."""
    assert "No such file" in refused(tmp_path / "absent.toml").message
    assert "TOML" in refused(write(tmp_path, "[server\n")).message
    (tmp_path / "gateway.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(tmp_path / "gateway.toml").message


def test_tenant_values_from_file_are_core_values(tmp_path: Path) -> None:
    """Configured tenants become core values with normalised ids and origins."""
    (tenant,) = load(write(tmp_path, TENANTS), HOME).tenant_values().values()
    assert tenant.id == "acme"
    assert tenant.anonymous
    assert tenant.origins == {"https://chat.acme.example"}
    assert tenant.personas["support"].persona_id == PERSONA
    assert tenant.personas["support"].replacements == {"name"}
    assert tenant.plan == Plan(user=ScopeLimits(requests_per_min=7, concurrent_turns=20))


def test_tenant_values_limits_come_from_tenant_then_plan_then_defaults(tmp_path: Path) -> None:
    """Each limit by itself: the tenant's own, else its plan's, else the default; 0 takes one away."""
    plan = """
[tenants.acme]
plan = "gold"
timezone = "Europe/Berlin"
limits = { user.requests_per_min = 7, tenant.requests_per_min = 0, store_away = "open" }
personas.support.persona_id = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
[plans.gold]
user = { requests_per_min = 1, tokens_per_day = 500 }
away_share = 0.5
"""
    (tenant,) = load(write(tmp_path, plan), HOME).tenant_values().values()
    assert tenant.plan == Plan(
        tenant=ScopeLimits(),
        user=ScopeLimits(requests_per_min=7, concurrent_turns=20, tokens_per_day=500),
        zone=ZoneInfo("Europe/Berlin"),
        store_away=StoreAway.OPEN,
        away_share=0.5,
    )


def test_tenant_values_without_any_is_refused() -> None:
    """A gateway without a tenant says what to set instead of refusing every browser later."""
    with pytest.raises(SettingsError, match="HYPERLEAP_PERSONA_ID"):
        load(None, HOME).tenant_values()


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("HTTPS://Chat.Example:443", "https://chat.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origin_is_normalised_as_browsers_send_it(given: str, normal: str) -> None:
    """An origin is compared byte for byte later, so it takes the browser's form here."""
    assert normal_origin(given) == normal


@pytest.mark.parametrize(
    "given",
    [
        "*",
        "https://*.example",
        "null",
        "chat.example",
        "https://",
        "https://a/",
        "https://a/b",
        "https://a?",
        "https://u@a",
        "https://a:x",
        "https://a:99999",
        "//a",
        "",
        "https://a b",
    ],
)
def test_origin_that_is_none_is_refused(given: str) -> None:
    """Wildcards, paths, and what is no origin at all are refused."""
    with pytest.raises(SettingsError):
        normal_origin(given)


def test_secret_is_masked_everywhere(tmp_path: Path) -> None:
    """No repr, str, format or printed tree shows a secret, and the URLs of servers lose their passwords."""
    config = write(
        tmp_path,
        "[upstream]\napi_key = 'hl-very-secret'\n[ledger]\nurl = 'postgresql://me:very-secret@db/usage?sslmode=require'\n",
    )
    settings = load(config, {**HOME, "GATEWAY_REDIS_URL": "rediss://me:very-secret@cache:6379/2?password=very-secret"})
    key = settings.upstream.api_key
    assert key is not None
    assert key.reveal() == "hl-very-secret"
    assert key == Secret("hl-very-secret")
    for shown in (repr(settings), str(settings), f"{key}", f"{key!r}", str(settings.effective())):
        assert "very-secret" not in shown
    assert settings.effective()["redis"]["url"] == "rediss://cache:6379/2"
    assert settings.effective()["ledger"]["url"] == "postgresql://db:5432/usage"
    assert settings.effective()["upstream"]["api_key"] == "********"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "redis+sentinel://me:very-secret@a:1,b/chat/2?sentinel_password=very-secret",
            "redis+sentinel://a:1,b:26379/chat/2",
        ),
        ("rediss+cluster://:very-secret@a:1,b", "rediss+cluster://a:1,b:6379"),
        ("unix:///run/s.sock?password=very-secret", "unix:///run/s.sock"),
    ],
)
def test_redis_address_is_fit_for_printing(url: str, shown: str) -> None:
    """Every form of the store's URL is printed without what it keeps secret."""
    settings = load(None, {**HOME, "GATEWAY_REDIS_URL": url})
    assert settings.redis.address() == shown
    assert "very-secret" not in f"{settings!r} {settings.effective()}"


def test_secret_in_refused_value_is_not_repeated() -> None:
    """An error about a secret setting does not quote it."""
    assert "s3cret" not in str(refused(environ={"GATEWAY_REDIS_URL": "s3cret@host"}))
    assert "s3cret" not in str(refused(environ={"HYPERLEAP_BASE_URL": "https://me:s3cret@host"}))


def test_tenant_values_hold_vendor_keys_and_weight(tmp_path: Path) -> None:
    """A tenant asks with the keys that it names, by default with the default one; and so does the default tenant."""
    (tenant,) = load(write(tmp_path, TENANTS), HOME).tenant_values().values()
    assert (tenant.vendor_keys, tenant.weight) == (("default",), 1)
    text = TENANTS.replace("anonymous = true", 'vendor_keys = ["acme", "acme-2"]\nweight = 5')
    (tenant,) = load(write(tmp_path, text), HOME).tenant_values().values()
    assert (tenant.vendor_keys, tenant.weight) == (("acme", "acme-2"), 5)
    environ = {**HOME, "HYPERLEAP_PERSONA_ID": PERSONA, "GATEWAY_VENDOR_KEYS": "one, two"}
    (tenant,) = load(None, environ).tenant_values().values()
    assert tenant.vendor_keys == ("one", "two")


def test_plan_limit_is_the_keys_own_else_that_of_all(tmp_path: Path) -> None:
    """One plan limit is for every key, a key may have another one or none; nothing given is no limit."""
    text = """
[upstream]
plan_limit = "1,000/h + 50/min"
[vendor_keys.acme]
plan_limit = "100/h"
[vendor_keys.free]
plan_limit = "none"
[vendor_keys.plain]
"""
    settings = load(write(tmp_path, text), HOME)
    for label, limit in {
        "default": PlanLimit(1000, 50),
        "plain": PlanLimit(1000, 50),
        "acme": PlanLimit(100, None),
        "free": PlanLimit(),
    }.items():
        assert settings.plan_limit(KeyLabel(label)) == limit
    environ = {**HOME, "HYPERLEAP_PLAN_LIMIT": "20,000/h"}
    assert load(None, environ).plan_limit(DEFAULT_KEY) == PlanLimit(20_000)
    assert load(None, HOME).plan_limit(DEFAULT_KEY) == PlanLimit()


def test_sections_constructed_in_code_are_checked_too() -> None:
    """A section made in a test or a tool obeys the same bounds as one that was loaded."""
    with pytest.raises(SettingsError, match="port: must be at least 0"):
        ServerSettings(port=-1)
    with pytest.raises(SettingsError, match="log_ttl_s"):
        TurnSettings(log_ttl_s=0)
    with pytest.raises(SettingsError, match="ttl_s"):
        SessionSettings(ttl_min_s=1000)


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after the start."""
    with pytest.raises(AttributeError):
        Settings().server = ServerSettings()  # type: ignore[misc]  # frozen: it must raise


def test_every_field_is_documented() -> None:
    """Each field has its one line of documentation beside it."""
    assert "|  |" not in reference()


ISSUER = """
[tenants.acme.issuers.login]
issuer = "https://login.acme.example/"
audience = "chat"
jwks_url = "https://login.acme.example/.well-known/jwks.json"
"""


def test_tenant_values_hold_the_issuers(tmp_path: Path) -> None:
    """An issuer of a tenant's own tokens comes out as written, with the documented defaults."""
    (tenant,) = load(write(tmp_path, TENANTS + ISSUER), HOME).tenant_values().values()
    (issuer,) = tenant.issuers
    assert (issuer.issuer, issuer.audience) == ("https://login.acme.example/", "chat")
    assert issuer.algorithms == {"RS256", "ES256", "EdDSA"}
    assert (issuer.user_claim, issuer.personas_claim, issuer.leeway_s) == ("sub", None, 5.0)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('jwks_url = "http://login.acme.example/keys"', "jwks_url"),
        ('jwks_url = "http://127.0.0.1.evil.example/keys"', "jwks_url"),
        ('jwks_url = "file:///etc/passwd"', "jwks_url"),
        ('jwks_url = "https://user:word@login.acme.example/keys"', "jwks_url"),
        ('algorithms = ["HS256"]', "algorithms"),
        ('algorithms = ["none"]', "algorithms"),
        ("algorithms = []", "algorithms"),
        ("leeway_s = 61", "leeway_s"),
        ("leeway_s = -1", "leeway_s"),
        ('issuer = " "', "issuer"),
        ('audience = ""', "audience"),
        ('user_claim = ""', "user_claim"),
        ('secret = "x"', "secret"),
    ],
)
def test_issuer_that_cannot_be_trusted_is_refused_by_field(tmp_path: Path, line: str, key: str) -> None:
    """Keys come over TLS (but from this machine), algorithms are asymmetric, and the error names tenant and issuer."""
    name = line.split(" ")[0]
    lines = [known for known in ISSUER.splitlines() if not known.startswith(f"{name} ")]
    error = refused(write(tmp_path, TENANTS + "\n".join([*lines, line])))
    assert error.key.startswith(f"tenants.acme.issuers.login.{key}")


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "[::1]:9000"])
def test_issuer_on_this_machine_needs_no_tls(tmp_path: Path, host: str) -> None:
    """For development an issuer may run beside the gateway."""
    text = ISSUER.replace("https://login.acme.example/.well", f"http://{host}/.well")
    assert load(write(tmp_path, TENANTS + text), HOME).tenant_values()


def test_issuer_of_two_tenants_with_one_audience_is_refused(tmp_path: Path) -> None:
    """Whose user would it be?"""
    other = TENANTS.replace("acme", "shop").replace("Chat.ACME", "chat.shop") + ISSUER.replace(
        "tenants.acme", "tenants.shop"
    )
    error = refused(write(tmp_path, TENANTS + ISSUER + other))
    assert error.key == "tenants.shop.issuers.login"
    assert "tenants.acme.issuers.login" in error.message
    assert load(write(tmp_path, TENANTS + ISSUER + other.replace('"chat"', '"shop"')), HOME)


def test_reference_page_is_current() -> None:
    """docs/settings.md is what the code says: `python -m gateway.settings > gateway/docs/settings.md`."""
    page = Path(settings_module.__file__).parent / "docs" / "settings.md"
    assert page.read_text("utf-8") == reference()


# --- a tenants file ---------------------------------------------------------------------------------------------------


def test_tenants_file_gives_the_tenants_and_plans(tmp_path: Path) -> None:
    """The file says what the settings' own file could, relative to the directory of the settings."""
    (tmp_path / "tenants.toml").write_text(TENANTS + "[plans.gold]\nuser.requests_per_min = 3\n")
    config = write(tmp_path, '[server]\ntenants_file = "tenants.toml"\n')
    for settings in (load(config, HOME), load(None, {**HOME, "GATEWAY_TENANTS_FILE": str(tmp_path / "tenants.toml")})):
        (tenant,) = settings.tenant_values().values()
        assert (tenant.id, tenant.plan.user.requests_per_min) == ("acme", 7)
        assert settings.tenant_source is Source.FILE
        assert list(settings.tenant_tables().plans) == ["gold"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "t.toml"),
        ("[plans.gold]", "t.toml"),
        ("[tenants", "t.toml"),
        ("[tenants.acme]", "t.toml: tenants.acme.personas"),
        (TENANTS + "[tenants.acme.personas.sales]\npersona_id = 'x'", "t.toml: tenants.acme.personas.sales.persona_id"),
        (TENANTS + "[tenants.Acme.personas.a]\npersona_id = '" + PERSONA + "'", "t.toml: tenants.Acme"),
        (TENANTS + "[server]\nport = 1", "t.toml: server"),
        (TENANTS.replace("anonymous", "plan = 'gold'\nanonymous"), "t.toml: tenants.acme.plan"),
        (TENANTS.replace("anonymous", "doors = ['telex']\nanonymous"), "t.toml: tenants.acme.doors"),
        (TENANTS + PRICES.format("-1", "1"), "t.toml: prices.prompt_per_million"),
    ],
)
def test_bad_tenants_file_is_refused_by_tenant_and_field(tmp_path: Path, text: str, key: str) -> None:
    """A start with it ends, and says which tenant and which field."""
    (tmp_path / "t.toml").write_text(text)
    settings = load(None, {**HOME, "GATEWAY_TENANTS_FILE": str(tmp_path / "t.toml")})
    with pytest.raises(SettingsError) as caught:
        settings.tenant_values()
    assert caught.value.key == key


def test_tenants_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """As is any file that cannot be read."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SettingsError, match="cannot be read"):
            read_tenants(path)


@pytest.mark.parametrize(
    ("text", "environ", "key"),
    [
        (TENANTS, {}, "tenants"),
        ("[plans.gold]\n", {}, "plans"),
        ("[prices]\ncurrency = 'EUR'\n", {}, "prices"),
        ("", {"HYPERLEAP_PERSONA_ID": PERSONA}, "HYPERLEAP_PERSONA_ID"),
        ("", {"GATEWAY_ORIGINS": "https://a.example"}, "GATEWAY_ORIGINS"),
        ("", {"GATEWAY_DOORS": "sse"}, "GATEWAY_DOORS"),
    ],
)
def test_tenants_in_two_places_are_refused(tmp_path: Path, text: str, environ: dict[str, str], key: str) -> None:
    """With a tenants file there is nowhere else to look for a fixed tenant."""
    environ = environ | {"GATEWAY_TENANTS_FILE": str(tmp_path / "t.toml")}
    assert refused(write(tmp_path, text), environ).key == key


def test_no_tenant_is_needed_where_the_admin_api_can_make_one() -> None:
    """With an admin token a gateway may start with no tenant at all; a persona still makes the default one."""
    environ = {**HOME, "GATEWAY_ADMIN_TOKEN_FILE": "token"}
    assert load(None, environ).tenant_values() == {}
    assert list(load(None, environ | {"HYPERLEAP_PERSONA_ID": PERSONA}).tenant_values()) == ["default"]


def test_table_written_of_a_tenant_makes_the_same_tenant() -> None:
    """What an operator is shown can be put again: all that is not as it is unset, and nothing else."""
    table = {
        "plan": "gold",
        "personas": {"support": {"persona_id": PERSONA, "replacements": ["name"]}},
        "origins": ["https://acme.example"],
        "doors": ["sse"],
        "limits": {"user": {"requests_per_min": 0}, "away_share": 0.5},
        "disconnect": {"policy": "drain"},
        "issuers": {"login": {"issuer": "i", "audience": "a", "jwks_url": "https://i.example/keys"}},
        "prices": {
            "currency": "EUR",
            "prompt_per_million": "2.50",
            "completion_per_million": "10",
            "personas": {"support": {"prompt_per_million": "0", "completion_per_million": "0", "per_turn": "0.01"}},
        },
    }
    assert written(parse_tenant(table)) == table


def test_tenant_values_take_each_price_whole_from_tenant_then_plan_then_all(tmp_path: Path) -> None:
    """The most particular table that says anything of a persona holds, with its currency; nothing is mixed."""
    text = (
        TENANTS.replace("anonymous = true", 'plan = "gold"')
        + """
[tenants.acme.personas]
sales.persona_id = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
extra.persona_id = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
[tenants.acme.prices]
currency = "EUR"
personas.sales = { prompt_per_million = "3", completion_per_million = "4", per_turn = "0.01" }
[plans.gold.prices]
currency = "CHF"
personas.support = { prompt_per_million = "5", completion_per_million = "6" }
personas.sales = { prompt_per_million = "7", completion_per_million = "8" }
[prices]
currency = "USD"
prompt_per_million = "0.5"
completion_per_million = "1.25"
"""
    )
    (tenant,) = load(write(tmp_path, text), HOME).tenant_values().values()
    assert tenant.prices.of("sales") == Price(
        currency="EUR", prompt_micros=3_000_000, completion_micros=4_000_000, turn_micros=10_000
    )
    assert tenant.prices.of("support") == Price(currency="CHF", prompt_micros=5_000_000, completion_micros=6_000_000)
    general = Price(currency="USD", prompt_micros=500_000, completion_micros=1_250_000)
    assert tenant.prices.of("extra") == tenant.prices.of("") == general


def test_default_tenant_is_priced_by_the_general_table() -> None:
    """One persona and its price can be set by variables alone; without them a turn has no price."""
    prices = {
        "GATEWAY_PRICES_CURRENCY": "EUR",
        "GATEWAY_PRICES_PROMPT_PER_MILLION": "2.50",
        "GATEWAY_PRICES_COMPLETION_PER_MILLION": "10",
    }
    base = {**HOME, "HYPERLEAP_PERSONA_ID": PERSONA}
    (tenant,) = load(None, base | prices).tenant_values().values()
    assert tenant.prices.of("default") == Price(currency="EUR", prompt_micros=2_500_000, completion_micros=10_000_000)
    assert msgspec.json.encode(tenant.prices)  # a settlement is made of it
    assert load(None, base).tenant_values()[tenant.id].prices.of("default") is None
    assert refused(environ=prices | {"GATEWAY_PRICES_PER_TURN": "-1"}).key == "GATEWAY_PRICES_PER_TURN"


@pytest.mark.parametrize(
    ("set_to", "judges", "is_open"), [({}, False, False), ({"WHEN_UNAVAILABLE": "open"}, True, True)]
)
def test_moderation_is_off_and_closed_unless_set(set_to: dict[str, str], judges: bool, is_open: bool) -> None:
    """Nobody pays for moderation who did not ask for it; who did and said no more is on the safe side."""
    own = {"MESSAGES": str(judges).lower(), **set_to}
    environ = {
        **HOME,
        "HYPERLEAP_PERSONA_ID": PERSONA,
        **{f"GATEWAY_MODERATION_{name}": value for name, value in own.items()},
    }
    (tenant,) = load(None, environ).tenant_values().values()
    assert (tenant.moderation.messages, tenant.moderation.open) == (judges, is_open)
