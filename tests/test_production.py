"""``check --production`` names what is unsafe or missing, each thing where it is caused, and nothing in a sound one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import resource
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import RedisError

from gateway.core.identity import TenantId
from gateway.parts import upstream_client, vendor_key_ring
from gateway.production.checklist import RULES, judge, reference
from gateway.production.finding import Scene, Severity
from gateway.production.report import WIDTH
from gateway.production.survey import survey
from gateway.settings import _KEY_BY_ENV, CONFIG_ENV, load
from gateway.simulator.server import Simulator, SimulatorSettings
from gateway.store.redis import Redis
from gateway.store.tenants import RedisTenants
from tests.conftest import PERSONA_ID, VENDOR_KEY
from tests.store.topologies import COMMON, ClusterSetup, Instance, Setup, cluster_setup, sentinel_setup, until
from tests.upstream.peer import Exchange, Peer

ROOT = Path(__file__).parent.parent

TENANT = f"""
[tenants.acme]
origins = ["https://app.example"]
anonymous = true
limits.tenant.tokens_per_month = 1_000_000
personas.default.persona_id = "{PERSONA_ID}"
"""


class Ground:
    """A deployment that is as it should be, and what makes it worse."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = {
            "HYPERLEAP_API_KEY_FILE": self.secret("vendor-key", VENDOR_KEY),
            "HYPERLEAP_PLAN_LIMIT": "none",
            "GATEWAY_PRICES_CURRENCY": "USD",
            "GATEWAY_PRICES_PROMPT_PER_MILLION": "2.50",
            "GATEWAY_PRICES_COMPLETION_PER_MILLION": "10",
            "GATEWAY_DATA_DIR": str(directory / "data"),
            "GATEWAY_HOST": "0.0.0.0",
            "GATEWAY_PUBLIC_URL": "https://chat.example.com",
            "GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8",
            "GATEWAY_WORKERS": "2",
            "GATEWAY_PEPPER_FILE": self.secret("pepper"),
            "GATEWAY_SIGNING_KEY_FILE": self.secret("signing-key"),
            "GATEWAY_ADMIN_TOKEN_FILE": self.secret("admin-token"),
            "GATEWAY_REDIS_URL": "redis://127.0.0.1:1",
        }
        self.toml = TENANT

    def secret(self, name: str, text: str | None = None) -> str:
        path = self.directory / name
        path.write_text(text or secrets.token_hex(32))
        path.chmod(0o600)
        return str(path)

    @property
    def config(self) -> Path:
        path = self.directory / "gateway.toml"
        path.write_text(self.toml, "utf-8")
        path.chmod(0o600)
        return path

    async def survey(self, *, streams: int = 100) -> Scene:
        config = self.config
        settings = load(config, self.environ)
        client = upstream_client(settings, vendor_key_ring(settings), None)
        try:
            return await survey(settings, client, config=config, streams=streams)
        finally:
            await client.aclose()

    async def found(self, *, streams: int = 100) -> dict[str, str]:
        """Return what is found: the words of each finding by its subject."""
        return told(await self.survey(streams=streams))


def told(scene: Scene) -> dict[str, str]:
    return {finding.subject: finding.words for finding in judge(scene)}


@asynccontextmanager
async def pair(directory: Path, *arguments: str) -> AsyncIterator[tuple[Setup, Instance]]:
    """A Redis as it should be, with a replica."""
    setup = Setup(directory)
    sound = ("--appendonly", "yes", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction")
    try:
        master = setup.start(*COMMON, *sound, *arguments)
        setup.start(*COMMON, "--replicaof", f"127.0.0.1 {master.port}")
        setup.url = f"redis://127.0.0.1:{master.port}"

        async def followed() -> bool:
            return "connected_slaves:1" in (await master.ask("INFO", "REPLICATION")).split()

        await until(followed, setup.servers)
        yield setup, master
    finally:
        setup.end()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


async def greet(exchange: Exchange) -> None:
    """Answer as Hyperleap does somebody without a key."""
    await exchange.until_complete()
    exchange.respond(401, [("date", formatdate(usegmt=True))], end=True)


@asynccontextmanager
async def upstream(ground: Ground, handler: Any = greet) -> AsyncIterator[Peer]:
    """An upstream with TLS that is no simulator."""
    async with Peer(handler) as peer:
        authority = ground.directory / "ca.pem"
        peer.ca.cert_pem.write_to_path(str(authority))
        ground.environ |= {"HYPERLEAP_BASE_URL": peer.url, "HYPERLEAP_CA_FILE": str(authority)}
        yield peer


async def command(ground: Ground, *arguments: str, shell: str = "") -> tuple[int, str]:
    """Run ``check`` as an operator does; return its status and what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "HYPERLEAP_"))}
    words = [sys.executable, "-m", "gateway", "check", "--config", str(ground.config), *arguments]
    process = await asyncio.create_subprocess_exec(
        *(["sh", "-c", f'{shell}; exec "$@"', "sh", *words] if shell else words),
        env=clean | ground.environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert VENDOR_KEY.encode() not in out + err
    assert process.returncode is not None
    return process.returncode, out.decode()


# --- as a whole ---------------------------------------------------------------------------------------------------


async def test_sound_deployment_passes_clean(ground: Ground) -> None:
    """Where all is as it should be nothing is found, the status is 0, and no call was spent at Hyperleap."""
    async with upstream(ground) as peer, pair(ground.directory / "redis") as (setup, _):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        status, out = await command(ground, "--production", "--streams", "100", "--format", "json")
        assert status == 0, out
        document = json.loads(out)
        assert document["ok"] is True
        assert document["findings"] == []
        assert {check["subject"]: check["ok"] for check in document["checks"]} == dict.fromkeys(
            ("vendor key default", "tenants", "secrets", "store", "upstream"), True
        )
        (asked,) = peer.exchanges
        assert (asked.headers[b":method"], asked.headers[b":path"]) == (b"GET", b"/")
        assert VENDOR_KEY.encode() not in asked.headers.values()
        status, out = await command(ground, "--production", "--streams", "100")
        assert status == 0, out
        assert f"0 unsafe, 0 missing, 0 advice; {len(RULES)} of {len(RULES)} rules hold" in out


async def test_what_is_unsafe_fails_the_command_and_fits_80_columns(ground: Ground) -> None:
    """The worst comes first, each with what to do about it; a status of 1 stops a pipeline."""
    del ground.environ["GATEWAY_PUBLIC_URL"], ground.environ["GATEWAY_TRUSTED_PROXIES"]
    async with upstream(ground), pair(ground.directory / "redis", "--maxmemory-policy", "allkeys-lru") as (setup, _):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        status, out = await command(ground, "--production", "--streams", "100")
        assert status == 1
        lines = out.splitlines()
        assert max(len(line) for line in lines if str(ground.directory) not in line) <= WIDTH
        labels = [line.split()[0] for line in lines if line[:1].isupper()]
        assert [label for label in labels if label in ("UNSAFE", "MISSING")] == ["UNSAFE", "UNSAFE", "MISSING"]
        assert "maxmemory-policy is allkeys-lru" in out
        assert "→ Set `maxmemory-policy noeviction` in Redis." in out
        assert "2 unsafe, 1 missing, 0 advice" in out
        status, out = await command(ground, "--production", "--streams", "100", "--format", "json")
        assert status == 1
        document = json.loads(out)
        assert document["ok"] is False
        (finding,) = (one for one in document["findings"] if one["subject"] == "no-tls")
        assert finding["severity"] == "unsafe"
        assert "0.0.0.0:8080" in finding["words"]
        assert "GATEWAY_PUBLIC_URL" in finding["do"]


@pytest.mark.slow
async def test_what_is_missing_is_told_and_fails_nothing(ground: Ground) -> None:
    """A deployment that is safe but has no replica may go out; it is told."""
    async with upstream(ground):
        setup = Setup(ground.directory / "redis")
        try:
            server = setup.start(*COMMON, "--appendonly", "yes", "--maxmemory", "256mb")
            ground.environ["GATEWAY_REDIS_URL"] = f"redis://127.0.0.1:{server.port}"

            async def answers() -> bool:
                return bool(await server.ask("PING"))

            await until(answers, setup.servers)
            status, out = await command(ground, "--production", "--streams", "100")
            assert status == 0, out
            assert re.findall(r"^MISSING  (\S+):", out, re.MULTILINE) == ["no-replica"]
        finally:
            setup.end()


@pytest.mark.slow
async def test_what_does_not_work_fails_the_command(ground: Ground) -> None:
    """Redis that is away is no finding but a failed check; the rest is looked at all the same."""
    ground.environ["GATEWAY_LOG_LEVEL"] = "debug"
    async with upstream(ground):
        status, out = await command(ground, "--production", "--streams", "100")
        assert status == 1
        assert re.search(r"^FAIL +store: redis://127.0.0.1:1: ", out, re.MULTILINE)
        assert "ADVICE   debug-log" in out


# --- the settings -------------------------------------------------------------------------------------------------


def set_(**variables: str | None) -> Callable[[Ground], None]:
    """Set variables, or take them away."""

    def change(ground: Ground) -> None:
        for name, value in variables.items():
            if value is None:
                del ground.environ[name]
            else:
                ground.environ[name] = value

    return change


def written(line: str) -> Callable[[Ground], None]:
    """Write something of the tenant."""

    def change(ground: Ground) -> None:
        ground.toml = ground.toml.replace("[tenants.acme]\n", f"[tenants.acme]\n{line}\n")

    return change


def rewritten(old: str, new: str) -> Callable[[Ground], None]:
    def change(ground: Ground) -> None:
        assert old in ground.toml
        ground.toml = ground.toml.replace(old, new)

    return change


def default_tenant(ground: Ground) -> None:
    ground.toml = ""
    ground.environ |= {
        "HYPERLEAP_PERSONA_ID": PERSONA_ID,
        "GATEWAY_LIMITS_TENANT_TOKENS_PER_MONTH": "1000",
    }


def old_signing_key(ground: Ground) -> None:
    ground.environ["GATEWAY_PREVIOUS_SIGNING_KEY_FILE"] = ground.secret("signing-key-before")
    made_s = time.time() - 2 * 86_400
    os.utime(ground.environ["GATEWAY_SIGNING_KEY_FILE"], (made_s, made_s))


def unpriced(ground: Ground) -> None:
    for name in ("CURRENCY", "PROMPT_PER_MILLION", "COMPLETION_PER_MILLION"):
        del ground.environ[f"GATEWAY_PRICES_{name}"]


def ledger_file(ground: Ground) -> None:
    path = ground.secret("ledger-url", "postgresql://gateway:pw@db.example/usage")
    ground.environ["GATEWAY_LEDGER_URL_FILE"] = path
    Path(path).chmod(0o644)


def redis_file(ground: Ground) -> None:
    path = ground.secret("redis-url", "rediss://:pw@redis.example:6379")
    ground.environ.pop("GATEWAY_REDIS_URL", None)
    ground.environ["GATEWAY_REDIS_URL_FILE"] = path
    Path(path).chmod(0o644)


def readable(name: str) -> Callable[[Ground], None]:
    return lambda ground: Path(ground.environ[name]).chmod(0o644)


def in_environment(ground: Ground) -> None:
    del ground.environ["HYPERLEAP_API_KEY_FILE"]
    ground.environ["HYPERLEAP_API_KEY"] = VENDOR_KEY


CASES: list[tuple[str, Callable[[Ground], None], str]] = [
    ("no-tls", set_(GATEWAY_PUBLIC_URL=None), "0.0.0.0:8080"),
    ("no-tls", set_(GATEWAY_PUBLIC_URL="http://chat.example.com"), "http://chat.example.com"),
    ("no-public-url", set_(GATEWAY_PUBLIC_URL=None, GATEWAY_HOST="127.0.0.1"), "127.0.0.1:8080"),
    ("proxies-unknown", set_(GATEWAY_TRUSTED_PROXIES=None), "no proxy"),
    ("proxies-anybody", set_(GATEWAY_TRUSTED_PROXIES="10.0.0.0/8,::/0"), "::/0"),
    ("origin-in-clear", rewritten("https://app.example", "http://app.example"), "tenant acme: http://app.example"),
    ("origin-of-a-desk", rewritten('"https://app', '"http://localhost:3000", "https://app'), "http://localhost:3000"),
    ("internal-reachable", set_(GATEWAY_INTERNAL_HOST="::"), "the admin API"),
    ("key-in-environment", in_environment, "HYPERLEAP_API_KEY"),
    ("key-in-environment", set_(GATEWAY_LEDGER_URL="postgresql://gateway:pw@db.example/usage"), "GATEWAY_LEDGER_URL"),
    ("secret-readable", ledger_file, "ledger-url"),
    ("secret-readable", redis_file, "redis-url"),
    ("secret-readable", readable("GATEWAY_PEPPER_FILE"), "pepper"),
    ("secret-readable", readable("HYPERLEAP_API_KEY_FILE"), "vendor-key"),
    ("secret-readable", readable("GATEWAY_ADMIN_TOKEN_FILE"), "admin-token"),
    ("no-pepper", set_(GATEWAY_PEPPER_FILE=None), "GATEWAY_PEPPER_FILE"),
    ("no-pepper", set_(GATEWAY_SIGNING_KEY_FILE=None), "GATEWAY_SIGNING_KEY_FILE"),
    ("old-signing-key", old_signing_key, "signing-key-before"),
    ("no-admin-token", set_(GATEWAY_ADMIN_TOKEN_FILE=None), "no admin API"),
    ("debug-log", set_(GATEWAY_LOG_LEVEL="debug"), "logged"),
    ("default-tenant", default_tenant, "HYPERLEAP_PERSONA_ID"),
    ("away-open", written('limits.store_away = "open"'), "tenant acme: 25%"),
    ("anonymous-unlimited", written("limits.anonymous.requests_per_min = 0"), "limits.anonymous"),
    ("anonymous-unlimited", written("limits.address.requests_per_min = 0"), "limits.address"),
    ("users-unlimited", written("limits.user.requests_per_min = 0"), "tenant acme"),
    ("users-unlimited", written("limits.user.concurrent_turns = 0"), "tenant acme"),
    ("no-budget", rewritten("limits.tenant.tokens_per_month = 1_000_000", ""), "tenant acme"),
    ("no-prices", unpriced, "tenant acme: what turns of default cost"),
    ("unjudged-sent", written('moderation = { messages = true, when_unavailable = "open" }'), "tenant acme"),
    ("one-worker", set_(GATEWAY_WORKERS=None), "one process"),
    ("one-worker", set_(GATEWAY_WORKERS="1"), "one process"),
    ("upstream-in-clear", set_(HYPERLEAP_BASE_URL="h2c://hyperleap.example"), "h2c://hyperleap.example"),
    ("no-plan-limit", set_(HYPERLEAP_PLAN_LIMIT=None), "vendor key default"),
    ("store-open", set_(GATEWAY_REDIS_URL="rediss://redis.example:6379"), "without a password"),
    ("store-in-clear", set_(GATEWAY_REDIS_URL="redis://:pw@redis.example:6379"), "in clear"),
    ("one-host", set_(GATEWAY_REDIS_URL="redis+sentinel://127.0.0.1:26379/chat"), "one host"),
    ("store-embedded", set_(GATEWAY_REDIS_URL=None, GATEWAY_PEPPER_FILE=None), "data"),
]


def scene_of(ground: Ground) -> Scene:
    """What there is to see without asking anybody."""
    config = ground.config
    settings = load(config, ground.environ)
    tenants = settings.tenant_values()
    return Scene(
        settings=settings, tenants=tenants, config=config, store=None, upstream=None, streams=100, open_files=10_000
    )


@pytest.mark.parametrize(
    ("name", "change", "words"), CASES, ids=[f"{name}-{at}" for at, (name, *_) in enumerate(CASES)]
)
def test_setting_that_is_unsound_is_named_alone(
    ground: Ground, name: str, change: Callable[[Ground], None], words: str
) -> None:
    """Each fault of the settings is found by its name, with words that show it, and brings nothing else up."""
    assert told(scene_of(ground)) == {}
    change(ground)
    found = told(scene_of(ground))
    assert list(found) == [name]
    assert words in found[name]


def test_settings_file_with_a_password_that_everybody_reads_is_named(ground: Ground) -> None:
    """A file of settings is a secret where it holds one, and none otherwise."""
    del ground.environ["GATEWAY_REDIS_URL"]
    ground.toml += '\n[redis]\nurl = "redis://:pw@127.0.0.1:6379"\n'
    scene = scene_of(ground)
    assert scene.config is not None
    scene.config.chmod(0o644)
    assert "gateway.toml" in told(scene)["secret-readable"]
    ground.toml = TENANT
    ground.environ["GATEWAY_REDIS_URL"] = "redis://127.0.0.1:1"
    scene = scene_of(ground)
    assert scene.config is not None
    scene.config.chmod(0o644)
    assert told(scene) == {}


def test_signing_key_of_a_rotation_under_way_is_not_named(ground: Ground) -> None:
    """While tokens of the key before may live it is needed."""
    ground.environ["GATEWAY_PREVIOUS_SIGNING_KEY_FILE"] = ground.secret("signing-key-before")
    assert told(scene_of(ground)) == {}


# --- Redis --------------------------------------------------------------------------------------------------------


async def test_redis_that_is_unsound_is_named(ground: Ground) -> None:
    """Each fault of the server's own settings is found while it is there, and is gone with it."""
    async with upstream(ground), pair(ground.directory / "redis") as (setup, master):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        assert await ground.found() == {}
        for wrong, right, name in (
            (("maxmemory-policy", "volatile-lru"), ("maxmemory-policy", "noeviction"), "eviction"),
            (("maxmemory", "0"), ("maxmemory", "256mb"), "no-maxmemory"),
            (("appendfsync", "no"), ("appendfsync", "everysec"), "weak-persistence"),
            (("appendonly", "no"), ("appendonly", "yes"), "no-persistence"),
            (("appendonly", "no", "save", "3600 1"), ("appendonly", "yes", "save", ""), "weak-persistence"),
            (("maxclients", "70"), ("maxclients", "10000"), "few-clients"),
        ):
            await master.ask("CONFIG", "SET", *wrong)
            found = await ground.found()
            assert list(found) == [name], (wrong, found)
            await master.ask("CONFIG", "SET", *right)
        assert await ground.found() == {}


async def test_redis_that_cannot_save_is_named(ground: Ground) -> None:
    """A disk that is full or gone is found in what Redis says of its last attempt."""
    async with upstream(ground), pair(ground.directory / "redis") as (setup, master):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        shutil.rmtree(master.log.parent)

        async def failed() -> bool:
            with contextlib.suppress(RedisError):  # one may be under way, for the replica
                await master.ask("BGSAVE")
            return "rdb_last_bgsave_status:err" in (await master.ask("INFO", "PERSISTENCE")).split()

        await until(failed)
        found = await ground.found()
        assert list(found) == ["persistence-fails"]
        assert "rdb_last_bgsave_status: err" in found["persistence-fails"]


async def test_redis_for_rent_that_hides_its_settings_is_looked_at_as_far_as_it_goes(ground: Ground) -> None:
    """Where CONFIG is not allowed nothing is guessed: it is told that it could not be looked at."""
    async with upstream(ground), pair(ground.directory / "redis") as (_, master):
        await master.ask("ACL", "SETUSER", "tenant", "on", ">pw", "~*", "&*", "+@all", "-config")
        ground.environ["GATEWAY_REDIS_URL"] = f"redis://tenant:pw@127.0.0.1:{master.port}"
        assert list(await ground.found()) == ["config-hidden"]


async def test_clock_that_is_off_is_named(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is held against Redis's and Hyperleap's, which cost no call."""
    async with upstream(ground), pair(ground.directory / "redis") as (setup, _):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        clock = time.time
        for module in ("gateway.store.examination", "gateway.upstream.greeting", "gateway.upstream.client"):
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: clock() - 30))
        found = await ground.found()
        assert set(found) == {"clock-of-redis", "clock-of-hyperleap"}
        assert "30.0 s behind it" in found["clock-of-redis"]
        assert re.search(r"(29|30|31) s behind Hyperleap's", found["clock-of-hyperleap"])


@pytest.mark.slow
async def test_sentinels_that_are_unsound_are_named(ground: Ground) -> None:
    """Too few Sentinels, and a master that would take writes alone."""
    async with upstream(ground), sentinel_setup(ground.directory / "redis") as setup:
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        master = await setup.master()
        await master.ask("CONFIG", "SET", "appendonly", "yes", "maxmemory", "256mb")
        assert list(await ground.found()) == ["split-brain"]
        await master.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        assert await ground.found() == {}
        one, *others = setup.sentinels
        for other in others:
            other.kill()
        await one.ask("SENTINEL", "RESET", "*")
        found = await ground.found()
        assert list(found) == ["few-sentinels"]
        assert "there are 1" in found["few-sentinels"]


@pytest.mark.slow
async def test_cluster_that_is_unsound_is_named(ground: Ground) -> None:
    """Every master is looked at; slots that are nobody's, and masters that do not answer, are told."""
    async with upstream(ground), cluster_setup(ground.directory / "redis", replicas=3) as setup:
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        for node in setup.masters:
            await node.ask(*("CONFIG", "SET", "appendonly", "yes", "maxmemory", "256mb", "min-replicas-to-write", "1"))
        assert await ground.found() == {}
        await setup.masters[1].ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        found = await ground.found()
        assert list(found) == ["full-coverage"]
        assert str(setup.masters[1].port) in found["full-coverage"]
        await setup.masters[1].ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        await broken(setup)
        found = await ground.found()
        assert set(found) == {"cluster-broken"}
        assert "does not answer" in found["cluster-broken"]


async def broken(setup: ClusterSetup) -> None:
    """Take a master away whose replica is gone too."""
    lost = setup.masters[2]
    (await setup.replica_of(lost)).kill()
    lost.kill()


# --- the machine and Hyperleap ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_files_that_are_too_few_are_named(ground: Ground) -> None:
    """What a process may open is held against the streams that it is to hold."""
    async with upstream(ground), pair(ground.directory / "redis") as (setup, _):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        found = await ground.found(streams=soft)
        assert list(found) == ["few-files"]
        assert str(soft) in found["few-files"]
        status, out = await command(ground, "--production", shell="ulimit -n 512")
        assert status == 1
        assert "a process may open 512 files; 1000 streams" in " ".join(out.split())


async def test_simulator_in_the_place_of_hyperleap_is_named(ground: Ground) -> None:
    """A stand-in that was left in the settings is known by what it answers, and no run is billed."""
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY)) as stand_in, pair(ground.directory / "r") as (setup, _):
        ground.environ |= {
            "GATEWAY_REDIS_URL": setup.url,
            "HYPERLEAP_BASE_URL": stand_in.url,
            "HYPERLEAP_CA_FILE": str(stand_in.ca_file),
        }
        assert list(await ground.found()) == ["simulator"]
        assert stand_in.bill.runs == []


async def test_tenant_in_the_store_is_looked_at_like_a_written_one(ground: Ground) -> None:
    """A tenant that was put by the admin API has no fewer rules to keep."""
    async with upstream(ground), pair(ground.directory / "redis") as (setup, _):
        ground.environ["GATEWAY_REDIS_URL"] = setup.url
        document = {
            "personas": {"default": {"persona_id": PERSONA_ID}},
            "limits": {"store_away": "open", "tenant": {"tokens_per_day": 10}},
        }
        redis = Redis(setup.url, timeout_s=1.0, connections=1)
        try:
            await RedisTenants(redis).put(TenantId("umbrella"), json.dumps(document).encode())
        finally:
            await redis.aclose()
        found = await ground.found()
        assert list(found) == ["away-open"]
        assert "tenant umbrella" in found["away-open"]


async def test_upstream_that_says_no_time_is_no_finding(ground: Ground) -> None:
    """Without a Date header, or with nonsense in one, nothing is known and nothing is said."""
    for headers in ([], [("date", "yesterday")]):

        async def answer(exchange: Exchange, headers: Any = headers) -> None:
            await exchange.until_complete()
            exchange.respond(404, headers, end=True)

        async with upstream(ground, answer):
            scene = await ground.survey()
            assert scene.upstream is not None
            assert scene.upstream.clock_ahead_s is None
            assert told(scene) == {}


# --- the page -----------------------------------------------------------------------------------------------------


def test_production_page_is_fresh() -> None:
    """``gateway/docs/production.md`` is what the rules generate."""
    assert (ROOT / "gateway" / "docs" / "production.md").read_text("utf-8") == reference()


def test_rules_name_settings_that_there_are() -> None:
    """What a finding says to set can be set."""
    for rule in RULES:
        for name in re.findall(r"(?:GATEWAY|HYPERLEAP)_[A-Z_]+(?![A-Z_…])", rule.do):
            assert name in _KEY_BY_ENV or name == CONFIG_ENV or any(key.startswith(name) for key in _KEY_BY_ENV), name
        assert len({one.name for one in RULES}) == len(RULES)


def test_rules_are_all_caused_somewhere() -> None:
    """No rule is here without a test that causes it."""
    source = Path(__file__).read_text("utf-8")
    assert [rule.name for rule in RULES if f'"{rule.name}"' not in source] == []  # as a test expects it
    assert {rule.severity for rule in RULES} == set(Severity)


def test_scene_is_a_value(ground: Ground) -> None:
    """Rules look at what was gathered and ask nobody again: the same scene is judged the same."""
    scene = scene_of(ground)
    assert judge(scene) == judge(dataclasses.replace(scene))
