"""One turn, two workers: a reader, a watcher or a stop may come to either, over either transport, and sees no seam."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, Event, Socket, check_log, eventually, text_of
from tests.transports.conftest import SignIn

EVERYTHING = "Zoë 你好 #tokens=9 #rate=150 #citations #fault=extra-role:3"
SOON_S = 0.2


@dataclass
class Pair:
    """One user at the worker that will own the turns, and at the other."""

    owner: Client
    other: Client

    def at(self, where: str) -> Client:
        return self.owner if where == "owner" else self.other


@pytest.fixture
async def pair(start_gateway: StartGateway, sign_in: SignIn) -> Pair:
    first = await start_gateway()
    client = await sign_in(first)
    second = await start_gateway(simulator=first.simulator, tenant=first.tenant)
    for running in (first, second):
        await hears(running)
    return Pair(client, Client(second, client.headers))


async def hears(running: Running) -> None:
    await eventually(lambda: running.gateway.inbox.hears, "the worker to hear the other")


async def first_events(client: Client, turn: str, count: int, transport: str) -> list[Event]:
    """Read so many events of a turn, then vanish as a phone does that changes networks."""
    if transport == "sse":
        async with client.follow(turn) as reader:
            while len(reader.seen) < count and await reader.next() is not None:
                pass
            reader.response.close()
            return reader.seen
    async with client.socket() as socket:
        await socket.reply("subscribe", turn_id=turn)
        # Deltas may come joined, so that there are fewer than were counted.
        while len(events := socket.events(turn)) < count and not (events and events[-1].name == "turn.completed"):
            await socket.next()
        events = socket.events(turn)[:count]
        socket.ws._response.close()  # no close frame
        return events


async def last_events(client: Client, turn: str, cursor: str | None, transport: str) -> list[Event]:
    if transport == "sse":
        return await client.replay(turn, cursor)
    async with client.socket() as socket:
        reply = await socket.reply("subscribe", turn_id=turn, **({"after": cursor} if cursor else {}))
        assert reply["event"] == "ack", reply
        return [] if reply["data"]["ended"] else await socket.ending(turn)


@pytest.mark.parametrize("where", ["owner", "other"])
@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_cut_after_every_event_loses_and_repeats_nothing(transport: str, where: str, pair: Pair) -> None:
    """An answer with every kind of event, cut after each of them and gone on with there or elsewhere, is whole."""
    here, there = pair.owner, pair.at(where)
    other_transport = {"sse": "websocket", "websocket": "sse"}[transport]
    whole = await here.complete(await here.conversation(), EVERYTHING)
    assert {"message.extra", "message.citations", "message.delta"} <= {event.name for event in whole}

    async def cut(count: int) -> None:
        turn = await here.start(await here.conversation(), EVERYTHING)
        kept = await first_events(here, turn, count, transport)
        cursor = kept[-1].id if kept else None
        for resumed_over in (transport, other_transport):
            if kept and kept[-1].name == "turn.completed":
                answer = await there.call("GET", f"/v1/turns/{turn}/events", Last_Event_ID=kept[-1].id)
                assert answer.status == 204
                continue
            events = kept + await last_events(there, turn, cursor, resumed_over)
            assert check_log(events).data["text"] == said(EVERYTHING).text
            assert [(e.position, e.name) for e in events if e.name != "message.delta"] == [
                (e.position, e.name) for e in whole if e.name != "message.delta"
            ]

    await asyncio.gather(*(cut(count) for count in range(len(whole) + 1)))


async def test_two_tabs_on_two_workers_and_transports_see_the_same_events_live(pair: Pair) -> None:
    """The tab on the other worker sees what the owner's tab sees, in order, and not only when somebody looks."""
    conversation = await pair.owner.conversation()
    arrived: dict[str, dict[int, float]] = {"owner": {}, "other": {}}

    def note(tab: str, text: str) -> None:
        for number in re.findall(r"(\d+)@", text):
            arrived[tab].setdefault(int(number), time.monotonic())

    async with pair.owner.ask(conversation, "Hi #clock #tokens=60 #rate=50") as tab, pair.other.socket() as socket:
        turn = tab.turn_id
        await socket.reply("subscribe", turn_id=turn)

        async def read_tab() -> None:
            while (event := await tab.next()) is not None:
                note("owner", event.text)

        async def read_socket() -> None:
            while True:
                frame = await socket.until(lambda frame: frame.get("turn_id") == turn)
                note("other", frame["data"].get("text", "") if frame["event"] == "message.delta" else "")
                if frame["event"] == "turn.completed":
                    return

        await asyncio.gather(read_tab(), read_socket())
    over_socket = socket.events(turn)
    assert check_log(over_socket).data == check_log(tab.seen).data
    assert text_of(over_socket) == text_of(tab.seen)
    delays = [arrived["other"][number] - arrived["owner"][number] for number in arrived["owner"]]
    assert len(delays) == 60
    assert statistics.median(delays) < 0.1


@pytest.mark.parametrize("when", ["before", "deaf", "mended"])
async def test_watched_conversation_tells_of_turns_that_begin_elsewhere(when: str, pair: Pair) -> None:
    """A socket that watches a conversation sees a turn of the other worker, whatever became of the way between them."""
    conversation = await pair.owner.conversation()
    other = pair.other.running.gateway
    async with pair.other.socket() as socket:
        await socket.reply("subscribe", conversation_id=conversation)
        if when != "before":
            await other.redis.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: not other.inbox.hears, "the worker to notice")
        if when == "mended":
            await hears(pair.other.running)
        turn = await pair.owner.start(conversation, "Hi #tokens=60 #rate=40")
        assert check_log(await socket.ending(turn)).name == "turn.completed"
        again = await pair.owner.start(conversation, "And? #tokens=3")
        assert check_log(await socket.ending(again)).name == "turn.completed"
        assert check_log(socket.events(turn)).name == "turn.completed"  # once


@pytest.mark.parametrize("transport", ["http", "websocket"])
@pytest.mark.parametrize("where", ["owner", "other"])
async def test_stop_from_either_worker_reaches_the_vendor_at_once(where: str, transport: str, pair: Pair) -> None:
    """Within 200 ms the vendor sees the reset; a stop that is repeated, anywhere, changes nothing."""
    conversation = await pair.owner.conversation()
    asker = pair.at(where)
    async with pair.owner.ask(conversation, "Hi #rate=40 #tokens=400") as reader, asker.socket() as socket:
        await reader.until("message.delta", 3)
        stop = over_http(asker, reader.turn_id) if transport == "http" else over_socket(socket, reader.turn_id)
        asked_s = time.time()
        assert await stop() == "stopping"
        assert await stop() in ("stopping", "stopped")
        events = await reader.rest()
        assert await stop() == "stopped"
        assert (await pair.owner.stop(reader.turn_id)).body["state"] == "stopped"
        assert (await pair.other.stop(reader.turn_id)).body["state"] == "stopped"
    (run,) = pair.owner.running.simulator.bill.of(conversation)
    assert run.saw_cancel
    assert run.reset_at_s is not None
    assert run.reset_at_s - asked_s < SOON_S
    assert (check_log(events).name, events[-1].data["reason"]) == ("turn.stopped", "user")


def over_http(client: Client, turn: str) -> Callable[[], Awaitable[str]]:
    async def stop() -> str:
        answer = await client.stop(turn)
        assert answer.status == 200
        return str(answer.body["state"])

    return stop


def over_socket(socket: Socket, turn: str) -> Callable[[], Awaitable[str]]:
    async def stop() -> str:
        reply = await socket.reply("turn.stop", turn_id=turn)
        assert reply["event"] == "ack"
        return str(reply["data"]["state"])

    return stop


async def test_stop_from_the_other_worker_by_another_user_is_404(pair: Pair, sign_in: SignIn) -> None:
    """Nobody stops somebody else's turn, from nowhere and over no transport."""
    turn = await pair.owner.start(await pair.owner.conversation(), "Hi #tokens=10 #rate=60")
    stranger = await sign_in(pair.other.running, "u2")
    answer = await stranger.stop(turn)
    assert (answer.status, answer.body["code"]) == (404, "not_found")
    async with stranger.socket() as socket:
        assert (await socket.reply("turn.stop", turn_id=turn))["data"]["code"] == "not_found"
    assert check_log(await pair.other.replay(turn)).name == "turn.completed"


async def test_bad_cursor_on_the_other_worker_is_refused_and_disturbs_nobody(pair: Pair, sign_in: SignIn) -> None:
    """A cursor that is malformed, forged, another's or from the future gets its error, and other readers their turn."""
    stranger = await sign_in(pair.owner.running, "u2")
    foreign = (await stranger.complete(await stranger.conversation(), "Hi #tokens=1"))[0].turn_id
    own = (await pair.owner.complete(await pair.owner.conversation(), "Hi #tokens=1"))[0].turn_id
    turn = await pair.owner.start(await pair.owner.conversation(), "Hi #tokens=60 #rate=60")
    path = f"/v1/turns/{turn}/events"
    async with pair.other.follow(turn) as reader, pair.other.socket() as socket:
        await reader.until("message.delta", 2)
        for cursor in (
            "x",
            turn,
            f"{turn}.",
            f"{turn}.-1",
            f"{turn}.1x",
            f"{turn}.{'9' * 16}",
            f"{own}.2",
            f"{foreign}.2",
        ):
            answer = await pair.other.call("GET", path, Last_Event_ID=cursor)
            assert (answer.status, answer.body["code"], answer.body["field"]) == (
                400,
                "invalid_cursor",
                "Last-Event-ID",
            )
            reply = await socket.reply("subscribe", turn_id=turn, after=cursor)
            assert (reply["event"], reply["data"]["code"]) == ("error", "invalid_cursor")
        answer = await pair.other.call("GET", f"/v1/turns/{foreign}/events", Last_Event_ID=f"{foreign}.2")
        assert (answer.status, answer.body["code"]) == (404, "not_found")
        # Nobody here knows yet that these lie beyond the turn's end; they are told when it has come.
        future = f"{turn}.{'9' * 15}"
        async with pair.other.follow(turn, future) as misled:
            assert (await socket.reply("subscribe", turn_id=turn, after=future))["event"] == "ack"
            events, told = await asyncio.gather(reader.rest(), misled.rest())
            frame = await socket.until(lambda frame: frame["event"] == "error" and frame.get("turn_id") == turn)
    assert check_log(events).name == "turn.completed"
    assert [(event.id, event.name, event.data["code"]) for event in told] == [("", "stream.error", "invalid_cursor")]
    assert frame["data"]["code"] == "invalid_cursor"


async def test_socket_that_subscribes_to_thousands_is_refused_and_costs_bounded_memory(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Of 10,000 turns and conversations a socket gets as many as it may have, an error for each other, and no more."""
    running = await start_gateway(environ={"GATEWAY_WEBSOCKET_COMMANDS_PER_S": "100000"})
    client = await sign_in(running)
    conversations = [await client.conversation() for _ in range(80)]
    turns = [await client.start(conversation, "Hi #delay=30") for conversation in conversations[:40]]
    async with client.socket() as socket:
        for number in range(10_000):
            if number % 2:
                await socket.send("subscribe", turn_id=turns[number // 2 % 40])
            else:
                await socket.send("subscribe", conversation_id=conversations[number // 2 % 80])
        codes = [str((await socket.reply("ping"))["event"])]
        answers = [frame for frame in socket.frames if frame["event"] in ("ack", "error")]
        codes += [frame["data"]["code"] for frame in answers if frame["event"] == "error"]
        assert len(answers) == 10_000
        assert set(codes) == {"pong", "subscriptions_exceeded"}
        (connection,) = running.gateway.edge.open
        deliveries = connection._deliveries  # type: ignore[attr-defined]  # a private one
        assert len(deliveries._turns) + len(deliveries._watched) <= 64 + 64  # a watched conversation brings its turn
        assert len(deliveries._watched) <= 64
    await eventually(lambda: not running.gateway.watches._watchers, "nothing to be watched any more")


@pytest.mark.parametrize("size", [256, 10_240])
async def test_idempotency_key_that_is_too_long_is_refused_over_both_doors(size: int, pair: Pair) -> None:
    """A key of 10 KB is refused by name, starts nothing, and does not end the socket."""
    conversation, key = await pair.owner.conversation(), "k" * size
    answer = await pair.owner.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"}, Idempotency_Key=key
    )
    assert answer.status in (422, 431)
    assert answer.body["code"] in ("invalid_value", "headers_too_large")
    async with pair.owner.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi", client_message_id=key)
        assert (reply["event"], reply["data"]["code"]) == ("error", "invalid_value")
        assert (await socket.reply("ping"))["event"] == "pong"
    assert pair.owner.running.simulator.bill.of(conversation) == []
