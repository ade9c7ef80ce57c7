"""What can go wrong between the gateway and the vendor, and whether the vendor may have seen the request.

No message carries a header value or anything of a body.
"""

import copy
from typing import Self


class UpstreamError(Exception):
    """A request that got no complete answer.

    `processed` is False only when it is certain that the vendor did not act on the request (no connection,
    REFUSED_STREAM, above GOAWAY's last id, HEADERS never written): only then may it be sent again.
    """

    processed: bool = True

    def for_stream(self, *, processed: bool) -> Self:
        """A twin for one of the streams that share this cause; an exception object belongs to one raiser."""
        twin = copy.copy(self)
        twin.__cause__ = self.__cause__
        twin.processed = processed
        return twin


class InvalidRequest(UpstreamError):
    """The request may not be sent as it is: a control character in a header, a bad path or method."""

    processed = False


class ConnectFailed(UpstreamError):
    """No usable connection: name resolution, TCP, TLS or the HTTP/2 preface failed."""

    processed = False


class ConnectTimedOut(ConnectFailed):
    """No usable connection within the connect deadline."""


class TlsFailed(ConnectFailed):
    """The TLS handshake failed; most often a certificate that the trusted authorities do not vouch for."""


class NoHttp2(ConnectFailed):
    """The peer does not speak HTTP/2: no `h2` by ALPN, or an answer in HTTP/1 on an `h2c://` address."""


class QueueTimedOut(UpstreamError):
    """Every stream of every connection stayed taken until the request's deadline."""

    processed = False


class QueueFull(UpstreamError):
    """Too many requests are waiting for a stream already."""

    processed = False


class PoolClosed(UpstreamError):
    """The pool was closed; `processed` says whether the request had gone out."""

    processed = False


class StreamReset(UpstreamError):
    """The peer ended this one stream with RST_STREAM; REFUSED_STREAM means it never acted on it (RFC 9113, 8.7)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.processed = code != 0x7


class GoneAway(UpstreamError):
    """The stream's id is above the last one that the peer's GOAWAY says it acts on (RFC 9113, 6.8)."""

    processed = False


class ConnectionLost(UpstreamError):
    """The connection broke with the stream on it."""


class PingTimedOut(ConnectionLost):
    """The peer sent nothing at all for the PING deadline, not even the answer to a PING."""


class ProtocolViolated(UpstreamError):
    """The peer broke HTTP/2's rules on this stream or on its connection."""


class ReceiverRaised(UpstreamError):
    """The caller's own callback raised; its stream was reset, the others on the connection live on."""
