"""Several workers on one public port: started, watched, rolled and ended by this process, which serves no client.

SIGHUP replaces every worker, one slot after the other: the replacement is ready before its predecessor drains.
Settings files and secrets are read anew; ports, store and the number of workers stay. SIGTERM and SIGINT let all
workers drain at once, then the store and this process end. The workers end with this process however it ends:
their control lines close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from gateway.app import build
from gateway.control import Launch
from gateway.core.errors import Code, GatewayError
from gateway.lifecycle import (
    HardDeadline,
    OnReady,
    Ready,
    drain_longest_s,
    listen,
    mint,
    run_app,
    shown_url,
    store,
)
from gateway.secret_files import load as load_secrets
from gateway.sections import SettingsError
from gateway.settings import Settings
from gateway.slot import PublicPort, Slot
from gateway.telemetry.exposition import Scrape, sliced
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.workers import WorkersMetrics, merge
from gateway.transports import admin_relay, console, ops
from gateway.transports.admin_relay import Relayed
from gateway.worker_process import WorkerFailed, WorkerProcess

logger = logging.getLogger(__name__)

SOCKET_DIR_MAX_BYTES: Final = 60  # with a name of 40 it fits the 104 bytes of an address (macOS)
RETIRE_EXTRA_S: Final = 5.0  # beyond the worker's own hard deadline
TELL_LOST_S: Final = 60.0  # a worker that is started within this after another died is told of it
END_EXTRA_S: Final = 30.0  # for the store, beyond that


class StartFailed(Exception):
    """The workers could not be started; the message is for the operator."""


async def serve(
    settings: Settings,
    *,
    workers: int,
    config: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    on_ready: OnReady,
    made_secrets: bool = False,
    fresh_keys: bool = False,
) -> None:
    """Run a gateway of several workers until SIGINT or SIGTERM, then drain them.

    ``settings`` is what ``config``, ``environ`` and ``overrides`` amount to; workers load it from these again.
    ``on_ready`` is awaited once every slot is served. Raises SettingsError, StartFailed, OSError (ports),
    GatewayError(store_unavailable), EmbeddedError (the store of its own is given up).
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise SettingsError("server.workers", "needs Linux or macOS")
    stopped, rolled = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, rolled.set)
    async with contextlib.AsyncExitStack() as stack:
        deadline = stack.enter_context(HardDeadline())
        embedded = settings.redis.url is None
        redis_url = await stack.enter_async_context(store(settings, stopped.set))
        secrets = load_secrets(settings, embedded=embedded or made_secrets)  # made by one process, read by all
        server = settings.server
        port = stack.enter_context(contextlib.closing(PublicPort(server.host, server.port)))
        url = shown_url(server.host, port.number)
        sockets = _private_dir()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)

        def launch(slot: int) -> Launch:
            worker_id = uuid.uuid4().hex
            return Launch(
                slot=slot,
                worker_id=worker_id,
                config=None if config is None else str(config.absolute()),
                overrides={key: _plain(value) for key, value in overrides.items() if value is not None},
                redis_url=redis_url,
                embedded=embedded,
                made_secrets=made_secrets,
                url=url,
                internal_socket=str(sockets / worker_id),
            )

        supervisor = Supervisor(settings, workers, port, launch=launch, environ=environ)
        internal_url = await listen(
            await run_app(stack, supervisor.internal), server.internal_host, server.internal_port
        )
        stack.push_async_callback(supervisor.aclose)
        await supervisor.open(stopped)
        if not stopped.is_set():
            gateway = build(settings, redis_url=redis_url, secrets=secrets)  # for keys only: it serves nobody
            async with contextlib.aclosing(gateway):
                keys = await mint(gateway, fresh=fresh_keys)
                log_event(logger, logging.INFO, "gateway.started", url=url, internal_url=internal_url, workers=workers)
                await on_ready(
                    Ready(gateway=gateway, url=url, internal_url=internal_url, redis_url=redis_url, keys=tuple(keys))
                )
            await supervisor.run(stopped, rolled)
        deadline.arm(drain_longest_s(settings) + RETIRE_EXTRA_S + END_EXTRA_S)
        log_event(logger, logging.INFO, "gateway.draining")
    log_event(logger, logging.INFO, "gateway.stopped")


class Supervisor:
    """The slots of a gateway. ``open``, ``run`` until it returns, ``aclose``."""

    def __init__(
        self,
        settings: Settings,
        workers: int,
        port: PublicPort,
        *,
        launch: Callable[[int], Launch],
        environ: Mapping[str, str],
    ) -> None:
        self.metrics = WorkersMetrics(workers)
        self._draining = False
        self._placed = 0
        self._lost: deque[tuple[float, str]] = deque()  # when, and who: workers that died lately
        self._tasks: list[asyncio.Task[None]] = []
        self._slots = [
            Slot(
                number,
                port,
                launch=launch,
                environ=environ,
                retire_s=drain_longest_s(settings) + RETIRE_EXTRA_S,
                metrics=self.metrics,
                on_ready=self._tell_lost,
                on_lost=self._worker_lost,
                on_stranded=self._place,
            )
            for number in range(workers)
        ]
        self.internal = web.Application()
        self.internal[ops.METRICS] = self
        self.internal[ops.READINESS] = self
        self.internal[admin_relay.RELAY] = self
        self.internal[admin_relay.BODY_MAX] = settings.server.body_max_bytes
        self.internal.add_routes(ops.routes)
        if settings.server.admin_token_file is not None:  # here, so that it is there also while no worker serves
            self.internal.add_routes(console.routes)
        self.internal.add_routes(admin_relay.routes)

    async def open(self, stopped: asyncio.Event) -> None:
        """Start a worker in every slot; returns early when ``stopped`` is set. Raises StartFailed or OSError."""
        starting = asyncio.gather(*(slot.open() for slot in self._slots))
        stopping = asyncio.ensure_future(stopped.wait())
        first: set[asyncio.Future[Any]] = {starting, stopping}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
        except WorkerFailed as error:
            raise StartFailed(str(error)) from None
        finally:
            stopping.cancel()
            starting.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def run(self, stopped: asyncio.Event, rolled: asyncio.Event) -> None:
        """Keep every slot served, and roll them when ``rolled`` is set, until ``stopped`` is."""
        self._tasks = [asyncio.create_task(slot.run()) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._roll(rolled)))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({stopping, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()  # never ends by itself but by a mistake of ours: fall rather than limp
        finally:
            stopping.cancel()

    async def aclose(self) -> None:
        """Let all workers drain and end; no connection is taken any more."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(slot.aclose() for slot in self._slots))

    async def scrape(self, accept: str, /) -> Scrape:
        """Return the metrics of all workers and of this process as one scrape."""
        workers = self._workers()
        told = await asyncio.gather(*(worker.scrape(accept) for worker in workers.values()))
        own = self.metrics.scrape(accept)
        scrapes = [(label, scrape) for label, scrape in zip(workers, told, strict=True) if scrape is not None]
        return Scrape(own.content_type, sliced(merge([*scrapes, (None, (await own.whole()).decode())])))

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """Ready when any slot is served and the store answers its worker; every slot is listed.

        ``peers`` says whether every worker hears the others (see ``Gateway.readiness``).
        """
        workers = self._workers()
        told = dict(
            zip(workers, await asyncio.gather(*(worker.readiness() for worker in workers.values())), strict=True)
        )
        stores = {checks["store"] for checks in told.values() if "store" in checks}
        checks = {
            "supervisor": "draining" if self._draining else "ok",
            "store": "ok" if "ok" in stores else min(stores, default="unknown"),
            "peers": "ok" if all(checks.get("peers") == "ok" for checks in told.values()) else "deaf",
        }
        served = False
        for slot in self._slots:
            state = told[str(slot.number)]["worker"] if str(slot.number) in told else "starting"
            served = served or state == "ok"
            checks[f"worker_{slot.number}"] = state
        checks |= {f"worker_{label}": "draining" for label in told if f"worker_{label}" not in checks}
        return served and checks["store"] == "ok" and not self._draining, checks

    async def relay(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, /) -> Relayed:
        """Pass a request of the admin API on to the first worker that serves.

        Raises GatewayError: draining where there is none, worker_lost where its answer did not come.
        """
        for slot in self._slots:
            if slot.current is not None and slot.current.serves:
                answer = await slot.current.relay(method, target, headers, body)
                if answer is None:
                    raise GatewayError(Code.WORKER_LOST, "The worker did not answer; it may have done what was asked.")
                return answer
        raise GatewayError(Code.DRAINING, "No worker serves just now.", retry_after_s=1.0)

    def _workers(self) -> dict[str, WorkerProcess]:
        return {label: worker for slot in self._slots for label, worker in slot.workers().items()}

    async def _roll(self, rolled: asyncio.Event) -> None:
        while True:
            await rolled.wait()
            rolled.clear()
            log_event(logger, logging.INFO, "roll.started")
            for slot in self._slots:
                done = await slot.roll()
                if not done:  # what kept this one from starting would keep the others: the old ones stay
                    break
            self.metrics.rolled(done=done)
            log_event(logger, logging.INFO if done else logging.ERROR, "roll.done" if done else "roll.abandoned")

    def _place(self, connection: socket.socket) -> None:
        """Hand a connection that waits in a closed slot to the next slot that is served, if any."""
        serving = [slot.current for slot in self._slots if slot.current is not None and slot.current.serves]
        if serving:
            self._placed += 1
            serving[self._placed % len(serving)].adopt(connection)

    def _worker_lost(self, worker_id: str) -> None:
        """Tell every other worker at once: what the lost one owned has no owner now."""
        self._lost.append((time.monotonic(), worker_id))
        for worker in self._workers().values():
            worker.tell_lost(worker_id)

    def _tell_lost(self, worker: WorkerProcess) -> None:
        """Tell a new worker who died lately: there may have been nobody to take over, or he has died too."""
        while self._lost and self._lost[0][0] < time.monotonic() - TELL_LOST_S:
            self._lost.popleft()
        for _, worker_id in self._lost:
            worker.tell_lost(worker_id)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _private_dir() -> Path:
    """Make a directory for the workers' internal sockets, with a path that is short enough for them."""
    for root in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp is safe there
        if root and os.access(root, os.W_OK) and len(os.fsencode(root)) < SOCKET_DIR_MAX_BYTES - 30:
            return Path(tempfile.mkdtemp(prefix="hyperleap-workers-", dir=root))
    raise StartFailed("no directory with a path short enough for a unix socket; set TMPDIR to one")
