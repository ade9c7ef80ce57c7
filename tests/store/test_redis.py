"""The client: batches of one tick, scripts by digest, no blind retries, and a store that is away is said to be so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
import trustme
from redis.exceptions import RedisError

from gateway.core.conversation import Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, TextDelta, TurnStarted
from gateway.core.idempotency import Reservation
from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind, KeyRecord
from gateway.core.limits import Ask, Kind, Rule
from gateway.core.turn import StopReason
from gateway.store.creations import RedisCreationKeys
from gateway.store.embedded import EmbeddedValkey
from gateway.store.facts import store_fault
from gateway.store.limiter import RedisLimiter
from gateway.store.patience import LONGEST
from gateway.store.redis import Keys, Redis, Script
from gateway.store.tenants import RedisKeys
from gateway.telemetry import logging
from gateway.telemetry.throttle import Throttle
from tests.store.conftest import OpenRedis
from tests.store.log_bench import COMPLETED, OWNER, Bench
from tests.store.topologies import Setup, free_port, until

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "gateway" / "store" / "scripts").glob("*.lua"))
TIMEOUT_S = 0.3
MARGIN_S = 0.15  # for a machine that is busy with other things
OwnServer = Callable[[], Awaitable[EmbeddedValkey]]


async def refused(work: Awaitable[object]) -> GatewayError:
    """Await what must be refused because the store is away."""
    with pytest.raises(GatewayError) as error:
        await work
    assert error.value.code is Code.STORE_UNAVAILABLE
    return error.value


async def answered(store: Redis, *command: str) -> Any:
    """Call until the store answers again; every refusal on the way must say that it is away."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.call(*command)
            except GatewayError as error:
                if error.code is not Code.STORE_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.01)


async def timed(work: Awaitable[object]) -> float:
    """Return how many seconds it took to be refused."""
    begun_s = time.monotonic()
    await refused(work)
    return time.monotonic() - begun_s


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Make a process hang for a while: it keeps its connections and says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pid_of(server: EmbeddedValkey) -> int:
    assert server._process is not None
    return server._process.pid


# --- names --------------------------------------------------------------------------------------------------------


def test_keys_all_begin_with_their_tenants_hash_tag() -> None:
    """Every name bears the tenant in braces, so that a tenant's keys share a cluster slot."""
    keys = Keys(TenantId("acme"))
    names = [
        keys.conversation("c"),
        keys.conversations("u"),
        keys.log("t"),
        keys.turn("t"),
        keys.followers("t"),
        keys.watchers("c"),
        keys.running(),
        keys.settlements(),
        keys.unsettled(),
        keys.idempotency("u", "c", "k"),
        keys.creation("u", "k"),
        keys.limit("turn:user:u"),
        keys.api_key("k"),
        keys.api_keys(),
    ]
    assert all(name.startswith("hg:{acme}:") for name in names)
    assert len(set(names)) == len(names)


def test_keys_idempotency_keeps_its_parts_apart() -> None:
    """No two triples of owner, conversation and key share a name, and the client's key is not in it."""
    keys = Keys(TenantId("acme"))
    assert keys.idempotency("u", "c", "k-of-client") != keys.idempotency("u", "ck", "-of-client")
    assert "k-of-client" not in keys.idempotency("u", "c", "k-of-client")
    assert keys.creation("u", "k-of-client") != keys.creation("uk", "-of-client")
    assert "k-of-client" not in keys.creation("u", "k-of-client")


async def test_store_every_key_is_the_tenants_and_all_but_api_keys_expire(store: Redis, tenant: TenantId) -> None:
    """After every kind of write, each new key in the whole store begins with hg:{tenant}: and will go by itself."""
    before = set(await store.call("KEYS", "*"))
    bench = Bench(store, tenant)
    log, conversations, conversation_id = bench.log, bench.conversations, bench.conversation
    await bench.cache(messages=[Message("assistant", "x", "m")])
    await conversations.put_feedback(tenant, conversation_id, "m", Feedback("f", 1))
    await log.watch(tenant, conversation_id, 30)
    heading = await bench.begin("k")
    turn_id = heading.turn_id
    creation_keys = RedisCreationKeys(store, ttl_s=100)
    for creation in (Reservation(OWNER, "k", "b", "t"), Reservation(OWNER, "kept", "b", "t")):
        await creation_keys.reserve(tenant, creation, 30)
    await creation_keys.keep(tenant, creation, await bench.cached())
    await bench.append(turn_id, Entry(2, TextDelta("a")))
    await log.follow(tenant, turn_id, 30)
    await log.request_stop(tenant, turn_id, StopReason.USER)
    await log.take_over(tenant, turn_id, bench.worker)
    await bench.lose(turn_id)
    await log.restore(tenant, heading, 1)
    await bench.append(turn_id, Entry(1, TurnStarted(turn_id, conversation_id, 1)), Entry(2, TextDelta("a")))
    await log.follow(tenant, turn_id, 30)
    await bench.another_conversation()
    for look_up in (False, True):  # one settled, one to be looked up; the first turn is still running
        await bench.finish(await bench.turn(), Entry(2, COMPLETED), look_up=look_up)
    await RedisLimiter(store).admit(tenant, Ask("r1", [Rule("user", "rm:user", Kind.RATE, 5, 60_000_000)]))
    key = KeyRecord(id="k1234567", tenant=tenant, kind=KeyKind.SECRET, label="x", digest="d", created_at="now")
    await RedisKeys(store).add(key)
    made = {name.decode() for name in set(await store.call("KEYS", "*")) - before}
    assert len(made) == 21
    assert all(name.startswith(f"hg:{{{tenant}}}:") for name in made)
    endless = {name for name in made if await store.call("TTL", name) < 0}
    assert endless == {Keys(tenant).api_key("k1234567"), Keys(tenant).api_keys()}


# --- scripts and batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
async def test_script_of_every_file_loads_under_its_digest(store: Redis, name: str) -> None:
    """Each Lua file compiles on the server, which knows it by the digest that the client sends."""
    script = Script(name)
    assert (await store.call("SCRIPT", "LOAD", script.source)).decode() == script.sha


async def test_run_after_script_flush_works_at_once(store: Redis, tenant: TenantId) -> None:
    """A server that has forgotten its scripts (a restart, a failover) is taught them anew, unseen by the caller."""
    limiter = RedisLimiter(store)
    rules = [Rule("user", "rm:user", Kind.RATE, 100, 60_000_000)]
    for number in range(2):
        await limiter.admit(tenant, Ask(f"r{number}", rules))
        await store.call("SCRIPT", "FLUSH")
    decisions = await asyncio.gather(*(limiter.admit(tenant, Ask(f"s{number}", rules)) for number in range(20)))
    assert {decision.refused for decision in decisions} == {None}


async def test_call_of_one_tick_shares_a_round_trip(open_redis: OpenRedis, tenant: TenantId) -> None:
    """Commands issued in one tick of the loop go out together and each gets its own answer."""
    seen: list[tuple[int, bool]] = []
    store = open_redis(observer=lambda seconds, commands, failed: seen.append((commands, failed)))
    names = [f"hg:{{{tenant}}}:n{number}" for number in range(50)]
    await asyncio.gather(*(store.call("SET", name, number, "EX", 60) for number, name in enumerate(names)))
    assert await asyncio.gather(*(store.call("GET", name) for name in names)) == [b"%d" % n for n in range(50)]
    assert seen == [(50, False), (50, False)]


async def test_call_refused_by_the_server_fails_alone(store: Redis, tenant: TenantId) -> None:
    """A command that the server refuses does not spoil its neighbours in the batch."""
    name = f"hg:{{{tenant}}}:n"
    results = await asyncio.gather(
        store.call("SET", name, "x", "EX", 60),
        store.call("INCR", name),
        store.call("GET", name),
        return_exceptions=True,
    )
    assert isinstance(results[1], GatewayError)
    assert results[2] == b"x"


async def test_call_refused_by_the_server_counts_as_failed_and_is_told(
    open_redis: OpenRedis, tenant: TenantId, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses, as one without memory does, shows in metrics and log though it is not away."""
    monkeypatch.setattr(logging, "_throttle", Throttle())
    seen: list[bool] = []
    store = open_redis(observer=lambda seconds, commands, failed: seen.append(failed))
    key = f"hg:{{{tenant}}}:test"
    await store.call("RPUSH", key, "no number")
    with pytest.raises(GatewayError):
        await store.call("INCR", key)
    with pytest.raises(GatewayError):
        await store.call("SETEX", "a word that is no number of seconds")
    await store.call("EXPIRE", key, 60)
    assert seen == [False, True, True, False]
    told = [record for record in caplog.records if record.message == "store.refused"]
    assert [record.__dict__["fields"]["reason"] for record in told] == ["ResponseError"]  # of all, once in a while
    assert "a word" not in caplog.text
    assert store.healthy_s() == float("inf")


async def test_call_that_cannot_be_encoded_hangs_nobody(store: Redis, tenant: TenantId) -> None:
    """An argument that no UTF-8 can carry is an error for its sender and hangs neither him nor his neighbours."""
    async with asyncio.timeout(5):
        results = await asyncio.gather(
            store.call("SET", f"hg:{{{tenant}}}:\udcff", "x", "EX", 60),
            store.call("ECHO", "neighbour"),
            return_exceptions=True,
        )
        assert isinstance(results[0], Exception)
        assert results[1] == b"neighbour"


async def test_call_of_one_who_left_disturbs_no_neighbour(store: Redis) -> None:
    """A caller that is cancelled takes its answer with it, and no one else's."""
    leaving = asyncio.ensure_future(store.call("PING"))
    staying = asyncio.ensure_future(store.call("ECHO", "here"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"here"
    assert leaving.cancelled()


async def test_aclose_waits_for_what_is_under_way(any_store_url: str, tenant: TenantId) -> None:
    """Closing loses no write that was issued before it."""
    store = Redis(any_store_url, timeout_s=2.0, connections=1)
    name = f"hg:{{{tenant}}}:n"
    writing = asyncio.gather(*(store.call("INCR", name) for _ in range(10)), store.call("EXPIRE", name, 60))
    await asyncio.sleep(0)
    await store.aclose()
    assert (await writing)[9] == 10


async def test_server_facts_name_the_server(store: Redis) -> None:
    """What INFO tells is read into a table."""
    assert (await store.server_facts())["redis_version"]


def test_store_fault_names_a_sentinel_given_as_a_server() -> None:
    """Naming the Sentinel itself is a likely mistake; it is told apart from a server that is too old."""
    assert "redis+sentinel://" in (store_fault({"redis_version": "7.0.15", "redis_mode": "sentinel"}) or "")
    assert "too old" in (store_fault({"redis_version": "6.2.1", "redis_mode": "standalone"}) or "")
    assert store_fault({"redis_version": "7.0.15", "redis_mode": "cluster"}) is None


async def test_call_is_sent_once(any_store_url: str, open_redis: OpenRedis, tenant: TenantId) -> None:
    """The server sees each command of a busy client exactly once (its own MONITOR is the witness)."""
    store = open_redis()
    await store.call("PING")
    name = f"hg:{{{tenant}}}:seen"
    async with redis_asyncio.Redis.from_url(any_store_url) as watching, watching.monitor() as monitor:
        await asyncio.gather(*(store.call("SET", f"{name}:{number}", "x", "EX", 60) for number in range(30)))
        await store.call("SET", f"{name}:last", "x", "EX", 60)
        commands: list[str] = []
        async with asyncio.timeout(5):
            while not commands or f"{name}:last" not in commands[-1]:
                commands.append((await monitor.next_command())["command"])
    assert [sum(f"{name}:{number} " in command for command in commands) for number in range(30)] == [1] * 30


# --- a store that is away -----------------------------------------------------------------------------------------


async def test_call_to_a_killed_server_is_refused_in_time_and_works_when_it_is_back(own_server: OwnServer) -> None:
    """A dead store is said to be away within the timeout, and the same client goes on when it is back."""
    server, broke = await own_server(), list[int]()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=2, on_break=lambda: broke.append(1))
    await store.call("SET", "hg:{t}:n", "kept")
    assert store.breakers_open() == 0
    os.kill(pid_of(server), signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(server.died), 5)
    begun_s = time.monotonic()
    for _ in range(3):
        await refused(store.call("PING"))
    assert time.monotonic() - begun_s < TIMEOUT_S
    assert store.healthy_s() == 0
    assert store.breakers_open() == 1
    await server.aclose()
    await server.open()
    assert await answered(store, "GET", "hg:{t}:n") is not None
    assert (store.breakers_open(), broke) == (0, [1])  # it opened once, however often it was tried meanwhile
    assert 0 < store.healthy_s() < 5
    await store.aclose()


async def test_call_to_a_silent_server_is_refused_within_the_timeout(own_server: OwnServer) -> None:
    """Queueing for a connection, connecting and waiting take one timeout together, and late answers reach nobody."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=2)
    await store.call("SET", "hg:{t}:n", 0)
    with paused(pid_of(server)):
        waiting = []
        for _ in range(10):  # batches of ten ticks, of which only two get a connection
            waiting += [asyncio.ensure_future(timed(store.call("INCR", "hg:{t}:n"))) for _ in range(4)]
            await asyncio.sleep(0)
        took_s = await asyncio.gather(*waiting)
        assert max(took_s) < TIMEOUT_S + MARGIN_S
        assert min(took_s) > TIMEOUT_S / 2
        trial = asyncio.ensure_future(timed(store.call("PING")))
        await asyncio.sleep(0)
        at_once = await asyncio.gather(*(timed(store.call("PING")) for _ in range(50)))
        assert max(at_once) < MARGIN_S
        assert await trial < TIMEOUT_S + MARGIN_S
        assert store.healthy_s() == 0
    assert await answered(store, "ECHO", "fresh") == b"fresh"
    # What went out before the silence may have been done once; nothing was sent again behind our back.
    assert int(await store.call("GET", "hg:{t}:n")) in (0, 4, 8)
    await store.aclose()


@contextmanager
def busy_loop(share_s: float) -> Iterator[None]:
    """Let each round of the loop take so long, as that of a worker with more to do than it can."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def work() -> None:
        time.sleep(share_s)
        if not over.is_set():
            loop.call_soon(work)

    loop.call_soon(work)
    try:
        yield
    finally:
        over.set()


async def test_call_from_a_late_loop_takes_no_answering_server_for_away(own_server: OwnServer) -> None:
    """A worker that gets to its answers later than the timeout allows still gets them, and opens no breaker."""
    server = await own_server()
    store = Redis(server.url, timeout_s=0.1, connections=4)
    try:
        await store.call("PING")
        with busy_loop(0.06):
            for number in range(5):
                assert await store.call("ECHO", str(number)) == str(number).encode()
        assert store.healthy_s() == float("inf")
    finally:
        await store.aclose()


async def test_call_from_a_late_loop_to_a_silent_server_is_refused_all_the_same(own_server: OwnServer) -> None:
    """However late the loop is, a server that says nothing is waited for a bounded time."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=4)
    try:
        await store.call("PING")
        with paused(pid_of(server)), busy_loop(0.06):
            begun_s = time.monotonic()
            await refused(store.call("PING"))
            assert time.monotonic() - begun_s < LONGEST * TIMEOUT_S + 2 * MARGIN_S
    finally:
        await store.aclose()


async def test_call_to_a_silent_address_is_refused_within_the_timeout() -> None:
    """Connecting counts: a host that accepts and says nothing costs one timeout, not one for each stage."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        store = Redis(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=TIMEOUT_S, connections=1)
        assert max(await asyncio.gather(*(timed(store.call("PING")) for _ in range(5)))) < TIMEOUT_S + MARGIN_S
        await store.aclose()


async def test_call_answers_reach_their_callers_alone_while_the_server_stalls(own_server: OwnServer) -> None:
    """However often a server hangs in the middle of its replies, an answer is the one to the caller's own question."""
    server = await own_server()
    store = Redis(server.url, timeout_s=0.05, connections=2)
    outcomes: Counter[str] = Counter()
    chance = random.Random(7)

    async def echo(number: int) -> None:
        word = f"{number}:".encode() * chance.choice((1, 1, 1, 40_000))  # some replies take several reads
        try:
            assert await store.call("ECHO", word) == word
            outcomes["answered"] += 1
        except GatewayError as error:
            if error.code is not Code.STORE_UNAVAILABLE:
                raise
            outcomes["refused"] += 1

    async def stall() -> None:
        for _ in range(12):
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            with paused(pid_of(server)):
                await asyncio.sleep(chance.uniform(0.03, 0.15))

    stalling = asyncio.ensure_future(stall())
    numbers = itertools.count()
    while not stalling.done():
        await asyncio.gather(*(echo(next(numbers)) for _ in range(8)))
        await asyncio.sleep(0.001)
    await stalling
    assert await answered(store, "ECHO", "end") == b"end"
    assert outcomes["answered"] > 10
    assert outcomes["refused"] > 10
    await store.aclose()


async def test_call_after_one_cut_connection_goes_through(own_server: OwnServer) -> None:
    """A single lost connection does not make everybody wait: the next call is the trial, and it succeeds."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    me = int(await store.call("CLIENT", "ID"))
    await asyncio.gather(
        store.call("CLIENT", "KILL", "ID", me, "SKIPME", "no"), store.call("PING"), return_exceptions=True
    )
    assert await store.call("ECHO", "next") == b"next"
    await store.aclose()


async def test_call_answered_with_an_error_is_no_outage(own_server: OwnServer) -> None:
    """A server that refuses a command (a script's error, a value of another kind) is there: no failure is noted."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    await store.call("SET", "hg:{t}:n", "x")
    await refused(store.call("INCR", "hg:{t}:n"))
    await refused(store.call("EVAL", "return redis.error_reply('no')", 0))
    assert store.healthy_s() == float("inf")
    assert await store.call("ECHO", "here") == b"here"
    await store.aclose()


@pytest.mark.parametrize("command", [("SET", "hg:{t}:n", "x"), ("GET", "hg:{t}:n")], ids=["READONLY", "MASTERDOWN"])
async def test_call_to_a_replica_without_its_master_is_an_outage(
    own_server: OwnServer, command: tuple[str, ...]
) -> None:
    """A server that answers but cannot serve counts as away, until it can."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=2)
    async with redis_asyncio.Redis.from_url(server.url) as admin:
        await admin.config_set("replica-serve-stale-data", "yes" if command[0] == "SET" else "no")
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]  # the library's
        await refused(store.call(*command))
        assert store.healthy_s() == 0
        await admin.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]  # the library's
    await answered(store, *command)
    assert 0 < store.healthy_s() < 5
    await store.aclose()


async def test_healthy_s_asks_a_store_that_nobody_else_asks(own_server: OwnServer) -> None:
    """Who only waits for the store to be well learns of it, though no call is made."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    with paused(pid_of(server)):
        await refused(store.call("PING"))
        assert store.healthy_s() == 0
    async with asyncio.timeout(5):
        while not store.healthy_s():
            await asyncio.sleep(0.01)
    await store.aclose()


async def test_call_over_tls_trusts_the_given_ca_alone(tmp_path: Path) -> None:
    """rediss:// encrypts, and a server whose certificate nobody vouches for is not spoken to."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    files = (tmp_path / "server.pem", tmp_path / "ca.pem")
    setup, tls_port = Setup(tmp_path / "servers"), free_port()
    try:
        server = setup.start(
            *("--bind", "127.0.0.1", "--save", "", "--tls-port", str(tls_port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(files[0]), "--tls-key-file", str(files[0]), "--tls-ca-cert-file", str(files[1])),
        )

        async def speaks() -> bool:
            if server.process.poll() is not None:
                pytest.skip("this server was built without TLS")
            return bool(await server.ask("PING"))

        await until(speaks, [server])
        for query, reachable in ((f"?ssl_ca_certs={files[1]}", True), ("", False), ("?ssl_cert_reqs=none", True)):
            store = Redis(f"rediss://127.0.0.1:{tls_port}{query}", timeout_s=2.0, connections=1)
            if reachable:
                assert await store.call("ECHO", "x") == b"x"
            else:
                await refused(store.call("ECHO", "x"))
            await store.aclose()
    finally:
        setup.end()


async def test_note_failure_counts_without_opening_the_breaker(store: Redis) -> None:
    """Another connection's loss is a failure for those who ask how long all went well, and holds no call back."""
    assert store.healthy_s() == store.healthy_s("hg:{t}:n") == float("inf")
    store.note_failure()
    assert store.healthy_s() < 1
    assert store.healthy_s("hg:{t}:n") < 1
    assert await asyncio.gather(*(store.call("ECHO", "x") for _ in range(3))) == [b"x"] * 3
    assert store.healthy_s() > 0


async def test_call_cut_in_the_middle_is_not_sent_again(own_server: OwnServer) -> None:
    """A command whose connection breaks before its answer is refused, not repeated: its effect happens once at most."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    me = int(await store.call("CLIENT", "ID"))
    results = await asyncio.gather(
        store.call("INCR", "hg:{t}:n"),
        store.call("CLIENT", "KILL", "ID", me, "SKIPME", "no"),
        store.call("INCR", "hg:{t}:n"),
        return_exceptions=True,
    )
    assert any(isinstance(result, GatewayError) for result in results)
    assert int(await store.call("GET", "hg:{t}:n")) <= 2
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pa55word@127.0.0.1:1/0",
        "redis+cluster://:pa55word@127.0.0.1:1",
        "redis+sentinel://:pa55word@127.0.0.1:1/chat?sentinel_password=pa55word",
    ],
)
async def test_refusal_does_not_hold_the_url(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a client may be told of a store that is away does not say where it is; not even the log has passwords."""
    store = Redis(url, timeout_s=TIMEOUT_S, connections=1)
    error = await refused(store.call("PING"))
    assert "127.0.0.1" not in f"{error} {error!r} {error.detail}"
    await store.aclose()
    told = [f"{error} {error!r} {error.detail} {error.__cause__!r} {store!r}", caplog.text]
    told += [f"{record.__dict__}" for record in caplog.records]
    assert "pa55word" not in " ".join(told)


async def test_refusal_of_each_caller_is_its_own() -> None:
    """Callers of one batch do not share an exception object, whose traceback and context belong to one raiser."""
    store = Redis("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S, connections=1)
    errors = await asyncio.gather(*(refused(store.call("PING")) for _ in range(3)))
    assert len({id(error) for error in errors}) == 3
    await store.aclose()


# --- the subscriber -----------------------------------------------------------------------------------------------


async def test_pubsub_gets_what_is_published_and_outlasts_the_timeout(store_url: str) -> None:
    """A subscriber hears what is published, also after more silence than a call may take."""
    store = Redis(store_url, timeout_s=0.1, connections=1)
    async with store.pubsub() as pubsub:
        await pubsub.subscribe("hg:{_sys}:x")
        assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.3) is None
        assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.3) is None
        assert await store.call("PUBLISH", "hg:{_sys}:x", b"hello") == 1
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        assert message == {"type": "message", "pattern": None, "channel": b"hg:{_sys}:x", "data": b"hello"}
    await store.aclose()


async def test_pubsub_lost_raises_and_never_comes_back_by_itself(own_server: OwnServer) -> None:
    """A subscriber whose connection was cut says so at every read; only a new one hears again."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    pubsub = store.pubsub()
    await pubsub.subscribe("x")
    assert await pubsub.get_message(timeout=5) is not None  # the confirmation
    await store.call("CLIENT", "KILL", "TYPE", "PUBSUB")
    for _ in range(3):
        with pytest.raises((RedisError, OSError)):
            await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
    with pytest.raises((RedisError, OSError)):
        await pubsub.subscribe("y")
    assert await store.call("PUBLISH", "x", "nobody hears") == 0
    await pubsub.aclose()
    async with store.pubsub() as fresh:
        await fresh.subscribe("x")
        assert await fresh.get_message(timeout=5) is not None
        assert await store.call("PUBLISH", "x", "again") == 1
    await store.aclose()


async def test_pubsub_to_a_silent_or_absent_server_is_refused_in_time(own_server: OwnServer) -> None:
    """Subscribing connects within the timeout or raises; it takes no connection from the commands."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=1)
    begun_s = time.monotonic()
    with paused(pid_of(server)):
        pubsub = store.pubsub()
        with pytest.raises((RedisError, OSError, TimeoutError)):
            await pubsub.subscribe("x")
        await pubsub.aclose()
    assert time.monotonic() - begun_s < TIMEOUT_S + MARGIN_S
    assert store.healthy_s() == float("inf")
    await store.aclose()
