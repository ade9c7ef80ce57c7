"""One worker of a supervisor: started with nothing but its end of a control line, which ends it when it closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.app import build
from gateway.control import Control, Launch
from gateway.core.errors import GatewayError
from gateway.core.identity import WorkerId
from gateway.lifecycle import (
    BACKLOG,
    HardDeadline,
    Stop,
    check_store,
    drain,
    drain_longest_s,
    own_origins,
    run_app,
    tend_memory,
)
from gateway.secret_files import load as load_secrets
from gateway.sections import SettingsError
from gateway.services.recovery import Recovery
from gateway.settings import load
from gateway.telemetry.logging import configure
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import watch_loop

logger = logging.getLogger(__name__)

ORPHANED: Final = 75  # the exit status of a worker whose supervisor and store are gone


class _Post:
    """A worker's post: what its supervisor has told it so far."""

    def __init__(self, control: Control) -> None:
        loop = asyncio.get_running_loop()
        self.launch: asyncio.Future[Launch] = loop.create_future()
        self.listener: asyncio.Future[socket.socket] = loop.create_future()
        self.server: web.Server | None = None  # of the public application, once it is served
        self.replaced = asyncio.Event()
        self.stop = Stop()
        self.recovery: Recovery | None = None  # once the worker has one
        self._control = control
        self._tasks: set[asyncio.Task[object]] = set()

    def take(self, word: str, rest: str) -> None:
        match word:
            case "launch":
                self.launch.set_result(msgspec.json.decode(rest, type=Launch))
            case "listen":
                self.listener.set_result(socket.socket(fileno=self._control.descriptor()))
            case "adopt":
                self.adopt(socket.socket(fileno=self._control.descriptor()))
            case "replaced":
                self.replaced.set()
            case "worker_lost":
                if self.recovery is not None:
                    self._spawn(self.recovery.worker_lost(WorkerId(rest)))
            case _:
                log_event(logger, logging.WARNING, "control.misunderstood", word=word)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that waited in the queue of a worker that died."""
        assert self.server is not None, "only a worker that said `ready` is given connections"
        self._spawn(asyncio.get_running_loop().connect_accepted_socket(self.server, connection))

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def orphaned(self) -> None:
        """The supervisor is gone: end too, at once where the store was its own and has ended with it."""
        if not self.launch.done():
            os._exit(ORPHANED)
        _tidy(self.launch.result())
        if self.launch.result().embedded:
            os._exit(ORPHANED)
        log_event(logger, logging.WARNING, "worker.orphaned")
        self.replaced.set()  # nothing is left that could take notice
        self.stop.ask()


async def run(control_fd: int) -> bool:
    """Serve the socket that the supervisor hands over, until SIGTERM, then drain. False: it could not start."""
    control = Control(socket.socket(fileno=control_fd))
    post = _Post(control)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, post.stop.ask)
    control.open(post.take, post.orphaned)
    try:
        await _serve(await post.launch, control, post)
    except (SettingsError, GatewayError, OSError, ValueError) as error:
        control.tell("failed", msgspec.json.encode(str(error)).decode())
        return False
    finally:
        control.close()
    return True


async def _serve(launch: Launch, control: Control, post: _Post) -> None:
    settings = load(Path(launch.config) if launch.config else None, os.environ, launch.overrides)
    configure(settings.logging, worker=str(launch.slot))  # the keys are masked as they are read
    async with contextlib.AsyncExitStack() as stack:
        deadline = stack.enter_context(HardDeadline())
        secrets = load_secrets(settings, embedded=launch.embedded or launch.made_secrets)
        gateway = build(settings, redis_url=launch.redis_url, secrets=secrets, worker_id=launch.worker_id)
        stack.push_async_callback(gateway.aclose)
        await check_store(gateway, settings)
        await gateway.load()
        gateway.open()
        post.recovery = gateway.recovery
        public = await run_app(stack, gateway.public)
        internal = await run_app(stack, gateway.internal)
        await web.UnixSite(internal, launch.internal_socket).start()
        gateway.auth.allow_origins(own_origins(settings, launch.url))
        watcher = asyncio.get_running_loop().create_task(watch_loop(gateway.metrics))
        stack.callback(watcher.cancel)
        tend_memory()
        control.tell("prepared")
        listener = await _listener(post)
        if listener is None:
            return
        await web.SockSite(public, listener, backlog=BACKLOG).start()
        post.server = public.server
        control.tell("ready")
        log_event(logger, logging.INFO, "worker.started", worker_id=launch.worker_id)
        await post.stop.asked.wait()
        deadline.arm(drain_longest_s(settings))
        await drain(gateway, public, stop=post.stop, replaced=post.replaced, shared_store=not launch.embedded)
    log_event(logger, logging.INFO, "worker.stopped", worker_id=launch.worker_id)


async def _listener(post: _Post) -> socket.socket | None:
    """Wait for the slot's socket; None when the worker is told to end before it gets one."""
    stopped = asyncio.ensure_future(post.stop.asked.wait())
    waited: set[asyncio.Future[object]] = {stopped, post.listener}  # type: ignore[arg-type]  # results of two types
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return post.listener.result() if post.listener.done() else None


def _tidy(launch: Launch) -> None:
    """Remove the internal socket, and with the last of the orphans its directory, which nobody else will."""
    path = Path(launch.internal_socket)
    for remove in (path.unlink, path.parent.rmdir):
        with contextlib.suppress(OSError):
            remove()
