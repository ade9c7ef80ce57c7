"""Several readers of one turn: each has its own cursor and its own transport, and all see the same story."""

from __future__ import annotations

import asyncio

from gateway.simulator.answers import answer as said
from tests.conftest import Running
from tests.transports.client import Client, Event, check_log, eventually
from tests.transports.conftest import SignIn

MESSAGE = "Hi 👋 #tokens=40 #rate=100 #citations"


async def test_two_tabs_over_sse_and_websocket_see_the_same_turn(running: Running, client: Client) -> None:
    """A tab that began over SSE and one that joins over WebSocket see the same ids, text and ending; one is paid."""
    conversation = await client.conversation()
    async with client.ask(conversation, MESSAGE) as tab, client.socket() as socket:
        await tab.until("message.delta", 5)
        reply = await socket.reply("subscribe", turn_id=tab.turn_id)
        assert reply["event"] == "ack"
        over_socket = await socket.ending(tab.turn_id)
        over_sse = await tab.rest()
    assert check_log(over_sse).data == check_log(over_socket).data
    assert over_sse[-1].id == over_socket[-1].id
    assert over_sse[-1].data["text"] == said(MESSAGE).text
    assert len(running.simulator.bill.of(conversation)) == 1


async def test_turn_begun_over_websocket_is_finished_over_sse(client: Client) -> None:
    """A cursor taken from one transport works on the other."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        turn = (await socket.reply("turn.start", conversation_id=conversation, message=MESSAGE))["data"]["turn_id"]
        for _ in range(5):
            await socket.until(lambda frame: frame["event"] == "message.delta")
        seen = socket.events(turn)
    rest = await client.replay(turn, seen[-1].id)
    assert check_log([*seen, *rest]).data["text"] == said(MESSAGE).text


async def test_turn_begun_over_sse_is_finished_over_websocket(client: Client) -> None:
    """The other way round."""
    conversation = await client.conversation()
    async with client.ask(conversation, MESSAGE) as reader:
        await reader.until("message.delta", 5)
        seen = list(reader.seen)
        reader.response.close()
    async with client.socket() as socket:
        await socket.reply("subscribe", turn_id=reader.turn_id, after=seen[-1].id)
        rest = await socket.ending(reader.turn_id)
    assert check_log([*seen, *rest]).data["text"] == said(MESSAGE).text


async def test_many_readers_at_once_cost_one_upstream_stream(running: Running, client: Client) -> None:
    """Thirty readers of one turn share one call to the vendor, and each gets all of it."""
    conversation = await client.conversation()
    turn = await client.start(conversation, MESSAGE)
    everyone = await asyncio.gather(*(client.replay(turn) for _ in range(30)))
    for events in everyone:
        assert check_log(events).data["text"] == said(MESSAGE).text
    assert running.simulator.state.chats == 1


async def test_reader_that_leaves_disturbs_no_other(running: Running, client: Client) -> None:
    """One tab is closed in mid-answer; the other sees everything."""
    conversation = await client.conversation()
    async with client.ask(conversation, MESSAGE) as leaving:
        staying = asyncio.create_task(client.replay(leaving.turn_id))
        await leaving.until("message.delta", 3)
        await eventually(lambda: len(running.gateway.edge.open) == 2, "both tabs to be read to")
        leaving.response.close()
    events: list[Event] = await staying
    assert check_log(events).data["text"] == said(MESSAGE).text


async def test_reader_of_another_user_or_tenant_gets_404(running: Running, client: Client, sign_in: SignIn) -> None:
    """A turn that runs is not there for anybody else, over either transport."""
    turn = await client.start(await client.conversation(), "Hi #delay=30")
    stranger = await sign_in(running, "u2")
    answer = await stranger.call("GET", f"/v1/turns/{turn}/events")
    assert (answer.status, answer.body["code"]) == (404, "not_found")
    async with stranger.socket() as socket:
        reply = await socket.reply("subscribe", turn_id=turn)
        assert (reply["event"], reply["data"]["code"]) == ("error", "not_found")
