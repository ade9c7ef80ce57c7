"""Windows, frame sizes and broken peers (RFC 9113, sections 5.2, 6.5.2 and 6.9)."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from hyperframe.frame import SettingsFrame, WindowUpdateFrame

from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start
from tests.simulator.frame_client import FrameClient, connect

LONG = "long #tokens=2000"  # about half a megabyte on the wire


async def settle(client: FrameClient) -> None:
    """Gives the simulator many turns of its loop, so that it would have sent more if it were going to."""
    for _ in range(30):
        await client.ping()


async def test_stream_window_without_credit_is_never_passed(simulator: Simulator) -> None:
    """A client that gives no credit gets exactly its stream's window, and one beat waits in memory, no more."""
    async with connect(simulator, credit=False, window=10_000) as client:
        stream_id = client.chat(await client.create(), LONG)
        received = client.streams[stream_id]
        await client.until(lambda: len(received.body) >= 10_000)
        await settle(client)
        assert len(received.body) == 10_000
        sent = simulator.bill.runs[-1].items_sent
        client.send(WindowUpdateFrame(stream_id, 5_000))
        await client.until(lambda: len(received.body) >= 15_000)
        await settle(client)
        assert len(received.body) == 15_000
        assert sent < simulator.bill.runs[-1].items_sent < 100


async def test_connection_window_is_shared_and_respected(simulator: Simulator) -> None:
    """Without credit for the connection all its streams together get 65,535 bytes; credit lets each go on."""
    async with connect(simulator, credit=False, window=1 << 20) as client:
        conversation_id = await client.create()
        used = sum(len(received.body) for received in client.streams.values())
        streams = [client.chat(conversation_id, f"{LONG} #seed={n}") for n in range(3)]

        def got() -> int:
            return sum(len(client.streams[stream_id].body) for stream_id in streams)

        await client.until(lambda: got() >= 65_535 - used)
        await settle(client)
        assert got() == 65_535 - used
        client.send(WindowUpdateFrame(0, 4 << 20))
        for stream_id in streams:
            assert (await client.answer(stream_id)).body.endswith(b"]")


async def test_settings_raise_windows_of_open_streams(simulator: Simulator) -> None:
    """A larger INITIAL_WINDOW_SIZE reaches streams that are blocked (RFC 9113, section 6.9.2)."""
    async with connect(simulator, credit=False, window=100) as client:
        client.send(WindowUpdateFrame(0, 1 << 20))
        create = client.request("POST", "/conversations/persona", {"personaId": "5b1f1a0e-3d3c-4d53-9a52-0d1d6a7f0001"})
        received = client.streams[create]
        await client.until(lambda: len(received.body) >= 100)
        await client.ping()
        assert (len(received.body), received.ended) == (100, False)
        client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 5_000}))
        assert (await client.answer(create)).json()["conversationId"]


async def test_large_items_keep_to_the_frame_size(simulator: Simulator) -> None:
    """An item larger than MAX_FRAME_SIZE is cut into frames of at most that size."""
    async with connect(simulator, window=1 << 20) as client:
        received = await client.answer(client.chat(await client.create(), "x #fault=huge-item:100000"))
        assert max(len(frame) for frame in received.frames) == 16_384
        assert len(received.json()) > 2


async def test_one_starved_stream_does_not_hold_another(simulator: Simulator) -> None:
    """A stream without a window waits while its neighbour on the same connection goes on to its end."""
    async with connect(simulator, credit=False, window=3_000) as client:
        conversation_id = await client.create()
        starved, fed = client.chat(conversation_id, LONG), client.chat(conversation_id, "short #tokens=30")
        client.send(WindowUpdateFrame(fed, 60_000))
        assert (await client.answer(fed)).body.endswith(b"]")
        assert len(client.streams[starved].body) == 3_000


async def test_reader_that_does_not_read_costs_little_memory(start: Start) -> None:
    """With huge windows but an unread socket the simulator stops at the socket's buffers."""
    simulator = await start(h2c=True)
    async with connect(simulator, credit=False, window=(1 << 31) - 1) as client:
        client.send(WindowUpdateFrame(0, (1 << 31) - 1 - 65_535))
        client.chat(await client.create(), "long #tokens=150000")
        sent = -1
        async with asyncio.timeout(10):
            while simulator.state.items_sent != sent or sent < 1:
                sent = simulator.state.items_sent
                await asyncio.sleep(0.1)
        assert sent < 150_000


@pytest.mark.parametrize(
    ("data", "answered"), [(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 505 "), (b"\x00" * 100, b"\x00\x00")]
)
async def test_peer_without_preface_is_turned_away(start: Start, data: bytes, answered: bytes) -> None:
    """What is not HTTP/2 gets an answer or a GOAWAY, and the connection closes."""
    simulator = await start(h2c=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))
    writer.write(data)
    async with asyncio.timeout(5):
        received = await reader.read()
    assert answered in received
    writer.close()
    await writer.wait_closed()


async def test_tls_certificate_is_checked_by_a_stock_client(simulator: Simulator) -> None:
    """A client that does not trust the CA refuses the connection."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(
            "127.0.0.1", int(simulator.url.rsplit(":", 1)[1]), ssl=ssl.create_default_context()
        )
