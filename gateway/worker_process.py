"""A worker as its supervisor sees it: a child process, the line to it, and its internal application."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, hdrs
from multidict import CIMultiDict
from yarl import URL

from gateway.control import Control, Launch
from gateway.transports.admin_relay import Relayed

RELAY_TIMEOUT_S: Final = 30.0  # for what an operator asks, which may take many calls to the store
ASK_TIMEOUT_S: Final = 1.0
SCRAPE_TIMEOUT_S: Final = 5.0  # a worker that takes longer to tell its metrics is left out; Prometheus waits for 10


class _Readiness(msgspec.Struct):
    checks: dict[str, str]


class WorkerFailed(Exception):
    """A worker did not become ready; the message is for the operator."""


class WorkerProcess:
    """One worker from its start to its exit. ``start`` it; it ends by ``retire``, ``kill`` or by itself.

    ``ready`` is a future that gets None, or WorkerFailed when the worker ends before. ``on_prepared`` is called when
    it waits for its socket (``hand_over``), ``on_exit`` once it is gone.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        on_prepared: Callable[[WorkerProcess], None],
        on_exit: Callable[[WorkerProcess, int], None],
    ) -> None:
        self.id = launch.worker_id
        self.retired = False  # was asked to end
        self.status: int | None = None  # of its exit
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_seen)
        self.exited: asyncio.Task[int]
        self._launch = launch
        self._on_prepared, self._on_exit = on_prepared, on_exit
        self._process: asyncio.subprocess.Process
        self._control: Control
        self._inside: ClientSession

    async def start(self, environ: Mapping[str, str]) -> None:
        """Start the process; it is told all it needs over its line. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "gateway", "worker", "--control-fd", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=dict(environ),
                    start_new_session=True,  # else Ctrl-C in the terminal would reach it before its supervisor
                )
            except BaseException:
                ours.close()
                raise
        self._control = Control(ours)
        self._control.open(self._take, lambda: None)  # the exit itself is what counts
        self._control.tell("launch", msgspec.json.encode(self._launch).decode())
        self._inside = ClientSession(
            "http://worker",
            connector=UnixConnector(self._launch.internal_socket),
        )
        self.exited = asyncio.get_running_loop().create_task(self._wait())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def serves(self) -> bool:
        """Whether it takes new connections."""
        return self.became_ready and not self.retired and self.status is None

    @property
    def became_ready(self) -> bool:
        return self.ready.done() and self.ready.exception() is None

    def hand_over(self, listener: socket.socket) -> None:
        """Give the worker its slot's socket, which it serves from now on."""
        self._control.tell("listen", descriptor=listener.fileno())

    def adopt(self, connection: socket.socket) -> None:
        """Give the worker a connection that waited for another one."""
        self._control.tell("adopt", descriptor=connection.fileno())

    def tell_lost(self, worker_id: str) -> None:
        """Tell the worker that another one died in the middle of its turns."""
        self._control.tell("worker_lost", worker_id)

    def retire(self, *, replaced: bool, kill_after_s: float) -> None:
        """Let the worker drain and end; it is killed when it takes longer than it may. Safe to repeat."""
        if self.retired or self.exited.done():
            return
        self.retired = True
        if replaced:
            self._control.tell("replaced")
        self._signal(signal.SIGTERM)
        killer = asyncio.get_running_loop().call_later(kill_after_s, self.kill)
        self.exited.add_done_callback(lambda _: killer.cancel())

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def scrape(self, accept: str) -> str | None:
        """Return the worker's metrics in an accepted format; None from one that does not answer in time."""
        answer = await self._ask("/metrics", accept, timeout_s=SCRAPE_TIMEOUT_S)
        return None if answer is None else answer.decode()

    async def readiness(self) -> dict[str, str]:
        """Return the worker's checks by name."""
        answer = await self._ask("/readyz", "application/json")
        return {"worker": "silent"} if answer is None else msgspec.json.decode(answer, type=_Readiness).checks

    async def relay(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes) -> Relayed | None:
        """Pass a request on to the internal application; None when its answer does not come."""
        if self._inside.closed:
            return None
        try:
            async with self._inside.request(
                method,
                URL(f"http://worker{target}", encoded=True),
                headers=CIMultiDict(headers),
                data=io.BytesIO(body) if body else None,
                skip_auto_headers=(hdrs.CONTENT_TYPE,),
                allow_redirects=False,
                timeout=ClientTimeout(total=RELAY_TIMEOUT_S),
            ) as response:
                return Relayed(response.status, response.headers, await response.read())
        except (ClientError, OSError, TimeoutError):
            return None

    async def _ask(self, path: str, accept: str, *, timeout_s: float = ASK_TIMEOUT_S) -> bytes | None:
        """Ask the internal application; None when the worker does not answer in time or is gone."""
        if self._inside.closed:
            return None
        try:
            headers, timeout = {hdrs.ACCEPT: accept}, ClientTimeout(total=timeout_s)
            async with self._inside.get(path, headers=headers, timeout=timeout) as response:
                return await response.read() if response.status in (200, 503) else None
        except (ClientError, OSError, TimeoutError):
            return None

    def _take(self, word: str, rest: str) -> None:
        if word == "prepared":
            self._on_prepared(self)
        elif word == "ready" and not self.ready.done():
            self.ready.set_result(None)
        elif word == "failed" and not self.ready.done():
            self.ready.set_exception(WorkerFailed(msgspec.json.decode(rest, type=str)))

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _wait(self) -> int:
        status = await self._process.wait()
        if not self.ready.done():
            self.ready.set_exception(WorkerFailed(f"the worker exited with status {status}"))
        self._control.close()
        with suppress(OSError):
            os.unlink(self._launch.internal_socket)
        self.status = status
        self._on_exit(self, status)
        await self._inside.close()
        return status


def _seen(ready: asyncio.Future[None]) -> None:
    """Mark a failure as seen: nobody waits for a worker that is abandoned."""
    if not ready.cancelled():
        ready.exception()
