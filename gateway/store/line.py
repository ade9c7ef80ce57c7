"""A connection as the commands use it: a batch goes out in one write, its replies are read as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import redis.asyncio as redis_asyncio
from hiredis import PushNotification, Reader
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ResponseError

from gateway.store.waiting import Batch, Call

# redis-py's shaping of the replies to INFO, CONFIG GET and such, as its RESP3 client would do it.
SHAPES: Final[Mapping[Any, Callable[[Any], Any]]] = redis_asyncio.Redis(
    protocol=3, legacy_responses=False
).response_callbacks
MORE: Final = object()  # what the reader gives while a reply is not whole


class Line(asyncio.Protocol):
    """Takes over a connection that redis-py has made: its transport, and how it reads errors.

    It has one batch at a time, and tells what became of it. One command that has to itself a connection of redis-py's
    costs 28 µs, for its streams and for the task that waits for them; here it costs 18, of which most is the system's.
    """

    __slots__ = ("_batch", "_on_free", "_on_lost", "_reader", "_replies", "_transport", "_writer", "age")

    def __init__(
        self, connection: AbstractConnection, *, on_free: Callable[[Line], None], on_lost: Callable[[Line], None]
    ) -> None:
        """``on_free`` is called before its batch is told of its replies, ``on_lost`` once when it cannot be used."""
        writer = connection._writer
        if writer is None:
            raise ConnectionLost("the connection was lost")
        # The connection closes what it believes to be its own when it is collected, and so does the writer.
        connection._writer = connection._reader = None
        self._writer = writer
        self._transport = cast("asyncio.Transport", writer.transport)
        self._reader = Reader(
            protocolError=InvalidResponse,
            replyError=cast("Callable[[str], Exception]", connection._parser.parse_error),
            notEnoughData=MORE,
        )
        self._on_free = on_free
        self._on_lost: Callable[[Line], None] | None = on_lost
        self._batch: Batch | None = None
        self._replies: list[Any] = []
        self.age = 0  # of its node when it was used last
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        """Whether a batch may be sent: not closed by the peer, and nothing was said that nobody asked for."""
        return self._on_lost is not None and not self._transport.is_closing() and not self._reader.has_data()

    def send(self, batch: Batch) -> None:
        self._batch = batch
        self._transport.write(batch.packed())

    def close(self, error: BaseException | None = None) -> None:
        """Close at once, without sending what has not been sent yet; a batch under way fails. Safe to repeat."""
        self._transport.abort()
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is None:
            return
        batch, self._batch = self._batch, None
        on_lost(self)
        if batch is not None:
            batch.end((), error or ConnectionLost("the connection was lost"))

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        batch, replies = self._batch, self._replies
        gets = self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := gets()) is not MORE:
                if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                    raise reply  # the server says that it does not serve this connection
                if type(reply) is not PushNotification:
                    replies.append(reply)
            if batch is None:
                if replies:
                    raise ConnectionLost("the server said what nobody asked for")
                return
            missing = len(batch.calls) * (1 + batch.asking) - len(replies)
            if missing > 0:
                return
            if missing < 0:
                raise ConnectionLost("the server said more than was asked for")
            if batch.asking:
                refusal = next((reply for reply in replies[::2] if isinstance(reply, Exception)), None)
                if refusal is not None:
                    raise refusal
                replies = replies[1::2]
            replies = [_shaped(call, reply) for call, reply in zip(batch.calls, replies, strict=True)]
        except Exception as error:  # whoever waits must hear of it, a fault of ours too
            self.close(error)
            return
        self._batch, self._replies = None, []
        self._on_free(self)
        batch.end(replies)

    def connection_lost(self, error: Exception | None) -> None:
        self.close(error)


def _shaped(call: Call, reply: Any) -> Any:
    return SHAPES[call.name](reply) if call.name in SHAPES and not isinstance(reply, Exception) else reply
