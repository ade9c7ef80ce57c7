"""The subscriber connection: a redis-py PubSub that ends with its connection instead of mending it unseen."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio as redis_asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection

from gateway.store.node import Connect


class Subscriber(PubSub):
    """A PubSub over a connection of its own, which its first ``subscribe`` opens within ``timeout_s``.

    A lost connection is raised by the next read (RedisError, OSError or TimeoutError) and never mended: close this
    one with ``aclose``, take a new one, subscribe again, and look for what was published in between. A peer that
    vanished without a word is noticed by the system's keep-alive only (about 45 s), and over a unix socket never:
    publish something to yourself now and then.
    """

    def __init__(self, connect: Connect, *, timeout_s: float) -> None:
        super().__init__(_OwnConnection(connect, timeout_s=timeout_s), push_handler_func=_given)

    def cut(self) -> None:
        """Lose the connection, as if the peer had closed it: the read under way, or the next one, raises."""
        connection: Any = self.connection
        if connection is not None and connection._writer is not None:
            connection._writer.transport.abort()

    async def aclose(self) -> None:
        """Close the connection; never waits for the peer."""
        await super().aclose()  # type: ignore[no-untyped-call]  # redis-py's


class _OwnConnection(redis_asyncio.ConnectionPool):
    """What a PubSub takes its connection from: always a new one, which ends with the PubSub."""

    def __init__(self, connect: Connect, *, timeout_s: float) -> None:
        super().__init__(max_connections=1)
        self._connect = connect
        self._timeout_s = timeout_s

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        async with asyncio.timeout(self._timeout_s):
            return await self._connect()

    async def release(self, connection: AbstractConnection) -> None:
        """PubSub has closed it already."""


async def _given(message: Any) -> Any:
    """Hand a message on as it is; redis-py's own handler writes each of them out for the log."""
    return message
