"""Fixtures that every room shares: a real store, the simulator, and a whole gateway on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import ClientSession, web
from aiohttp.web_app import _cached_build_middleware

from gateway.app import Gateway, build
from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.secret_files import SecretKeys
from gateway.settings import load
from gateway.simulator.server import Simulator, SimulatorSettings
from gateway.store.embedded import EmbeddedValkey
from gateway.store.redis import Redis
from gateway.store.tenants import TENANTS, RedisTenants
from gateway.transports.refusals import EdgeRunner
from tests.postgres import PASSWORD, PostgresServer, opened_postgres
from tests.spills import Spills
from tests.strays import strays

PERSONA_ID = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"
OTHER_PERSONA_ID = "0c5fdd25-6fd5-4dbb-b6a4-0a8b2ab9d3a7"
VENDOR_KEY = "vendor-key-that-must-never-leave-the-gateway"
SECRETS = SecretKeys(pepper=b"pepper-of-the-tests-32-bytes-long", signing_key=b"signing-key-of-the-tests-32-bytes")

# --- what a whole run must not leave: each process looks on, the one that started them all fails --------------------

spills = Spills(
    {
        "the vendor key": VENDOR_KEY.encode(),
        "the pepper": SECRETS.pepper,
        "the signing key": SECRETS.signing_key,
        "PostgreSQL's password": PASSWORD.encode(),
    }
)
FINDINGS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FINDINGS] = []
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # the tests run in processes of their own
    spills.watch()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look through what is left, and tell it to the process that reports; there, fail if anything was found."""
    config, findings = session.config, session.config.stash[FINDINGS]
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    if session.testscollected and factory is not None and not config.pluginmanager.has_plugin("dsession"):
        directory = factory.getbasetemp()
        spills.search_files(directory)
        findings += spills.found
        findings += [f"the stray key {key!r} in {log}" for key, log in strays(directory).items()]
        told: dict[str, object] | None = getattr(config, "workeroutput", None)
        if told is not None:
            told["findings"] = findings
    if findings:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a process of the run has found."""
    node.config.stash[FINDINGS] += getattr(node, "workeroutput", {}).get("findings", ())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for finding in config.stash[FINDINGS]:
        terminalreporter.line(f"FOUND {finding}", red=True)


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Valkey of the test run's own; tests share it, so they use tenants or conversations of their own."""
    loop = asyncio.new_event_loop()
    valkey = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    loop.run_until_complete(valkey.open())
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("auto-aof-rewrite-percentage", 0)  # its log is read when the run is over
    try:
        yield valkey.url
    finally:
        loop.run_until_complete(valkey.aclose())
        loop.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test run's own; each test makes a database of its own (``await postgres.database()``)."""
    context = opened_postgres()
    with asyncio.Runner() as runner:
        server = runner.run(context.__aenter__())
        try:
            yield server
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    """A PostgreSQL that belongs to one test, to be killed, stopped or made read-only by it."""
    async with opened_postgres() as server:
        yield server


@pytest.fixture
async def stored_tenants(store_url: str) -> AsyncIterator[RedisTenants]:
    """The tenants in the store: none at first, and none afterwards, since every gateway on it would have them."""
    redis = Redis(store_url, timeout_s=2.0, connections=2)
    await redis.call("DEL", TENANTS)
    yield RedisTenants(redis)
    await redis.call("DEL", TENANTS)
    await redis.aclose()


@dataclass(slots=True)
class Running:
    """A gateway on loopback with its simulator, and a client that speaks to it."""

    gateway: Gateway
    simulator: Simulator
    url: str
    internal_url: str
    http: ClientSession
    secret_key: str
    publishable_key: str
    tenant: str
    _tokens: dict[str, str] = field(default_factory=dict)

    async def token(self, user_id: str = "u1", **fields: Any) -> str:
        """Mint a session token with the tenant's secret key."""
        body = {"user_id": user_id, **fields}
        async with self.http.post(
            f"{self.url}/v1/sessions", json=body, headers={"Authorization": f"Bearer {self.secret_key}"}
        ) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["token"])

    async def user(self, user_id: str = "u1", **fields: Any) -> dict[str, str]:
        """Return the headers of a user's requests."""
        return {"Authorization": f"Bearer {await self.token(user_id, **fields)}"}

    async def conversation(self, headers: dict[str, str], **fields: Any) -> str:
        async with self.http.post(f"{self.url}/v1/conversations", json=fields, headers=headers) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["id"])


StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start_gateway(store_url: str, tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Start gateways: ``await start_gateway(simulator={...}, environ={...}, toml="...")``; all end with the test.

    Each has a tenant of its own unless ``tenant`` is given, so tests share the store without meeting.
    """
    with redis.Redis.from_url(store_url) as client:  # what another test's Hyperleap did is not this one's
        for key in client.scan_iter(match="hg:{_vendor.*}:gate*", count=1000):
            client.delete(key)
    async with contextlib.AsyncExitStack() as stack:
        # aiohttp remembers the handlers of the last 1,024 routes with their applications: whole gateways that are gone.
        stack.callback(_cached_build_middleware.cache_clear)

        async def start(
            *,
            simulator: dict[str, Any] | Simulator | None = None,
            environ: dict[str, str] | None = None,
            toml: str = "",
            tenant: str | None = None,
            redis_url: str | None = None,
            load_stored: bool = False,
        ) -> Running:
            if isinstance(simulator, Simulator):
                stand_in = simulator
            else:
                options = {"api_key": VENDOR_KEY, "rate_per_s": 200.0, "first_token_s": 0.0, **(simulator or {})}
                stand_in = await stack.enter_async_context(Simulator(SimulatorSettings(**options)))
            name = tenant or f"t-{uuid.uuid4().hex[:12]}"
            config = tmp_path / f"{name}-{uuid.uuid4().hex[:6]}.toml"
            config.write_text(toml or TENANT_TOML.format(tenant=name, persona=PERSONA_ID), "utf-8")
            environment = {"HYPERLEAP_API_KEY": VENDOR_KEY, "HYPERLEAP_BASE_URL": stand_in.url, **(environ or {})}
            if stand_in.ca_file is not None:
                environment["HYPERLEAP_CA_FILE"] = str(stand_in.ca_file)
            settings = load(config, environment)
            gateway = build(settings, redis_url=redis_url or store_url, secrets=SECRETS)
            stack.push_async_callback(gateway.aclose)
            if load_stored:
                await gateway.load()
            gateway.open()
            stack.push_async_callback(gateway.turns.aclose, grace_s=0)
            url = await _listen(stack, gateway.public)
            internal_url = await _listen(stack, gateway.internal)
            gateway.auth.allow_origins(frozenset({url}))
            tenant_id = next(iter(gateway.auth.tenants))
            return Running(
                gateway=gateway,
                simulator=stand_in,
                url=url,
                internal_url=internal_url,
                http=await stack.enter_async_context(ClientSession()),
                secret_key=await _key(gateway, tenant_id, KeyKind.SECRET),
                publishable_key=await _key(gateway, tenant_id, KeyKind.PUBLISHABLE),
                tenant=tenant_id,
            )

        yield start


@pytest.fixture
async def running(start_gateway: StartGateway) -> Running:
    """One gateway with a tenant of its own: personas ``default`` and ``other``, origin https://app.example."""
    return await start_gateway()


TENANT_TOML = """
[tenants.{tenant}]
origins = ["https://app.example"]
anonymous = true
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.anonymous = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.app = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.address = {{ requests_per_min = 0 }}

[tenants.{tenant}.personas.default]
persona_id = "{persona}"
replacements = ["name"]

[tenants.{tenant}.personas.other]
persona_id = "0c5fdd25-6fd5-4dbb-b6a4-0a8b2ab9d3a7"
"""


async def _key(gateway: Gateway, tenant: TenantId, kind: KeyKind) -> str:
    return (await gateway.auth.keys.mint(tenant, kind, "tests")).key


async def _listen(stack: contextlib.AsyncExitStack, app: web.Application) -> str:
    runner = EdgeRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"
