"""Which server a command goes to: always the same one, or the master that the Sentinels name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError
from redis.exceptions import ConnectionError as ConnectionLost

from gateway.store.connections import AWAY, Dialler, ask, give_up
from gateway.store.node import Node
from gateway.store.waiting import Call
from gateway.store_url import Address, StoreUrl
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

SENTINELS_SHARE: Final = 1 / 3  # of a call's time, for Sentinels that do not answer; the rest is for the master


class Alone:
    """One server, or one master: every command goes to the same node."""

    def __init__(self, url: StoreUrl, *, timeout_s: float, connections: int) -> None:
        dialler = Dialler(url, timeout_s=timeout_s)
        if url.topology == "sentinel":
            master = Master(url, dialler, patience_s=timeout_s * SENTINELS_SHARE)
            self.connect, forget = master.connect, master.forget
        else:
            address = url.hosts[0] if url.hosts else None
            self.connect, forget = (lambda: dialler.dial(address)), _no_other
        self._node = Node(url.address, self.connect, connections=connections, lost=forget)

    def split(self, calls: list[Call]) -> Sequence[tuple[Node, list[Call]]]:
        return [(self._node, calls)]

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> Sequence[Node]:
        return (self._node,)

    def redirected(self, node: Node, error: AskError) -> Node | None:
        """A Cluster's node was given as if it were a single server: there is nowhere else to go."""
        throttled(logger, "store.misnamed", level=logging.ERROR, advice="a Cluster goes with redis+cluster://")
        return None

    async def aclose(self) -> None:
        self._node.drop_idle()


class Master:
    """The master of a service as its Sentinels tell it. Once found it is kept until ``forget``."""

    def __init__(self, url: StoreUrl, dialler: Dialler, *, patience_s: float) -> None:
        self._sentinels = url.hosts
        self._service = url.service
        self._dialler = dialler
        self._sentinel_dialler = dialler.for_sentinels(url)
        self._patience_s = patience_s
        self._address: Address | None = None
        self._named: Address | None = None  # the last one, for the log
        self._finding = asyncio.Lock()

    async def connect(self) -> AbstractConnection:
        """Return a new connection to the master. Raises one of AWAY, then the next call asks the Sentinels anew."""
        try:
            async with self._finding:
                address = self._address
                if address is None:
                    address = self._address = await self._find()
            connection = await self._dialler.dial(address)
            try:
                role = (await ask(connection, "ROLE"))[0]
                if role != b"master":  # Sentinels and servers do not change their minds at the same moment
                    raise ConnectionLost(f"{address} is not the master any more")
            except BaseException:
                await give_up(connection)
                raise
        except AWAY:
            self.forget()
            raise
        return connection

    def forget(self) -> None:
        self._address = None

    async def _find(self) -> Address:
        """Ask all Sentinels at once and believe the newest election that any of them knows of."""
        asking = [asyncio.create_task(self._ask(sentinel)) for sentinel in self._sentinels]
        try:
            done, _ = await asyncio.wait(asking, timeout=self._patience_s)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        errors = [error for task in done if (error := task.exception()) is not None]
        answers = [task.result() for task in done if task.exception() is None]
        live = [(epoch, address) for epoch, address, down in answers if not down]
        if not live:
            told = "they say that it is down" if answers else "none answers"
            raise ConnectionLost(f"no Sentinel names a master of {self._service!r}: {told}") from next(
                iter(errors), None
            )
        address = max(live)[1]
        if self._named is not None and address != self._named:
            throttled(logger, "store.master_changed", level=logging.INFO, was=str(self._named), now=str(address))
        self._named = address
        return address

    async def _ask(self, sentinel: Address) -> tuple[int, Address, bool]:
        """Return the election's number, the master's address, and whether this Sentinel thinks that it is down."""
        connection = await self._sentinel_dialler.dial(sentinel)
        try:
            reply = await ask(connection, "SENTINEL", "MASTER", self._service)
        finally:
            await give_up(connection)
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        state = {bytes(name).decode(): bytes(value).decode() for name, value in pairs}
        down = not {"s_down", "o_down"}.isdisjoint(state["flags"].split(","))
        return int(state["config-epoch"]), Address(state["ip"], int(state["port"])), down


def _no_other() -> None:
    """There is no other server to look for."""
