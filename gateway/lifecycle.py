"""The life of one gateway process: ports, signals, keys, drain. The order of shutdown is written out in ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway.app import Gateway, build
from gateway.core.errors import GatewayError
from gateway.core.identity import KeyKind, TenantId
from gateway.options import normal_origin
from gateway.secret_files import load as load_secrets
from gateway.settings import Settings, SettingsError
from gateway.store.embedded import EmbeddedError, EmbeddedValkey
from gateway.store.redis import store_fault
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import watch_loop
from gateway.transports.refusals import EdgeRunner

logger = logging.getLogger(__name__)

FIRST_LABEL: Final = "default"  # of the keys that a new tenant's first start prints
ENV_FILE_LABEL: Final = "env-file"  # of the keys that every start with an env file replaces
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach a port that listens everywhere
HARD_DEADLINE_EXTRA_S: Final = 30.0  # beyond the drain: settling endings, closing the store


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
    Raises SettingsError, OSError (ports), GatewayError(store_unavailable).
    """
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.ask)
    async with contextlib.AsyncExitStack() as stack:
        embedded = settings.redis.url is None
        redis_url = await stack.enter_async_context(_store(settings, stop))
        gateway = build(
            settings, redis_url=redis_url, secrets=load_secrets(settings, embedded=embedded or made_secrets)
        )
        stack.push_async_callback(gateway.aclose)
        await _check_store(gateway, settings)
        server = settings.server
        public, url = await _listen(stack, gateway.public, server.host, server.port)
        _, internal_url = await _listen(stack, gateway.internal, server.internal_host, server.internal_port)
        gateway.auth.allow_origins(_own_origins(settings, url))
        watcher = loop.create_task(watch_loop(gateway.metrics))
        stack.callback(watcher.cancel)
        keys = await _mint(gateway, fresh=fresh_keys)
        log_event(logger, logging.INFO, "gateway.started", url=url, internal_url=internal_url, embedded=embedded)
        await on_ready(
            Ready(gateway=gateway, url=url, internal_url=internal_url, redis_url=redis_url, keys=tuple(keys))
        )
        await stop.asked.wait()
        await _drain(gateway, public, stop)
    log_event(logger, logging.INFO, "gateway.stopped")


async def _check_store(gateway: Gateway, settings: Settings) -> None:
    """Refuse a store that is away or too old, in words that name it."""
    where = settings.redis.address() or "the embedded store"
    try:
        facts = await gateway.redis.server_facts()
    except GatewayError as error:
        raise SettingsError("GATEWAY_REDIS_URL", f"{where} cannot be used: {type(error.__cause__).__name__}") from None
    if fault := store_fault(facts):
        raise SettingsError("GATEWAY_REDIS_URL", f"{where}: {fault}")


async def _drain(gateway: Gateway, public: web.TCPSite, stop: Stop) -> None:
    """Let go of the public side: no new work, then the turns, then the connections that are left."""
    drain_s = gateway.settings.server.drain_s
    # First of all, a deadline that holds whatever hangs below.
    deadline = threading.Timer(drain_s + HARD_DEADLINE_EXTRA_S, os._exit, (70,))
    deadline.daemon = True
    deadline.start()
    log_event(logger, logging.INFO, "gateway.draining", turns=gateway.turns.running)
    gateway.draining = True
    gateway.turns.drain()
    await public.stop()
    await stop.hurry_or(gateway.turns.ended(), timeout_s=drain_s)
    await gateway.turns.aclose(grace_s=0, settle=not stop.store_lost)
    await asyncio.sleep(0)  # endings shown just now are written by the readers' own tasks
    await asyncio.gather(*(connection.shut() for connection in tuple(gateway.edge.open)), return_exceptions=True)
    deadline.cancel()


@contextlib.asynccontextmanager
async def _store(settings: Settings, stop: Stop) -> AsyncIterator[str]:
    """Give the URL of the Redis to use; an embedded Valkey lives as long as this context."""
    if settings.redis.url is not None:
        yield settings.redis.url.reveal()
        return
    valkey = EmbeddedValkey(settings.server.data_dir)
    await valkey.open()

    def lost(died: asyncio.Future[str]) -> None:
        if not died.cancelled():
            log_event(logger, logging.CRITICAL, "store.lost", reason=died.result())
            stop.lose_store()

    valkey.died.add_done_callback(lost)
    try:
        yield valkey.url
        if valkey.died.done() and not valkey.died.cancelled():
            raise EmbeddedError(valkey.died.result())
    finally:
        await valkey.aclose()


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, host: str, port: int
) -> tuple[web.TCPSite, str]:
    """Open a port for an application; returns the site and the URL under which it answers."""
    runner = EdgeRunner(
        app,
        access_log=None,
        handler_cancellation=True,  # an idle stream would otherwise never learn that its browser left
        shutdown_timeout=2.0,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    bound = runner.addresses[0]
    shown = ANY.get(host, host)
    return site, f"http://{f'[{shown}]' if ':' in shown else shown}:{bound[1]}"


def _own_origins(settings: Settings, url: str) -> frozenset[str]:
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


async def _mint(gateway: Gateway, *, fresh: bool) -> list[Minted]:
    """Make the keys that this start shows: a new tenant's first ones, or the env file's anew."""
    minted: list[Minted] = []
    for tenant in gateway.auth.tenants:
        if fresh:
            label = ENV_FILE_LABEL
        elif not await gateway.auth.has_key(tenant, FIRST_LABEL):
            label = FIRST_LABEL
        else:
            continue
        secret_key = await gateway.auth.mint_key(tenant, KeyKind.SECRET, label, replace=fresh)
        publishable_key = await gateway.auth.mint_key(tenant, KeyKind.PUBLISHABLE, label, replace=fresh)
        minted.append(Minted(tenant=tenant, secret_key=secret_key, publishable_key=publishable_key))
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
