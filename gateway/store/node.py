"""One server as the commands see it: a few connections, a breaker, and when it last failed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as ConnectionLost

from gateway.store.breaker import Breaker
from gateway.store.connections import give_up
from gateway.store.line import Line
from gateway.store.patience import Patience
from gateway.store.waiting import Batch

NO_WRITES: Final = ("NOREPLICAS", "MISCONF")
Connect = Callable[[], Awaitable[AbstractConnection]]


class Node:
    """A server, or whichever is the master at the time. ``connect`` gives a new connection to it."""

    def __init__(self, name: str, connect: Connect, *, connections: int, lost: Callable[[], None]) -> None:
        self.name = name  # for the log
        self.breaker = Breaker()
        self.failed_at_s: float | None = None  # time.monotonic()
        self.failure: BaseException | None = None
        self.lost = lost  # told of every failure and every refusal: whoever knows may look for another server
        self._connect = connect
        self._idle: list[Line] = []
        self._places = connections  # as many batches may be on their way at a time
        self._used = 0
        self._waiting: deque[Batch] = deque()
        self._dialling: dict[Batch, asyncio.Task[Line]] = {}
        self._loop: asyncio.AbstractEventLoop
        self._age = 0  # raised by every failure; connections of an earlier age are not used again

    def send(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Send a batch as soon as there is a connection for it, and end it by its deadline whatever happens.

        A connection that breaks, or that is left in the middle of its replies, is closed and never used again.
        """
        self._loop = loop
        self._waiting.append(batch)
        self._serve()
        if not batch.over:
            batch.patience = Patience(loop, batch.deadline_s, partial(self._expire, batch))

    def fail(self, error: BaseException, *, trial: bool) -> None:
        """Note that the server was away: open the breaker, drop the connections. ``trial`` as for the breaker."""
        self.note_failure(error)
        self.breaker.fail(trial=trial)
        self.drop_idle()
        self.lost()

    def note_failure(self, error: BaseException) -> None:
        """Note that a part of the server does not work; the rest of it may."""
        self.failed_at_s, self.failure = time.monotonic(), error

    def drop_idle(self) -> None:
        """Close the connections that nobody uses, and those in use as soon as they are given back."""
        self._age += 1
        while self._idle:
            self._idle[-1].close()

    def _serve(self) -> None:
        """Let those who have waited longest have what places are free."""
        while self._waiting and self._used < self._places:
            batch = self._waiting.popleft()
            self._used += 1
            line = self._idle_line()
            if line is not None:
                self._start(batch, line)
            else:
                task = self._dialling[batch] = self._loop.create_task(self._dial())
                task.add_done_callback(partial(self._dialled, batch))

    def _idle_line(self) -> Line | None:
        while self._idle:
            if self._idle[-1].usable:
                return self._idle.pop()
            self._idle[-1].close()
        return None

    async def _dial(self) -> Line:
        connection = await self._connect()
        try:
            if await connection.can_read():
                raise ConnectionLost("the server said what nobody asked for")
            return Line(connection, on_free=self._freed, on_lost=self._lost)
        except BaseException:
            await give_up(connection)
            raise

    def _dialled(self, batch: Batch, task: asyncio.Task[Line]) -> None:
        self._dialling.pop(batch, None)
        error = ConnectionLost("connecting was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self._leave()
            batch.end((), error)
        elif batch.over:  # meanwhile
            task.result().age = self._age
            self._freed(task.result())
        else:
            self._start(batch, task.result())

    def _start(self, batch: Batch, line: Line) -> None:
        batch.close, line.age = line.close, self._age
        line.send(batch)

    def _expire(self, batch: Batch) -> None:
        if batch.close is not None:
            batch.close(TimeoutError())
            return
        dialling = self._dialling.pop(batch, None)
        if dialling is not None:
            dialling.cancel()
        else:
            self._waiting.remove(batch)
        batch.end((), TimeoutError())

    def _freed(self, line: Line) -> None:
        if line.age == self._age:
            self._idle.append(line)
            self._leave()
        else:
            line.close()

    def _lost(self, line: Line) -> None:
        if line in self._idle:
            self._idle.remove(line)
        else:
            self._leave()

    def _leave(self) -> None:
        """Give a place back. It is another's in the next round of the loop, after what was learnt by its last use."""
        self._used -= 1
        if self._waiting:
            self._loop.call_soon(self._serve)


def away(reply: object) -> bool:
    """Tell whether an error reply means that the server cannot serve at present, rather than that it refuses."""
    return isinstance(reply, ReadOnlyError | ClusterDownError | TryAgainError) or _takes_no_writes(reply)


def away_wholly(reply: object) -> bool:
    """Tell such a reply that is about the whole server from one about a slot of a Cluster, or about writes alone."""
    of_slot = isinstance(reply, ClusterDownError) and not isinstance(reply, MasterDownError) and "slot" in str(reply)
    return away(reply) and not of_slot and not isinstance(reply, TryAgainError) and not _takes_no_writes(reply)


def _takes_no_writes(reply: object) -> bool:
    """Tell a server that is full, or has lost its replicas (``min-replicas-to-write``) or its disk: it can be read."""
    return isinstance(reply, OutOfMemoryError) or (
        isinstance(reply, ResponseError) and str(reply).startswith(NO_WRITES)
    )
