"""What is watched: a gateway of two workers, a Redis of its own, and a stand-in Hyperleap with several keys."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from gateway.simulator.server import Simulator, SimulatorSettings
from gateway.store.redis import Redis
from tests.bench.process import Child, children, free_port
from tests.bench.stack import clean_environ
from tests.bench.survival.site import Store
from tests.conftest import PERSONA_ID, VENDOR_KEY

ADMIN_TOKEN: Final = "0123456789abcdef0123456789abcdef-of-an-operator"
READY_S: Final = 60.0
KEYS: Final = ("broken", "limited", "narrow", "stale")  # vendor keys beside the default one, each with its tenant

SETTINGS: Final = """
[server]
tenants_file = "{directory}/tenants.toml"
admin_token_file = "{directory}/admin-token"
metrics_personas_max = 0  # of the tenants that come later none is a label
drain_s = 1

[redis]
url = "{redis}"

[upstream]
base_url = "{upstream}"
keys_dir = "{directory}/keys"
breaker_rest_s = 0.5
breaker_rest_max_s = 1

[turns]
lease_s = 2
heartbeat_s = 0.5
recovery_timeout_s = 3
probe_s = 0.5

[streams]
reader_lag_s = 0.5

[vendor_keys.narrow]
plan_limit = "100/h + 2/min"

[sessions]
pepper_file = "{directory}/pepper"
signing_key_file = "{directory}/signing-key"
"""

TENANT: Final = """
[tenants.{name}]
vendor_keys = ["{key}"]
{more}
limits.tenant = {{ requests_per_min = 0{budget} }}
limits.user = {{ requests_per_min = {per_min}, concurrent_turns = 0 }}
limits.address = {{ requests_per_min = 0 }}
personas.default.persona_id = "{persona}"
"""


def tenant(name: str, *, key: str = "default", budget: str = "", per_min: int = 0, more: str = "") -> str:
    """Return a tenant's table. Nothing limits it but what is given."""
    return TENANT.format(name=name, key=key, budget=budget, per_min=per_min, more=more, persona=PERSONA_ID)


TENANTS: Final = {
    "acme": tenant("acme"),
    "careful": tenant("careful", more="moderation.messages = true"),
    "bounded": tenant("bounded", per_min=1),
    "frugal": tenant("frugal", budget=", tokens_per_day = 1000"),
    "patient": tenant("patient", per_min=6000, more='limits.store_away = "open"'),
    **{key: tenant(key, key=key) for key in KEYS},
}


class Site:
    """Its processes, and what strikes them. Signals go to pids of its own only."""

    def __init__(self, directory: Path, ledger_url: str) -> None:
        self.directory = directory
        self._ledger_url = ledger_url
        self.port, self.internal_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.internal_url = f"http://127.0.0.1:{self.internal_port}"
        self.store = Store(directory)
        self.simulator = Simulator(
            SimulatorSettings(
                api_key=VENDOR_KEY,
                more_api_keys=tuple(self.key(label) for label in KEYS),
                port=free_port(),  # so that it can come back
                h2c=True,
                rate_per_s=0,
                on_disconnect="drop",  # so that nothing completes what a dead worker was answering
            )
        )
        self.gateway: Child
        self.redis: Redis
        self.http: ClientSession
        self._stack = contextlib.AsyncExitStack()

    @staticmethod
    def key(label: str) -> str:
        """The vendor key of a label."""
        return f"vendor-key-of-{label}"

    @property
    def workers(self) -> list[int]:
        """The worker processes, oldest first."""
        return sorted(pid for pid in children(self.gateway.pid) if b"--control-fd" in _command_line(pid))

    async def open(self) -> None:
        """Start everything; when it fails, what has been started is for ``aclose``."""
        directory, stack = self.directory, self._stack
        (directory / "keys").mkdir()
        for label in KEYS:
            (directory / "keys" / label).write_text(self.key(label))
        for name in ("pepper", "signing-key"):
            (directory / name).write_text(secrets.token_hex(32))
        (directory / "admin-token").write_text(ADMIN_TOKEN)
        self.write_tenants(TENANTS.values())
        stack.push_async_callback(self.store.aclose)
        await self.store.open()
        await stack.enter_async_context(self.simulator)
        settings = SETTINGS.format(directory=directory, redis=self.store.url, upstream=self.simulator.url)
        (directory / "gateway.toml").write_text(settings, "utf-8")
        await self.start()
        self.redis = Redis(self.store.url, timeout_s=20.0, connections=1)  # longer than it is held up here
        stack.push_async_callback(self.redis.aclose)
        # Each request a connection of its own, so that both workers have a share of them.
        connector = TCPConnector(force_close=True, limit=0)
        self.http = await stack.enter_async_context(ClientSession(connector=connector, timeout=ClientTimeout(total=60)))

    async def start(self) -> None:
        """Start the gateway, or start it again, on the same ports and data."""
        command = [sys.executable, "-m", "gateway", "serve", "--workers", "2"]
        command += ["--port", str(self.port), "--internal-port", str(self.internal_port)]
        command += ["--config", str(self.directory / "gateway.toml"), "--env-file", str(self.directory / "gateway.env")]
        environ = clean_environ() | {
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "GATEWAY_LEDGER_URL": self._ledger_url,
            "GATEWAY_DATA_DIR": str(self.directory / "data"),
            "GATEWAY_LOG_LEVEL": "warning",
            "GATEWAY_LOG_FORMAT": "json",
        }
        self.gateway = await self._stack.enter_async_context(
            Child("gateway", command, self.directory / "gateway.log", environ)
        )
        while b"URLs and keys are in" not in await self.gateway.line(within_s=READY_S):
            pass

    async def end(self) -> None:
        """End the gateway as an orchestrator does."""
        os.kill(self.gateway.pid, signal.SIGTERM)
        await self.gateway.ended(within_s=READY_S)

    async def aclose(self) -> None:
        """End every process, in the order of dependence."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await self._stack.aclose()

    def write_tenants(self, tables: Iterable[str]) -> None:
        """Put a version of the tenants file in the place of the one before, in one step."""
        part = self.directory / "tenants.part"
        part.write_text("".join(tables), "utf-8")
        part.rename(self.directory / "tenants.toml")

    async def secret_key(self, name: str) -> str:
        """Make a secret key of a tenant."""
        async with self.http.post(
            f"{self.internal_url}/admin/v1/tenants/{name}/keys",
            json={"label": "tests"},
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        ) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["secret"])


@asynccontextmanager
async def site(directory: Path, ledger_url: str) -> AsyncIterator[Site]:
    """Start a site, which exports its ledger; leaving this ends every process of it."""
    place = Site(directory, ledger_url)
    try:
        await place.open()
        yield place
    finally:
        await place.aclose()


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
