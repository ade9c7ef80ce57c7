"""The client: batches of one tick, scripts by digest, no blind retries, and a store that is away is said to be so."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

from gateway.core.conversation import Conversation, ConversationId, Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, TextDelta, TurnCompleted
from gateway.core.identity import KeyKind, KeyRecord, TenantId, UserHash
from gateway.core.limits import Limit
from gateway.core.turn import StopReason, TurnId, Usage
from gateway.store.conversations import RedisConversations
from gateway.store.embedded import EmbeddedValkey
from gateway.store.event_log import RedisEventLog
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Keys, Redis, Script
from gateway.store.tenants import RedisKeys
from tests.store.conftest import OpenRedis

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "gateway" / "store" / "scripts").glob("*.lua"))
TIMEOUT_S = 0.3
OwnServer = Callable[[], Awaitable[EmbeddedValkey]]


async def refused(work: Awaitable[object]) -> GatewayError:
    """Await what must be refused because the store is away."""
    with pytest.raises(GatewayError) as error:
        await work
    assert error.value.code is Code.STORE_UNAVAILABLE
    return error.value


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
        keys.idempotency("u", "c", "k"),
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


async def test_store_every_key_is_the_tenants_and_all_but_api_keys_expire(store: Redis, tenant: TenantId) -> None:
    """After every kind of write, each new key in the whole store begins with hg:{tenant}: and will go by itself."""
    before = set(await store.call("KEYS", "*"))
    log = RedisEventLog(
        store, lease_s=30, turn_timeout_s=100, log_ttl_s=100, idempotency_ttl_s=100, conversation_ttl_s=100
    )
    conversations = RedisConversations(store, ttl_s=100)
    owner, conversation_id, turn_id = UserHash("0f" * 16), ConversationId(str(uuid.uuid4())), TurnId(str(uuid.uuid4()))
    record = Conversation(id=conversation_id, owner=owner, persona="default", messages=[Message("assistant", "x", "m")])
    await conversations.put(tenant, record)
    await conversations.put_feedback(tenant, conversation_id, "m", Feedback("f", 1))
    await log.claim(
        tenant,
        conversation_id,
        turn_id,
        owner=owner,
        idempotency_key="k",
        body_hash="b",
        message=Message("user", "Hi"),
    )
    await log.append(tenant, turn_id, 1, [Entry(2, TextDelta("a"))])
    await log.request_stop(tenant, turn_id, StopReason.USER)
    await log.take_over(tenant, turn_id)
    ending = TurnCompleted(None, None, "stop", "a", Usage(0, 0, 0, "reported"))
    await log.finish(tenant, conversation_id, turn_id, 1, [Entry(3, ending)], [Message("user", "a")])
    await RedisLimiter(store).admit(tenant, [Limit("user", "turn:user", 5, 60.0)])
    key = KeyRecord(id="k1234567", tenant=tenant, kind=KeyKind.SECRET, label="x", digest="d", created_at="now")
    await RedisKeys(store).add(key)
    made = {name.decode() for name in set(await store.call("KEYS", "*")) - before}
    assert len(made) == 8
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
    limits = [Limit("user", "turn:user", 100, 60.0)]
    for _ in range(2):
        await limiter.admit(tenant, limits)
        await store.call("SCRIPT", "FLUSH")
    decisions = await asyncio.gather(*(limiter.admit(tenant, limits) for _ in range(20)))
    assert {decision.limit for decision in decisions} == {None}


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
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=2)
    await store.call("SET", "hg:{t}:n", "kept")
    os.kill(pid_of(server), signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(server.died), 5)
    begun_s = time.monotonic()
    for _ in range(3):
        await refused(store.call("PING"))
    assert time.monotonic() - begun_s < 3 * TIMEOUT_S
    await server.aclose()
    await server.open()
    async with asyncio.timeout(5):
        assert await store.call("GET", "hg:{t}:n") is not None
    await store.aclose()


async def test_call_to_a_silent_server_is_refused_within_the_timeout(own_server: OwnServer) -> None:
    """A server that hangs costs one timeout, however many wait, and its late answers reach nobody."""
    server = await own_server()
    store = Redis(server.url, timeout_s=TIMEOUT_S, connections=2)
    await store.call("SET", "hg:{t}:n", 0)
    os.kill(pid_of(server), signal.SIGSTOP)
    try:
        begun_s = time.monotonic()
        await asyncio.gather(*(refused(store.call("INCR", "hg:{t}:n")) for _ in range(20)))
        assert time.monotonic() - begun_s < 3 * TIMEOUT_S
    finally:
        os.kill(pid_of(server), signal.SIGCONT)
    async with asyncio.timeout(5):
        assert await store.call("ECHO", "fresh") == b"fresh"
        # What went out before the silence may have been done once; nothing was sent again behind our back.
        assert int(await store.call("GET", "hg:{t}:n")) in (0, 20)
    await store.aclose()


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


async def test_refusal_does_not_hold_the_url() -> None:
    """What a client may be told about a store that is away says nothing of where it is or of its password."""
    store = Redis("redis://:pa55word@127.0.0.1:1/0", timeout_s=TIMEOUT_S, connections=1)
    error = await refused(store.call("PING"))
    assert "pa55word" not in f"{error} {error!r} {error.detail}"
    assert "127.0.0.1" not in f"{error} {error!r} {error.detail}"
    await store.aclose()


async def test_refusal_of_each_caller_is_its_own() -> None:
    """Callers of one batch do not share an exception object, whose traceback and context belong to one raiser."""
    store = Redis("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S, connections=1)
    errors = await asyncio.gather(*(refused(store.call("PING")) for _ in range(3)))
    assert len({id(error) for error in errors}) == 3
    await store.aclose()
