"""One request and the answer to it, whichever connection carries it."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from gateway.upstream.errors import InvalidRequest, UpstreamError
from gateway.upstream.origin import Origin

if TYPE_CHECKING:
    from gateway.upstream.connection import Connection
    from gateway.upstream.pool import Pool
    from gateway.upstream.session import Session

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110, 5.6.2, lower case (RFC 9113, 8.2.1)
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")  # RFC 9110, 5.5
_PATH = re.compile(r"/[\x21-\x7e]*")
_METHOD = re.compile(r"[A-Z]+")
HOP_BY_HOP = frozenset(
    {b"connection", b"host", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)


class Receiver(Protocol):
    """Is called from the connection's `data_received`, with no task switch: must be quick and must not raise.

    Exactly one of `stream_ended` and `stream_failed` comes last, unless `Stream.cancel` was called, after which
    nothing comes. None comes before the task that awaits `open_stream` itself, not through a task or `wait_for`, has
    its stream.
    """

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def data_received(self, data: bytes) -> None:
        """One DATA frame's payload, never empty; `Stream.consumed(len(data))` must follow sooner or later."""
        ...

    def stream_ended(self) -> None: ...
    def stream_failed(self, error: UpstreamError) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is fit to be sent: pseudo-headers in front, names in lower case, values checked."""

    method: str
    headers: list[HeaderTuple]
    body: bytes

    @classmethod
    def build(
        cls,
        origin: Origin,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        secret_headers: frozenset[bytes],
    ) -> "Request":
        """Raises InvalidRequest where a method, path or header would be refused or read differently by the peer."""
        if not _METHOD.fullmatch(method):
            raise InvalidRequest("method is not a word in capitals")
        if not _PATH.fullmatch(path):
            raise InvalidRequest("path does not begin with / or holds a character that must be percent-encoded")
        lines = [
            HeaderTuple(b":method", method.encode("ascii")),
            HeaderTuple(b":scheme", b"https" if origin.is_tls else b"http"),
            HeaderTuple(b":authority", origin.authority),
            # No two are alike: in HPACK's table they would push out what is, and make it long to search.
            NeverIndexedHeaderTuple(b":path", path.encode("ascii")),
        ]
        for raw_name, value in headers:
            name = raw_name.lower()
            if not _TOKEN.fullmatch(name) or name in HOP_BY_HOP:
                raise InvalidRequest(f"header name {name[:64]!r} is not allowed in HTTP/2")
            if not _VALUE.fullmatch(value):
                raise InvalidRequest(f"value of header {name[:64]!r} holds a control character or outer white space")
            lines.append((NeverIndexedHeaderTuple if name in secret_headers else HeaderTuple)(name, value))
        return cls(method, lines, body)


class Stream:
    """A request under way. Its owner calls `consumed` and `cancel`; the rest belongs to pool and connection."""

    __slots__ = (
        "answered",
        "attempts",
        "content_bytes",
        "credit_bytes",
        "deadline_s",
        "expected_bytes",
        "expiry",
        "failure",
        "fast",
        "pool",
        "receiver",
        "request",
        "session",
        "stream_id",
        "unsent",
        "waiter",
        "window_bytes",
        "written",
    )

    def __init__(self, pool: "Pool", request: Request, receiver: Receiver, *, deadline_s: float) -> None:
        self.pool = pool
        self.request = request
        self.receiver = receiver
        self.deadline_s = deadline_s  # on the loop's clock, for getting onto a connection
        self.attempts = 0
        self.answered = False  # the receiver has had headers; no attempt may follow
        self.failure: UpstreamError | None = None  # of the last attempt
        self.waiter: asyncio.Future[Connection] | None = None  # where open_stream waits
        self.expiry: asyncio.TimerHandle | None = None  # set while queued
        self.session: Session | None = None  # set while open
        self.attach(None, 0, window_bytes=0)

    def attach(self, session: "Session | None", stream_id: int, *, window_bytes: int) -> None:
        """Begin an attempt afresh."""
        self.session = session
        self.stream_id = stream_id
        self.unsent = memoryview(self.request.body)
        self.written = False  # HEADERS were given to the socket: from here on the peer may have seen the request
        self.window_bytes = window_bytes  # what the peer may still send
        self.credit_bytes = 0  # consumed, not yet returned to the peer
        self.fast = False  # DATA may go by h2: answered, no content-length, no padding so far
        self.expected_bytes: int | None = None  # content-length
        self.content_bytes = 0  # received, counted only where a content-length has to be met

    def consumed(self, size_bytes: int) -> None:
        """Say that the receiver is done with so many bytes, so that the peer may send as many more."""
        if self.session is not None:
            self.session.credit(self, size_bytes)

    def cancel(self) -> None:
        """Leave: RST_STREAM(CANCEL) at once. Never waits, may be called twice, and no callback follows."""
        if self.session is not None:
            self.session.cancel(self)
        elif self.expiry is not None:
            self.pool.withdraw(self)

    def __repr__(self) -> str:
        state = "open" if self.session is not None else "queued" if self.expiry is not None else "closed"
        return f"<Stream {self.request.method} id={self.stream_id} {state} attempts={self.attempts}>"
