"""An answer whose status waits for what decides it: the vendor's first item, or an error before it.

For doors whose clients know no events but read a status. Up to the first item nothing is sent, so what fails before is
an error's answer like any other; from then on a reader is written to as in ``sse``. The ending is not written but kept,
with what came along with it, for the door to do what must be done before a client has its whole answer. A stream
without an encoder is held whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from aiohttp import HttpVersion11, hdrs, web

from gateway.core.errors import GatewayError
from gateway.core.events import (
    ENDING_STATE,
    Ending,
    Entry,
    Event,
    MessageCitations,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import Door
from gateway.services.subscriptions import Subscription
from gateway.services.window import Batch
from gateway.services.window import Encoder as SharedEncoder
from gateway.telemetry.logging import event as log_event
from gateway.transports.edge import EDGE, PRINCIPAL, REVOKED_S, origin_of
from gateway.transports.sse import HIGH_WATER_BYTES, KEEPALIVE, chunk

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """One reader's encoder: what it makes of entries may depend on what it was given before."""

    def __call__(self, entries: Sequence[Entry], /) -> bytes: ...

    def piece(self, delta: Entry, /) -> SharedEncoder | None:
        """Return what encodes a delta that comes alone, equal for all readers of the dialect; None for a call."""
        ...


UNDECIDED: Final = frozenset({TurnStarted, TurnQueued})  # come before Hyperleap has said anything


class HeldStream:
    """A Sink over one HTTP response; a connection that can be ended. ``deliver``, then ``finish`` or ``cut`` it."""

    def __init__(
        self,
        request: web.Request,
        encoder: Encoder | None,
        headers: Mapping[str, str],
        *,
        door: Door | None,
        transport: str = "sse",
        keepalive: bytes = KEEPALIVE,
    ) -> None:
        """``transport`` is by which readers are counted, ``keepalive`` what is written while nothing is said.

        That is no bytes where whatever is written means something; ``door`` is the one whose closing ends the stream.
        """
        self._request = request
        self._edge = request.app[EDGE]
        self._encoder = encoder
        self._chunked = request.version >= HttpVersion11
        self._loop = asyncio.get_running_loop()
        self._held: list[Sequence[Entry]] = []
        self._decided = False
        self._subscription: Subscription | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._cut_off: asyncio.TimerHandle | None = None
        self._written_at_s = 0.0
        self._lost: GatewayError | None = None
        self._name = transport
        self._comment = keepalive
        self.begun = False
        self.last: Sequence[Entry] = ()  # of them the last is the ending
        self.events: list[Event] = []  # before the ending, without the text, which the ending has whole
        self.position = 0
        self.principal = request[PRINCIPAL]
        self.origin = origin_of(request)
        self.door = door
        self.response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-store",
                "X-Accel-Buffering": "no",
                **headers,
            }
        )

    async def deliver(self, subscription: Subscription) -> Ending:
        """Read a turn to its ending, and write what comes before that as it comes; return the ending.

        Raises GatewayError where reading ends before the turn does: access was lost, or the log.
        """
        self._subscription = subscription
        self._edge.open.add(self)
        try:
            error = self._edge.auth.lost(self.principal, self.origin, self.door)  # since the request was let in
            if error is None:
                await subscription.deliver(self)
                error = self._lost
            if error is not None:
                raise error
        finally:
            self._edge.open.discard(self)
            if self.begun:
                self._close()
        if not self.last:
            raise AssertionError("a log was delivered to its end without an ending")
        ending = self.last[-1].event
        assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
        return ending

    @property
    def citations(self) -> list[dict[str, Any]]:
        return [one for event in self.events if type(event) is MessageCitations for one in event.citations]

    async def finish(self, data: bytes) -> web.StreamResponse:
        """Write the last of a stream, and end it."""
        if not self.begun:
            await self._begin()
            self._close()
        self._write(data)
        await self.response.write_eof()
        if self._cut_off is not None:
            self._cut_off.cancel()
        return self.response

    def cut(self, data: bytes) -> web.StreamResponse:
        """Write the last of a stream that has begun, and leave its body without an end: no client takes it for whole.

        What was written still arrives, if the client takes it in before a reader that lags would be let go.
        """
        self._write(data)
        self._transport.close()
        if self._cut_off is None:
            self._cut_off = self._loop.call_later(self._edge.rules.reader_lag_s, self._transport.abort)
        return self.response

    async def _begin(self) -> None:
        """Send the headers, and what was held."""
        if self._chunked:
            self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("client left before the stream began")
        self._transport: asyncio.WriteTransport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._edge.metrics.stream_opened(self._name)
        self.begun = True
        if self._comment:
            self._keepalive = self._loop.call_later(self._edge.rules.keepalive_s, self._keep_alive)
        assert self._encoder is not None
        held, self._held = self._held, []
        self._write(b"".join([self._encoder(entries) for entries in held]))

    def _close(self) -> None:
        """Count the stream no longer, and keep it alive no longer: only its last is still to be written."""
        self._edge.metrics.stream_closed(self._name)
        if self._keepalive is not None:
            self._keepalive.cancel()

    # --- Sink ----------------------------------------------------------------------------------------------------

    def push(self, batch: Batch, /) -> bool:
        entries = batch.entries
        self.position = entries[-1].position
        if len(entries) > 1 or type(entries[0].event) is not TextDelta:
            self._note(entries)
        encoder = self._encoder
        if encoder is None:
            return True
        if not self.begun:
            said = entries
            if self.last:
                said = entries[:-1]
            else:
                self._held.append(entries)
            self._decided = self._decided or any(type(entry.event) not in UNDECIDED for entry in said)
            return not self._decided
        if self.last:
            return True
        transport = self._transport
        if transport.is_closing():
            return True  # the handler is about to be cancelled
        if transport.get_write_buffer_size() > self._edge.rules.reader_lag_bytes:
            self._let_go()
            return True
        alone = len(entries) == 1 and type(entries[0].event) is TextDelta
        piece = encoder.piece(entries[0]) if alone else None
        self._write(batch.encoded(piece) if piece is not None else encoder(entries))
        return transport.get_write_buffer_size() <= HIGH_WATER_BYTES

    async def write(self, batch: Batch, /) -> None:
        self.push(batch)
        await self.drain()

    async def drain(self) -> None:
        if not self.begun:
            if not self._decided:
                return
            await self._begin()
        try:
            async with asyncio.timeout(self._edge.rules.reader_lag_s):
                await self._request.writer.drain()
        except TimeoutError:
            self._let_go()
            raise ConnectionResetError("reader lagged") from None
        if self._transport.is_closing():
            raise ConnectionResetError("client left")

    def _note(self, entries: Sequence[Entry]) -> None:
        """Keep what is told at the end."""
        if type(entries[-1].event) in ENDING_STATE:
            self.last, entries = entries, entries[:-1]
        self.events += [entry.event for entry in entries if type(entry.event) is not TextDelta]

    def _write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(chunk(data) if self._chunked else data)
            self._written_at_s = self._loop.time()

    def _let_go(self) -> None:
        """Cut off a reader that lags more than allowed."""
        self._edge.metrics.reader_lagged(self._name)
        log_event(logger, logging.INFO, "reader.lagged", transport=self._name)
        self._transport.abort()

    def _keep_alive(self) -> None:
        period_s = self._edge.rules.keepalive_s
        idle_s = self._loop.time() - self._written_at_s
        if idle_s >= period_s:
            # Not to a reader that is behind: its connection is alive, and comments would only pile up.
            if self._transport.get_write_buffer_size() == 0:
                self._write(self._comment)
            idle_s = 0.0
        self._keepalive = self._loop.call_later(max(period_s - idle_s, 0.001), self._keep_alive)

    # --- beside the events ---------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Go on: these clients do not come back for the rest, and the turn ends before the gateway does."""

    async def shut(self) -> None:
        """End the connection at shutdown, after the turns have been settled."""
        if self.begun:
            self._transport.abort()

    def revoke(self, error: GatewayError) -> None:
        """End the answer between two events, or before it has begun; a client that does not take that in is cut off."""
        if self._subscription is not None and self._lost is None:
            self._lost = error
            if self.begun:
                self._cut_off = self._loop.call_later(REVOKED_S, self._transport.abort)
            self._subscription.leave()
