"""Connection: one client's HTTP/2 connection.

`h2` keeps the protocol's state. DATA frames are written past it, with its two windows lowered by hand, which is cheaper
than its `send_data`. SETTINGS and GOAWAY are written past it as well: h2 ends the whole connection when a client opens
a stream too many (a server refuses that stream), and can send nothing after a GOAWAY.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame, SettingsFrame

from gateway.simulator.bill import State
from gateway.simulator.exchange import Exchange, Headers
from gateway.simulator.wire import data_header

MAX_BODY_BYTES = 1 << 20
_MAX_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
_NOT_HTTP2 = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Speaks HTTP/2 with one client and hands each complete request to `handle`."""

    def __init__(
        self, handle: Callable[[Exchange], None], state: State, open_connections: set[Connection], max_streams: int
    ) -> None:
        self._handle = handle
        self._state = state
        self._open_connections = open_connections
        self._max_streams = max_streams
        # h2 itself must never see the limit: it answers a stream too many by ending the connection.
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._transport: asyncio.Transport | None = None
        self._exchanges: dict[int, Exchange] = {}
        self._waiting: dict[int, Exchange] = {}  # those that flow control holds back, the longest wait first
        self._paused = False
        self._deaf = False
        self._last_stream_id: int | None = None  # of the GOAWAY that was sent
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets with SETTINGS, or turns away a TLS client that did not choose h2."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self._open_connections.add(self)
        self._state.connections += 1
        self._state.open_connections += 1
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.write(_NOT_HTTP2)
            transport.close()
            return
        self._h2.initiate_connection()
        self._h2.data_to_send()  # h2's own SETTINGS, replaced by ours
        settings = {int(code): value for code, value in self._h2.local_settings.items()}
        settings[int(_MAX_STREAMS)] = self._max_streams
        transport.write(SettingsFrame(0, settings=settings).serialize())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells every open exchange that its client is gone."""
        self._open_connections.discard(self)
        self._state.open_connections -= 1
        for exchange in list(self._exchanges.values()):
            self._leave(exchange, None)
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def eof_received(self) -> None:
        """Stops writing to a client that has closed its side; no HTTP/2 client goes on reading after that."""
        self._deaf = True

    def pause_writing(self) -> None:
        """Holds all streams back until the socket takes bytes again."""
        self._paused = True

    def resume_writing(self) -> None:
        """Lets the streams go on."""
        self._paused = False
        self._drain()

    def data_received(self, data: bytes) -> None:
        """Feeds h2 and acts on its events; a protocol error ends the connection as RFC 9113, section 5.4.1 says."""
        if self._deaf or self._transport is None or self._transport.is_closing():
            return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._transport.write(_NOT_HTTP2 if b"HTTP/1." in data[:2048] else self._h2.data_to_send())
            self._transport.close()
            return
        for event in events:
            self._act_on(event)
        self._flush()
        self._close_when_drained()

    def _act_on(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                if event.flow_controlled_length:
                    with suppress(h2.exceptions.ProtocolError):
                        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._take_body(event)
            case h2.events.RequestReceived():
                self._open(event)
            case h2.events.StreamEnded():
                exchange = self._exchanges.get(event.stream_id)
                if exchange is not None and not exchange.ending:
                    self._state.requests += 1
                    self._handle(exchange)
            case h2.events.StreamReset():
                self._state.resets_received += 1
                exchange = self._exchanges.get(event.stream_id)
                if exchange is not None:
                    self._leave(exchange, int(event.error_code))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._flush()  # the acknowledgement goes before frames that use the new size
                self._drain()
            case h2.events.PingReceived():
                self._state.pings_received += 1
            case h2.events.ConnectionTerminated():
                self._state.goaways_received += 1
                # h2 takes no more frames after a GOAWAY, but the client's streams in flight must be able to end.
                self._h2.state_machine.state = h2.connection.ConnectionState.SERVER_OPEN
                self.stop_accepting()
            case _:
                pass

    def _open(self, event: h2.events.RequestReceived) -> None:
        headers: dict[str, str] = {}
        for name, value in event.headers:
            headers[_text(name)] = _text(value)
        exchange = Exchange(self, event.stream_id, headers)
        refused = self._last_stream_id is not None and event.stream_id > self._last_stream_id
        if refused or len(self._exchanges) >= self._max_streams:
            self.send_reset(exchange, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self._exchanges[event.stream_id] = exchange
        self._state.open_streams += 1
        self._state.most_open_streams = max(self._state.most_open_streams, self._state.open_streams)

    def _take_body(self, event: h2.events.DataReceived) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None or exchange.ending:
            return
        exchange.body += event.data
        if len(exchange.body) > MAX_BODY_BYTES:
            exchange.body.clear()
            exchange.ending = True
            exchange.respond(413)

    # ── what exchanges call ─────────────────────────────────────────────────────────────────────────────────────────

    def send_headers(self, exchange: Exchange, status: int, headers: Headers, *, end: bool) -> None:
        """Sends response headers."""
        if exchange.gone or exchange.ended:
            return
        with suppress(h2.exceptions.ProtocolError):
            self._h2.send_headers(exchange.stream_id, [(":status", str(status)), *headers], end_stream=end)
        self._flush()
        if end:
            exchange.ending = exchange.ended = True
            self._forget(exchange)

    def send_data(self, exchange: Exchange, data: bytes) -> None:
        """Sends or queues bytes of an answer."""
        if exchange.gone or exchange.ended or not data:
            return
        stream = self._h2.streams.get(exchange.stream_id)
        if stream is None or stream.closed:
            return
        size = len(data)
        connection = self._h2
        if (
            not exchange.pending
            and not self._paused
            and size <= stream.outbound_flow_control_window
            and size <= connection.outbound_flow_control_window
            and size <= connection.max_outbound_frame_size
        ):
            stream.outbound_flow_control_window -= size
            connection.outbound_flow_control_window -= size
            self._write(data_header(size, exchange.stream_id) + data)
            return
        exchange.pending.append(memoryview(data))
        self._send_pending(exchange)

    def send_end(self, exchange: Exchange) -> None:
        """Sends END_STREAM."""
        if exchange.gone or exchange.ended:
            return
        exchange.ended = True
        with suppress(h2.exceptions.ProtocolError):
            self._h2.end_stream(exchange.stream_id)
        self._flush()
        self._forget(exchange)

    def send_reset(self, exchange: Exchange, code: h2.errors.ErrorCodes) -> None:
        """Sends RST_STREAM."""
        if exchange.gone or exchange.ended:
            return
        exchange.ending = exchange.ended = True
        exchange.pending.clear()
        with suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(exchange.stream_id, code)
            self._state.resets_sent += 1
        self._flush()
        self._forget(exchange)

    # ── the whole connection ────────────────────────────────────────────────────────────────────────────────────────

    def goaway(self, *, last_stream_id: int | None = None) -> None:
        """Sends GOAWAY(NO_ERROR), lets the streams up to its last id finish, refuses later ones, then closes."""
        if self._last_stream_id is not None or self._transport is None:
            return
        self.stop_accepting(last_stream_id)
        self._state.goaways_sent += 1
        self._write(GoAwayFrame(0, last_stream_id=self._last_stream_id or 0, error_code=0).serialize())
        for exchange in list(self._exchanges.values()):
            if exchange.stream_id > (self._last_stream_id or 0):  # the client must not expect anything of these
                exchange.ending = exchange.ended = True
                self._forget(exchange)
        self._close_when_drained()

    def stop_accepting(self, last_stream_id: int | None = None) -> None:
        """Refuses streams above `last_stream_id` (default: the highest so far), closes when none is left open."""
        highest = max(self._exchanges, default=0)
        self._last_stream_id = (
            max(highest, self._h2.highest_inbound_stream_id) if last_stream_id is None else last_stream_id
        )
        asyncio.get_running_loop().call_soon(self._close_when_drained)

    def set_max_streams(self, limit: int) -> None:
        """Sends a new SETTINGS_MAX_CONCURRENT_STREAMS; streams that are open stay."""
        self._max_streams = limit
        self._write(SettingsFrame(0, settings={int(_MAX_STREAMS): limit}).serialize())

    def deafen(self) -> None:
        """Answers nothing any more and leaves the socket open: a dead path. Only its closing is still noticed."""
        self._deaf = True

    def abort(self) -> None:
        """Cuts the TCP connection; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send_pending(self, exchange: Exchange) -> None:
        stream = self._h2.streams.get(exchange.stream_id)
        pending = exchange.pending
        while pending and not self._paused and stream is not None:
            room = min(
                stream.outbound_flow_control_window,
                self._h2.outbound_flow_control_window,
                self._h2.max_outbound_frame_size,
            )
            if room <= 0:
                break
            chunk = pending[0][:room]
            if len(chunk) == len(pending[0]):
                pending.popleft()
            else:
                pending[0] = pending[0][room:]
            stream.outbound_flow_control_window -= len(chunk)
            self._h2.outbound_flow_control_window -= len(chunk)
            self._write(data_header(len(chunk), exchange.stream_id) + chunk)
        if pending:
            self._waiting[exchange.stream_id] = exchange
        else:
            self._waiting.pop(exchange.stream_id, None)
            if exchange.ending:
                self.send_end(exchange)

    def _drain(self) -> None:
        for stream_id, exchange in list(self._waiting.items()):
            if self._paused or self._h2.outbound_flow_control_window <= 0:
                return
            self._waiting.pop(stream_id, None)  # to the end of the line if it has to wait again
            self._send_pending(exchange)
            if not exchange.pending and not exchange.ending and exchange.on_writable is not None:
                exchange.on_writable()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._deaf and not self._transport.is_closing():
            self._transport.write(data)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._write(data)

    def _leave(self, exchange: Exchange, code: int | None) -> None:
        exchange.gone = True
        exchange.pending.clear()
        self._forget(exchange)
        if exchange.on_gone is not None:
            exchange.on_gone(code)

    def _forget(self, exchange: Exchange) -> None:
        self._waiting.pop(exchange.stream_id, None)
        if self._exchanges.pop(exchange.stream_id, None) is not None:
            self._state.open_streams -= 1
        if self._last_stream_id is not None:
            asyncio.get_running_loop().call_soon(self._close_when_drained)

    def _close_when_drained(self) -> None:
        if self._last_stream_id is not None and not self._exchanges and self._transport is not None and not self._deaf:
            self._transport.close()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
