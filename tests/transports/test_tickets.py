"""Tickets: a URL opens what its ticket was made for, for its user, and nothing else; no other secret works in a URL."""

from __future__ import annotations

import asyncio
import base64
import io
import uuid
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.revocation import Revoked
from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client, Closed, Reader, Socket, check_log, eventually
from tests.transports.conftest import SignIn
from tests.transports.test_secrets import log

__all__ = ["log"]  # the fixture

ORIGIN, FOREIGN = "https://app.example", "https://evil.example"


async def ticket_for(client: Client, path: str) -> str:
    answer = await client.call("POST", "/v1/tickets", {"path": path})
    assert answer.status == 201, answer.raw
    assert answer.body.keys() == {"ticket", "expires_at"}
    assert answer.headers["Cache-Control"] == "no-store"
    return str(answer.body["ticket"])


def bare(running: Running) -> Client:
    """A client that can set no header."""
    return Client(running, {})


async def connected(running: Running, ticket: str, **headers: str) -> Closed | dict[str, Any]:
    """Open a socket with a ticket; return how it closed, or the answer to its first command."""
    async with running.http.ws_connect(
        f"{running.url}/v1/ws?ticket={ticket}", protocols=("hyperleap.chat.v1",), headers=headers
    ) as ws:
        socket = Socket(ws)
        await socket.send("ping")
        while True:
            frame = await socket.next()
            if isinstance(frame, Closed) or frame["event"] == "pong":
                return frame


async def test_ticket_opens_a_turns_stream_again_and_again(client: Client) -> None:
    """An EventSource comes back with the same URL by itself: the ticket goes on working, with any cursor."""
    ending = check_log(await client.complete(await client.conversation(), "Hi #tokens=4"))
    path = f"/v1/turns/{ending.turn_id}/events"
    ticket = await ticket_for(client, path)
    running = client.running
    for cursor, after in ((None, 0), (f"{ending.turn_id}.2", 2), (None, 0)):
        headers = {"Last-Event-ID": cursor} if cursor else {}
        async with running.http.get(f"{running.url}{path}?ticket={ticket}", headers=headers) as response:
            assert response.status == 200
            assert check_log(await Reader(response).rest(), after=after).name == "turn.completed"
    at_end = await bare(running).call("GET", f"{path}?ticket={ticket}", Last_Event_ID=ending.id)
    assert at_end.status == 204


async def test_ticket_opens_a_conversations_stream_while_it_is_live(client: Client) -> None:
    """A ticket for a conversation follows the turn that is active in it."""
    conversation = await client.conversation()
    path = f"/v1/conversations/{conversation}/events"
    ticket = await ticket_for(client, path)
    running = client.running
    assert (await bare(running).call("GET", f"{path}?ticket={ticket}")).status == 204
    turn = await client.start(conversation, "Hi #tokens=10 #rate=50")
    async with running.http.get(f"{running.url}{path}?ticket={ticket}") as response:
        events = await Reader(response).rest()
    assert check_log(events).turn_id == turn


async def test_ticket_outlives_the_token_that_it_was_got_with(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A stream that reconnects after the session's end goes on: the ticket lives as long as the log can."""
    running = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1"})
    client = await sign_in(running, ttl_s=1)
    ending = check_log(await client.complete(await client.conversation(), "Hi #tokens=2"))
    path = f"/v1/turns/{ending.turn_id}/events"
    ticket = await ticket_for(client, path)

    async def expired() -> bool:
        return (await client.call("GET", "/v1/conversations")).status == 401

    await eventually(expired, "the token to expire")
    assert (await bare(running).call("GET", f"{path}?ticket={ticket}")).status == 200


async def test_ticket_opens_one_socket(client: Client) -> None:
    """A socket's ticket works once; the second attempt is told so with a close code that asks for another."""
    ticket = await ticket_for(client, "/v1/ws")
    first = await connected(client.running, ticket)
    assert isinstance(first, dict)
    assert await connected(client.running, ticket) == Closed(4401, "credential_used")


async def test_ticket_used_by_many_at_once_opens_exactly_one_socket(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Twenty simultaneous uses on two workers let one in."""
    here = await start_gateway()
    there = await start_gateway(tenant=here.tenant, simulator=here.simulator)
    ticket = await ticket_for(await sign_in(here), "/v1/ws")
    outcomes = await asyncio.gather(*(connected(running, ticket) for running in (here, there) * 10))
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
    assert outcomes.count(Closed(4401, "credential_used")) == 19


async def test_ticket_of_a_socket_gives_what_its_token_gave(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The socket has its user and his personas, outlives no token and can be refreshed with a new one."""
    running = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1"})
    broad, narrow = await sign_in(running), await sign_in(running, ttl_s=1, personas=["other"])
    conversations = {alias: await broad.conversation(persona=alias) for alias in ("default", "other")}
    stranger = await sign_in(running, "u2")
    ticket = await ticket_for(narrow, "/v1/ws")
    async with running.http.ws_connect(f"{running.url}/v1/ws?ticket={ticket}") as ws:
        socket = Socket(ws)
        known = await socket.reply("subscribe", conversation_id=conversations["other"])
        hidden = await socket.reply("subscribe", conversation_id=conversations["default"])
        assert (known["event"], hidden["data"]["code"]) == ("ack", "not_found")
        refused = await socket.reply("refresh", token=stranger.token)
        assert refused["data"]["code"] == "forbidden"
        assert await socket.closed() == Closed(4401, "token_expired")
    ticket = await ticket_for(await sign_in(running, ttl_s=2), "/v1/ws")
    async with running.http.ws_connect(f"{running.url}/v1/ws?ticket={ticket}") as ws:
        socket = Socket(ws)
        assert (await socket.reply("refresh", token=broad.token))["event"] == "ack"


async def test_ticket_is_bound_to_its_path(client: Client) -> None:
    """Every other address, and every other method, refuses it."""
    conversation = await client.conversation()
    ending = check_log(await client.complete(conversation, "Hi #tokens=2"))
    other = str(uuid.uuid4())
    path = f"/v1/turns/{ending.turn_id}/events"
    ticket = await ticket_for(client, path)
    anyone = bare(client.running)
    for method, elsewhere, code in (
        ("GET", f"/v1/turns/{other}/events", "credential_invalid"),
        ("GET", f"/v1/conversations/{conversation}/events", "credential_invalid"),
        ("GET", f"/v1/conversations/{conversation}", "credential_missing"),
        ("GET", "/v1/conversations", "credential_missing"),
        ("POST", f"/v1/turns/{ending.turn_id}/stop", "credential_missing"),
        ("POST", "/v1/conversations", "credential_missing"),
        ("POST", "/v1/tickets", "credential_missing"),
        ("POST", "/v1/sessions", "credential_missing"),
    ):
        answer = await anyone.call(method, f"{elsewhere}?ticket={ticket}", {} if method == "POST" else None)
        assert (answer.status, answer.body["code"]) == (401, code), (method, elsewhere)
        assert ticket not in answer.raw.decode()
    assert await connected(client.running, ticket) == Closed(4503, "credential_invalid")
    upper = await anyone.call("GET", f"{path.replace(ending.turn_id, ending.turn_id.upper())}?ticket={ticket}")
    assert upper.status == 200


async def test_ticket_is_bound_to_its_user_and_tenant(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A ticket for another's turn opens nothing, nor one of another tenant, though all is signed with one key."""
    here, there = await start_gateway(), await start_gateway()
    owner, stranger, foreigner = await sign_in(here), await sign_in(here, "u2"), await sign_in(there)
    ending = check_log(await owner.complete(await owner.conversation(), "Hi #tokens=2"))
    path = f"/v1/turns/{ending.turn_id}/events"
    answer = await bare(here).call("GET", f"{path}?ticket={await ticket_for(stranger, path)}")
    assert (answer.status, answer.body["code"]) == (404, "not_found")
    answer = await bare(here).call("GET", f"{path}?ticket={await ticket_for(foreigner, path)}")
    assert (answer.status, answer.body["code"]) == (401, "credential_invalid")
    assert await connected(here, await ticket_for(foreigner, "/v1/ws")) == Closed(4503, "credential_invalid")


async def test_no_token_or_key_works_in_a_url(running: Running, client: Client) -> None:
    """Whatever its name, a token in a query is not taken, and the refusal says what to do instead."""
    turn = str(uuid.uuid4())
    for path in ("/v1/conversations", f"/v1/turns/{turn}/events"):
        for name in ("token", "access_token", "key", "ticket"):
            for secret in (client.token, running.secret_key, running.publishable_key):
                answer = await bare(running).call("GET", f"{path}?{name}={secret}")
                assert answer.status == 401, (path, name)
                assert answer.body["code"] in ("credential_missing", "credential_invalid")
                assert secret not in answer.raw.decode()
    hinted = await bare(running).call("GET", f"/v1/conversations?access_token={client.token}")
    assert "/v1/tickets" in hinted.body["detail"]
    assert await connected(running, client.token) == Closed(4503, "credential_invalid")


async def test_ticket_beside_another_credential_is_refused(client: Client) -> None:
    """One credential a request (RFC 6750 section 2): of two it would not be clear whose request it is."""
    path = f"/v1/turns/{uuid.uuid4()}/events"
    ticket = await ticket_for(client, path)
    for who, query in ((client, f"ticket={ticket}"), (bare(client.running), f"ticket={ticket}&ticket={ticket}")):
        answer = await who.call("GET", f"{path}?{query}")
        assert (answer.status, answer.body["code"]) == (401, "credential_invalid")
    as_bearer = await Client(client.running, {"Authorization": f"Bearer {ticket}"}).call("GET", path)
    assert (as_bearer.status, as_bearer.body["code"]) == (403, "forbidden")
    socket_ticket = await ticket_for(client, "/v1/ws")
    for protocols, headers in ((("hyperleap.chat.v1", f"hgt.{client.token}"), {}), ((), client.headers)):
        async with client.running.http.ws_connect(
            f"{client.running.url}/v1/ws?ticket={socket_ticket}", protocols=protocols, headers=headers
        ) as ws:
            assert await Socket(ws).closed() == Closed(4503, "credential_invalid")
    assert isinstance(await connected(client.running, socket_ticket), dict)  # not used up by that


@pytest.mark.parametrize(
    "body",
    [
        {"path": "/v1/conversations"},
        {"path": "/v1/turns/x/events"},
        {"path": "/v1/ws/"},
        {"path": "/v1/ws?x=1"},
        {"path": f"/v1/turns/{uuid.uuid4()}/events?after=x"},
        {"path": f"/v1/turns/{uuid.uuid4()}/stop"},
        {"path": f"https://evil.example/v1/turns/{uuid.uuid4()}/events"},
        {"path": f"/v1/turns/{uuid.uuid4()}/events\n"},
        {"path": ""},
    ],
)
async def test_ticket_for_any_other_path_is_refused_by_field(client: Client, body: dict[str, str]) -> None:
    """Tickets are for streams and sockets only."""
    answer = await client.call("POST", "/v1/tickets", body)
    assert (answer.status, answer.body["code"], answer.body["field"]) == (422, "invalid_value", "path")


async def test_ticket_from_a_foreign_origin_is_refused_and_not_used_up(client: Client) -> None:
    """A page of another site that got hold of a ticket opens nothing with it, and takes nothing away."""
    ticket = await ticket_for(client, "/v1/ws")
    assert await connected(client.running, ticket, Origin=FOREIGN) == Closed(4504, "origin_not_allowed")
    assert isinstance(await connected(client.running, ticket, Origin=ORIGIN), dict)
    path = f"/v1/turns/{uuid.uuid4()}/events"
    answer = await bare(client.running).call("GET", f"{path}?ticket={await ticket_for(client, path)}", Origin=FOREIGN)
    assert (answer.status, answer.body["code"]) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_ticket_is_revoked_with_its_session(running: Running, sign_in: SignIn) -> None:
    """What ends a token ends its tickets, those that are in use too."""
    client = await sign_in(running)
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #tokens=3000 #rate=20")
    path = f"/v1/turns/{turn}/events"
    ticket = await ticket_for(client, path)
    session = await Client(running, {"Authorization": f"Bearer {running.secret_key}"}).call(
        "POST", "/v1/sessions", {"user_id": "u1"}
    )
    own = await ticket_for(Client(running, {"Authorization": f"Bearer {session.body['token']}"}), path)
    async with (
        running.http.get(f"{running.url}{path}?ticket={own}") as response,
        running.http.get(f"{running.url}{path}?ticket={ticket}") as bystander,
    ):
        reader, other = Reader(response), Reader(bystander)
        await reader.until("message.delta")
        await other.until("message.delta")
        revocations = running.gateway.revocations
        await revocations.revoke(Revoked.TOKEN, TenantId(running.tenant), session.body["token_id"])
        assert (await reader.rest())[-1].data["code"] == "revoked"
        await other.until("message.delta")
    refused = await bare(running).call("GET", f"{path}?ticket={own}")
    assert (refused.status, refused.body["code"]) == (401, "revoked")


async def test_ticket_that_is_forged_is_invalid(client: Client) -> None:
    """What was changed, cut, too long or signed for something else is no ticket."""
    path = f"/v1/turns/{uuid.uuid4()}/events"
    ticket = await ticket_for(client, path)
    head, body, signature = ticket.split(".")
    for forgery in (
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        f"{head}.{body}.",
        f"{head}.{body}",
        "hgk_" + "a" * 6141,
        "hgk_",
        "x",
        client.token.replace("hgt_", "hgk_"),
        ticket.replace("hgk_", "hgt_"),
        "hgk_%F0%9F%8E%AB",
    ):
        answer: Answer = await bare(client.running).call("GET", f"{path}?ticket={forgery}")
        assert (answer.status, answer.body["code"]) == (401, "credential_invalid"), forgery[:20]
    as_token = Client(client.running, {"Authorization": f"Bearer {ticket.replace('hgk_', 'hgt_')}"})
    assert (await as_token.call("GET", "/v1/conversations")).body["code"] == "credential_invalid"


async def test_ticket_names_no_user_and_is_in_no_log(running: Running, sign_in: SignIn, log: io.StringIO) -> None:
    """A URL is logged by others; ours logs no ticket, and who reads one learns no user id."""
    client = await sign_in(running, "canary-user@example.com")
    path = f"/v1/turns/{uuid.uuid4()}/events"
    ticket, socket_ticket = await ticket_for(client, path), await ticket_for(client, "/v1/ws")
    await bare(running).call("GET", f"{path}?ticket={ticket}")
    await bare(running).call("GET", f"/v1/nowhere?ticket={ticket}")
    await bare(running).call("GET", f"/{ticket}")
    await connected(running, socket_ticket)
    await connected(running, socket_ticket)
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path}?ticket={ticket} HTTP/1.1\r\nHost: x\r\nBad\x00: {ticket}\r\n\r\n".encode())
    await reader.read()
    writer.close()
    logged = log.getvalue()
    assert "request.ended" in logged
    for secret in (ticket, socket_ticket):
        assert secret.split(".")[1] not in logged
        assert secret.split(".")[2] not in logged
        body = secret.split(".")[1]
        assert b"canary" not in base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "missing_field"), ({"path": 5}, "wrong_type"), ({"path": "/v1/ws", "ttl_s": 5}, "unknown_field")],
)
async def test_ticket_with_a_bad_body_is_refused(client: Client, body: Any, code: str) -> None:
    """A body that does not fit is refused as everywhere."""
    answer = await client.call("POST", "/v1/tickets", body)
    assert (answer.status, answer.body["code"]) == (422, code)
