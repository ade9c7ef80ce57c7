"""The Redis client: one factory, key names, scripts, and a batcher that joins the commands of one loop tick.

Works against Redis >= 7.0 and Valkey >= 7.2. Of redis-py it uses the connections, the parser and the PubSub. Its
pools, pipelines and cluster client are not used: by default they repeat what may have been done already, let every
stage of a call wait by itself, and fail a whole batch for one node of a Cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import resources
from typing import Any, Final
from weakref import WeakSet

from hiredis import pack_command
from redis.exceptions import AskError, MovedError, NoScriptError, TryAgainError

from gateway.core.errors import Code
from gateway.core.identity import TenantId
from gateway.store.cluster import Cluster, key_of
from gateway.store.connections import AWAY
from gateway.store.node import Node, away, away_wholly
from gateway.store.subscriber import Subscriber
from gateway.store.topology import Alone
from gateway.store.waiting import Batch, Call, refuse
from gateway.store_url import StoreUrl
from gateway.telemetry.logging import throttled

Argument = str | bytes | int | float
CallObserver = Callable[[float, int, bool], None]  # seconds, commands, failed
logger = logging.getLogger(__name__)

INBOX: Final = "hg:{_sys}:inbox:"  # and a worker's id: the channel on which it is told things
ALL: Final = "hg:{_sys}:all"  # the channel on which all workers are told things
PING: Final = pack_command(("PING",))
HOPS_MAX: Final = 5  # redirections that a command of a Cluster follows
AGAIN_S: Final = 0.02  # until a call is sent again whose keys are being moved from one node to another


class Keys:
    """Names of one tenant's keys. All begin with ``hg:{tenant}:`` and so share one Redis Cluster slot."""

    __slots__ = ("prefix", "tenant")

    def __init__(self, tenant: TenantId) -> None:
        self.tenant = tenant
        self.prefix = f"hg:{{{tenant}}}:"

    def conversation(self, conversation_id: str) -> str:
        return f"{self.prefix}conv:{conversation_id}"

    def conversations(self, owner: str) -> str:
        return f"{self.prefix}convs:{owner}"

    def prompt_run(self, run_id: str) -> str:
        return f"{self.prefix}run:{run_id}"

    def log(self, turn_id: str) -> str:
        return f"{self.prefix}log:{turn_id}"

    def turn(self, turn_id: str) -> str:
        return f"{self.prefix}turn:{turn_id}"

    def followers(self, turn_id: str) -> str:
        return f"{self.prefix}followers:{turn_id}"

    def watchers(self, conversation_id: str) -> str:
        return f"{self.prefix}watchers:{conversation_id}"

    def running(self) -> str:
        return f"{self.prefix}running"

    def settlements(self) -> str:
        return f"{self.prefix}usage:settled"

    def unsettled(self) -> str:
        return f"{self.prefix}usage:unsettled"

    def idempotency(self, owner: str, conversation_id: str, key: str) -> str:
        digest = hashlib.sha256(f"{owner}\0{conversation_id}\0{key}".encode()).hexdigest()[:40]
        return f"{self.prefix}idem:{digest}"

    def creation(self, owner: str, key: str) -> str:
        digest = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()[:40]
        return f"{self.prefix}creation:{digest}"

    def chat(self, digest: str) -> str:
        return f"{self.prefix}chat:{digest}"

    def limit(self, key: str) -> str:
        return f"{self.prefix}lim:{key}"

    def charge(self, request_id: str) -> str:
        return f"{self.prefix}lim:of:{request_id}"

    def open_charges(self) -> str:
        return f"{self.prefix}lim:open"

    def used(self, id_: str) -> str:
        return f"{self.prefix}used:{id_}"

    def api_key(self, key_id: str) -> str:
        return f"{self.prefix}key:{key_id}"

    def api_keys(self) -> str:
        return f"{self.prefix}keys"


class Script:
    """A Lua file of this room. One call is one atomic round trip."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, *, with_: Sequence[str] = ()) -> None:
        """``with_`` names files of functions that this one shares with others."""
        self.name = name
        files = resources.files("gateway.store").joinpath("scripts")
        self.source = b"".join(files.joinpath(f"{part}.lua").read_bytes() for part in (*with_, name))
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Redis:
    """One Redis, one behind Sentinels, or a Cluster, spoken to in batches.

    ``call`` and ``run`` raise GatewayError(store_unavailable) when it is away or refuses. None takes longer than
    about ``timeout_s``: queueing for one of the ``connections``, connecting and the answer together (see ``Patience``
    for a loop that is late); while a server is known to be away they fail at once. Nothing is ever sent twice, unless
    a server said that it did not process it.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        connections: int,
        observer: CallObserver | None = None,
        on_break: Callable[[], None] | None = None,
    ) -> None:
        """``observer`` is told of every batch, ``on_break`` of every breaker that opens.

        Opens no connection; raises ValueError for a URL that cannot be read.
        """
        where = StoreUrl.parse(url)
        kind = Cluster if where.topology == "cluster" else Alone
        self._servers: Alone | Cluster = kind(
            where, timeout_s=timeout_s, connections=connections, succeeded=self._succeeded
        )
        self._routed = kind is Cluster
        self._timeout_s = timeout_s
        self._observer = observer
        self._on_break = on_break
        self._queue: list[Call] = []
        self._under_way: set[Batch] = set()
        self._resting: set[asyncio.TimerHandle] = set()  # with calls that a server could not process just then
        self._quiet: asyncio.Future[None] | None = None  # done when nothing is under way any more
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed_at_s: float | None = None
        self._noted_at_s: float | None = None
        self._subscribers: WeakSet[Subscriber] = WeakSet()
        # Called when a server that was away answers again, or another one is in its place, and may have lost its end.
        self.on_return: Callable[[], None] = lambda: None

    async def aclose(self) -> None:
        """Wait for the commands under way, then close the connections."""
        while self._under_way or self._queue or self._resting:
            if self._under_way:
                self._quiet = self._quiet or asyncio.get_running_loop().create_future()
                await asyncio.shield(self._quiet)
            else:
                await asyncio.sleep(AGAIN_S if self._resting else 0)  # or they go out in this tick
        await self._servers.aclose()

    async def call(self, *command: Argument) -> Any:
        """Send one command; it shares a round trip with every other command issued in this loop tick.

        In a Cluster the command's first argument must be its key, or a script's first key; a batch is split by node.
        """
        return await self._issue(command)

    async def run(self, script: Script, keys: Iterable[str], arguments: Iterable[Argument]) -> Any:
        """Run a script by its digest, or by its text where the server does not have it yet."""
        keys = tuple(keys)
        tail: tuple[Argument, ...] = (len(keys), *keys, *arguments)
        try:
            return await self._issue(("EVALSHA", script.sha, *tail))
        except NoScriptError:
            return await self._issue(("EVAL", script.source, *tail))

    def pubsub(self) -> Subscriber:
        """Return a redis-py PubSub on a connection of its own, to the master or to any live node of a Cluster.

        It waits for messages as long as it is told to, and raises when its connection is lost: see there for what
        the caller must do then.
        """
        subscriber = Subscriber(self._servers.connect, timeout_s=self._timeout_s)
        self._subscribers.add(subscriber)
        return subscriber

    async def server_facts(self) -> dict[str, str]:
        """Return what ``INFO`` tells of the server, the master, or one node of a Cluster (``redis_version`` …)."""
        reply: dict[Any, Any] = await self.call("INFO")  # redis-py has made a map of it
        return {str(name): str(value) for name, value in reply.items()}

    def healthy_s(self, key: str | None = None) -> float:
        """Return how long no call has failed, in seconds; infinite when none ever did, 0 while a breaker is open.

        With a ``key`` only failures of its node count, and those that ``note_failure`` told. Both differ in a Cluster
        alone, where other tenants' nodes go on. A server that is away is asked again by this, where nobody else does.
        """
        node = self._servers.node_of(key.encode()) if key is not None else None
        failing = [other for other in ((node,) if node else self._servers.nodes()) if other.breaker.is_open]
        for other in failing:
            if other.breaker.is_due and self._loop is not None:
                probe = Call("PING", None, PING, self._loop.create_future())
                probe.future.add_done_callback(asyncio.Future.exception)  # a refusal of the probe is no news
                self._send(other, [probe], self._loop.time() + self._timeout_s)
        if failing:
            return 0.0
        failed_at_s = self._noted_at_s if node else self._failed_at_s
        if node is not None and node.failed_at_s is not None:
            failed_at_s = max(node.failed_at_s, failed_at_s or 0.0)
        return float("inf") if failed_at_s is None else time.monotonic() - failed_at_s

    def breakers_open(self) -> int:
        """Return of how many servers the breaker is open just now."""
        return sum(node.breaker.is_open for node in self._servers.nodes())

    def note_failure(self) -> None:
        """Count it as a failure for ``healthy_s`` that another connection, such as a subscriber's, was lost."""
        self._failed_at_s = self._noted_at_s = time.monotonic()

    def _issue(self, command: Sequence[Argument]) -> asyncio.Future[Any]:
        # Packed here, so that an argument that no UTF-8 can carry is its sender's error and not the whole batch's.
        packed: bytes = pack_command(command)  # type: ignore[arg-type]  # hiredis names a tuple of one
        key = key_of(command) if self._routed else None
        loop = self._loop or self._keep_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._queue:
            loop.call_soon(self._flush)
        self._queue.append(Call(command[0], key, packed, future))
        return future

    def _keep_loop(self) -> asyncio.AbstractEventLoop:
        """Asking for the running loop is a system call on Python 3.11, and a client lives on one loop."""
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _flush(self) -> None:
        calls, self._queue = self._queue, []
        deadline_s = self._time() + self._timeout_s
        for node, its_calls in self._servers.split(calls):
            self._send(node, its_calls, deadline_s)

    def _send(self, node: Node, calls: list[Call], deadline_s: float, *, asking: bool = False, hops: int = 0) -> None:
        """Send calls to a node; every caller is given what became of his."""
        trial = node.breaker.is_open
        if not node.breaker.admit():
            node.lost()
            refuse(calls, Code.STORE_UNAVAILABLE, node.failure)
            return
        batch = Batch(calls, deadline_s, partial(self._take, node), asking=asking, hops=hops, trial=trial)
        self._under_way.add(batch)
        node.send(batch, self._loop or self._keep_loop())

    def _take(self, node: Node, batch: Batch) -> None:
        """Give every caller of a batch what became of his call, and draw the conclusions for its node."""
        failure = batch.failure
        elsewhere: dict[tuple[Node, bool], list[Call]] = {}
        again: list[Call] = []
        troubles: list[Exception] = []
        refused = False  # by the server: it may be out of memory, or forbid it
        if failure is not None:  # AWAY, or a fault of ours or of redis-py: whoever waits must hear of it all the same
            refuse(batch.calls, Code.STORE_UNAVAILABLE if isinstance(failure, AWAY) else Code.INTERNAL, failure)
        else:
            for call, reply in zip(batch.calls, batch.replies, strict=True):
                if not isinstance(reply, Exception) or isinstance(reply, NoScriptError):
                    call.answer(reply)
                    continue
                target: Node | None = None
                if isinstance(reply, AskError) and batch.hops < HOPS_MAX:  # it was not processed; another would do it
                    target = self._servers.redirected(node, reply)
                if target is not None:
                    elsewhere.setdefault((target, not isinstance(reply, MovedError)), []).append(call)
                    continue
                if isinstance(reply, TryAgainError) and self._time() + AGAIN_S < batch.deadline_s:
                    again.append(call)  # it was not processed, as some of its keys are here and some there
                    continue
                refuse([call], Code.STORE_UNAVAILABLE, reply)
                refused = True
                if away(reply):
                    troubles.append(reply)
                else:  # its kind only: what a server says may repeat what it was sent
                    kind = type(reply).__name__
                    throttled(logger, f"refused:{kind}", "store.refused", store=node.name, reason=kind)
        self._judge(node, failure, troubles, trial=batch.trial)
        if self._observer is not None:
            seconds = time.perf_counter() - batch.began_s
            self._observer(seconds, len(batch.calls), failure is not None or refused)
        for (target, ask_first), moved in elsewhere.items():  # within the same time
            self._send(target, moved, batch.deadline_s, asking=ask_first, hops=batch.hops + 1)
        if again:
            self._rest(again, batch.deadline_s)
        self._under_way.discard(batch)
        if self._quiet is not None and not self._under_way:
            self._quiet.set_result(None)
            self._quiet = None

    def _rest(self, calls: list[Call], deadline_s: float) -> None:
        """Send calls again in a moment, to whichever node has their slots by then."""

        def send() -> None:
            self._resting.discard(handle)
            for node, its_calls in self._servers.split(calls):
                self._send(node, its_calls, deadline_s)

        handle = (self._loop or self._keep_loop()).call_later(AGAIN_S, send)
        self._resting.add(handle)

    def _time(self) -> float:
        return (self._loop or self._keep_loop()).time()

    def _judge(self, node: Node, failure: BaseException | None, troubles: list[Exception], *, trial: bool) -> None:
        """Draw the conclusions for the node from how a batch went."""
        error = failure or next((reply for reply in troubles if away_wholly(reply)), None)
        if error is not None:
            if not node.breaker.is_open and self._on_break is not None:
                self._on_break()
            node.fail(error, trial=trial)
        else:
            was_away = node.breaker.is_open
            node.breaker.succeed()
            if was_away:
                throttled(logger, "store.recovered", level=logging.INFO, store=node.name)
                self.on_return()
            if troubles:
                error = troubles[0]
                node.note_failure(error)
        if error is not None:
            self._failed_at_s = time.monotonic()
            throttled(logger, "store.failed", error=error, store=node.name)

    def _succeeded(self) -> None:
        """Another server is in the place of one that failed or was replaced; what that one had last may be lost."""
        self._failed_at_s = time.monotonic()
        if not self._routed:  # in a Cluster a subscriber listens wherever it is, and hears by itself if that is lost
            for subscriber in tuple(self._subscribers):
                subscriber.cut()
        self.on_return()


def text(value: Any) -> str | None:
    """Decode a reply that may be nil."""
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def fields(reply: Any) -> dict[str, bytes]:
    """Read an HGETALL reply, a map in RESP3."""
    return {text(k) or "": v for k, v in reply.items()} if reply else {}
