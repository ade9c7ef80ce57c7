"""A Redis user that may do what the page says, and nothing more, is enough for a gateway."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.store.redis import Redis
from tests.conftest import StartGateway
from tests.store.topologies import COMMON, FAILOVER_MAX_S, Instance, Setup, sentinel_setup, until
from tests.transports.client import Client
from tests.transports.conftest import SignIn

PAGE = Path(__file__).parent.parent.parent / "gateway" / "docs" / "redis.md"


def acl(whose: str) -> list[str]:
    """What the page says to allow."""
    found = re.search(rf"An ACL for {whose}: `([^`]+)`", " ".join(PAGE.read_text("utf-8").split()))
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
        await server.ask("ACL", "SETUSER", "gateway", "on", ">pw", *acl("the gateway's user"))
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
            await server.ask("ACL", "SETUSER", "gateway", "on", ">pw", *acl("the gateway's user"))
        url = setup.url.replace("redis+sentinel://", "redis+sentinel://gateway:pw@")
        await speak(url, setup.data, start_gateway, sign_in)


@pytest.mark.slow
async def test_user_of_the_page_is_enough_at_the_sentinels(tmp_path: Path) -> None:
    """Such a user is told who the master is, and when it is another."""
    async with sentinel_setup(tmp_path / "redis") as setup:
        for sentinel in setup.sentinels:
            await sentinel.ask("ACL", "SETUSER", "watcher", "on", ">pw", *acl("its user at the Sentinels"))
        login = "sentinel_username=watcher&sentinel_password=pw"
        store = Redis(f"{setup.url}?{login}", timeout_s=1.0, connections=1)
        returned = asyncio.Event()
        store.on_return = returned.set
        try:
            await store.call("SET", "hg:{t}:n", 1)
            old = await setup.demote_master()
            async with asyncio.timeout(FAILOVER_MAX_S):
                await returned.wait()
            assert (await setup.replaced(old)).port == int((await store.server_facts())["tcp_port"])
        finally:
            await store.aclose()
        assert [entry for sentinel in setup.sentinels for entry in await sentinel.ask("ACL", "LOG")] == []


@pytest.mark.slow
async def test_user_that_may_not_listen_at_the_sentinels_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the channel the master is found all the same, and the log says what is missing."""
    async with sentinel_setup(tmp_path / "redis") as setup:
        rules = [rule for rule in acl("its user at the Sentinels") if not rule.startswith("&")]
        for sentinel in setup.sentinels:
            await sentinel.ask("ACL", "SETUSER", "watcher", "on", "resetchannels", ">pw", *rules)
        login = "sentinel_username=watcher&sentinel_password=pw"
        store = Redis(f"{setup.url}?{login}", timeout_s=1.0, connections=1)
        try:
            await store.call("SET", "hg:{t}:n", 1)
            async with asyncio.timeout(FAILOVER_MAX_S):
                while "succession.unheard" not in caplog.text:
                    await asyncio.sleep(0.02)
        finally:
            await store.aclose()
