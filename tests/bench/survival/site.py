"""What is struck: a simulated vendor, a store and gateways, each a process of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import msgspec

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.store.embedded import LAUNCH, Running, Server, find_servers
from gateway.store.redis import Keys, Redis
from tests.bench.places import PERSONA_ID
from tests.bench.process import Child, children
from tests.bench.stack import MANY, READY_S, VENDOR_KEY, clean_environ, read_env, ready_url
from tests.store.topologies import ClusterSetup, SentinelSetup, cluster_setup, free_port, sentinel_setup

TENANT: Final = TenantId("default")
STORE_S: Final = 20.0
AOF, KEPT = "appendonlydir", "appendonlydir.kept"
POLL_S: Final = 0.02
Habit = Literal["finish", "drop"]
StoreKind = Literal["own", "shared", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a site consists of. ``settings`` are of every gateway, by variable."""

    gateways: int = 1
    workers: int | None = None  # of each, under a supervisor
    store: StoreKind = "own"  # embedded in the gateway; else what the gateways share
    program: Server | None = None  # that Redis is; None: the best that there is
    habit: Habit = "finish"  # of the vendor, with answers that nobody reads any more
    plan_limit_per_min: int = 0  # of the vendor
    settings: dict[str, str] | None = None


class Store:
    """A Redis of one's own that can be killed and started again on its data."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._child: Child
        self._stack = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    async def open(self) -> None:
        """Start it, on the data of the one before; returns once it answers."""
        server = str(find_servers()[0].path)
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "everysec"]
        command = [server, *options]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
        self._child = Child("store", command, self._directory / "store.log")
        await self._stack.enter_async_context(self._child)
        await answering(self.url)

    def keep(self) -> None:
        """Copy what is on disk, for ``rewind``."""
        shutil.copytree(self._directory / AOF, self._directory / KEPT)

    async def rewind(self) -> None:
        """Kill it and start it again without what it has written since ``keep``, as after a failover."""
        os.kill(self.pid, signal.SIGKILL)
        await self._child.ended(within_s=STORE_S)
        shutil.rmtree(self._directory / AOF)
        (self._directory / KEPT).rename(self._directory / AOF)
        await self.open()

    async def aclose(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        await self._stack.aclose()


class Site:
    """What runs. Signals go to pids of its own only."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.gateways: list[Child] = []
        self.store: Store | None = None
        self.topology: SentinelSetup | ClusterSetup | None = None
        self.urls: list[str] = []
        self.secret_key = ""
        self.redis: Redis
        self._simulator_url = ""
        self._ports: list[int] = []
        self._settings: dict[str, str] = {}
        self._stack = contextlib.AsyncExitStack()

    @property
    def workers(self) -> list[int]:
        """The worker processes under the supervisors, by the age of their pids."""
        below = [pid for gateway in self.gateways for pid in children(gateway.pid)]
        return sorted(pid for pid in below if b"--control-fd" in _command_line(pid))

    @property
    def store_pid(self) -> int:
        """Of the store in use, the gateway's own included."""
        if self.store is not None:
            return self.store.pid
        facts = (self.directory / "gateway-0" / "valkey.json").read_bytes()
        return msgspec.json.decode(facts, type=Running).pid

    async def bill(self) -> list[dict[str, Any]]:
        """The vendor's chat runs, oldest first."""
        async with httpx.AsyncClient(http1=False, http2=True, timeout=30.0) as http:
            answer = await http.get(f"{self._simulator_url}/_simulator/bill")
            runs: list[dict[str, Any]] = answer.raise_for_status().json()["runs"]
            return runs

    async def epochs(self, turn_ids: Iterable[str]) -> list[int]:
        """How many workers have owned each turn."""
        await until_answering(self.redis)
        calls = (self.redis.call("HGET", Keys(TENANT).turn(turn_id), "epoch") for turn_id in turn_ids)
        return [int(epoch or 0) for epoch in await asyncio.gather(*calls)]

    def log_of(self, gateway: int) -> str:
        return self.gateways[gateway].log.read_text("utf-8", "replace")

    async def open(self) -> None:
        """Start everything; when it fails, what has been started is for ``aclose``."""
        plan, directory = self.plan, self.directory
        simulate = [sys.executable, "-m", "gateway", "simulate", "--port", "0", "--h2c", "--first-token-s", "0"]
        simulate += ["--api-key", VENDOR_KEY, "--on-disconnect", plan.habit]
        simulate += ["--limit-per-minute", str(plan.plan_limit_per_min)]
        simulator = await self._stack.enter_async_context(
            Child("simulator", simulate, directory / "simulator.log", clean_environ())
        )
        base_url = await ready_url(simulator)
        self._simulator_url = base_url.replace("h2c://", "http://")
        self._settings = settings = {
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "HYPERLEAP_PERSONA_ID": PERSONA_ID,
            "HYPERLEAP_BASE_URL": base_url,
            "GATEWAY_LIMITS_TENANT_REQUESTS_PER_MIN": MANY,
            "GATEWAY_LIMITS_USER_REQUESTS_PER_MIN": MANY,
            "GATEWAY_LIMITS_USER_CONCURRENT_TURNS": MANY,
            "GATEWAY_STREAMS_RETRY_MS": "200",  # else readers' own patience hides the gateway's time
            "GATEWAY_LOG_FORMAT": "json",
        }
        if plan.store != "own":
            settings["GATEWAY_REDIS_URL"] = await self._open_store(plan)
            for name in ("PEPPER", "SIGNING_KEY"):
                path = directory / name.lower()
                path.write_text(secrets.token_hex(32))
                settings[f"GATEWAY_{name}_FILE"] = str(path)
        settings |= plan.settings or {}
        for number in range(plan.gateways):
            self._ports.append(free_port())
            self.gateways.append(await self._gateway(number))
            self.urls.append(f"http://127.0.0.1:{self._ports[number]}")
        self.redis = Redis(self._facts(0)["GATEWAY_REDIS_URL"], timeout_s=5.0, connections=4)
        self._stack.push_async_callback(self.redis.aclose)

    async def restart(self, number: int) -> None:
        """Start a gateway that was killed again, on its port and data."""
        self.gateways[number] = await self._gateway(number)

    async def aclose(self) -> None:
        """End every process, in the order of dependence."""
        await self._stack.aclose()

    async def _open_store(self, plan: Plan) -> str:
        """Start what the gateways share; return its URL."""
        place = self.directory / "redis"
        match plan.store:
            case "sentinel":
                self.topology = await self._stack.enter_async_context(sentinel_setup(place))
                return self.topology.url
            case "cluster":
                self.topology = await self._stack.enter_async_context(cluster_setup(place, program=plan.program))
                return self.topology.url
            case _:
                self.store = Store(self.directory)
                self._stack.push_async_callback(self.store.aclose)
                await self.store.open()
                return self.store.url

    async def _gateway(self, number: int) -> Child:
        serve = [sys.executable, "-m", "gateway", "serve", "--port", str(self._ports[number]), "--internal-port", "0"]
        serve += ["--env-file", str(self.directory / f"gateway-{number}.env")]
        if self.plan.workers is not None:
            serve += ["--workers", str(self.plan.workers)]
        environ = clean_environ() | self._settings | {"GATEWAY_DATA_DIR": str(self.directory / f"gateway-{number}")}
        gateway = await self._stack.enter_async_context(
            Child(f"gateway {number}", serve, self.directory / f"gateway-{number}.log", environ)
        )
        while b"URLs and keys are in" not in await gateway.line(within_s=READY_S):
            pass
        self.secret_key = self._facts(number)["GATEWAY_SECRET_KEY"]  # each start replaces those of the one before
        return gateway

    def _facts(self, number: int) -> dict[str, str]:
        return read_env(self.directory / f"gateway-{number}.env")


@asynccontextmanager
async def site(plan: Plan) -> AsyncIterator[Site]:
    """Start a site in a directory of its own; leaving this ends every process of it, in the order of dependence."""
    with tempfile.TemporaryDirectory(prefix="gateway-survive-") as directory:
        place = Site(Path(directory), plan)
        try:
            await place.open()
            yield place
        finally:
            await place.aclose()


async def answering(url: str) -> None:
    """Wait until a store answers."""
    redis = Redis(url, timeout_s=1.0, connections=1)
    try:
        await until_answering(redis)
    finally:
        await redis.aclose()


async def until_answering(redis: Redis) -> None:
    """Wait until the node of the gateways' tenant answers."""
    async with asyncio.timeout(STORE_S):
        while True:
            with contextlib.suppress(GatewayError):
                await redis.call("EXISTS", Keys(TENANT).settlements())
                return
            await asyncio.sleep(POLL_S)


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
