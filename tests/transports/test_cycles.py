"""What a turn and its readers are made of goes as they end: nothing waits for the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from gateway.services.journal import JournalEntry
from gateway.services.live_log import LiveLog
from gateway.services.owned_turn import OwnedTurn
from gateway.services.presence import Presence
from gateway.services.subscriptions import Subscription
from gateway.transports.sse import SseStream
from gateway.upstream.chat import HyperleapChat
from tests.conftest import StartGateway
from tests.transports.client import Client, check_log, eventually
from tests.transports.conftest import SignIn

OURS = (OwnedTurn, LiveLog, JournalEntry, Presence, Subscription, SseStream, HyperleapChat)


async def read_whole(client: Client, conversation: str) -> None:
    async with client.ask(conversation, "Hi #tokens=3") as reader:
        check_log(await reader.rest())


async def stop(client: Client, conversation: str) -> None:
    async with client.ask(conversation, "Hi #tokens=80 #rate=40") as reader:
        await reader.until("message.delta")
        await client.stop(reader.turn_id)
        assert check_log(await reader.rest()).name == "turn.stopped"


@pytest.mark.parametrize("way", [read_whole, stop])
async def test_turn_and_its_stream_keep_no_cycle(
    way: Callable[[Client, str], Awaitable[None]],
    start_gateway: StartGateway,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the collector off, nothing of a turn that completed or was stopped is left soon after."""
    monkeypatch.setattr("gateway.services.roster.LINGER_S", 0.0)
    client = await sign_in(await start_gateway())
    conversation = await client.conversation()
    gc.collect()
    others = {id(thing): thing for thing in gc.get_objects() if isinstance(thing, OURS)}

    def left() -> Counter[str]:
        return Counter(
            type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, OURS) and id(thing) not in others
        )

    gc.disable()
    try:
        await way(client, conversation)
        await eventually(lambda: not left(), "all that the turn was made of to be freed")
    finally:
        gc.enable()
