"""The parts under test, each a process with files of its own in one temporary directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import ssl
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import msgspec

from tests.bench.places import PERSONA_ID
from tests.bench.plan import Plan, Route
from tests.bench.process import Child, ProcessDied, children, tree

VENDOR_KEY: Final = "bench-vendor-key"
READY_S: Final = 60.0
MANY: Final = "1000000"
STORE_NAMES: Final = ("valkey", "redis")


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the gateway or a relay runs on: a Python, and variables of its environment. Clients and upstream do not."""

    python: str = sys.executable
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Stack:
    """What runs, and where it answers."""

    directory: Path
    simulator: Child
    simulator_url: str
    ca_file: str | None
    gateway: Child
    facts: dict[str, str]
    source: Child | None = None
    relay: Child | None = None
    relay_url: str = ""
    store_pids: list[int] = field(default_factory=list)

    def groups(self, route: Route) -> dict[str, list[int]]:
        """The pids whose CPU time counts on a route, by the name of their part."""
        if route == "relay":
            assert self.source is not None
            assert self.relay is not None
            return {"relay": tree(self.relay.pid), "source": [self.source.pid]}
        groups = {"simulator": [self.simulator.pid]}
        if route != "direct":
            groups |= {"gateway": self.gateway_pids, "valkey": self._of_store}
        return groups

    @property
    def gateway_pids(self) -> list[int]:
        """The gateway and what it started, without its store."""
        of_store = self._of_store
        return [pid for pid in tree(self.gateway.pid) if pid not in of_store]

    @property
    def _of_store(self) -> list[int]:
        """The store, which forks to rewrite its file."""
        return [pid for store in self.store_pids for pid in tree(store)]

    def remembering(self, route: Route) -> list[int]:
        return self.gateway_pids

    def plan(
        self,
        route: Route,
        *,
        streams: int,
        events: int,
        message: str,
        ramp_s: float,
        repeat: bool,
        readers: int = 1,
    ) -> Plan:
        match route:
            case "direct":
                url, key = self.simulator_url, VENDOR_KEY
            case "relay":
                url, key = self.relay_url, "none"
            case _:
                url, key = self.facts["GATEWAY_URL"], self.facts["GATEWAY_SECRET_KEY"]
        return Plan(
            route=route,
            url=url,
            key=key,
            ca_file=self.ca_file,
            streams=streams,
            events=events,
            message=message,
            ramp_s=ramp_s,
            repeat=repeat,
            readers=readers,
        )

    async def metrics(self) -> dict[str, float]:
        """Read the gateway's metrics, summed over their labels."""
        body = await asyncio.to_thread(_get, self.facts["GATEWAY_INTERNAL_URL"] + "/metrics")
        sums: dict[str, float] = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    async def resets(self) -> dict[str, float]:
        """When the simulator saw upstream streams reset, in Unix seconds, by the messages that they answered."""
        verify = True if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)
        async with httpx.AsyncClient(http1=False, http2=True, verify=verify, timeout=30.0) as http:
            answer = await http.get(f"{self.simulator_url}/_simulator/bill")
            runs = answer.raise_for_status().json()["runs"]
            return {run["message"]: run["reset_at_s"] for run in runs if run["reset_at_s"] is not None}

    @asynccontextmanager
    async def clients(self, plan: Plan) -> AsyncIterator[Child]:
        async with clients(plan, self.directory) as load:
            yield load


@asynccontextmanager
async def clients(plan: Plan, directory: Path) -> AsyncIterator[Child]:
    """Start the clients of one phase; they are ready when this is entered."""
    command = [sys.executable, "-m", "tests.bench.load"]
    async with Child("clients", command, directory / "clients.log", clean_environ()) as load:
        load.tell(msgspec.json.encode(plan).decode())
        await expect(load, "ready")
        yield load


async def expect(load: Child, word: str, *, within_s: float = READY_S) -> None:
    """Wait for a word of the load generator; raises ProcessDied that names the word."""
    try:
        said = (await load.line(within_s=within_s)).decode().strip()
    except ProcessDied as died:
        raise ProcessDied(f"no {word!r}: {died}") from None
    if said != word:
        raise AssertionError(f"the clients said {said[:200]!r} instead of {word!r}")


@asynccontextmanager
async def running(
    *, rate_per_s: float, h2c: bool, baseline: bool, workers: int | None = None, runtime: Runtime | None = None
) -> AsyncIterator[Stack]:
    """Start the parts, and end them in the order of dependence. ``runtime`` is the gateway's."""
    runtime = runtime or Runtime()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        ca_file = directory / "ca.pem"
        simulate = [sys.executable, "-m", "gateway", "simulate", "--port", "0", "--rate", str(rate_per_s)]
        simulate += ["--first-token-s", "0", "--api-key", VENDOR_KEY, "--data-dir", str(directory / "simulator")]
        simulate += ["--h2c"] if h2c else ["--ca-file", str(ca_file)]
        simulator = await stack.enter_async_context(
            Child("simulator", simulate, directory / "simulator.log", clean_environ())
        )
        simulator_url = await ready_url(simulator)
        env_file = directory / "gateway.env"
        environ = clean_environ() | {
            **runtime.environ,
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "HYPERLEAP_PERSONA_ID": PERSONA_ID,
            "HYPERLEAP_BASE_URL": simulator_url,
            "GATEWAY_DATA_DIR": str(directory / "gateway"),
            "GATEWAY_LIMITS_TENANT_REQUESTS_PER_MIN": MANY,
            "GATEWAY_LIMITS_USER_REQUESTS_PER_MIN": MANY,
            "GATEWAY_LIMITS_USER_CONCURRENT_TURNS": MANY,
            "GATEWAY_LOG_FORMAT": "json",
        }
        if not h2c:
            environ["HYPERLEAP_CA_FILE"] = str(ca_file)
        serve = [runtime.python, "-m", "gateway", "serve", "--port", "0", "--internal-port", "0"]
        serve += ["--env-file", str(env_file)]
        serve += ["--workers", str(workers)] if workers is not None else []
        gateway = await stack.enter_async_context(Child("gateway", serve, directory / "gateway.log", environ))
        while b"URLs and keys are in" not in await gateway.line(within_s=READY_S):
            pass
        parts = Stack(
            directory=directory,
            simulator=simulator,
            simulator_url=simulator_url,
            ca_file=None if h2c else str(ca_file),
            gateway=gateway,
            facts=read_env(env_file),
        )
        parts.store_pids = [pid for pid in children(gateway.pid) if _name(pid).startswith(STORE_NAMES)]
        if baseline:
            command = [sys.executable, "-m", "tests.bench.source", "--rate", str(rate_per_s)]
            log = directory / "baseline.log"
            parts.source = await stack.enter_async_context(Child("source", command, log, clean_environ()))
            source_url = await ready_url(parts.source)
            command = [sys.executable, "-m", "tests.bench.relay", source_url]
            parts.relay = await stack.enter_async_context(Child("relay", command, log, clean_environ()))
            parts.relay_url = await ready_url(parts.relay)
        yield parts


def clean_environ() -> dict[str, str]:
    """The environment without settings of a gateway that somebody has set for other purposes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "HYPERLEAP_"))}


def read_env(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in shlex.split(path.read_text("utf-8")))


async def ready_url(child: Child) -> str:
    while not (line := await child.line(within_s=READY_S)).startswith(b"ready "):
        pass
    return line.split()[1].decode()


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body
