"""Exchange: one request and its answer on one stream, as the API sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

if TYPE_CHECKING:
    from gateway.simulator.connection import Connection

Headers = Iterable[tuple[str, str]]


class Exchange:
    """Is one request and its answer on one stream.

    Writing never blocks and never fails: what flow control holds back waits in `pending`, and `blocked` asks the caller
    to stop until `on_writable` is called. `on_gone` is called once if the client leaves before the answer's end, with
    the code of its RST_STREAM or None when the connection is lost.
    """

    __slots__ = (
        "body", "connection", "ended", "ending", "gone", "headers", "method", "on_gone", "on_writable", "path",
        "pending", "started", "stream_id",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream_id: int, headers: dict[str, str]) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.headers = headers
        self.method = headers.get(":method", "")
        self.path = headers.get(":path", "")
        self.body = bytearray()
        self.pending: deque[memoryview] = deque()
        self.started = False  # response headers are out
        self.ending = False  # nothing more will be written
        self.ended = False  # END_STREAM or RST_STREAM is out
        self.gone = False  # the client left
        self.on_writable: Callable[[], None] | None = None
        self.on_gone: Callable[[int | None], None] | None = None

    @property
    def blocked(self) -> bool:
        """Whether flow control or the socket holds bytes back."""
        return bool(self.pending)

    def start(self, status: int, headers: Headers = (), *, end: bool = False) -> None:
        """Sends the response headers; with `end` there is no body."""
        self.started = True
        self.connection.send_headers(self, status, headers, end=end)

    def write(self, data: bytes) -> None:
        """Sends one DATA frame, or what the windows and the frame size allow of it now and the rest later."""
        self.connection.send_data(self, data)

    def end(self) -> None:
        """Ends the stream in an empty DATA frame once everything is out, as Kestrel does."""
        self.ending = True
        if not self.pending:
            self.connection.send_end(self)

    def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Sends a whole answer."""
        length = ("content-length", str(len(body)))
        self.start(status, (*headers, length), end=not body)
        if body:
            self.write(body)
            self.end()

    def reset(self, code: ErrorCodes) -> None:
        """Ends the stream with RST_STREAM; what waits is thrown away."""
        self.connection.send_reset(self, code)
