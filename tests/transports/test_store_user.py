"""A Redis user that may do what the page says, and nothing more, is enough for a gateway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.store.topologies import COMMON, Instance, Setup, sentinel_setup, until
from tests.transports.client import Client
from tests.transports.conftest import SignIn

PAGE = Path(__file__).parent.parent.parent / "gateway" / "docs" / "redis.md"


def acl() -> list[str]:
    """What the page says to allow."""
    found = re.search(r"An ACL for the gateway's user: `([^`]+)`", PAGE.read_text("utf-8"))
    assert found is not None
    return found[1].split()


async def speak(url: str, servers: Sequence[Instance], start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Have a conversation as such a user, with keys, limits, readers on two workers, a stop and a replay."""
    first = await start_gateway(redis_url=url, load_stored=True)
    second = await start_gateway(redis_url=url, simulator=first.simulator, tenant=first.tenant)
    client = await sign_in(first)
    elsewhere = Client(second, client.headers)
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #tokens=20 #rate=40")
    async with elsewhere.follow(turn, None) as reader:
        assert (await reader.rest())[-1].name == "turn.completed"
    assert (await elsewhere.replay(turn))[-1].name == "turn.completed"
    running = await client.start(conversation, "Hi #tokens=2000 #rate=10")
    assert (await elsewhere.stop(running)).status == 200
    assert (await client.replay(running))[-1].name == "turn.stopped"
    assert [entry for server in servers for entry in await server.ask("ACL", "LOG")] == []  # nothing was refused


async def test_user_of_the_page_is_enough(tmp_path: Path, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Everything that a gateway asks of one server is allowed by the page's words."""
    setup = Setup(tmp_path / "redis")
    try:
        server = setup.start(*COMMON)

        async def answers() -> bool:
            return bool(await server.ask("PING"))

        await until(answers, setup.servers)
        await server.ask("ACL", "SETUSER", "gateway", "on", ">pw", *acl())
        await speak(f"redis://gateway:pw@127.0.0.1:{server.port}", setup.servers, start_gateway, sign_in)
    finally:
        setup.end()


@pytest.mark.slow
async def test_user_of_the_page_is_enough_under_sentinels(
    tmp_path: Path, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The master is asked for its role by that user; Sentinels have users of their own."""
    async with sentinel_setup(tmp_path / "redis") as setup:
        for server in setup.data:
            await server.ask("ACL", "SETUSER", "gateway", "on", ">pw", *acl())
        url = setup.url.replace("redis+sentinel://", "redis+sentinel://gateway:pw@")
        await speak(url, setup.data, start_gateway, sign_in)
