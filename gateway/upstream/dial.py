"""Opening a connection: DNS, TCP, TLS with ALPN and the peer's SETTINGS, under one deadline."""

import asyncio
import ssl
from dataclasses import dataclass

from h2.settings import SettingCodes

from gateway.upstream.connection import Connection, ConnectionOwner
from gateway.upstream.errors import ConnectFailed, ConnectTimedOut, NoHttp2, TlsFailed, UpstreamError
from gateway.upstream.observer import UpstreamObserver
from gateway.upstream.origin import Origin, PoolSettings


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What a connection attempt has shown; no request was sent."""

    address: str
    connect_s: float
    tls_version: str | None  # None over h2c
    tls_cipher: str | None
    alpn: str | None
    max_concurrent_streams: int | None  # None: the peer sets no limit
    initial_window_bytes: int
    max_frame_bytes: int


async def dial(
    origin: Origin,
    *,
    settings: PoolSettings,
    tls: ssl.SSLContext | None,
    owner: ConnectionOwner,
    observer: UpstreamObserver,
) -> Connection:
    """Return a connection that is ready for streams. Raises ConnectFailed or one of its kinds; safe to cancel."""
    connection = Connection(tls=tls is not None, settings=settings, owner=owner, observer=observer)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                origin.host,
                origin.port,
                ssl=tls,
                server_hostname=origin.host if tls is not None else None,
                ssl_shutdown_timeout=settings.close_timeout_s if tls is not None else None,
            )
            await connection.ready
    except Exception as error:
        connection.abort()
        raise _translate(error, origin, settings) from error
    except BaseException:  # cancelled
        connection.abort()
        raise
    return connection


def _translate(error: Exception, origin: Origin, settings: PoolSettings) -> ConnectFailed:
    match error:
        case ConnectFailed():
            return error
        case UpstreamError():
            return ConnectFailed(f"{origin} did not open HTTP/2: {error}")
        case TimeoutError() if error.errno is None:  # the deadline's; the system's own has a number
            return ConnectTimedOut(f"{origin} was not ready within {settings.connect_timeout_s:g} s")
        case ssl.SSLCertVerificationError():
            return TlsFailed(f"certificate of {origin} is not trusted: {error.verify_message}")
        case ssl.SSLError() if "NO_APPLICATION_PROTOCOL" in (error.reason or ""):
            return NoHttp2(f"{origin} refuses h2 by ALPN")
        case ssl.SSLError():
            return TlsFailed(f"TLS with {origin} failed: {error.reason or type(error).__name__}")
        case OSError():
            return ConnectFailed(f"cannot connect to {origin}: {error.strerror or type(error).__name__}")
        case _:
            return ConnectFailed(f"cannot connect to {origin}: {type(error).__name__}")


def facts_of(connection: Connection, connect_s: float) -> ProbeFacts:
    """Read the facts off a connection that is ready."""
    transport = connection.transport
    assert transport is not None
    peer = connection.peer_settings
    secured = transport.get_extra_info("ssl_object")
    host, port = transport.get_extra_info("peername")[:2]
    cipher = secured.cipher() if secured is not None else None
    return ProbeFacts(
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        connect_s=connect_s,
        tls_version=secured.version() if secured is not None else None,
        tls_cipher=cipher[0] if cipher else None,
        alpn=secured.selected_alpn_protocol() if secured is not None else None,
        max_concurrent_streams=peer.get(SettingCodes.MAX_CONCURRENT_STREAMS),
        initial_window_bytes=peer.initial_window_size,
        max_frame_bytes=peer.max_frame_size,
    )
