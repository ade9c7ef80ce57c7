"""Redis under Sentinel and as a Cluster: what is where, what a failover does, and what it leaves alone."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.client import PubSub
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.core.errors import Code, GatewayError
from gateway.core.gate import FORGOTTEN, Asker, Departure, Outcome
from gateway.core.identity import TenantId, WorkerId
from gateway.core.limits import Ask, Kind, Rule
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.store.cluster import Cluster, key_of
from gateway.store.connections import TcpConnection
from gateway.store.gate import RedisGate
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Redis
from tests.store.topologies import FAILOVER_MAX_S, ClusterSetup, Instance, cluster_setup, sentinel_setup, until

TIMEOUT_S = 0.5
MARGIN_S = 0.25  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    """A Cluster of three masters that the tests leave whole; they use tenants and slots of their own."""
    loop = asyncio.new_event_loop()
    setup = cluster_setup(tmp_path_factory.mktemp("cluster"), replicas=0)
    try:
        yield loop.run_until_complete(setup.__aenter__())
    finally:
        loop.run_until_complete(setup.__aexit__(None, None, None))
        loop.close()


@asynccontextmanager
async def opened(url: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Redis]:
    store = Redis(url, timeout_s=timeout_s, connections=4)
    try:
        yield store
    finally:
        await store.aclose()


def key(tenant: str, name: str = "") -> str:
    return f"hg:{{{tenant}}}:{name or uuid.uuid4().hex[:8]}"


class Caller:
    """Writes every few milliseconds to one tenant, and remembers how it went."""

    def __init__(self, store: Redis, tenant: str) -> None:
        self.slowest_s = 0.0
        self.refused = 0
        self.gap_s = 0.0  # longest time without an answer
        self.key = key(tenant)
        self._store = store
        self._answered_s = time.monotonic()
        self._asked_s = 0.0  # when the last call that was answered had begun
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            begun_s = time.monotonic()
            try:
                await self._store.call("SET", self.key, repr(begun_s), "EX", 60)
                now_s = time.monotonic()
                self.gap_s = max(self.gap_s, now_s - self._answered_s)
                self._answered_s, self._asked_s = now_s, begun_s
            except GatewayError as error:
                if error.code is not Code.STORE_UNAVAILABLE:
                    raise
                self.refused += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
            await asyncio.sleep(0.01)

    async def recovered(self) -> None:
        """Wait until a call was answered that began after this one was asked."""
        asked_s = time.monotonic()

        async def again() -> bool:
            if self._task.done():
                self._task.result()
            return self._asked_s > asked_s

        await until(again, within_s=FAILOVER_MAX_S)

    async def broken(self) -> None:
        """Wait until a call was refused: a server that is stopped may answer a last one."""

        async def refused() -> bool:
            return self.refused > 0

        await until(refused, within_s=FAILOVER_MAX_S)

    async def end(self) -> None:
        if not self._task.done():
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def calling(store: Redis, *tenants: str) -> AsyncIterator[list[Caller]]:
    callers = [Caller(store, tenant) for tenant in tenants]
    try:
        for caller in callers:
            await caller.recovered()
        yield callers
    finally:
        for caller in callers:
            await caller.end()


def port_of(pubsub: PubSub) -> int:
    """Return the port of the server that a subscriber listens to."""
    connection: Any = pubsub.connection
    assert isinstance(connection, TcpConnection)
    return connection.port


async def hears(pubsub: PubSub, data: bytes, *, within_s: float = 5.0) -> bool:
    async with asyncio.timeout(within_s):
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
            if message is not None and message["data"] == data:
                return True


# --- Cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("GET", "k"), b"k"),
        (("xrange", b"k", "-", "+"), b"k"),
        (("EVALSHA", "digest", 2, "k", "l", "argument"), b"k"),
        (("EVAL", b"return 1", "0", "argument"), None),
        (("EVAL", b"return 1", 0), None),
        (("PING",), None),
        (("PUBLISH", "channel", "data"), None),
        (("SCRIPT", "LOAD", "x"), None),
    ],
)
def test_key_of_a_command(command: tuple[str | bytes | int, ...], expected: bytes | None) -> None:
    """The key decides where a command goes; without one any node will do."""
    assert key_of(command) == expected


async def test_cluster_batch_of_several_tenants_is_split_and_answered_in_order(cluster: ClusterSetup) -> None:
    """Commands of one tick reach their tenants' nodes, and every caller gets the answer to his own."""
    tenants = [cluster.tenant_on(number, nth) for number in range(3) for nth in range(5)]
    async with opened(cluster.url) as store:
        for _ in range(3):  # with and without a map of the Cluster
            names = [key(tenant) for tenant in tenants * 4]
            await asyncio.gather(*(store.call("SET", name, name, "EX", 60) for name in names))
            assert await asyncio.gather(*(store.call("GET", name) for name in names)) == [n.encode() for n in names]
        for node in cluster.masters:
            assert int(await node.ask("DBSIZE")) > 0


async def test_cluster_batch_with_a_refused_command_spoils_no_other(cluster: ClusterSetup) -> None:
    """An error that a node answers is its caller's alone."""
    names = [key(cluster.tenant_on(number)) for number in range(3)]
    async with opened(cluster.url) as store:
        await asyncio.gather(*(store.call("SET", name, "x", "EX", 60) for name in names))
        results = await asyncio.gather(
            *(store.call("INCR" if number == 1 else "GET", name) for number, name in enumerate(names)),
            return_exceptions=True,
        )
        assert isinstance(results[1], GatewayError)
        assert [results[0], results[2]] == [b"x", b"x"]


async def test_cluster_scripts_run_on_the_node_of_their_tenant(cluster: ClusterSetup) -> None:
    """A node that does not know a script is taught it; others' nodes are not asked."""
    async with opened(cluster.url) as store:
        limiter = RedisLimiter(store)
        rule = Rule("user", "rm:user", Kind.RATE, 100, 60_000_000)
        for turn in range(2):
            decisions = await asyncio.gather(
                *(
                    limiter.admit(TenantId(cluster.tenant_on(number, nth)), Ask(f"r{turn}", [rule]))
                    for number in range(3)
                    for nth in range(3)
                )
            )
            assert {decision.refused for decision in decisions} == {None}


async def test_cluster_gates_of_vendor_keys_have_a_node_each(cluster: ClusterSetup) -> None:
    """Who passes, waits, leaves and is told of is decided on the vendor key's own node."""
    async with opened(cluster.url) as store:
        gate = RedisGate(store, WorkerId("w"), lambda _: PlanLimit(per_min=1), queue_max=10)
        for label in (KeyLabel(uuid.uuid4().hex) for _ in range(12)):
            asks = [Asker(name, TenantId(name), 1, 10**10) for name in "abc"]
            answers = [await gate.enter(label, asker) for asker in asks]
            assert [answer.outcome for answer in answers] == [Outcome.PASSED, Outcome.WAITING, Outcome.WAITING]
            await gate.hold(label, 10**6)
            assert await gate.leave(label, "a", unsent=True) is Departure.PASSED
            assert await gate.leave(label, "b", unsent=True) is Departure.WAITING
            served = await gate.serve(label, ["b", "c"], places=True)
            assert [place.position for place in served.places] == [FORGOTTEN, 1]


async def test_cluster_call_that_names_no_key_is_its_senders_error(cluster: ClusterSetup) -> None:
    """A malformed script call is refused before it could disturb a batch."""
    async with opened(cluster.url) as store:
        async with asyncio.timeout(5):
            results = await asyncio.gather(
                store.call("EVAL", "return 1", 1), store.call("ECHO", "x"), return_exceptions=True
            )
        assert isinstance(results[0], IndexError)
        assert results[1] == b"x"


async def test_cluster_facts_and_ping_need_no_key(cluster: ClusterSetup) -> None:
    """What is asked of no tenant is answered by any node."""
    async with opened(cluster.url) as store:
        assert (await store.server_facts())["cluster_enabled"] == "1"
        assert await store.call("PING") in (b"PONG", "PONG", True)


async def test_cluster_slot_that_moved_is_followed_once(cluster: ClusterSetup) -> None:
    """A command that its old node sends away goes to the new one, and is done exactly once."""
    tenant = cluster.tenant_on(0, 20)
    async with opened(cluster.url) as store:
        await asyncio.gather(*(store.call("SET", key(cluster.tenant_on(0)), "x", "EX", 60) for _ in range(3)))
        await map_read(store)
        await cluster.move_slot_of(key(tenant), cluster.masters[2])
        name = key(tenant, "n")
        assert await asyncio.gather(*(store.call("INCR", name) for _ in range(3))) == [1, 2, 3]
        assert await store.call("INCR", name) == 4
        assert store.healthy_s() == float("inf")
        await store.call("EXPIRE", name, 60)


async def test_cluster_slot_on_the_move_is_asked_for(cluster: ClusterSetup) -> None:
    """While a slot is being moved, keys that are not at the old node any more are found at the new one."""
    tenant = cluster.tenant_on(1, 20)
    slot, source, target = key_slot(tenant.encode()), cluster.masters[1], cluster.masters[0]
    source_id, target_id = await source.ask("CLUSTER", "MYID"), await target.ask("CLUSTER", "MYID")
    async with opened(cluster.url) as store:
        await store.call("PING")
        await map_read(store)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        try:
            names = [key(tenant) for _ in range(4)]
            results = await asyncio.gather(*(store.call("INCR", name) for name in names for _ in range(2)))
            assert results == [1, 2] * 4
            assert int(await target.ask("CLUSTER", "COUNTKEYSINSLOT", slot)) == 4
            assert int(await source.ask("CLUSTER", "COUNTKEYSINSLOT", slot)) == 0
        finally:
            for node in (target, source):
                await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert await store.call("INCR", names[0]) == 3


async def test_cluster_publish_reaches_subscribers_of_every_node(cluster: ClusterSetup) -> None:
    """Whichever node a worker listens at, it hears what is published at any other."""
    async with opened(cluster.url) as store, AsyncExitStack() as stack:
        await store.call("PING")
        await map_read(store)
        subscribers = [await stack.enter_async_context(store.pubsub()) for _ in range(8)]
        for subscriber in subscribers:
            await subscriber.subscribe("hg:{_sys}:all")
            assert await subscriber.get_message(timeout=5) is not None
        ports = {port_of(subscriber) for subscriber in subscribers}
        assert len(ports) > 1
        for word in (b"one", b"two", b"three"):
            await store.call("PUBLISH", "hg:{_sys}:all", word)
            for subscriber in subscribers:
                assert await hears(subscriber, word)


async def test_cluster_without_any_node_is_refused_in_time() -> None:
    """A Cluster of which no node is there is away like any other store."""
    async with opened("redis+cluster://127.0.0.1:1,127.0.0.1:2") as store:
        for _ in range(3):
            begun_s = time.monotonic()
            with pytest.raises(GatewayError) as error:
                await store.call("GET", key("t"))
            assert error.value.code is Code.STORE_UNAVAILABLE
            assert time.monotonic() - begun_s < TIMEOUT_S + MARGIN_S
        assert store.healthy_s() == 0


async def test_cluster_named_as_a_single_server_is_refused(cluster: ClusterSetup) -> None:
    """With the wrong form of URL the keys of other nodes are refused, not looked for."""
    async with opened(f"redis://127.0.0.1:{cluster.masters[0].port}") as store:
        with pytest.raises(GatewayError):
            await store.call("GET", key(cluster.tenant_on(2)))
        assert await store.call("GET", key(cluster.tenant_on(0))) is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_cluster_node_lost_is_replaced_and_others_do_not_notice(tmp_path: Path, how: str) -> None:
    """The lost node's tenants are refused in time and served again by its replica; all others are served throughout."""
    async with cluster_setup(tmp_path) as setup, opened(setup.url) as store:
        lost, *others = (setup.tenant_on(number) for number in range(3))
        async with calling(store, lost, *others) as (caller, *rest):
            await map_read(store)
            await break_down(await setup.node_of(caller.key), how)
            await caller.broken()
            await caller.recovered()
            for other in rest:
                await other.recovered()
            print(f"cluster node {how}: away {caller.gap_s:.2f} s, slowest call {caller.slowest_s:.3f} s,", end=" ")
            print(f"slowest of the others {max(other.slowest_s for other in rest):.3f} s")
        assert caller.refused > 0
        assert caller.slowest_s < TIMEOUT_S + MARGIN_S
        assert caller.gap_s < FAILOVER_MAX_S
        assert [other.refused for other in rest] == [0, 0]
        assert max(other.slowest_s for other in rest) < TIMEOUT_S
        assert store.healthy_s() < FAILOVER_MAX_S
        assert store.healthy_s(caller.key) < FAILOVER_MAX_S
        assert [store.healthy_s(other.key) for other in rest] == [float("inf")] * 2


@pytest.mark.slow
async def test_cluster_subscriber_lost_with_its_node_finds_another(tmp_path: Path) -> None:
    """A subscriber whose node dies hears of it, and a new one is heard at once, wherever it is."""
    async with cluster_setup(tmp_path, replicas=0) as setup, opened(setup.url) as store:
        await store.call("PING")
        await map_read(store)
        pubsub = store.pubsub()
        await pubsub.subscribe("x")
        assert await pubsub.get_message(timeout=5) is not None
        port = port_of(pubsub)
        next(server for server in setup.servers if server.port == port).kill()
        with pytest.raises((RedisError, OSError)):
            await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        await pubsub.aclose()
        for _ in range(5):
            async with store.pubsub() as fresh:
                await fresh.subscribe("x")
                assert await fresh.get_message(timeout=5) is not None
                assert port_of(fresh) != port


# --- Sentinel -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_sentinel_master_lost_is_replaced(tmp_path: Path, how: str) -> None:
    """When the master is gone every call is refused in time, and the new master is found without help."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url) as store:
        old = await setup.master()
        pubsub = store.pubsub()
        await pubsub.subscribe("x")
        assert await pubsub.get_message(timeout=5) is not None
        assert port_of(pubsub) == old.port
        async with calling(store, "t") as (caller,):
            await break_down(old, how)
            await caller.broken()
            await caller.recovered()
            print(f"sentinel master {how}: away {caller.gap_s:.2f} s, slowest call {caller.slowest_s:.3f} s")
        assert caller.refused > 0
        assert caller.slowest_s < TIMEOUT_S + MARGIN_S
        assert caller.gap_s < FAILOVER_MAX_S
        assert (await store.server_facts())["tcp_port"] == str((await setup.master()).port) != str(old.port)
        if how == "killed":
            with pytest.raises((RedisError, OSError)):
                await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        await pubsub.aclose()
        async with store.pubsub() as fresh:
            await fresh.subscribe("x")
            assert await fresh.get_message(timeout=5) is not None
            await store.call("PUBLISH", "x", b"after")
            assert await hears(fresh, b"after")


@pytest.mark.slow
async def test_sentinel_master_demoted_is_left_and_one_sentinel_may_be_away(tmp_path: Path) -> None:
    """After a failover on request the old master, still there, is left for the new one, though a Sentinel hangs."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url) as store:
        old = await setup.master()
        new = next(server for server in setup.data if server is not old)
        setup.sentinels[0].pause()
        async with calling(store, "t") as (caller,):
            await setup.sentinels[1].ask("SENTINEL", "FAILOVER", "chat")

            async def followed() -> bool:
                return bool((await store.call("INFO"))["tcp_port"] == new.port)

            await until(partial(said_away, followed), within_s=FAILOVER_MAX_S)
            await caller.recovered()
            written = await store.call("GET", caller.key)
            print(f"sentinel master demoted: away {caller.gap_s:.2f} s, slowest call {caller.slowest_s:.3f} s")
            assert float(written) <= float(await new.ask("GET", caller.key))
        assert caller.slowest_s < TIMEOUT_S + MARGIN_S
        assert caller.gap_s < FAILOVER_MAX_S
        setup.sentinels[0].resume()


@pytest.mark.slow
async def test_sentinels_and_servers_have_logins_of_their_own(tmp_path: Path) -> None:
    """The user's password is the servers'; that of the Sentinels is given in the query."""
    async with sentinel_setup(tmp_path) as setup:
        await (await setup.master()).ask("CONFIG", "SET", "requirepass", "for-servers")
        for sentinel in setup.sentinels:
            await sentinel.ask("ACL", "SETUSER", "default", ">for-sentinels")
        hosts = setup.url.removeprefix("redis+sentinel://")
        async with opened(f"redis+sentinel://:for-servers@{hosts}/1?sentinel_password=for-sentinels") as store:
            await store.call("SET", "hg:{t}:n", "x")
            assert (await store.server_facts())["db1"]
        async with opened(f"redis+sentinel://:for-servers@{hosts}?sentinel_password=wrong") as store:
            with pytest.raises(GatewayError):
                await store.call("PING")


@pytest.mark.slow
async def test_sentinel_service_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """A misspelt service is a store that is away; the log's cause says that no Sentinel names it."""
    async with sentinel_setup(tmp_path) as setup, opened(setup.url.replace("/chat", "/chats")) as store:
        with pytest.raises(GatewayError) as error:
            await store.call("PING")
        assert "chats" in str(error.value.__cause__)


async def said_away(holds: Callable[[], Awaitable[bool]]) -> bool:
    """Say no while the store is away."""
    try:
        return await holds()
    except GatewayError as error:
        if error.code is not Code.STORE_UNAVAILABLE:
            raise
        return False


async def break_down(server: Instance, how: str) -> None:
    if how == "killed":
        server.kill()
    else:
        server.pause()


async def map_read(store: Redis) -> None:
    """Wait until the Cluster's map has been read."""
    servers = store._servers
    assert isinstance(servers, Cluster)

    async def known() -> bool:
        return None not in servers._owners

    await until(known)
