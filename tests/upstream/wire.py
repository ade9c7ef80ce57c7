"""What a connection is put between when no socket is needed."""

import asyncio

from gateway.upstream.connection import Connection
from gateway.upstream.errors import UpstreamError
from gateway.upstream.stream import Stream


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_cut

    def close(self) -> None:
        self.is_cut = True

    def abort(self) -> None:
        self.is_cut = True


class Owner:
    """Passes failures on, as a pool without retries would."""

    def stream_failed(self, stream: Stream, error: UpstreamError) -> None:
        stream.receiver.stream_failed(error)

    def room_changed(self, connection: Connection) -> None:
        pass

    def connection_closed(self, connection: Connection) -> None:
        pass
