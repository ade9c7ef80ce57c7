"""A slot: one socket of the public port, and the worker that serves it, started again and again.

All slots listen on the same address (SO_REUSEPORT), and the kernel spreads new connections evenly over their
sockets. The supervisor holds every socket, so connections that wait in its queue survive a rolling restart. A
worker gets the socket only when it is about to serve it, so a slot whose worker crashed can really be closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from gateway.control import Launch
from gateway.lifecycle import BACKLOG
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.workers import WorkersMetrics
from gateway.worker_process import WorkerFailed, WorkerProcess

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 60.0
UNSERVED_S: Final = 1.0  # connections wait this long for a crashed worker's replacement, then go to other slots
BACKOFF_S: Final = 0.5  # before the second restart; the first one is at once
BACKOFF_MAX_S: Final = 30.0
HEALTHY_S: Final = 10.0  # a worker that lived this long owes nothing to earlier failures


class PublicPort:
    """The address that all slots listen on, reserved as long as this is open."""

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError when the address cannot be had, also by another gateway that would share it."""
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._family = socket.AddressFamily(family)
        self._address: tuple[object, ...] = tuple(address)
        # SO_REUSEPORT would let two gateways of one user share a port unnoticed; without it the second is refused.
        with self._socket(shared=False):
            pass
        # Bound but never listening: it keeps the port when every slot is closed.
        self._anchor = self._socket(shared=True)
        self._address = tuple(self._anchor.getsockname())
        self.number = int(self._anchor.getsockname()[1])

    def listener(self) -> socket.socket:
        """Open one more listening socket on the address. Raises OSError."""
        listener = self._socket(shared=True)
        try:
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        self._anchor.close()

    def _socket(self, *, shared: bool) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family is socket.AddressFamily.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(self._address)
        except OSError as error:
            made.close()
            words = f"cannot listen on {self._address[0]} port {self._address[1]}: {error.strerror}"
            raise OSError(error.errno, words) from None
        return made


class Slot:
    """Keeps one worker running: ``open`` starts the first, ``run`` restarts those that crash, ``roll`` replaces one."""

    def __init__(
        self,
        number: int,
        port: PublicPort,
        *,
        launch: Callable[[int], Launch],
        environ: Mapping[str, str],
        retire_s: float,
        metrics: WorkersMetrics,
        on_ready: Callable[[WorkerProcess], None],
        on_lost: Callable[[str], None],
        on_stranded: Callable[[socket.socket], None],
    ) -> None:
        self.number = number
        self.current: WorkerProcess | None = None
        self.old: WorkerProcess | None = None  # was replaced, and drains
        self._alive: set[WorkerProcess] = set()  # also one that is not ready yet
        self._port = port
        self._launch = launch
        self._environ = environ
        self._retire_s = retire_s
        self._metrics = metrics
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_stranded = on_stranded
        self._listener: socket.socket | None = None
        self._failures = 0
        self._ready_at_s = 0.0
        self._unserved: asyncio.TimerHandle | None = None
        self._closed = False
        self._changed = asyncio.Event()
        self._roll: asyncio.Future[bool] | None = None

    def workers(self) -> dict[str, WorkerProcess]:
        """Return the living workers by their label: the slot's number, and ``<number>-old`` for one that drains."""
        named = {str(self.number): self.current, f"{self.number}-old": self.old}
        return {label: worker for label, worker in named.items() if worker is not None}

    async def open(self) -> None:
        """Start the first worker; raises WorkerFailed or OSError."""
        self.current = await self._start()

    async def run(self) -> None:
        """Keep a worker in this slot until cancelled."""
        while True:
            self._changed.clear()
            if self.current is not None and self.current.status is not None:
                self.current = None  # it died in the moment in which it became ready
            if self.current is None:
                await self._revive()
            elif self._roll is not None:
                await self._replace(self._roll)
            else:
                await self._changed.wait()

    async def roll(self) -> bool:
        """Replace the worker; returns once its predecessor has drained. False: the replacement did not get ready."""
        self._roll = asyncio.get_running_loop().create_future()
        self._changed.set()
        done = await self._roll
        if self.old is not None:
            await asyncio.wait([self.old.exited])
        return done

    def stop_listening(self) -> None:
        """Let go of the socket for good; the worker goes on with its own hold on it."""
        self._closed = True
        self._close_listener()

    async def aclose(self) -> None:
        """Let every worker of the slot drain and end. ``run`` has been cancelled."""
        self.stop_listening()
        for worker in self._alive:
            worker.retire(replaced=False, kill_after_s=self._retire_s)
        if self._alive:
            await asyncio.wait([worker.exited for worker in self._alive])

    async def _start(self) -> WorkerProcess:
        """Start a worker and wait until it serves the slot; raises WorkerFailed or OSError, leaving none behind."""
        worker = WorkerProcess(self._launch(self.number), on_prepared=self._hand_over, on_exit=self._exited)
        await worker.start(self._environ)
        self._alive.add(worker)
        worker.exited.add_done_callback(lambda _: self._alive.discard(worker))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(worker.ready)
        except (TimeoutError, WorkerFailed) as error:
            worker.kill()
            await asyncio.wait([worker.exited])
            self._metrics.worker_failed(self.number)
            if isinstance(error, WorkerFailed):
                raise
            raise WorkerFailed(f"the worker was not ready within {START_TIMEOUT_S:g} s") from None
        self._ready_at_s = asyncio.get_running_loop().time()
        self._metrics.worker_ready(self.number)
        log_event(logger, logging.INFO, "worker.ready", slot=self.number, worker_id=worker.id, pid=worker.pid)
        self._on_ready(worker)
        return worker

    async def _revive(self) -> None:
        """Start a worker where there is none, after a pause that grows with every failure in a row."""
        if self._failures:
            pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (self._failures - 1))
            with suppress(TimeoutError):  # a roll, perhaps with better settings, need not wait
                await asyncio.wait_for(self._changed.wait(), pause_s)
        self._failures += 1
        done = True
        try:
            self.current = await self._start()
        except (WorkerFailed, OSError) as error:
            done = False
            log_event(logger, logging.ERROR, "worker.failed", slot=self.number, reason=str(error))
        if self._roll is not None:
            self._roll.set_result(done)
            self._roll = None

    async def _replace(self, roll: asyncio.Future[bool]) -> None:
        """Start the replacement beside the worker, on the same socket, and only then let the worker drain."""
        try:
            replacement = await self._start()
            if replacement.status is not None:
                raise WorkerFailed(f"the worker exited with status {replacement.status}")
        except (WorkerFailed, OSError) as error:
            log_event(logger, logging.ERROR, "roll.failed", slot=self.number, reason=str(error))
            roll.set_result(False)
        else:
            self.old, self.current = self.current, replacement
            self._failures = 0
            if self.old is not None:
                self.old.retire(replaced=True, kill_after_s=self._retire_s)
            roll.set_result(True)
        self._roll = None

    def _hand_over(self, worker: WorkerProcess) -> None:
        """Give the socket to a worker that is about to serve it, opening it again if it was closed."""
        if self._closed:
            return
        if self._unserved is not None:
            self._unserved.cancel()
        try:
            if self._listener is None:
                self._listener = self._port.listener()
        except OSError as error:
            log_event(logger, logging.ERROR, "slot.closed", slot=self.number, reason=str(error))
            worker.kill()
            return
        worker.hand_over(self._listener)

    def _exited(self, worker: WorkerProcess, status: int) -> None:
        lost = worker.became_ready and (status != 0 or not worker.retired)
        if worker.became_ready:
            self._metrics.worker_left(self.number, lost=lost)
        log_event(
            logger,
            logging.ERROR if lost else logging.INFO,
            "worker.lost" if lost else "worker.exited",
            slot=self.number,
            worker_id=worker.id,
            status=status,
        )
        if worker is self.old:
            self.old = None
        if worker is self.current:
            self.current = None
            if asyncio.get_running_loop().time() - self._ready_at_s >= HEALTHY_S:
                self._failures = 0
            self._changed.set()
        if self.current is None and self._listener is not None:
            self._unserved = asyncio.get_running_loop().call_later(UNSERVED_S, self._close_unserved)
        if lost:
            self._on_lost(worker.id)

    def _close_unserved(self) -> None:
        """Close the slot, so that the kernel gives new connections to the others; what waits goes to them now."""
        listener = self._listener
        while listener is not None:
            try:
                connection, _ = listener.accept()
            except OSError:  # none is left
                break
            with connection:
                self._on_stranded(connection)
        self._close_listener()

    def _close_listener(self) -> None:
        if self._unserved is not None:
            self._unserved.cancel()
            self._unserved = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
