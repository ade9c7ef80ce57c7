"""A Cluster: which node has which slot, learnt from the nodes themselves and kept while they change."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from gateway.store.breaker import RETRY_S
from gateway.store.connections import AWAY, Dialler, ask, give_up
from gateway.store.node import Node
from gateway.store.waiting import Call
from gateway.store_url import Address, StoreUrl
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

# Commands without a key, which any node can serve; of all others the key comes first, of scripts third.
KEYLESS: Final = frozenset(
    {
        *("CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "INFO", "KEYS", "PING"),
        *("PUBLISH", "ROLE", "SCRIPT", "TIME"),
    }
)


class Cluster:
    """The masters of a Cluster, one node each. Until their map has been read, any node that answers tells the way."""

    def __init__(self, url: StoreUrl, *, timeout_s: float, connections: int, succeeded: Callable[[], None]) -> None:
        """``succeeded`` is called when a node that failed has lost slots to another one."""
        self._succeeded = succeeded
        self._seeds = url.hosts
        self._name = url.address
        self._dialler = Dialler(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._connections = connections
        self._nodes: dict[Address, Node] = {}
        # Whichever answers, as some of those in the URL may be away when a worker starts.
        self._anywhere = Node(url.address, self.connect, connections=connections, lost=self.reread)
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._replicas: list[Address] = []
        self._mapped = False
        self._reading: asyncio.Task[None] | None = None
        self._read_at_s: float | None = None
        self._closed = False

    def split(self, calls: list[Call]) -> list[tuple[Node, list[Call]]]:
        """Sort a batch by the nodes that it goes to, in the order of the calls."""
        if self._read_at_s is None:
            self.reread()
        groups: dict[Node, list[Call]] = {}
        anyone: Node | None = None
        for call in calls:
            node = self._owners[key_slot(call.key)] if call.key is not None else None
            if node is None:
                node = anyone = anyone or self._anyone()
            groups.setdefault(node, []).append(call)
        return list(groups.items())

    def node_of(self, key: bytes) -> Node | None:
        return self._owners[key_slot(key)]

    def nodes(self) -> Sequence[Node]:
        return tuple(self._nodes.values()) if self._mapped else (*self._nodes.values(), self._anywhere)

    def redirected(self, node: Node, error: AskError) -> Node:
        """Return the node that a MOVED or ASK names. A MOVED changes the map at once, and the whole is read again."""
        known = (address.host for address, other in self._nodes.items() if other is node)
        host = error.host or next(known, self._seeds[0].host)
        target = self._node(Address(host, int(error.port)))
        if isinstance(error, MovedError):
            self._own(int(error.slot_id), int(error.slot_id), target)
            self.reread()
        return target

    def reread(self) -> None:
        """Read the map again soon, unless that was just done."""
        if self._closed or (self._reading is not None and not self._reading.done()):
            return
        if self._read_at_s is None or time.monotonic() - self._read_at_s >= RETRY_S:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def connect(self) -> AbstractConnection:
        """Return a new connection to any node that answers. Raises one of AWAY; bound it by cancelling."""
        failure: BaseException | None = None
        for address in self._candidates():
            try:
                async with asyncio.timeout(self._timeout_s / 2):  # leaves time for a second one
                    return await self._dialler.dial(address)
            except AWAY as error:
                failure = error
        raise failure or AssertionError("a URL names at least one node")

    async def aclose(self) -> None:
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for node in (*self._nodes.values(), self._anywhere):
            node.drop_idle()

    async def _read(self) -> None:
        """Read the map from the first node that tells it; without one, the map stays as it is."""
        failure: BaseException | None = None
        try:
            for address in self._candidates():
                try:
                    async with asyncio.timeout(self._timeout_s):
                        connection = await self._dialler.dial(address)
                        try:
                            shards = await ask(connection, "CLUSTER", "SLOTS")
                        finally:
                            await give_up(connection)
                except AWAY as error:
                    failure = error
                    continue
                if shards:
                    await self._adopt(address, shards)
                    return
            throttled(logger, "store.map_unread", error=failure, store=self._name)
        except Exception as error:  # nobody awaits this task
            throttled(logger, "store.map_unread", level=logging.ERROR, error=error, store=self._name)
        finally:
            self._read_at_s = time.monotonic()

    async def _adopt(self, asked: Address, shards: list[Any]) -> None:
        """Take over a map: ``[[first slot, last slot, [host, port, id, …] of the master, and of the replicas], …]``."""
        owners, replicas = set(), set()
        for first, last, *places in shards:
            master, *others = (Address(_text(place[0]) or asked.host, int(place[1])) for place in places)
            owner = self._node(master)
            owners.add(owner)
            replicas.update(others)
            self._own(int(first), int(last), owner)
        self._mapped = True
        self._anywhere.drop_idle()
        self._replicas = list(replicas)
        for address, node in list(self._nodes.items()):
            if node not in owners:
                del self._nodes[address]
                node.drop_idle()

    def _own(self, first: int, last: int, owner: Node) -> None:
        """Give slots to a node. It inherits when they last failed: their keys were as unreachable under its name."""
        before = {node for node in set(self._owners[first : last + 1]) if node is not None and node is not owner}
        failed = [node for node in before if node.failed_at_s is not None]
        for node in failed:
            if (node.failed_at_s or 0) > (owner.failed_at_s or 0):
                owner.failed_at_s, owner.failure = node.failed_at_s, node.failure
        if before:
            throttled(logger, "store.slots_moved", level=logging.INFO, now=owner.name)
        self._owners[first : last + 1] = [owner] * (last + 1 - first)
        if failed:
            self._succeeded()

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._new(address)
        return node

    def _new(self, address: Address) -> Node:
        return Node(str(address), lambda: self._dialler.dial(address), connections=self._connections, lost=self.reread)

    def _anyone(self) -> Node:
        """Return a node for what any of them can do, one that answers if there is one."""
        if not self._mapped:
            return self._anywhere
        nodes = list(self._nodes.values())
        return random.choice([node for node in nodes if not node.breaker.is_open] or nodes)  # noqa: S311 - no secret

    def _candidates(self) -> Iterator[Address]:
        """Give the addresses to ask, those likely to answer first."""
        known = list(self._nodes.items())
        random.shuffle(known)
        live = [address for address, node in known if not node.breaker.is_open]
        yield from dict.fromkeys([*live, *self._replicas, *self._seeds, *(address for address, _ in known)])


def key_of(command: Sequence[object]) -> bytes | None:
    """Return the key that decides where a command goes, None where any node will do.

    Raises IndexError or ValueError for a script call without the keys that it announces.
    """
    name = _text(command[0]).upper()
    if name in ("EVAL", "EVALSHA"):
        return _bytes(command[3]) if int(_bytes(command[2])) else None
    return None if name in KEYLESS or len(command) < 2 else _bytes(command[1])


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(value: object) -> str:
    """Decode what a server says of a host; one that does not know its own says nothing or ``?``."""
    text = value.decode() if isinstance(value, bytes) else str(value or "")
    return "" if text == "?" else text
