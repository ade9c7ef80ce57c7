"""How the servers of a Redis are set up, asked of each master by a connection of its own. Changes nothing there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from gateway.core.errors import Code, GatewayError
from gateway.store.connections import AWAY, Dialler, ask, give_up
from gateway.store.topology import Master
from gateway.store_url import Address, StoreUrl, Topology

WANTED: Final = ("appendfsync", "cluster-require-full-coverage", "maxclients", "min-replicas-to-write", "save")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """One master: what ``INFO`` says, some of ``CONFIG`` (None where that may not be asked), and its clock."""

    address: str
    info: Mapping[str, str]
    config: Mapping[str, str] | None
    clock_ahead_s: float  # of this machine's, by its ``TIME``; good to half of what the question took


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """A whole Redis. ``cluster`` is what ``CLUSTER INFO`` says, of a Cluster."""

    topology: Topology
    servers: tuple[ServerState, ...]
    unreachable: tuple[str, ...] = ()  # masters of a Cluster that do not answer
    sentinels: int = 0
    cluster: Mapping[str, str] | None = None


async def examine(url: str, *, timeout_s: float) -> StoreState:
    """Ask every master; raises GatewayError(store_unavailable) when one does not answer."""
    where = StoreUrl.parse(url)
    dialler = Dialler(where, timeout_s=timeout_s)
    try:
        async with asyncio.timeout(5 * timeout_s):
            match where.topology:
                case "cluster":
                    return await _cluster(where, dialler)
                case "sentinel":
                    return await _sentinel(where, dialler, timeout_s)
                case _:
                    address = where.hosts[0] if where.hosts else None
                    server = await _server(where.address, await dialler.dial(address))
                    return StoreState(topology="single", servers=(server,))
    except AWAY as error:
        raise GatewayError(Code.STORE_UNAVAILABLE) from error


async def _sentinel(where: StoreUrl, dialler: Dialler, timeout_s: float) -> StoreState:
    master = Master(where, dialler, patience_s=timeout_s, replaced=lambda: None)
    try:
        connection = await master.connect()
        server = await _server(where.address, connection)
        others = await master.others()
    finally:
        await master.aclose()
    return StoreState(topology="sentinel", servers=(server,), sentinels=1 + others)


async def _cluster(where: StoreUrl, dialler: Dialler) -> StoreState:
    connection = await _any(where, dialler)
    try:
        shards = await ask(connection, "CLUSTER", "SLOTS")
        state = _lines(await ask(connection, "CLUSTER", "INFO"))
    finally:
        await give_up(connection)
    masters = {Address(_text(master[0]) or where.hosts[0].host, int(master[1])): None for _, _, master, *_ in shards}
    servers: list[ServerState] = []
    unreachable: list[str] = []
    for address in masters:
        try:
            servers.append(await _server(str(address), await dialler.dial(address)))
        except AWAY:
            unreachable.append(str(address))
    return StoreState(topology="cluster", servers=tuple(servers), unreachable=tuple(unreachable), cluster=state)


async def _any(where: StoreUrl, dialler: Dialler) -> AbstractConnection:
    failure: BaseException | None = None
    for address in where.hosts:
        try:
            return await dialler.dial(address)
        except AWAY as error:
            failure = error
    raise failure or AssertionError("a URL names at least one node")


async def _server(address: str, connection: AbstractConnection) -> ServerState:
    """Ask one server, and close the connection."""
    try:
        info = _lines(await ask(connection, "INFO"))
        try:
            config = _pairs(await ask(connection, "CONFIG", "GET", *WANTED))
        except ResponseError:  # as with those who let a Redis for rent
            config = None
        asked_s = time.time()
        seconds, micros = await ask(connection, "TIME")
        ahead_s = int(seconds) + int(micros) / 1e6 - (asked_s + time.time()) / 2
    finally:
        await give_up(connection)
    return ServerState(address=address, info=info, config=config, clock_ahead_s=ahead_s)


def _lines(reply: Any) -> dict[str, str]:
    """Read ``name:value`` lines."""
    lines = (line.partition(":") for line in _text(reply).splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in lines if separator}


def _pairs(reply: Any) -> dict[str, str]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
