"""Connections to a Redis or Valkey: how they are made, what they are made with, and how one is given up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from gateway.store_url import Address, StoreUrl

AWAY: Final = (RedisError, OSError, TimeoutError)  # what connecting or asking raises when nobody answers as he should


class _Mortal(AbstractConnection):
    """Connects once. redis-py would connect a lost connection anew by itself and subscribe it again, unseen."""

    _lived = False

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        if self._lived:
            raise ConnectionLost("the connection was lost")
        self._lived = True
        await super().connect_check_health(check_health, retry_socket_connect)


class TcpConnection(_Mortal, redis_asyncio.Connection):
    """Over TCP."""


class TlsConnection(_Mortal, redis_asyncio.SSLConnection):
    """Over TCP with TLS."""


class UnixConnection(_Mortal, redis_asyncio.UnixDomainSocketConnection):
    """Over a unix socket."""


class Dialler:
    """Connects to the servers that a URL leads to, all with the same credentials and options.

    What redis-py does by default is not safe here: it repeats what may have been done already, and waits long.
    Reads have no timeout of their own, since every use is bounded as a whole by its caller.
    """

    def __init__(self, url: StoreUrl, *, timeout_s: float) -> None:
        self._kind: Callable[..., AbstractConnection] = TlsConnection if url.tls else TcpConnection
        self._options: dict[str, Any] = {
            "username": url.username,
            "password": url.password,
            "db": url.db,
            "protocol": 3,
            "legacy_responses": False,
            "socket_timeout": None,
            "socket_connect_timeout": timeout_s,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
        }
        if url.tls:
            self._options |= _tls(url.tls_options)
        if url.path:
            self._kind = UnixConnection
            self._options["path"] = url.path

    def for_sentinels(self, url: StoreUrl) -> Dialler:
        """Return one for the Sentinels, which have a login of their own and no databases."""
        other = Dialler.__new__(Dialler)
        other._kind = self._kind
        login = {"username": url.sentinel_username, "password": url.sentinel_password}
        other._options = self._options | login | {"db": 0}
        return other

    async def dial(self, address: Address | None) -> AbstractConnection:
        """Return a new connection, ready for commands. Raises one of AWAY; safe to cancel."""
        where: dict[str, Any] = {"host": address.host, "port": address.port} if address is not None else {}
        connection = self._kind(**self._options, **where)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        except BaseException:
            await give_up(connection)
            raise
        return connection


async def give_up(connection: AbstractConnection) -> None:
    """Close at once, without waiting (this never suspends) and without sending what has not been sent yet."""
    writer = connection._writer
    if writer is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)


async def ask(connection: AbstractConnection, *command: str) -> Any:
    """Send one command over a connection of one's own. Raises one of AWAY, also for an answer that is an error."""
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


def _tls(given: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = dict(given)
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
    elif options.get("ssl_cert_reqs") == "none":
        options["ssl_check_hostname"] = False  # it cannot be checked without a certificate
    return options
