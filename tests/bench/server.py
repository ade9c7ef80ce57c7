"""A Redis of the run's own, and what it and this process have used."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from gateway.store.embedded import EmbeddedValkey, Running, find_servers
from gateway.store.redis import Redis
from tests.bench.process import cpu_clock_s, machine_busy_s

CONNECTIONS: Final = 16
TIMEOUT_S: Final = 5.0  # longer than the gateway's: what is slow shall show its time, not an error


class Server:
    """A server with the gateway's client of it; ``round_trips`` counts what the client has sent."""

    def __init__(self, url: str, pid: int, directory: Path) -> None:
        self.url = url
        self.pid = pid
        self.directory = directory
        self.round_trips = 0
        self.redis = Redis(url, timeout_s=TIMEOUT_S, connections=CONNECTIONS, observer=self._called)

    async def held_bytes(self, keys: Iterable[str]) -> int:
        """Return what the server holds for some keys, by its own account."""
        held = [await self.redis.call("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]
        return sum(int(one) for one in held if one is not None)

    async def written_bytes(self) -> int:
        """Return the size of the append-only file."""
        return int((await self.redis.server_facts())["aof_current_size"])

    async def sent_bytes(self) -> int:
        """Return how much the server has answered so far."""
        return int((await self.redis.server_facts())["total_net_output_bytes"])

    def _called(self, _seconds: float, _commands: int, _failed: bool) -> None:
        self.round_trips += 1


class Mark:
    """CPU time and traffic up to a moment. The client is this process."""

    def __init__(self, server: Server) -> None:
        self.at_s = time.monotonic()
        self.client_s = time.process_time()
        self.server_s = cpu_clock_s(server.pid)
        self.busy_s = machine_busy_s()
        self.round_trips = server.round_trips


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    """Start a server as the gateway starts its own, a Valkey where there is one, and end it afterwards."""
    found = sorted(find_servers(), key=lambda server: server.product != "valkey")
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
        valkey = EmbeddedValkey(Path(directory), servers=found)
        await valkey.open()
        try:
            facts = msgspec.json.decode((Path(directory) / "valkey.json").read_bytes(), type=Running)
            server = Server(valkey.url, facts.pid, Path(directory))
            try:
                # A rewrite of the append-only file would fall into one layout's window and not into another's.
                await server.redis.call("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
                yield server
            finally:
                await server.redis.aclose()
        finally:
            await valkey.aclose()
