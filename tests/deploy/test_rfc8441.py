"""WebSockets over HTTP/2 (RFC 8441): where a proxy says that it takes them, a browser does not ask any other way."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from websockets.frames import Frame, Opcode

from tests.conftest import StartGateway
from tests.deploy.conftest import Front, StartFront
from tests.deploy.proxies import HOST, PROXIES, Proxy
from tests.transports.client import ENDINGS, Event, check_log

TAKES = ("haproxy",)
WITHIN_S = 20.0


class Browser:
    """One HTTP/2 connection that opens a WebSocket on a stream of it, as browsers do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.received = bytearray()
        self.head: dict[str, str] = {}
        self.told = False  # the proxy's settings have come

    @classmethod
    async def open(cls, to: Front, tls: ssl.SSLContext) -> Browser:
        tls.set_alpn_protocols(["h2"])
        return cls(*await asyncio.open_connection("127.0.0.1", to.port, ssl=tls, server_hostname=HOST))

    async def turn(self) -> None:
        """Send what there is, read once and take it in."""
        self.writer.write(self.h2.data_to_send())
        data = await self.reader.read(65_536)
        assert data, "the proxy has closed the connection"
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RemoteSettingsChanged():
                    self.told = True
                case h2.events.ResponseReceived():
                    self.head = {str(name): str(value) for name, value in event.headers or ()}
                case h2.events.DataReceived():
                    self.received += event.data or b""
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise AssertionError((self.head, bytes(self.received), event))

    async def frame(self) -> dict[str, Any]:
        """Return the next frame with text; these are short enough for one frame without an extension."""
        while True:
            if len(self.received) >= 2:
                length, at = self.received[1] & 0x7F, 2
                if length == 126:
                    length, at = int.from_bytes(self.received[2:4], "big"), 4
                if len(self.received) >= at + length:
                    opcode, payload = self.received[0] & 0x0F, bytes(self.received[at : at + length])
                    del self.received[: at + length]
                    if opcode == Opcode.TEXT:
                        found: dict[str, Any] = json.loads(payload)
                        return found
                    continue
            await self.turn()


@pytest.mark.slow
@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
async def test_websocket_over_http2_where_it_is_offered(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """HAProxy offers it and carries a turn over it; the others, which could not, do not offer it."""
    if proxy.program is None:
        pytest.skip(f"no {proxy.name}: install {proxy.package}")
    running = await start_gateway(simulator={"h2c": True})
    headers = await running.user()
    conversation = await running.conversation(headers)
    token = headers["Authorization"].removeprefix("Bearer ")
    async with front(proxy, running) as to, asyncio.timeout(WITHIN_S):
        browser = await Browser.open(to, to.trust())
        try:
            while not browser.told:
                await browser.turn()
            offered = bool(browser.h2.remote_settings.enable_connect_protocol)
            assert offered is (proxy.name in TAKES)
            if not offered:
                return
            stream = browser.h2.get_next_available_stream_id()
            browser.h2.send_headers(
                stream,
                [
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    (":scheme", "https"),
                    (":path", "/v1/ws"),
                    (":authority", f"{HOST}:{to.port}"),
                    ("sec-websocket-version", "13"),
                    ("sec-websocket-protocol", f"hyperleap.chat.v1, hgt.{token}"),
                ],
            )
            while not browser.head:
                await browser.turn()
            assert browser.head[":status"] == "200"
            assert browser.head["sec-websocket-protocol"] == "hyperleap.chat.v1"
            command = {
                "type": "turn.start",
                "request_id": "r",
                "conversation_id": conversation,
                "message": "Hi #tokens=9",
            }
            frame = Frame(Opcode.TEXT, json.dumps(command).encode())
            browser.h2.send_data(stream, frame.serialize(mask=True))
            events: list[Event] = []
            while not events or events[-1].name not in ENDINGS:
                told = await browser.frame()
                if "turn_id" in told:
                    events.append(Event(told["id"], told["event"], told["data"]))
            assert check_log(events).name == "turn.completed"
        finally:
            browser.writer.transport.abort()
