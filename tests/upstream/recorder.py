"""A receiver that writes down what it is told."""

import asyncio
from collections.abc import Callable
from typing import Self

from gateway.upstream.errors import UpstreamError
from gateway.upstream.pool import Pool, Stream
from tests.upstream.peer import PATIENCE_S


class Recorder:
    """Consumes at once, unless `stalls`; `until` waits for what it was told."""

    def __init__(self, *, stalls: bool = False) -> None:
        self.stalls = stalls
        self.stream: Stream | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.endings: list[UpstreamError | None] = []  # None is a clean end
        self._changed = asyncio.Event()

    async def open(
        self,
        pool: Pool,
        *,
        method: str = "POST",
        path: str = "/chat",
        headers: list[tuple[bytes, bytes]] | None = None,
        body: bytes = b"{}",
        deadline_s: float = PATIENCE_S,
    ) -> Self:
        self.stream = await pool.open_stream(method, path, headers or [], body, self, deadline_s=deadline_s)
        return self

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.status
        assert not self.endings
        self.status, self.headers = status, headers
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        assert self.status
        assert not self.endings
        self.chunks.append(data)
        if not self.stalls and self.stream is not None:
            self.stream.consumed(len(data))
        self._changed.set()

    def stream_ended(self) -> None:
        self.endings.append(None)
        self._changed.set()

    def stream_failed(self, error: UpstreamError) -> None:
        self.endings.append(error)
        self._changed.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def received_bytes(self) -> int:
        return sum(map(len, self.chunks))

    def catch_up(self) -> None:
        """Stop stalling and consume what lies here."""
        self.stalls = False
        assert self.stream is not None
        self.stream.consumed(self.received_bytes)

    def cancel(self) -> None:
        assert self.stream is not None
        self.stream.cancel()

    async def until_answered(self) -> int:
        await self._until(lambda: bool(self.status))
        return self.status

    async def until_bytes(self, count: int) -> None:
        await self._until(lambda: self.received_bytes >= count)

    async def until_closed(self) -> UpstreamError | None:
        """Wait for the one ending: None when clean, else the error."""
        await self._until(lambda: bool(self.endings))
        assert len(self.endings) == 1
        return self.endings[0]

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
