"""A store that loses what it held in mid-answer: readers who are there still get the answer and its ending."""

from __future__ import annotations

import asyncio

from tests.conftest import Running
from tests.transports.client import Client, check_log, eventually


async def lose(running: Running) -> None:
    """Take everything of the tenant's out of the store, as an emptied or failed-over Redis does."""
    keys = await running.gateway.redis.call("KEYS", f"hg:{{{running.tenant}}}:*")
    await running.gateway.redis.call("DEL", *keys)


async def test_store_emptied_in_mid_answer_readers_get_the_rest_and_the_ending(
    running: Running, client: Client
) -> None:
    """SSE, WebSocket and a waiting request each end with the whole answer, though the store knows nothing of it."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=60 #tokens=60") as reader, client.socket() as socket:
        await reader.until("message.delta", 3)
        await socket.reply("subscribe", turn_id=reader.turn_id)
        await lose(running)
        streamed, socketed = await asyncio.gather(reader.rest(), socket.ending(reader.turn_id))
    assert check_log(streamed).name == "turn.completed"
    assert check_log(socketed).data == streamed[-1].data


async def test_store_emptied_in_mid_answer_a_waiting_request_gets_its_answer(running: Running, client: Client) -> None:
    """A client that waits for JSON is answered, not told of an internal error."""
    conversation = await client.conversation()
    waiting = asyncio.ensure_future(
        client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #rate=60 #tokens=40"})
    )
    await eventually(lambda: running.simulator.bill.of(conversation), "the vendor to hear the message")
    await lose(running)
    answer = await waiting
    assert (answer.status, answer.body["event"]) == (200, "turn.completed")
    assert running.gateway.turns.running == 0
