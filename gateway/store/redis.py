"""The Redis client: one factory, key names, scripts, and a batcher that joins the commands of one loop tick.

Works against Redis >= 7.0 and Valkey >= 7.2. redis-py's defaults are not safe here and are set anew: no blind
retries (they store an append twice), one short timeout, a bounded pool that waits instead of raising.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.telemetry.logging import throttled

Argument = str | bytes | int | float
CallObserver = Callable[[float, int, bool], None]  # seconds, commands, failed
logger = logging.getLogger(__name__)

VERSION_FLOORS: Final = {"Redis": (7, 0), "Valkey": (7, 2)}


class Keys:
    """Names of one tenant's keys. All begin with ``hg:{tenant}:`` and so share one Redis Cluster slot."""

    __slots__ = ("prefix",)

    def __init__(self, tenant: TenantId) -> None:
        self.prefix = f"hg:{{{tenant}}}:"

    def conversation(self, conversation_id: str) -> str:
        return f"{self.prefix}conv:{conversation_id}"

    def conversations(self, owner: str) -> str:
        return f"{self.prefix}convs:{owner}"

    def log(self, turn_id: str) -> str:
        return f"{self.prefix}log:{turn_id}"

    def turn(self, turn_id: str) -> str:
        return f"{self.prefix}turn:{turn_id}"

    def followers(self, turn_id: str) -> str:
        return f"{self.prefix}followers:{turn_id}"

    def idempotency(self, owner: str, conversation_id: str, key: str) -> str:
        digest = hashlib.sha256(f"{owner}\0{conversation_id}\0{key}".encode()).hexdigest()[:40]
        return f"{self.prefix}idem:{digest}"

    def limit(self, key: str) -> str:
        return f"{self.prefix}lim:{key}"

    def api_key(self, key_id: str) -> str:
        return f"{self.prefix}key:{key_id}"

    def api_keys(self) -> str:
        return f"{self.prefix}keys"


class Script:
    """A Lua file of this room. One call is one atomic round trip."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = resources.files("gateway.store").joinpath("scripts", f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Redis:
    """One Redis, spoken to in batches. ``call`` and ``run`` raise GatewayError(store_unavailable) when it is away."""

    def __init__(self, url: str, *, timeout_s: float, connections: int, observer: CallObserver | None = None) -> None:
        self._pool = redis_asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
            legacy_responses=False,
        )
        self._client = redis_asyncio.Redis(connection_pool=self._pool)
        self._observer = observer
        self._queue: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed_at_s: float | None = None

    async def aclose(self) -> None:
        """Wait for the commands under way, then close the connections."""
        while self._flushes or self._queue:
            await asyncio.gather(*self._flushes, return_exceptions=True)
            await asyncio.sleep(0)
        await self._client.aclose()
        await self._pool.disconnect()

    async def call(self, *command: Argument) -> Any:
        """Send one command; it shares a round trip with every other command issued in this loop tick."""
        # Encoded here, so that an argument that no UTF-8 can carry is its sender's error and not the whole batch's.
        name, *arguments = command
        command = (name, *(part.encode() if isinstance(part, str) else part for part in arguments))
        loop = self._loop or self._keep_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._queue:
            loop.call_soon(self._flush)
        self._queue.append((command, future))
        return await future

    async def run(self, script: Script, keys: Iterable[str], arguments: Iterable[Argument]) -> Any:
        """Run a script by its digest, or by its text where the server does not have it yet."""
        keys = list(keys)
        tail: tuple[Argument, ...] = (len(keys), *keys, *arguments)
        try:
            return await self.call("EVALSHA", script.sha, *tail)
        except NoScriptError:
            return await self.call("EVAL", script.source, *tail)

    async def server_facts(self) -> dict[str, str]:
        """Return what ``INFO`` tells of the server (``server_name``, ``redis_version``, ``maxmemory_policy`` …)."""
        reply: dict[Any, Any] = await self.call("INFO")  # redis-py has made a map of it
        return {str(name): str(value) for name, value in reply.items()}

    def healthy_s(self) -> float:
        """Return how long no call has failed; infinite when none ever did."""
        return float("inf") if self._failed_at_s is None else time.monotonic() - self._failed_at_s

    def _keep_loop(self) -> asyncio.AbstractEventLoop:
        """Asking for the running loop is a system call on Python 3.11, and a client lives on one loop."""
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _flush(self) -> None:
        batch, self._queue = self._queue, []
        task = (self._loop or self._keep_loop()).create_task(self._send(batch))
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _send(self, batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]]) -> None:
        started_s = time.perf_counter()
        failure: Exception | None = None
        code = Code.STORE_UNAVAILABLE
        replies: list[Any] = [None] * len(batch)
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            failure = error
        except Exception as error:  # a fault of ours or of redis-py: whoever waits must hear of it all the same
            failure, code = error, Code.INTERNAL
        if failure is not None:
            self._failed_at_s = time.monotonic()
            throttled(logger, "store.failed", error=failure)
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if failure is not None:
                future.set_exception(_refusal(code, failure))
            elif isinstance(reply, NoScriptError):
                future.set_exception(reply)
            elif isinstance(reply, ResponseError):
                future.set_exception(_refusal(Code.STORE_UNAVAILABLE, reply))
            else:
                future.set_result(reply)
        if self._observer is not None:
            self._observer(time.perf_counter() - started_s, len(batch), failure is not None)


def _refusal(code: Code, cause: Exception) -> GatewayError:
    """One caller's error. redis-py's own words may hold the URL's password; the client hears only the code's."""
    refusal = GatewayError(code)
    refusal.__cause__ = cause
    return refusal


def text(value: Any) -> str | None:
    """Decode a reply that may be nil."""
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def fields(reply: Any) -> dict[str, bytes]:
    """Read an HGETALL reply, a map in RESP3."""
    return {text(k) or "": v for k, v in reply.items()} if reply else {}


def store_name(facts: dict[str, str]) -> str:
    """Name the server that ``INFO`` describes, with its version."""
    valkey = facts.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {facts.get('redis_version', '?')}"


def store_fault(facts: dict[str, str]) -> str | None:
    """Say why a server cannot be used (it is too old), or None."""
    name, _, version = store_name(facts).partition(" ")
    floor = VERSION_FLOORS[name]
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return None if known >= floor else f"{name} {version} is too old; {floor[0]}.{floor[1]} is needed"
