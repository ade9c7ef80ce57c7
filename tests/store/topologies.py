"""A real Redis under Sentinel, and a real Cluster, on loopback: started, broken and ended by tests of any room.

    async with sentinel_setup(tmp_path) as redis:
        ... Redis(redis.url, ...) ...
        await redis.kill_master()

Both fail over within a few seconds. Every server ends with its context, and with the test process at the latest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.store.embedded import LAUNCH, Server, find_servers

HOST = "127.0.0.1"
SERVICE = "chat"
START_TIMEOUT_S = 30.0
POLL_S = 0.02
DOWN_AFTER_MS = 300  # Sentinels take a silent master for dead after this
NODE_TIMEOUT_MS = 500  # and so do nodes of the Cluster
FAILOVER_MAX_S = 12.0  # detection, election (random delays up to 2 s) and promotion, on a busy machine
COMMON = ("--bind", HOST, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--daemonize", "no")


@dataclass(slots=True)
class Instance:
    """One server process on a port of its own."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    async def ask(self, *command: str | int) -> Any:
        """Send one command over a connection of its own; the reply is as it comes, in text. Raises RedisError."""
        connection = redis_asyncio.Connection(
            host=HOST, port=self.port, socket_timeout=2, decode_responses=True, protocol=2
        )
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    async def fall_behind(self) -> None:
        """As a replica, lose the link to the master for good: what is written from now on is the master's alone."""
        await self.ask("CONFIG", "SET", "masteruser", "nobody")
        await self.ask("CONFIG", "SET", "masterauth", "wrong")
        await self.ask("CLIENT", "KILL", "TYPE", "master")

    def pause(self) -> None:
        """Make it hang: it keeps its connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Setup:
    """Some servers that belong together, and the ``url`` for a gateway."""

    def __init__(self, directory: Path, program: Server | None = None) -> None:
        """``program`` is what to start; None: the best that there is."""
        self.url = ""
        self.servers: list[Instance] = []
        self._directory = directory
        self._program = program

    def start(self, *arguments: str, config: str | None = None) -> Instance:
        """Start a server on a free port; ``config`` is the text of a file that it may rewrite."""
        if self._program is None:
            self._program = next(iter(find_servers()), None) or pytest.skip("no server on this machine")
        port = free_port()
        place = self._directory / str(port)
        place.mkdir(parents=True)
        command = [str(self._program.path)]
        if config is not None:
            (place / "server.conf").write_text(config.format(port=port), "utf-8")
            command.append(str(place / "server.conf"))
        command += ["--port", str(port), "--dir", str(place), *arguments]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
        log = place / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        instance = Instance(port, process, log)
        self.servers.append(instance)
        return instance

    def end(self) -> None:
        for server in self.servers:
            server.kill()


class SentinelSetup(Setup):
    """A master, a replica and three Sentinels, of which two must agree."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.data: list[Instance] = []
        self.sentinels: list[Instance] = []

    async def open(self) -> None:
        master = self.start(*COMMON)
        replica = self.start(*COMMON, "--replicaof", f"{HOST} {master.port}")
        self.data = [master, replica]
        await until(partial(_says, replica, "master_link_status:up"), self.servers)
        ids = [f"{number:040x}" for number in range(1, 4)]
        for number, own_id in enumerate(ids):
            known = "".join(
                f"sentinel known-sentinel {SERVICE} {HOST} {other.port} {ids[place]}\n"
                for place, other in enumerate(self.sentinels[:number])
            )
            self.sentinels.append(
                self.start(
                    "--sentinel",
                    config=f"bind {HOST}\nport {{port}}\nsentinel myid {own_id}\n"
                    f"sentinel monitor {SERVICE} {HOST} {master.port} 2\n"
                    f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                    f"sentinel failover-timeout {SERVICE} 3000\n"
                    f"sentinel known-replica {SERVICE} {HOST} {replica.port}\n{known}",
                )
            )
        self.url = f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in self.sentinels)}/{SERVICE}"
        for sentinel in self.sentinels:
            await until(partial(self._sees_all, sentinel), self.servers)

    async def master(self) -> Instance:
        """Return the master that most Sentinels name."""
        ports = [
            int((await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE))[1]) for sentinel in self.sentinels
        ]
        port = max(ports, key=ports.count)
        return next(server for server in self.data if server.port == port)

    async def kill_master(self) -> Instance:
        """Kill the master of the moment; return it."""
        master = await self.master()
        master.kill()
        return master

    async def replica(self) -> Instance:
        """Return the one that is not the master."""
        master = await self.master()
        return next(server for server in self.data if server is not master)

    async def demote_master(self) -> Instance:
        """Fail over on request, as before maintenance; return the old master, which lives on as a replica."""
        master = await self.master()
        await self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
        return master

    async def replaced(self, old: Instance) -> Instance:
        """Wait until most Sentinels name another master that is one; return it."""

        async def other() -> bool:
            new = await self.master()
            return new is not old and await _says(new, "role:master")

        await until(other, self.servers, within_s=FAILOVER_MAX_S)
        return await self.master()

    async def _sees_all(self, sentinel: Instance) -> bool:
        state = await sentinel.ask("SENTINEL", "MASTER", SERVICE)
        table = dict(zip(state[::2], state[1::2], strict=True))
        return (table["num-slaves"], table["num-other-sentinels"]) == ("1", "2")


class ClusterSetup(Setup):
    """Three masters, the first ``replicas`` of them with a replica. A dead node's slots are missed by nobody else."""

    def __init__(self, directory: Path, replicas: int, program: Server | None = None) -> None:
        super().__init__(directory, program)
        self.replicas = replicas
        self.masters: list[Instance] = []

    async def open(self) -> None:
        nodes = [self._start_node() for _ in range(3 + self.replicas)]
        self.masters = nodes[:3]
        self.url = f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in nodes[:2])}"
        for number, node in enumerate(nodes):
            await until(partial(_answers, node), self.servers)
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.masters):
            await node.ask("CLUSTER", "ADDSLOTSRANGE", 16384 * number // 3, 16384 * (number + 1) // 3 - 1)
        bus = int((await nodes[0].ask("CONFIG", "GET", "cluster-port"))[1])
        for node in nodes[1:]:
            await node.ask("CLUSTER", "MEET", HOST, nodes[0].port, bus)
        for node in nodes:
            await until(partial(_says_cluster, node, len(nodes)), self.servers)
        for number, node in enumerate(nodes[3:]):
            await node.ask("CLUSTER", "REPLICATE", await self.masters[number].ask("CLUSTER", "MYID"))
        for number, node in enumerate(nodes[3:]):
            await until(partial(_says, node, "master_link_status:up"), self.servers)
            await until(partial(_says, self.masters[number], "connected_slaves:1"), self.servers)
        for node in nodes:
            await until(partial(self._knows_replicas, node), self.servers)

    def _start_node(self) -> Instance:
        return self.start(
            *COMMON,
            *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-replica-validity-factor", "0"),
            *("--cluster-require-full-coverage", "no"),
        )

    async def node_of(self, key: str) -> Instance:
        """Return the master that has a key's slot, as a live node tells it."""
        slot = key_slot(key.encode())
        witness = next(server for server in self.servers if server.process.poll() is None)
        for first, last, master, *_ in await witness.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    async def replica_of(self, node: Instance) -> Instance:
        """Return a master's replica."""
        (line,) = await node.ask("CLUSTER", "REPLICAS", await node.ask("CLUSTER", "MYID"))
        port = int(line.split()[1].partition("@")[0].rpartition(":")[2])
        return next(server for server in self.servers if server.port == port)

    async def kill_node_of(self, key: str) -> Instance:
        """Kill the master that has a key's slot; return it."""
        node = await self.node_of(key)
        node.kill()
        return node

    async def replaced(self, key: str, old: Instance) -> Instance:
        """Wait until a live node says that a key's slot is another's; return that one."""
        witness = next(server for server in self.masters if server is not old)
        slot = key_slot(key.encode())

        async def other() -> bool:
            return any(
                first <= slot <= last and master[1] != old.port
                for first, last, master, *_ in await witness.ask("CLUSTER", "SLOTS")
            )

        await until(other, self.servers, within_s=FAILOVER_MAX_S)
        return await self.node_of(key)

    def tenant_on(self, number: int, nth: int = 0) -> str:
        """Return a tenant whose slot lay at first on this master (0, 1 or 2); another one for each ``nth``."""
        first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
        found = (name for name in map("t-{}".format, range(100_000)) if first <= key_slot(name.encode()) <= last)
        for _ in range(nth):
            next(found)
        return next(found)

    async def move_slot_of(self, key: str, target: Instance) -> None:
        """Give a slot that holds no keys to another master."""
        slot, target_id = key_slot(key.encode()), await target.ask("CLUSTER", "MYID")
        source = await self.node_of(key)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def migrate_slot_of(self, key: str, target: Instance, *, keys_at_once: int = 10, pause_s: float = 0) -> int:
        """Move a slot key by key, as ``redis-cli --cluster reshard`` does; return how many keys went.

        ``pause_s`` after each MIGRATE stands for a slot with more keys.
        """
        slot, target_id = key_slot(key.encode()), await target.ask("CLUSTER", "MYID")
        source = await self.node_of(key)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        moved = 0
        while names := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
            await source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *names)
            moved += len(names)
            await asyncio.sleep(pause_s)
        for node in (target, source, *(node for node in self.masters if node not in (target, source))):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        return moved

    async def migrate_slot_at_once(self, key: str, target: Instance) -> None:
        """Move a slot as a whole, which Valkey can from 9 on."""
        slot, target_id = key_slot(key.encode()), await target.ask("CLUSTER", "MYID")
        source = await self.node_of(key)
        await source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)

        async def gone() -> bool:
            return await self.node_of(key) is target

        await until(gone, self.servers)

    async def _knows_replicas(self, node: Instance) -> bool:
        return str(await node.ask("CLUSTER", "NODES")).count("slave") == self.replicas


@asynccontextmanager
async def sentinel_setup(directory: Path) -> AsyncIterator[SentinelSetup]:
    """Start a Sentinel set-up that is ready for a failover."""
    setup = SentinelSetup(directory)
    try:
        await setup.open()
        yield setup
    finally:
        setup.end()


@asynccontextmanager
async def cluster_setup(
    directory: Path, *, replicas: int = 3, program: Server | None = None
) -> AsyncIterator[ClusterSetup]:
    """Start a Cluster of three masters; those with a replica can fail over."""
    setup = ClusterSetup(directory, replicas, program)
    try:
        await setup.open()
        yield setup
    finally:
        setup.end()


async def until(
    holds: Callable[[], Awaitable[bool]], servers: Sequence[Instance] = (), *, within_s: float = START_TIMEOUT_S
) -> None:
    """Ask until something holds; when it does not in time, the error has the servers' last words."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                with suppress(RedisError, OSError):
                    if await holds():
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        words = "\n".join(f"{server.port}: {server.log.read_text('utf-8', 'replace')[-600:]}" for server in servers)
        raise AssertionError(f"not within {within_s:g} s\n{words}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def _answers(server: Instance) -> bool:
    return bool(await server.ask("PING"))


async def _says(server: Instance, line: str) -> bool:
    return line in (await server.ask("INFO", "REPLICATION")).split()


async def _says_cluster(server: Instance, nodes: int) -> bool:
    lines = (await server.ask("CLUSTER", "INFO")).split()
    return "cluster_state:ok" in lines and f"cluster_known_nodes:{nodes}" in lines
