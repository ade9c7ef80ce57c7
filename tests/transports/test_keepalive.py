"""Keep-alive: a quiet stream stays open through proxies, from the first byte on, and nothing holds it back."""

from __future__ import annotations

import pytest

from tests.conftest import StartGateway
from tests.transports.client import check_log
from tests.transports.conftest import SignIn

COMMENT = b": keep-alive\n\n"


async def test_keepalive_comments_come_while_the_first_token_is_awaited(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """While the model thinks, comments arrive; readers ignore them, and the answer is whole."""
    running = await start_gateway(environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.05"})
    client = await sign_in(running)
    async with client.ask(await client.conversation(), "Hi #tokens=2 #delay=0.5") as reader:
        await reader.until("message.started")
        waiting = bytes(reader.raw)
        events = await reader.rest()
    assert waiting.count(COMMENT) >= 5
    check_log(events)


async def test_keepalive_comments_stay_out_of_a_stream_that_speaks(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Events themselves keep a stream alive: no comment is sent while they flow."""
    running = await start_gateway(environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.3"})
    client = await sign_in(running)
    async with client.ask(await client.conversation(), "Hi #tokens=60 #rate=100") as reader:
        check_log(await reader.rest())
    assert COMMENT not in reader.raw


async def test_keepalive_first_byte_comes_before_the_vendor_answers(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Headers and the first bytes are there at once, even when the vendor does not even send headers."""
    running = await start_gateway()
    client = await sign_in(running)
    async with client.ask(await client.conversation(), "Hi #fault=slow-headers:30") as reader:
        first = await reader.next()
    assert first is not None
    assert first.name == "turn.started"


async def test_keepalive_over_websocket_pings_a_quiet_socket(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A quiet socket is pinged, and one whose client is alive stays open."""
    running = await start_gateway(environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.1"})
    client = await sign_in(running)
    async with client.socket() as socket:
        reply = await socket.reply(
            "turn.start", conversation_id=await client.conversation(), message="Hi #tokens=2 #delay=0.6"
        )
        check_log(await socket.ending(reply["data"]["turn_id"]))


@pytest.mark.parametrize("way", ["start", "follow"])
async def test_keepalive_headers_keep_proxies_and_caches_off(
    way: str, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Streams say that nothing may buffer or store them."""
    client = await sign_in(await start_gateway())
    async with client.ask(await client.conversation(), "Hi #tokens=1") as reader:
        await reader.rest()
    if way == "follow":
        async with client.follow(reader.turn_id) as again:
            await again.rest()
        reader = again
    headers = reader.response.headers
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert "Content-Encoding" not in headers
    assert "Content-Length" not in headers
