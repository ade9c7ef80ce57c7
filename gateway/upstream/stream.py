"""One request and the answer to it, whichever connection carries it."""

import asyncio
from typing import TYPE_CHECKING, Protocol

from gateway.upstream.errors import UpstreamError
from gateway.upstream.request import Request

if TYPE_CHECKING:
    from gateway.upstream.connection import Connection
    from gateway.upstream.pool import Pool
    from gateway.upstream.session import Session


class Receiver(Protocol):
    """Is called from the connection's `data_received`, with no task switch: must be quick and must not raise.

    Exactly one of `stream_ended` and `stream_failed` comes last, unless `Stream.cancel` was called, after which
    nothing comes. None comes before the task that awaits `open_stream` itself, not through a task or `wait_for`, has
    its stream.
    """

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def data_received(self, data: bytes) -> None:
        """One DATA frame's payload, never empty.

        `Stream.consumed(len(data))` must follow sooner or later, unless the stream was opened with `keeps_nothing`.
        """
        ...

    def stream_ended(self) -> None: ...
    def stream_failed(self, error: UpstreamError) -> None: ...


class Stream:
    """A request under way. Its owner calls `consumed` and `cancel`; the rest belongs to pool and connection."""

    __slots__ = (
        "answered",
        "attempts",
        "content_bytes",
        "credit_bytes",
        "credit_due_bytes",
        "deadline_s",
        "expected_bytes",
        "expiry",
        "failure",
        "keeps_nothing",
        "pool",
        "receiver",
        "request",
        "send_window_bytes",
        "session",
        "stream_id",
        "unsent",
        "waiter",
        "window_bytes",
        "written",
    )

    def __init__(
        self, pool: "Pool", request: Request, receiver: Receiver, *, deadline_s: float, keeps_nothing: bool = False
    ) -> None:
        self.pool = pool
        self.request = request
        self.receiver = receiver
        self.keeps_nothing = keeps_nothing  # what the receiver is given is consumed
        self.deadline_s = deadline_s  # on the loop's clock, for getting onto a connection
        self.attempts = 0
        self.answered = False  # by headers, which the receiver has had; no attempt may follow
        self.failure: UpstreamError | None = None  # of the last attempt
        self.waiter: asyncio.Future[Connection] | None = None  # where open_stream waits
        self.expiry: asyncio.TimerHandle | None = None  # set while queued
        self.session: Session | None = None  # set while open
        self.attach(None, 0, window_bytes=0, send_window_bytes=0)

    def attach(self, session: "Session | None", stream_id: int, *, window_bytes: int, send_window_bytes: int) -> None:
        """Begin an attempt afresh."""
        self.session = session
        self.stream_id = stream_id
        self.unsent = memoryview(self.request.body)
        self.written = False  # HEADERS were given to the socket: from here on the peer may have seen the request
        self.window_bytes = window_bytes  # what the peer may still send
        self.send_window_bytes = send_window_bytes  # what it may still be sent; may be negative
        self.credit_bytes = 0  # consumed, not yet returned to the peer
        self.credit_due_bytes = (window_bytes + 1) // 2  # it is returned in portions of half a window
        self.expected_bytes: int | None = None  # content-length
        self.content_bytes = 0  # received, counted only where a content-length has to be met

    def consumed(self, size_bytes: int) -> None:
        """Say that the receiver is done with so many bytes, so that the peer may send as many more."""
        if self.session is not None:
            self.credit_bytes += size_bytes
            if self.credit_bytes >= self.credit_due_bytes:
                self.session.return_credit(self)

    def cancel(self) -> None:
        """Leave: RST_STREAM(CANCEL) at once. Never waits, may be called twice, and no callback follows."""
        if self.session is not None:
            self.session.cancel(self)
        elif self.expiry is not None:
            self.pool.withdraw(self)

    def __repr__(self) -> str:
        state = "open" if self.session is not None else "queued" if self.expiry is not None else "closed"
        return f"<Stream {self.request.method} id={self.stream_id} {state} attempts={self.attempts}>"
