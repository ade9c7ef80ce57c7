"""What becomes of calls and of those who must know, when one server takes the place of another."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.core.errors import Code, GatewayError
from gateway.store.redis import Redis, Script
from tests.store.topologies import COMMON, FAILOVER_MAX_S, Setup, cluster_setup, sentinel_setup, until

TIMEOUT_S = 1.0
TWO = "redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[2])"


@asynccontextmanager
async def opened(url: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Redis]:
    store = Redis(url, timeout_s=timeout_s, connections=4)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def alone(directory: Path, *arguments: str) -> AsyncIterator[Setup]:
    """One server, started with what it is to be like."""
    setup = Setup(directory)
    try:
        server = setup.start(*COMMON, *arguments)
        setup.url = f"redis://127.0.0.1:{server.port}"

        async def answers() -> bool:
            return bool(await server.ask("PING"))

        await until(answers, setup.servers)
        yield setup
    finally:
        setup.end()


class Returns:
    """Hears that a server, or its successor, is back."""

    def __init__(self, store: Redis) -> None:
        self.heard = asyncio.Event()
        store.on_return = self.heard.set

    async def one(self) -> None:
        async with asyncio.timeout(FAILOVER_MAX_S):
            await self.heard.wait()


async def answered(store: Redis, *command: str) -> Any:
    """Ask until the store is there."""
    reply: list[Any] = []

    async def there() -> bool:
        try:
            reply[:] = [await store.call(*command)]
        except GatewayError:
            return False
        return True

    await until(there, within_s=FAILOVER_MAX_S)
    return reply[0]


# --- Sentinel -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_sentinel_master_that_was_demoted_gets_no_more_writes(tmp_path: Path) -> None:
    """Once there is another master the old one is left, though it answers as a master still and nothing has failed."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url) as store:
        returns = Returns(store)
        await store.call("SET", "hg:{t}:n", 1)
        pubsub = store.pubsub()
        await pubsub.subscribe("x")
        assert await pubsub.get_message(timeout=5) is not None
        old = await setup.demote_master()
        new = await setup.replaced(old)
        await returns.one()
        assert (await old.ask("ROLE"))[0] == "master"
        assert await answered(store, "INCR", "hg:{t}:n") == 2
        assert await new.ask("GET", "hg:{t}:n") == "2"
        assert await old.ask("GET", "hg:{t}:n") == "1"
        with pytest.raises((RedisError, OSError)):  # it would hear of nothing there
            await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        await pubsub.aclose()
        for healthy_s in (store.healthy_s(), store.healthy_s("hg:{t}:n")):
            assert healthy_s < FAILOVER_MAX_S  # leases get the time that they need after a failover


@pytest.mark.slow
async def test_sentinel_master_that_hangs_is_left_by_its_subscriber_too(tmp_path: Path) -> None:
    """A subscriber at a master that stands still would wait for ever; it is cut once there is another."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url) as store:
        await store.call("SET", "hg:{t}:n", 1)
        pubsub = store.pubsub()
        await pubsub.subscribe("x")
        assert await pubsub.get_message(timeout=5) is not None
        old = await setup.master()
        old.pause()
        with pytest.raises(GatewayError):  # that it is away is known, and so where it was is forgotten
            await store.call("GET", "hg:{t}:n")
        await setup.replaced(old)
        assert await answered(store, "INCR", "hg:{t}:n") == 2
        with pytest.raises((RedisError, OSError)):
            await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        await pubsub.aclose()


@pytest.mark.slow
async def test_sentinel_switch_that_nobody_heard_is_noticed_with_the_next_subscription(tmp_path: Path) -> None:
    """A failover while the Sentinels could not be heard is followed as soon as one can be."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url) as store:
        returns = Returns(store)
        await store.call("SET", "hg:{t}:n", 1)
        master = store._servers._master  # type: ignore[union-attr]  # that of a single server
        assert master is not None
        await master._succession.aclose()
        master._succession._tasks = []
        old = await setup.demote_master()
        await setup.replaced(old)
        assert not returns.heard.is_set()
        master._succession.open()
        await returns.one()
        assert await answered(store, "INCR", "hg:{t}:n") == 2


# --- Cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_cluster_node_that_was_succeeded_is_told_of_wherever_the_subscriber_is(tmp_path: Path) -> None:
    """A subscriber at another node hears nothing of a lost one; that it may have lost its end is told all the same."""
    async with cluster_setup(tmp_path) as setup, opened(setup.url) as store:
        returns = Returns(store)
        key = f"hg:{{{setup.tenant_on(0)}}}:n"
        await store.call("SET", key, 1)
        await setup.kill_node_of(key)
        with pytest.raises(GatewayError):
            await store.call("GET", key)
        assert await answered(store, "INCR", key) == 2
        await returns.one()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_cluster_first_call_finds_its_way_past_a_lost_seed(tmp_path: Path, how: str) -> None:
    """A worker that starts while one of the nodes in its URL is away starts all the same."""
    async with cluster_setup(tmp_path, replicas=0) as setup:
        lost = setup.masters[0]
        assert f":{lost.port}" in setup.url
        if how == "killed":
            lost.kill()
        else:
            lost.pause()
        key = f"hg:{{{setup.tenant_on(2)}}}:n"
        for number in range(8):  # which node is asked first is chance
            async with opened(setup.url) as store:
                assert await store.call("INCR", key) == number + 1


@pytest.mark.slow
async def test_cluster_call_waits_while_its_keys_are_being_moved(tmp_path: Path) -> None:
    """A script whose keys are here and there is sent again until they are together, and is done once."""
    async with cluster_setup(tmp_path, replicas=0) as setup, opened(setup.url) as store:
        tenant, source, target = setup.tenant_on(1), setup.masters[1], setup.masters[2]
        slot, keys = key_slot(tenant.encode()), [f"hg:{{{tenant}}}:{name}" for name in "ab"]
        script = Script.__new__(Script)
        script.name, script.source, script.sha = "two", TWO.encode(), await source.ask("SCRIPT", "LOAD", TWO)
        await store.call("SET", keys[0], 1)
        target_id = await target.ask("CLUSTER", "MYID")
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        with pytest.raises(GatewayError) as error:
            await store.run(script, keys, ())
        assert error.value.code is Code.STORE_UNAVAILABLE
        assert store.healthy_s(keys[0]) < FAILOVER_MAX_S
        waiting = asyncio.create_task(store.run(script, keys, ()))
        while not store._resting:
            assert not waiting.done()
            await asyncio.sleep(0)
        await source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert await waiting == 1
        assert await asyncio.gather(*(store.call("GET", key) for key in keys)) == [b"2", b"1"]


@pytest.mark.slow
async def test_cluster_client_that_closes_waits_for_calls_that_rest(tmp_path: Path) -> None:
    """A call that waits for its keys is answered before the connections go."""
    async with cluster_setup(tmp_path, replicas=0) as setup:
        tenant, source, target = setup.tenant_on(1), setup.masters[1], setup.masters[2]
        slot, keys = key_slot(tenant.encode()), [f"hg:{{{tenant}}}:{name}" for name in "ab"]
        store = Redis(setup.url, timeout_s=TIMEOUT_S, connections=4)
        await store.call("SET", keys[0], 1)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", await target.ask("CLUSTER", "MYID"))
        call = asyncio.create_task(store.call("EVAL", TWO, 2, *keys))
        await asyncio.sleep(0)
        await store.aclose()
        assert call.done()
        assert isinstance(call.exception(), GatewayError)


# --- a server that takes no writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["no replicas", "full", "no disk"])
async def test_server_that_takes_no_writes_counts_as_a_failure_and_is_read_on(tmp_path: Path, why: str) -> None:
    """Who cannot renew his leases is not to lose them for that; what can be read is read."""
    arguments = {
        "no replicas": ("--min-replicas-to-write", "1"),
        "full": ("--maxmemory", "1", "--maxmemory-policy", "noeviction"),
        "no disk": ("--stop-writes-on-bgsave-error", "yes"),
    }[why]
    async with alone(tmp_path, *arguments) as setup, opened(setup.url) as store:
        (server,) = setup.servers
        if why == "no disk":
            await server.ask("CONFIG", "SET", "save", "3600 1")
            shutil.rmtree(server.log.parent)
            await server.ask("BGSAVE")

            async def failed() -> bool:
                return "rdb_last_bgsave_status:err" in (await server.ask("INFO", "PERSISTENCE")).split()

            await until(failed)
        key = f"hg:{{t}}:{uuid.uuid4().hex}"
        assert store.healthy_s(key) == float("inf")
        for _ in range(2):
            with pytest.raises(GatewayError) as error:
                await store.call("SET", key, "x")
            assert error.value.code is Code.STORE_UNAVAILABLE
        assert 0 < store.healthy_s(key) < 60  # 0 would be a breaker, which held back reads too
        assert store.healthy_s() < 60
        assert await store.call("GET", key) is None
