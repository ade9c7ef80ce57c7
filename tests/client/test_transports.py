"""Which transport the client uses, and what it takes for a WebSocket."""

from __future__ import annotations

import uuid

from gateway.simulator.answers import answer as said
from tests.client.conftest import Play, npm
from tests.client.cutter import Cutter
from tests.conftest import PERSONA_ID, TENANT_TOML, Running, StartGateway

MESSAGE = "Hello #tokens=60 #rate=200"


async def test_proxy_that_lets_no_socket_through_is_got_around(running: Running, play: Play) -> None:
    """Where HTTP works and a WebSocket does not, the answer comes by server-sent events without anybody asking."""
    async with Cutter(running.url, sockets=False) as proxy:
        told = await play(
            "chat", running.url, through=proxy.url, sockets=True, TOKEN=await running.token(), MESSAGE=MESSAGE
        )
    assert (told["transport"], told["joined"]) == ("sse", said(MESSAGE).text)


async def test_tenant_that_takes_no_sockets_is_followed(start_gateway: StartGateway, play: Play) -> None:
    """Where the tenant has closed the WebSocket's door, server-sent events are used."""
    toml = TENANT_TOML.replace("anonymous = true", 'anonymous = true\ndoors = ["sse"]')
    gateway = await start_gateway(toml=toml.format(tenant=f"t-{uuid.uuid4().hex[:12]}", persona=PERSONA_ID))
    told = await play("chat", gateway.url, sockets=True, TOKEN=await gateway.token(), MESSAGE=MESSAGE)
    assert (told["transport"], told["joined"]) == ("sse", said(MESSAGE).text)


async def test_any_socket_will_do(running: Running, play: Play) -> None:
    """A WebSocket of another make (the package ``ws``) is taken where the platform has none."""
    package = npm("ws") / "wrapper.mjs"
    async with Cutter(running.url, (2_500, 1_500)) as proxy:
        told = await play(
            *("injected", running.url),
            through=proxy.url,
            sockets=False,
            TOKEN=await running.token(),
            MESSAGE=MESSAGE,
            WS=str(package),
        )
        assert proxy.cut == 2
    assert (told["transport"], told["joined"]) == ("ws", said(MESSAGE).text)


async def test_server_sent_events_can_be_asked_for(running: Running, play: Play) -> None:
    """``transport: "sse"`` uses no socket where there is one."""
    async with Cutter(running.url) as proxy:
        told = await play(
            *("chat", running.url),
            through=proxy.url,
            sockets=True,
            TRANSPORT="sse",
            TOKEN=await running.token(),
            MESSAGE=MESSAGE,
        )
        assert proxy.streams == 1
    assert (told["transport"], told["joined"]) == ("sse", said(MESSAGE).text)
