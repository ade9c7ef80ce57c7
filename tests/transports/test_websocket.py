"""The WebSocket door: commands and their answers, who may open it, what closes it, and what it may hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import websockets

from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, Closed, Event, Socket, check_log, eventually
from tests.transports.conftest import SignIn

NOBODY = "00000000-0000-4000-8000-000000000000"


@contextlib.asynccontextmanager
async def bare_socket(running: Running, **options: Any) -> AsyncIterator[Socket]:
    """Open a WebSocket that has shown no token."""
    async with running.http.ws_connect(f"{running.url}/v1/ws", **options) as ws:
        yield Socket(ws)


# --- who it is --------------------------------------------------------------------------------------------------------


async def test_websocket_with_token_as_subprotocol_echoes_only_the_protocol(client: Client) -> None:
    """The token travels as a second subprotocol entry and is never sent back."""
    async with client.socket() as socket:
        assert socket.ws.protocol == "hyperleap.chat.v1"
        headers = socket.ws._response.headers
        assert headers.getall("Sec-WebSocket-Protocol") == ["hyperleap.chat.v1"]
        assert not any(client.token in value for value in headers.values())
        assert (await socket.reply("ping"))["event"] == "pong"


async def test_websocket_with_token_in_first_frame_is_let_in(running: Running, client: Client) -> None:
    """Whoever cannot set subprotocols sends ``auth`` first and gets an ``ack``."""
    async with bare_socket(running) as socket:
        assert (await socket.reply("auth", token=client.token))["event"] == "ack"
        assert (await socket.reply("ping"))["event"] == "pong"


async def test_websocket_with_authorization_header_is_let_in(running: Running, client: Client) -> None:
    """An app that can set headers uses the header of every other request."""
    async with bare_socket(running, headers=client.headers) as socket:
        assert (await socket.reply("ping"))["event"] == "pong"


async def test_websocket_without_token_is_closed_in_time(start_gateway: StartGateway) -> None:
    """A socket that does not say who it is within the time allowed is closed with 4401."""
    running = await start_gateway(environ={"GATEWAY_WEBSOCKET_AUTH_TIMEOUT_S": "0.2"})
    async with bare_socket(running) as socket:
        assert await socket.closed() == Closed(4401, "auth_timeout")
        assert [error["code"] for error in socket.errors()] == ["auth_timeout"]


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        ("nonsense", 4503, "credential_invalid"),
        ("hgt_a.b.c", 4503, "credential_invalid"),
        ("", 4503, "credential_invalid"),
        ("{secret_key}", 4504, "forbidden"),
        ("{publishable_key}", 4504, "forbidden"),
    ],
)
async def test_websocket_with_bad_token_is_closed_with_a_readable_code(
    token: str, code: int, reason: str, running: Running
) -> None:
    """The refusal comes after the upgrade, as a frame and a close code, since a page cannot read a failed upgrade."""
    shown = token.format(secret_key=running.secret_key, publishable_key=running.publishable_key)
    async with bare_socket(running) as socket:
        await socket.send("auth", token=shown)
        assert await socket.closed() == Closed(code, reason)
        (error,) = socket.errors()
        assert error["code"] == reason
        assert not shown or shown not in msgspec.json.encode(error).decode()
    async with bare_socket(running, protocols=("hyperleap.chat.v1", f"hgt.{shown}")) as socket:
        assert await socket.closed() == Closed(code, reason)


async def test_websocket_whose_first_frame_is_no_auth_is_closed(running: Running) -> None:
    """Before it has said who it is a socket can do nothing else."""
    async with bare_socket(running) as socket:
        await socket.send("ping")
        assert await socket.closed() == Closed(4503, "credential_missing")


async def test_websocket_from_foreign_origin_is_closed_with_4504(running: Running, client: Client) -> None:
    """A page of another site cannot use a token that it got hold of."""
    async with bare_socket(running, headers={**client.headers, "Origin": "https://evil.example"}) as socket:
        assert await socket.closed() == Closed(4504, "origin_not_allowed")
    async with bare_socket(running, headers={**client.headers, "Origin": "https://app.example"}) as socket:
        assert (await socket.reply("ping"))["event"] == "pong"


async def test_websocket_whose_token_expires_is_closed_with_4401(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A socket outlives no token: at its end it is closed with the code that means "bring a new one"."""
    running = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1"})
    client = await sign_in(running, ttl_s=1)
    turn = await client.start(await client.conversation(), "Hi #tokens=3 #delay=30")
    async with client.socket() as socket:
        await socket.reply("subscribe", turn_id=turn)
        assert await socket.closed() == Closed(4401, "token_expired")
        assert [error["code"] for error in socket.errors()] == ["token_expired"]
    assert running.gateway.turns.find(turn) is not None  # type: ignore[arg-type]  # leaving is not stopping


async def test_websocket_that_refreshes_its_token_lives_on(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """``refresh`` with a new token moves the end of the socket."""
    running = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1"})
    old, new = await sign_in(running, ttl_s=1), await sign_in(running, ttl_s=3)
    conversation = await new.conversation()
    async with old.socket() as socket:
        assert (await socket.reply("refresh", token=new.token))["event"] == "ack"
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi #tokens=2 #delay=1.3")
        events = await socket.ending(reply["data"]["turn_id"])
        assert check_log(events).name == "turn.completed"


async def test_websocket_refreshed_with_bad_or_foreign_token_keeps_its_user(
    running: Running, client: Client, sign_in: SignIn
) -> None:
    """A socket keeps its user: another's token, or none at all, is refused and changes nothing."""
    other = await sign_in(running, "u2")
    async with client.socket() as socket:
        for token, code in ((other.token, "forbidden"), ("nonsense", "credential_invalid")):
            reply = await socket.reply("refresh", token=token)
            assert (reply["event"], reply["data"]["code"]) == ("error", code)
        conversation = await client.conversation()
        assert (await socket.reply("subscribe", conversation_id=conversation))["event"] == "ack"


async def test_websocket_upgrade_asked_for_without_upgrade_is_a_problem(client: Client) -> None:
    """A plain request to the WebSocket's path gets an answer that says what is wrong."""
    answer = await client.call("GET", "/v1/ws")
    assert 400 <= answer.status < 500
    assert answer.headers["Content-Type"] == "application/problem+json"


# --- commands ---------------------------------------------------------------------------------------------------------


async def test_websocket_turn_start_streams_the_same_events_as_sse(client: Client) -> None:
    """``turn.start`` is acknowledged with the turn's id, and the events are those that SSE tells."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi 👋 #tokens=20 #citations")
        assert reply["event"] == "ack"
        events = await socket.ending(reply["data"]["turn_id"])
        assert all(
            frame["conversation_id"] == conversation for frame in socket.frames if frame["event"].startswith("message.")
        )
    assert check_log(events).data["text"] == said("Hi 👋 #tokens=20 #citations").text
    replayed = await client.replay(events[0].turn_id)
    assert check_log(replayed).data == events[-1].data
    assert events[0].data == replayed[0].data


async def test_websocket_subscribe_with_cursor_at_every_position_gives_exactly_the_rest(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The cursors are those of SSE: any position, in the middle of a delta too."""
    client = await sign_in(await start_gateway(environ={"GATEWAY_WEBSOCKET_COMMANDS_PER_S": "1000"}))
    whole = await client.complete(await client.conversation(), "Zoë 👩‍👩‍👧‍👦 你好! #echo")
    ending = check_log(whole)
    async with client.socket() as socket:
        for position in range(1, ending.position):
            reply = await socket.reply("subscribe", turn_id=ending.turn_id, after=f"{ending.turn_id}.{position}")
            assert reply["data"] == {"turn_id": ending.turn_id, "ended": False}
            check_log(await socket.ending(ending.turn_id), after=position)
            socket.frames.clear()
        reply = await socket.reply("subscribe", turn_id=ending.turn_id, after=ending.id)
        assert reply["data"] == {"turn_id": ending.turn_id, "ended": True}


async def test_websocket_carries_many_conversations_at_once(client: Client) -> None:
    """Ten conversations over one socket keep their events apart."""
    conversations = [await client.conversation() for _ in range(10)]
    async with client.socket() as socket:
        turns = []
        for number, conversation in enumerate(conversations):
            reply = await socket.reply(
                "turn.start", conversation_id=conversation, message=f"I am number {number} #echo #rate=100"
            )
            turns.append(reply["data"]["turn_id"])
        for number, turn in enumerate(turns):
            assert check_log(await socket.ending(turn)).data["text"] == f"I am number {number}"


async def test_websocket_conversation_subscription_follows_turns_started_elsewhere(client: Client) -> None:
    """A tab that subscribed to the conversation sees the turns that another tab starts, now and later."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        reply = await socket.reply("subscribe", conversation_id=conversation)
        assert reply["data"] == {"conversation_id": conversation, "turn_id": None}
        for number in range(3):
            elsewhere = await client.complete(conversation, f"Hi {number} #tokens=5")
            here = await socket.ending(elsewhere[0].turn_id)
            assert check_log(here).data == elsewhere[-1].data


async def test_websocket_conversation_subscription_joins_the_active_turn(client: Client) -> None:
    """Subscribing in mid-answer names the active turn and brings it from the beginning."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #tokens=20 #rate=60")
    async with client.socket() as socket:
        reply = await socket.reply("subscribe", conversation_id=conversation)
        assert reply["data"]["turn_id"] == turn
        check_log(await socket.ending(turn))


async def test_websocket_conversation_subscription_with_cursor_goes_on_after_it(client: Client) -> None:
    """A tab whose turn ended while it was away gets the rest with its cursor, then the turns to come."""
    conversation = await client.conversation()
    whole = await client.complete(conversation, "Hi #tokens=8")
    async with client.socket() as socket:
        await socket.reply("subscribe", conversation_id=conversation, after=whole[4].id)
        check_log(await socket.ending(whole[0].turn_id), after=whole[4].position)
        later = await client.complete(conversation, "again #tokens=3")
        check_log(await socket.ending(later[0].turn_id))


async def test_websocket_unsubscribed_from_turn_hears_nothing_more_of_it(client: Client) -> None:
    """After the ``ack`` of an unsubscribe not one event of the turn follows, while the turn goes on."""
    turn = await client.start(await client.conversation(), "Hi #tokens=60 #rate=200")
    async with client.socket() as socket:
        await socket.reply("subscribe", turn_id=turn)
        await socket.until(lambda frame: frame["event"] == "message.delta")
        await socket.reply("unsubscribe", turn_id=turn)
        heard = len(socket.frames)
        check_log(await client.replay(turn))
        await socket.reply("ping")
        assert [frame["event"] for frame in socket.frames[heard:]] == ["pong"]


async def test_websocket_unsubscribed_from_conversation_hears_nothing_more_of_it(client: Client) -> None:
    """Leaving a conversation ends its active turn's events and those of the turns to come."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        await socket.reply("subscribe", conversation_id=conversation)
        turn = await client.start(conversation, "Hi #tokens=30 #rate=200")
        await socket.until(lambda frame: frame["event"] == "message.delta")
        await socket.reply("unsubscribe", conversation_id=conversation)
        heard = len(socket.frames)
        check_log(await client.replay(turn))
        await client.complete(conversation, "again #tokens=2")
        await socket.reply("ping")
        assert [frame["event"] for frame in socket.frames[heard:]] == ["pong"]


async def test_websocket_subscribed_again_with_bad_cursor_keeps_the_first_subscription(client: Client) -> None:
    """A refused subscribe changes nothing: the events that were coming keep coming."""
    turn = await client.start(await client.conversation(), "Hi #tokens=30 #rate=100")
    async with client.socket() as socket:
        await socket.reply("subscribe", turn_id=turn)
        await socket.until(lambda frame: frame["event"] == "message.delta")
        reply = await socket.reply("subscribe", turn_id=turn, after=f"{turn}.999999")
        assert (reply["event"], reply["data"]["code"]) == ("error", "invalid_cursor")
        check_log(await socket.ending(turn))


async def test_websocket_turn_stop_stops(running: Running, client: Client) -> None:
    """``turn.stop`` is the stop request of HTTP."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="Hi #rate=40")
        turn = reply["data"]["turn_id"]
        await socket.until(lambda frame: frame["event"] == "message.delta")
        stopped = await socket.reply("turn.stop", turn_id=turn)
        assert stopped["data"] == {"turn_id": turn, "state": "stopping"}
        ending = check_log(await socket.ending(turn))
        assert (ending.name, ending.data["reason"]) == ("turn.stopped", "user")
        assert (await socket.reply("turn.stop", turn_id=turn))["data"]["state"] == "stopped"
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset")


async def test_websocket_client_message_id_sent_again_leads_to_the_same_turn(running: Running, client: Client) -> None:
    """A client that lost its socket before the ``ack`` sends the message again, and it is sent to the vendor once."""
    conversation = await client.conversation()
    message = {"conversation_id": conversation, "message": "Hi #tokens=5", "client_message_id": "k1"}
    turns = []
    for _ in range(2):
        async with client.socket() as socket:
            turns.append((await socket.reply("turn.start", **message))["data"]["turn_id"])
            check_log(await socket.ending(turns[-1]))
    assert turns[0] == turns[1]
    assert len(running.simulator.bill.of(conversation)) == 1


BAD_COMMANDS: list[tuple[str, str, str | None]] = [
    ("", "malformed_json", None),
    ("{", "malformed_json", None),
    ("[]", "wrong_type", None),
    ("null", "wrong_type", None),
    ('"ping"', "wrong_type", None),
    ("{}", "missing_field", "type"),
    ('{"type":1,"request_id":"r1"}', "command_unknown", "type"),
    ('{"type":"turn.begin","request_id":"r1"}', "command_unknown", "type"),
    ('{"type":"ping","request_id":"r1","colour":"red"}', "unknown_field", "colour"),
    ('{"type":"turn.start","request_id":"r1","message":"Hi"}', "missing_field", "conversation_id"),
    ('{"type":"turn.start","request_id":"r1","conversation_id":"{c}"}', "missing_field", "message"),
    ('{"type":"turn.start","request_id":"r1","conversation_id":"{c}","message":7}', "wrong_type", "message"),
    ('{"type":"turn.start","request_id":"r1","conversation_id":"{c}","message":" \\n"}', "message_empty", "message"),
    (
        '{"type":"turn.start","request_id":"r1","conversation_id":"{c}","message":"{long}"}',
        "message_too_long",
        "message",
    ),
    ('{"type":"turn.start","request_id":"r1","conversation_id":"x","message":"Hi"}', "invalid_id", "conversation_id"),
    ('{"type":"turn.start","request_id":"r1","conversation_id":"{n}","message":"Hi"}', "not_found", None),
    ('{"type":"subscribe","request_id":"r1"}', "invalid_value", "turn_id"),
    ('{"type":"subscribe","request_id":"r1","turn_id":"{n}","conversation_id":"{c}"}', "invalid_value", "turn_id"),
    ('{"type":"subscribe","request_id":"r1","turn_id":"7"}', "invalid_id", "turn_id"),
    ('{"type":"subscribe","request_id":"r1","turn_id":"{n}"}', "not_found", None),
    ('{"type":"subscribe","request_id":"r1","conversation_id":"{n}"}', "not_found", None),
    ('{"type":"subscribe","request_id":"r1","turn_id":"{n}","after":"17"}', "invalid_cursor", "after"),
    ('{"type":"subscribe","request_id":"r1","conversation_id":"{c}","after":"17"}', "invalid_cursor", "after"),
    ('{"type":"unsubscribe","request_id":"r1"}', "invalid_value", "turn_id"),
    ('{"type":"unsubscribe","request_id":"r1","turn_id":"7"}', "invalid_id", "turn_id"),
    ('{"type":"turn.stop","request_id":"r1"}', "missing_field", "turn_id"),
    ('{"type":"turn.stop","request_id":"r1","turn_id":"7"}', "invalid_id", "turn_id"),
    ('{"type":"turn.stop","request_id":"r1","turn_id":"{n}"}', "not_found", None),
    ('{"type":"refresh","request_id":"r1"}', "missing_field", "token"),
]


async def test_websocket_bad_command_is_answered_and_leaves_the_socket_open(start_gateway: StartGateway) -> None:
    """Every bad command gets an ``error`` frame with its request id, the code and the field; the socket lives on."""
    running = await start_gateway(environ={"GATEWAY_WEBSOCKET_COMMANDS_PER_S": "1000"})
    client = Client(running, await running.user())
    conversation = await client.conversation()
    wrong = []
    async with client.socket() as socket:
        for frame, code, field in BAD_COMMANDS:
            text = frame.replace("{c}", conversation).replace("{n}", NOBODY).replace("{long}", "x" * 32_001)
            await socket.ws.send_str(text)
            told = await socket.next()
            assert not isinstance(told, Closed), (frame, told)
            seen = (told["event"], told["data"]["code"], told["data"].get("field"), told["request_id"])
            if seen != ("error", code, field, "r1" if '"request_id":"r1"' in frame else None):
                wrong.append((frame, seen))
        assert (await socket.reply("ping"))["event"] == "pong"
    assert wrong == []


async def test_websocket_error_frame_holds_the_problem_of_http(client: Client) -> None:
    """The ``data`` of an error frame has the members of an HTTP problem."""
    async with client.socket() as socket:
        data = (await socket.reply("subscribe", turn_id=NOBODY))["data"]
    over_http = (await client.call("GET", f"/v1/turns/{NOBODY}/events")).body
    assert data.keys() == over_http.keys()
    assert {**data, "request_id": ""} == {**over_http, "request_id": ""}


async def test_websocket_start_in_busy_conversation_names_the_active_turn(client: Client) -> None:
    """A second start over WebSocket is refused as over HTTP, with the first turn's id."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #delay=30")
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message="again")
        assert (reply["event"], reply["data"]["code"], reply["data"]["turn_id"]) == ("error", "turn_active", turn)


# --- what it may hold -------------------------------------------------------------------------------------------------


async def test_websocket_binary_frame_closes_with_4400(client: Client) -> None:
    """Binary frames are not part of the protocol: told, then closed."""
    async with client.socket() as socket:
        await socket.ws.send_bytes(b'{"type":"ping"}')
        assert await socket.closed() == Closed(4400, "frame_binary")
        assert [error["code"] for error in socket.errors()] == ["frame_binary"]


async def test_websocket_binary_first_frame_closes_with_4400(running: Running) -> None:
    """Also before the socket has said who it is."""
    async with bare_socket(running) as socket:
        await socket.ws.send_bytes(b"\x00")
        assert await socket.closed() == Closed(4400, "frame_binary")


async def test_websocket_oversize_frame_closes_with_1009(client: Client) -> None:
    """A frame beyond the limit is told why and closes the socket with the code of RFC 6455 for that."""
    async with client.socket() as socket:
        await socket.ws.send_str('{"type":"ping","request_id":"' + "x" * 262_144 + '"}')
        assert (await socket.closed()).code == 1009
        assert [error["code"] for error in socket.errors()] == ["frame_too_large"]


async def test_websocket_message_of_nearly_a_frame_is_taken(client: Client) -> None:
    """A message whose frame is just below 64 KiB is sent like any other."""
    conversation = await client.conversation()
    message = "é" * 31_980 + " #tokens=1"
    async with client.socket() as socket:
        reply = await socket.reply("turn.start", conversation_id=conversation, message=message)
        assert reply["event"] == "ack"


async def test_websocket_too_many_subscriptions_are_refused_and_make_room_again(start_gateway: StartGateway) -> None:
    """The subscriptions of a socket are counted; one more is refused, and an unsubscribe makes room."""
    running = await start_gateway(environ={"GATEWAY_WEBSOCKET_SUBSCRIPTIONS_MAX": "3"})
    client = Client(running, await running.user())
    conversations = [await client.conversation() for _ in range(4)]
    async with client.socket() as socket:
        for conversation in conversations[:3]:
            assert (await socket.reply("subscribe", conversation_id=conversation))["event"] == "ack"
        reply = await socket.reply("subscribe", conversation_id=conversations[3])
        assert (reply["event"], reply["data"]["code"]) == ("error", "subscriptions_exceeded")
        assert (await socket.reply("subscribe", conversation_id=conversations[0]))["event"] == "ack"
        await socket.reply("unsubscribe", conversation_id=conversations[0])
        assert (await socket.reply("subscribe", conversation_id=conversations[3]))["event"] == "ack"


async def test_websocket_too_many_commands_closes_with_4429(start_gateway: StartGateway) -> None:
    """A socket that floods is told so and closed with the code that means "come back later"."""
    running = await start_gateway(environ={"GATEWAY_WEBSOCKET_COMMANDS_PER_S": "5"})
    client = Client(running, await running.user())
    async with client.socket() as socket:
        for _ in range(7):
            await socket.send("ping")
        assert await socket.closed() == Closed(4429, "commands_too_fast")
        assert [frame["event"] for frame in socket.frames] == ["pong"] * 5 + ["error"]


async def test_websocket_twenty_commands_in_a_burst_are_all_answered(client: Client) -> None:
    """The default allows twenty commands at once."""
    async with client.socket() as socket:
        for number in range(20):
            await socket.send("ping", request_id=str(number))
        for number in range(20):
            frame = await socket.next()
            assert not isinstance(frame, Closed)
            assert (frame["event"], frame["request_id"]) == ("pong", str(number))


async def test_websocket_that_goes_away_lets_its_deliveries_go(running: Running, client: Client) -> None:
    """A closed socket leaves nothing behind: no reader, no watcher, no open connection; the turn goes on."""
    conversation = await client.conversation()
    async with client.socket() as socket:
        await socket.reply("subscribe", conversation_id=conversation)
        turn = await client.start(conversation, "Hi #tokens=40 #rate=100")
        await socket.until(lambda frame: frame["event"] == "message.delta")
    await eventually(lambda: not running.gateway.edge.open, "the socket to be let go")
    live = running.gateway.turns.find(turn)  # type: ignore[arg-type]  # a plain id
    assert live is not None
    await eventually(lambda: live.live.readers == 0, "the readers to be let go")
    assert running.gateway.watches._watchers == {}
    check_log(await client.replay(turn))


async def test_websocket_at_shutdown_is_asked_to_reconnect(running: Running, client: Client) -> None:
    """A gateway that goes away closes its sockets with 1012."""
    async with client.socket() as socket:
        await socket.reply("ping")
        (open_,) = running.gateway.edge.open
        shutting = asyncio.create_task(open_.shut())
        assert (await socket.closed()).code == 1012
        await shutting


# --- clients that nobody here wrote -----------------------------------------------------------------------------------


async def test_websocket_serves_the_websockets_package(running: Running, client: Client) -> None:
    """A client of the ``websockets`` package authenticates by subprotocol, chats, pings and closes cleanly."""
    conversation = await client.conversation()
    url = running.url.replace("http", "ws") + "/v1/ws"
    subprotocols = [websockets.Subprotocol("hyperleap.chat.v1"), websockets.Subprotocol(f"hgt.{client.token}")]
    message = {"type": "turn.start", "conversation_id": conversation, "message": "Hi 👋 #tokens=200 #rate=0"}
    events: list[Event] = []
    async with websockets.connect(url, subprotocols=subprotocols) as ws:
        assert ws.subprotocol == "hyperleap.chat.v1"
        await ws.send(msgspec.json.encode(message).decode())
        async with asyncio.timeout(5):
            async for text in ws:
                frame = msgspec.json.decode(text)
                if "id" in frame:
                    events.append(Event(frame["id"], frame["event"], frame["data"]))
                    if frame["event"] == "turn.completed":
                        break
        pong = await ws.ping()
        await asyncio.wait_for(pong, 5)
    assert ws.close_code == 1000
    assert check_log(events).data["text"] == said("Hi 👋 #tokens=200 #rate=0").text
