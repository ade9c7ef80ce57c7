"""Faults of a Redis that is several servers: a master lost, replaced or cut off, a slot that moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from gateway.store.embedded import Server, find_servers
from tests.bench.survival.crowd import Crowd
from tests.bench.survival.field import WITHIN_S, Load, over, said, struck
from tests.bench.survival.newcomers import Newcomers, newcomers
from tests.bench.survival.site import TENANT, Plan, Site
from tests.bench.survival.verdict import Verdict
from tests.store.topologies import ClusterSetup, Instance, SentinelSetup

Loss = Literal["kill", "lag", "hang"]
GATEWAYS: Final = 2
KEY: Final = f"hg:{{{TENANT}}}:"  # of the tenant whose slot is struck
LAG_S: Final = 1.0  # that a replica is behind when its master dies
SPLIT_S: Final = 1.0  # a master that was cut off comes back so long after its successor was made
KEYS_AT_ONCE: Final = 10
SLOW_S: Final = 0.1  # a pause after so many keys, as if there were a hundred times as many


@asynccontextmanager
async def visited(plan: Plan, load: Load) -> AsyncIterator[tuple[Site, Crowd, Newcomers]]:
    """A site with its crowd in mid-answer, and newcomers at both gateways."""
    async with (
        struck(plan, load) as (place, clients),
        newcomers(clients, GATEWAYS) as coming,
    ):
        clients.struck()
        coming.struck()
        yield place, clients, coming


async def lose(server: Instance, how: Loss, clients: Crowd, coming: Newcomers) -> None:
    """Take a master away; newcomers' turns have begun and ended since its replica fell behind, if it did."""
    if how == "lag":
        await asyncio.sleep(LAG_S)
        clients.struck()
        coming.struck()
    if how == "hang":
        server.pause()
    else:
        server.kill()


async def judged(fault: str, place: Site, clients: Crowd, coming: Newcomers) -> Verdict:
    """The store is whole again: see that everybody is let in, and what is left once all have ended."""
    coming.whole()
    await coming.calm(within_s=WITHIN_S)
    await coming.aclose()
    return await over(fault, place, clients, pause=coming.pause())


async def sentinel_lost(load: Load, how: Loss) -> Verdict:
    """The master dies, perhaps ahead of its replica, or is cut off and comes back as a second master."""
    async with visited(Plan(gateways=GATEWAYS, store="sentinel"), load) as (place, clients, coming):
        setup = place.topology
        assert isinstance(setup, SentinelSetup)
        old = await setup.master()
        if how == "lag":
            await (await setup.replica()).fall_behind()
        await lose(old, how, clients, coming)
        await setup.replaced(old)
        if how == "hang":
            await asyncio.sleep(SPLIT_S)
            old.resume()
        return await judged(f"sentinel-{how}", place, clients, coming)


async def sentinel_demote(load: Load) -> Verdict:
    """``SENTINEL FAILOVER``: the master lives on as a replica."""
    async with visited(Plan(gateways=GATEWAYS, store="sentinel"), load) as (place, clients, coming):
        setup = place.topology
        assert isinstance(setup, SentinelSetup)
        await setup.replaced(await setup.demote_master())
        return await judged("sentinel-demote", place, clients, coming)


async def cluster_lost(load: Load, how: Loss) -> Verdict:
    """The tenant's node dies, perhaps ahead of its replica, or is cut off and comes back when that has its slots."""
    async with visited(Plan(gateways=GATEWAYS, store="cluster"), load) as (place, clients, coming):
        setup = _cluster(place)
        old = await setup.node_of(KEY)
        if how == "lag":
            await (await setup.replica_of(old)).fall_behind()
        await lose(old, how, clients, coming)
        await setup.replaced(KEY, old)
        if how == "hang":
            await asyncio.sleep(SPLIT_S)
            old.resume()
        return await judged(f"cluster-{how}", place, clients, coming)


async def cluster_move(load: Load, *, slow: bool) -> Verdict:
    """The tenant's slot goes to another node, key by key, while its turns stream."""
    async with visited(Plan(gateways=GATEWAYS, store="cluster"), load) as (place, clients, coming):
        setup = _cluster(place)
        old = await setup.node_of(KEY)
        target = next(node for node in setup.masters if node is not old)
        await setup.migrate_slot_of(KEY, target, keys_at_once=KEYS_AT_ONCE, pause_s=SLOW_S if slow else 0)
        assert await setup.node_of(KEY) is target
        verdict = await judged("cluster-move-slow" if slow else "cluster-move", place, clients, coming)
        if slow and "cmdstat_asking" not in await target.ask("INFO", "COMMANDSTATS"):
            verdict.wrong.append("nobody was sent on while the slot moved: the fault was none")
        for gateway in range(GATEWAYS):
            await said(place, gateway, '"store.slots_moved"')
        return verdict


async def cluster_move_whole(load: Load) -> Verdict:
    """The same with a server that moves a slot as a whole."""
    program = moves_whole()
    assert program is not None, "needs Valkey >= 9 (the extra `embedded` brings one)"
    async with visited(Plan(gateways=GATEWAYS, store="cluster", program=program), load) as (place, clients, coming):
        setup = _cluster(place)
        old = await setup.node_of(KEY)
        await setup.migrate_slot_at_once(KEY, next(node for node in setup.masters if node is not old))
        return await judged("cluster-move-whole", place, clients, coming)


def moves_whole() -> Server | None:
    """Return a server of this machine that can move slots as a whole (``CLUSTER MIGRATESLOTS``)."""
    return next((one for one in find_servers() if one.product == "valkey" and one.version >= (9, 0)), None)


def _cluster(place: Site) -> ClusterSetup:
    setup = place.topology
    assert isinstance(setup, ClusterSetup)
    return setup
