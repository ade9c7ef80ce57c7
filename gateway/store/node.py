"""One server as the commands see it: a few connections, a breaker, and when it last failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ClusterDownError, MasterDownError, ReadOnlyError, ResponseError, TryAgainError

from gateway.store.breaker import Breaker
from gateway.store.connections import give_up

Connect = Callable[[], Awaitable[AbstractConnection]]
Packed = tuple[object, bytes]  # a command's name, and the command as it goes over the wire

# redis-py's shaping of the replies to INFO, CONFIG GET and such, as its RESP3 client would do it.
SHAPES: Final[Mapping[Any, Callable[[Any], Any]]] = redis_asyncio.Redis(
    protocol=3, legacy_responses=False
).response_callbacks
ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


class Node:
    """A server, or whichever is the master at the time. ``connect`` gives a new connection to it."""

    def __init__(self, name: str, connect: Connect, *, connections: int, lost: Callable[[], None]) -> None:
        self.name = name  # for the log
        self.breaker = Breaker()
        self.failed_at_s: float | None = None  # time.monotonic()
        self.failure: BaseException | None = None
        self.lost = lost  # told of every failure and every refusal: whoever knows may look for another server
        self._connect = connect
        self._idle: list[AbstractConnection] = []
        self._places = asyncio.Semaphore(connections)
        self._age = 0  # raised by every failure; connections of an earlier age are not used again

    async def exchange(self, commands: Sequence[Packed], *, asking: bool = False) -> list[Any]:
        """Send commands together and return their replies; an error reply is a ResponseError among them.

        Raises one of AWAY when the connection cannot be had or breaks. Waits as long as it is let: bound it by
        cancelling. A connection that was left in the middle of its replies is dropped, never used again.
        """
        async with self._places:
            connection = await self._connection()
            age, whole = self._age, False
            try:
                parts = [packed for _, packed in commands]
                if asking:  # counts for the next command only, so each of them needs its own
                    parts = [ASKING + packed for packed in parts]
                await connection.send_packed_command(b"".join(parts), check_health=False)
                replies = []
                for name, _ in commands:
                    if asking:
                        await connection.read_response()
                    try:
                        reply = await connection.read_response()
                    except ResponseError as error:
                        replies.append(error)
                    else:
                        replies.append(SHAPES[name](reply) if name in SHAPES else reply)
                whole = True
            finally:
                if whole and age == self._age:
                    self._idle.append(connection)
                else:
                    await give_up(connection)
            return replies

    async def fail(self, error: BaseException, *, trial: bool) -> None:
        """Note that the server was away: open the breaker, drop the connections. ``trial`` as for the breaker."""
        self.note_failure(error)
        self.breaker.fail(trial=trial)
        await self.drop_idle()
        self.lost()

    def note_failure(self, error: BaseException) -> None:
        """Note that a part of the server does not work; the rest of it may."""
        self.failed_at_s, self.failure = time.monotonic(), error

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses, and those in use as soon as they are given back. Never suspends."""
        self._age += 1
        idle, self._idle = self._idle, []
        for connection in idle:
            await give_up(connection)

    async def _connection(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if not await connection.can_read():  # else it was closed by the peer, or says what nobody asked for
                return connection
            await give_up(connection)
        return await self._connect()


def away(reply: object) -> bool:
    """Tell whether an error reply means that the server cannot serve at present, rather than that it refuses."""
    return isinstance(reply, ReadOnlyError | ClusterDownError | TryAgainError)


def away_wholly(reply: object) -> bool:
    """Tell such a reply that is about the whole server from one about a single slot of a Cluster."""
    of_slot = isinstance(reply, ClusterDownError) and not isinstance(reply, MasterDownError) and "slot" in str(reply)
    return away(reply) and not of_slot and not isinstance(reply, TryAgainError)
