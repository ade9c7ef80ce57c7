"""Which server a command goes to: always the same one, or the master that the Sentinels name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError
from redis.exceptions import ConnectionError as ConnectionLost

from gateway.store.connections import AWAY, Dialler, ask, give_up
from gateway.store.node import Node
from gateway.store.succession import Succession
from gateway.store.waiting import Call
from gateway.store_url import Address, StoreUrl
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

SENTINELS_SHARE: Final = 1 / 3  # of a call's time, for Sentinels that do not answer; the rest is for the master


class Alone:
    """One server, or one master: every command goes to the same node."""

    def __init__(self, url: StoreUrl, *, timeout_s: float, connections: int, succeeded: Callable[[], None]) -> None:
        """``succeeded`` is called when the Sentinels have made another master."""
        dialler = Dialler(url, timeout_s=timeout_s)
        self._succeeded = succeeded
        self._master: Master | None = None
        if url.topology == "sentinel":
            self._master = master = Master(
                url, dialler, patience_s=timeout_s * SENTINELS_SHARE, replaced=self._master_replaced
            )
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
        if self._master is not None:
            await self._master.aclose()
        self._node.drop_idle()

    def _master_replaced(self) -> None:
        """Leave a server that is the master no more, however well it answers."""
        self._node.note_failure(ConnectionLost("the Sentinels have made another master"))
        self._node.drop_idle()
        self._succeeded()


class Master:
    """The master of a service as its Sentinels tell it. Once found it is kept until ``forget``, or until it is another.

    ``replaced`` is called when there is another master than before, whether that was asked for or told unasked.
    """

    def __init__(self, url: StoreUrl, dialler: Dialler, *, patience_s: float, replaced: Callable[[], None]) -> None:
        self._sentinels = url.hosts
        self._service = url.service
        self._dialler = dialler
        self._sentinel_dialler = dialler.for_sentinels(url)
        self._patience_s = patience_s
        self._address: Address | None = None
        self._named: Address | None = None  # the last one that was, also while it is away
        self._finding = asyncio.Lock()
        self._replaced = replaced
        self._looking: asyncio.Task[None] | None = None
        self._succession = Succession(
            *(url.hosts, url.service, self._sentinel_dialler),
            timeout_s=patience_s,
            on_switch=self._follow,
            on_heard=self._look,
        )

    async def connect(self) -> AbstractConnection:
        """Return a new connection to the master. Raises one of AWAY, then the next call asks the Sentinels anew."""
        self._succession.open()
        try:
            async with self._finding:
                address = self._address
                if address is None:
                    address = await self._find()
                    self._follow(address)
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

    async def others(self) -> int:
        """Return how many Sentinels the one that answers first knows of besides itself. Raises one of AWAY."""
        failure: BaseException | None = None
        for sentinel in self._sentinels:
            try:
                return int((await self._state(sentinel))["num-other-sentinels"])
            except AWAY as error:
                failure = error
        raise failure or AssertionError("a URL names at least one Sentinel")

    async def aclose(self) -> None:
        await self._succession.aclose()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _follow(self, address: Address) -> None:
        """Take in which server is the master, whoever said it; tell when it is another than before."""
        before, self._named, self._address = self._named, address, address
        if before is not None and before != address:
            throttled(logger, "store.master_changed", level=logging.INFO, was=str(before), now=str(address))
            self._replaced()

    def _look(self) -> None:
        """See whether the master was replaced while a Sentinel could not be heard."""
        if self._named is not None and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look_again())

    async def _look_again(self) -> None:
        with contextlib.suppress(*AWAY):
            self._follow(await self._find())

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
        return max(live)[1]

    async def _ask(self, sentinel: Address) -> tuple[int, Address, bool]:
        """Return the election's number, the master's address, and whether this Sentinel thinks that it is down."""
        state = await self._state(sentinel)
        down = not {"s_down", "o_down"}.isdisjoint(state["flags"].split(","))
        return int(state["config-epoch"]), Address(state["ip"], int(state["port"])), down

    async def _state(self, sentinel: Address) -> dict[str, str]:
        """Return what a Sentinel knows of the service."""
        connection = await self._sentinel_dialler.dial(sentinel)
        try:
            reply = await ask(connection, "SENTINEL", "MASTER", self._service)
        finally:
            await give_up(connection)
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {bytes(name).decode(): bytes(value).decode() for name, value in pairs}


def _no_other() -> None:
    """There is no other server to look for."""
