"""The life of one gateway process: ports, signals, keys, drain. The order of shutdown is written out in ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import shlex
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from aiohttp import web

from gateway.app import Gateway, build
from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.secret_files import load as load_secrets
from gateway.sections import SettingsError
from gateway.settings import Settings
from gateway.store.embedded import EmbeddedValkey
from gateway.store.facts import store_fault
from gateway.store.keeper import keep
from gateway.telemetry import audit
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import watch_loop
from gateway.tenant_options import normal_origin
from gateway.transports.edge import Closable
from gateway.transports.refusals import EdgeRunner

logger = logging.getLogger(__name__)

FIRST_LABEL: Final = "default"  # of the keys that a new tenant's first start prints
ENV_FILE_LABEL: Final = "env-file"  # of the keys that every start with an env file replaces
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach a port that listens everywhere
BACKLOG: Final = 1024  # connections that wait to be accepted
HARD_DEADLINE_EXTRA_S: Final = 30.0  # beyond the drain: settling endings, closing the store
HARD_DEADLINE_STATUS: Final = 70
LOOK_S: Final = 0.02  # between looks at which connections are left


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """Keys that exist in clear only now."""

    tenant: TenantId
    secret_key: str
    publishable_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A gateway that answers, and what its user needs to reach it."""

    gateway: Gateway
    url: str
    internal_url: str
    redis_url: str
    keys: tuple[Minted, ...]  # made by this start


class Stop:
    """What asks a gateway to end: a signal drains it, a second one cuts the drain short, and so does a lost store."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.store_lost = False
        self._hurried = asyncio.Event()

    def ask(self) -> None:
        if self.asked.is_set():
            self._hurried.set()
        self.asked.set()

    def lose_store(self) -> None:
        self.store_lost = True
        self._hurried.set()
        self.asked.set()

    async def hurry_or(self, work: Coroutine[None, None, None], *, timeout_s: float) -> None:
        """Wait for ``work``, but no longer than until the stop is hurried or the time is over."""
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self._hurried.wait())}
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


OnReady = Callable[[Ready], Awaitable[None]]


class HardDeadline:
    """Ends the process some time after it was armed, whatever hangs; disarmed by leaving the context."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, os._exit, (HARD_DEADLINE_STATUS,))
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> HardDeadline:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def serve(
    settings: Settings,
    *,
    on_ready: OnReady,
    made_secrets: bool = False,
    fresh_keys: bool = False,
) -> None:
    """Run a gateway until SIGINT or SIGTERM, then drain it.

    ``on_ready`` is awaited once both ports answer. ``made_secrets`` lets pepper and signing key be made in the
    data directory with a Redis of one's own too; ``fresh_keys`` mints the keys labelled ``env-file`` anew.
    Raises SettingsError, OSError (ports), GatewayError(store_unavailable), EmbeddedError (its own store is given up).
    """
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.ask)
    async with contextlib.AsyncExitStack() as stack:
        deadline = stack.enter_context(HardDeadline())
        embedded = settings.redis.url is None
        redis_url = await stack.enter_async_context(store(settings, stop.lose_store))
        gateway = build(
            settings, redis_url=redis_url, secrets=load_secrets(settings, embedded=embedded or made_secrets)
        )
        stack.push_async_callback(gateway.aclose)
        await check_store(gateway, settings)
        await gateway.load()
        gateway.open()
        server = settings.server
        public = await run_app(stack, gateway.public)
        url = await listen(public, server.host, server.port)
        internal_url = await listen(await run_app(stack, gateway.internal), server.internal_host, server.internal_port)
        gateway.auth.allow_origins(own_origins(settings, url))
        watcher = loop.create_task(watch_loop(gateway.metrics))
        stack.callback(watcher.cancel)
        keys = await mint(gateway, fresh=fresh_keys)
        tend_memory()
        log_event(logger, logging.INFO, "gateway.started", url=url, internal_url=internal_url, embedded=embedded)
        await on_ready(
            Ready(gateway=gateway, url=url, internal_url=internal_url, redis_url=redis_url, keys=tuple(keys))
        )
        await stop.asked.wait()
        deadline.arm(drain_longest_s(settings))
        await drain(gateway, public, stop=stop, replaced=asyncio.Event(), shared_store=not embedded)
    log_event(logger, logging.INFO, "gateway.stopped")


def tend_memory() -> None:
    """Have the collector of reference cycles look only at what is made from now on; call it when all is built.

    What a start leaves behind (modules, routes, settings) stays, and going over it stops the worker for 15 to 19 ms.
    Higher thresholds were tried: they save nothing that can be measured, and cost 3 MB.
    """
    gc.collect()
    gc.freeze()


async def check_store(gateway: Gateway, settings: Settings) -> None:
    """Refuse a store that is away or too old, in words that name it."""
    where = settings.redis.address() or "the embedded store"
    try:
        facts = await gateway.redis.server_facts()
    except GatewayError as error:
        raise SettingsError("GATEWAY_REDIS_URL", f"{where} cannot be used: {type(error.__cause__).__name__}") from None
    if fault := store_fault(facts):
        raise SettingsError("GATEWAY_REDIS_URL", f"{where}: {fault}")


def drain_longest_s(settings: Settings) -> float:
    """How long a process may take from SIGTERM to its exit before it is taken for hung."""
    return settings.server.drain_notice_s + settings.server.drain_s + HARD_DEADLINE_EXTRA_S


async def drain(
    gateway: Gateway, public: web.AppRunner, *, stop: Stop, replaced: asyncio.Event, shared_store: bool
) -> None:
    """Let go of the public side: no new work, then the readers, the turns, and the connections that are left.

    ``replaced`` says that another worker serves the same port by now: nobody need take notice. Readers are sent
    away only where somebody else can serve them, from this turn's log: a replacement, or a gateway on the same
    ``shared_store``. Otherwise they stay until their turn's ending. The caller has armed a hard deadline.
    """
    server = gateway.settings.server
    log_event(logger, logging.INFO, "gateway.draining", turns=gateway.turns.running, replaced=replaced.is_set())
    gateway.draining = gateway.edge.draining = True
    gateway.turns.drain()  # refuses turns; readers are still let in, since an EventSource gives up on a refusal
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(replaced.wait(), server.drain_notice_s)
    for site in tuple(public.sites):
        await site.stop()
    successors = replaced.is_set() or shared_store
    turns = asyncio.create_task(_end_turns(gateway, stop, successors=successors))
    if successors:
        await _send_away(gateway, public, min(server.drain_spread_s, server.drain_s))
    await turns
    await asyncio.sleep(0)  # endings shown just now are written by the readers' own tasks
    await asyncio.gather(*(connection.shut() for connection in tuple(gateway.edge.open)), return_exceptions=True)


async def _end_turns(gateway: Gateway, stop: Stop, *, successors: bool) -> None:
    """Let turns end by themselves for ``drain_s`` or until the stop is hurried; then hand over or stop the rest."""
    await stop.hurry_or(gateway.turns.ended(), timeout_s=gateway.settings.server.drain_s)
    await gateway.turns.aclose(grace_s=0, settle=not stop.store_lost, successors=successors)


async def _send_away(gateway: Gateway, public: web.AppRunner, spread_s: float) -> None:
    """Send every reader away at a moment of its own within the span, so that they do not come back all at once.

    Connections between two requests get the same time: the next answer closes them, and only a request that is
    on its way at the very end meets a closed connection.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + spread_s
    leaving: dict[Closable, asyncio.Task[None]] = {}

    async def leave(connection: Closable) -> None:
        await asyncio.sleep(random.uniform(0, until_s - loop.time()))  # noqa: S311 - spreads load
        if connection in gateway.edge.open:
            await connection.leave()

    assert public.server is not None
    while public.server.connections and loop.time() < until_s:
        for connection in gateway.edge.open - leaving.keys():  # those too that came while draining
            leaving[connection] = loop.create_task(leave(connection))
        await asyncio.sleep(min(LOOK_S, max(0.0, until_s - loop.time())))
    for connection in gateway.edge.open - leaving.keys():
        leaving[connection] = loop.create_task(connection.leave())
    await asyncio.gather(*leaving.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def store(settings: Settings, on_lost: Callable[[], None]) -> AsyncIterator[str]:
    """Give the URL of the Redis to use; an embedded Valkey lives as long as this context, restarted when it dies.

    ``on_lost`` is called when that is given up (see ``keeper.keep``); leaving the context then raises EmbeddedError.
    """
    if settings.redis.url is not None:
        yield settings.redis.url.reveal()
        return
    valkey = EmbeddedValkey(settings.server.data_dir)
    await valkey.open()
    keeping = asyncio.get_running_loop().create_task(keep(valkey))

    def lost(kept: asyncio.Task[NoReturn]) -> None:
        if not kept.cancelled():
            log_event(logger, logging.CRITICAL, "store.lost", reason=str(kept.exception()))
            on_lost()

    keeping.add_done_callback(lost)
    try:
        yield valkey.url
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await valkey.aclose()


async def run_app(stack: contextlib.AsyncExitStack, app: web.Application) -> web.AppRunner:
    """Get an application going; the caller gives it sites to listen on."""
    runner = EdgeRunner(
        app,
        access_log=None,
        handler_cancellation=True,  # an idle stream would otherwise never learn that its browser left
        shutdown_timeout=2.0,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def listen(runner: web.AppRunner, host: str, port: int) -> str:
    """Open a port for a runner; returns the URL under which it answers."""
    await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    return shown_url(host, runner.addresses[0][1])


def shown_url(host: str, port: int) -> str:
    """Return the URL of a port that listens on an address."""
    shown = ANY.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def own_origins(settings: Settings, url: str) -> frozenset[str]:
    """Origins of the gateway's own page, which needs no listing; none when the page is switched off."""
    if not settings.server.page:
        return frozenset()
    origins = {url}
    if settings.server.public_url is not None:
        origins.add(normal_origin(settings.server.public_url))
    if settings.server.host in LOOPBACK or settings.server.host in ANY:
        port = url.rpartition(":")[2]
        origins |= {f"http://127.0.0.1:{port}", f"http://localhost:{port}"}
    return frozenset(origins)


async def mint(gateway: Gateway, *, fresh: bool) -> list[Minted]:
    """Make the keys that this start shows: a new tenant's first ones, or the env file's anew."""
    minted: list[Minted] = []
    for tenant in gateway.tenants.fixed:  # those of the store get theirs from who makes them
        if fresh:
            label = ENV_FILE_LABEL
        elif all(known.label == ENV_FILE_LABEL for known in await gateway.auth.keys.list(tenant)):
            label = FIRST_LABEL
        else:
            continue
        with audit.acting("start"):
            secret = await gateway.auth.keys.mint(tenant, KeyKind.SECRET, label, replace=fresh)
            publishable = await gateway.auth.keys.mint(tenant, KeyKind.PUBLISHABLE, label, replace=fresh)
        minted.append(Minted(tenant=tenant, secret_key=secret.key, publishable_key=publishable.key))
    return minted


def write_env_file(path: Path, facts: Iterable[tuple[str, str]]) -> None:
    """Write facts as shell variables, whole or not at all, readable by the owner only."""
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def env_facts(ready: Ready) -> list[tuple[str, str]]:
    """What an env file tells of a gateway; the keys are those of the first tenant."""
    facts = [
        ("GATEWAY_URL", ready.url),
        ("GATEWAY_INTERNAL_URL", ready.internal_url),
        ("GATEWAY_REDIS_URL", ready.redis_url),
    ]
    if ready.keys:
        facts += [
            ("GATEWAY_SECRET_KEY", ready.keys[0].secret_key),
            ("GATEWAY_PUBLISHABLE_KEY", ready.keys[0].publishable_key),
        ]
    return facts
