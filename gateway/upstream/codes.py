"""What each failure of an upstream stream is in the gateway's own terms."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.upstream import errors
from gateway.upstream.errors import UpstreamError

# What an upstream error is to a client.
CODES: Final = MappingProxyType[type[UpstreamError], tuple[Code, str]](
    {
        errors.UpstreamError: (Code.UPSTREAM_ERROR, "The request to Hyperleap failed."),
        errors.InvalidRequest: (Code.INTERNAL, "The request could not be sent."),
        errors.ConnectFailed: (Code.UPSTREAM_UNAVAILABLE, "No connection to Hyperleap."),
        errors.ConnectTimedOut: (Code.UPSTREAM_TIMEOUT, "No connection to Hyperleap in time (connect)."),
        errors.TlsFailed: (Code.UPSTREAM_UNAVAILABLE, "No trusted TLS connection to Hyperleap."),
        errors.NoHttp2: (Code.UPSTREAM_UNAVAILABLE, "The upstream does not speak HTTP/2."),
        errors.QueueTimedOut: (Code.UPSTREAM_OVERLOADED, "No upstream stream became free in time (queue)."),
        errors.QueueFull: (Code.UPSTREAM_OVERLOADED, "Too many requests wait for an upstream stream."),
        errors.PoolClosed: (Code.DRAINING, "The gateway is restarting."),
        errors.StreamReset: (Code.UPSTREAM_RESET, "Hyperleap reset the stream."),
        errors.GoneAway: (Code.UPSTREAM_RESET, "Hyperleap closed the connection."),
        errors.ConnectionLost: (Code.UPSTREAM_RESET, "The connection to Hyperleap was lost."),
        errors.PingTimedOut: (Code.UPSTREAM_RESET, "The connection to Hyperleap went silent."),
        errors.ProtocolViolated: (Code.UPSTREAM_MALFORMED, "Hyperleap broke the rules of HTTP/2."),
        errors.ReceiverRaised: (Code.INTERNAL, "The answer could not be taken in."),
    }
)


def told(error: UpstreamError) -> GatewayError:
    """Translate an upstream error at the border of this room."""
    code, detail = CODES[type(error)]
    return GatewayError(code, detail, processed=error.processed)
