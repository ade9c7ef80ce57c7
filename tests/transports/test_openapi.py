"""The API's description says what the gateway does: every route, every status, every member of every answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no types
import msgspec
import pytest
from aiohttp import web

from gateway.core.errors import Code
from gateway.protocol.native import Command
from gateway.transports.docs import REFERENCE
from gateway.transports.edge import DECLARED_PROBLEM
from gateway.transports.openapi import websocket_page
from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client, Socket, eventually
from tests.transports.dropin import toml
from tests.transports.test_moderation import BAD as FLAGGED

Json = dict[str, Any]
OWN = (
    "x-next-cursor",
    "x-turn-id",
    "x-conversation-id",
    "x-error-code",
    "x-should-retry",
    "x-vercel-ai-ui-message-stream",
)


@pytest.fixture
async def description(running: Running) -> Json:
    async with running.http.get(f"{running.url}/openapi.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        found: Json = msgspec.json.decode(await response.read())
        return found


def operations(description: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def registered(app: web.Application) -> set[tuple[str, str]]:
    """Return every route; a GET's HEAD goes with it."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


@pytest.mark.parametrize("page", ["true", "false"])
async def test_every_route_has_its_entry_and_every_entry_its_route(page: str, start_gateway: StartGateway) -> None:
    """Nothing public is left out of the description, and nothing is described that is not there."""
    running = await start_gateway(environ={"GATEWAY_PAGE": page})
    doors = running.gateway.public[REFERENCE].doors
    entries = [
        (operation.method.upper(), operation.route or operation.path) for door in doors for operation in door.operations
    ]
    assert sorted(entries) == sorted(registered(running.gateway.public))


def test_description_is_valid_openapi(description: Json) -> None:
    """The document keeps to the schema of OpenAPI 3.1, and so do the schemas in it."""
    validator = pytest.importorskip("openapi_spec_validator", reason="comes with the `dev` extra")
    assert description["openapi"].startswith("3.1.")
    validator.validate(description)


def test_every_code_is_described(description: Json) -> None:
    """Each code that a client may meet is told with an operation, or on the page on the WebSocket."""
    told = {
        code
        for _, _, operation in operations(description)
        for response in operation["responses"].values()
        for code in re.findall(r"^- `(\w+)`", response["description"], re.MULTILINE)
    }
    told |= set(re.findall(r"errors\.md#(\w+)", websocket_page.reference()))
    beside = {Code.METHOD_NOT_ALLOWED, Code.COMMAND_UNKNOWN, Code.SUBSCRIPTIONS_EXCEEDED}  # told in words
    internal = {Code.TENANT_FIXED}  # of the internal port
    assert {str(code) for code in Code} - told - beside == internal


def test_operations_are_named_once_and_links_lead_to_them(description: Json) -> None:
    """Generated clients get one name an operation, and every link leads to one that is there."""
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(names) == len(set(names))
    links = [
        link["operationId"]
        for _, _, operation in operations(description)
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert links
    assert set(links) <= set(names)


class Described:
    """Holds answers to the description, more strictly than clients should: members it does not name are none."""

    def __init__(self, description: Json) -> None:
        self._description = description

    def check(self, method: str, path: str, answer: Answer) -> None:
        operation = self._description["paths"][path][method.lower()]
        response = operation["responses"][str(answer.status)]
        assert set(response["headers"]) >= {"x-request-id", "traceparent"}
        told = {name.lower() for name in response["headers"]}
        named = {"location", "preference-applied", "retry-after", "upgrade", "www-authenticate", *OWN}
        sent = {name.lower() for name in answer.headers}
        assert {name for name in sent if name in named or "ratelimit" in name} <= told
        content_type = answer.headers.get("Content-Type", "").partition(";")[0]
        if not response.get("content"):
            assert answer.raw == b""
            return
        schema = response["content"][content_type]["schema"]
        if content_type.endswith("json"):
            self.hold(answer.body, schema)

    def hold(self, value: Any, schema: Json) -> None:
        """Check a value against a schema whose objects have no members but those that it names."""
        document = {"components": {"schemas": {name: _closed(one) for name, one in self._schemas.items()}}, **schema}
        jsonschema.Draft202012Validator(document, format_checker=jsonschema.FormatChecker()).validate(value)

    @property
    def _schemas(self) -> Json:
        found: Json = self._description["components"]["schemas"]
        return found


def _closed(schema: Json) -> Json:
    return {**schema, "additionalProperties": False} if "properties" in schema else schema


async def test_native_answers_have_the_members_that_are_described_and_no_other(
    description: Json, client: Client, running: Running
) -> None:
    """A whole visit over HTTP: every answer has its status, its limit headers and its body as described."""
    described = Described(description)
    backend = Client(running, {"Authorization": f"Bearer {running.secret_key}"})
    anonymous = Client(running, {"Authorization": f"Bearer {running.publishable_key}", "Origin": "https://app.example"})
    for whose, body in ((backend, {"user_id": "u1"}), (anonymous, {}), (backend, {"nobody": 1})):
        described.check("POST", "/v1/sessions", await whose.call("POST", "/v1/sessions", body))
    one = "/v1/conversations/{conversation_id}"
    made = await client.call("POST", "/v1/conversations", {"metadata": {"a": 1}})
    described.check("POST", "/v1/conversations", made)
    path = f"/v1/conversations/{made.body['id']}"
    waited = await client.call("POST", f"{path}/turns", {"message": "hi"}, Accept="application/json")
    described.check("POST", f"{one}/turns", waited)
    accepted = await client.call("POST", f"{path}/turns", {"message": "slowly #rate=20"}, Prefer="respond-async")
    described.check("POST", f"{one}/turns", accepted)
    busy = await client.call("POST", f"{path}/turns", {"message": "and now?"})
    described.check("POST", f"{one}/turns", busy)
    turn = accepted.body["turn_id"]
    stop = await client.stop(turn)
    described.check("POST", "/v1/turns/{turn_id}/stop", stop)
    events = await client.replay(turn)
    described.check("GET", "/v1/turns/{turn_id}/events", await client.call("GET", f"/v1/turns/{turn}/events"))
    at_the_ending = await client.call("GET", f"/v1/turns/{turn}/events", Last_Event_ID=events[-1].id)
    described.check("GET", "/v1/turns/{turn_id}/events", at_the_ending)
    described.check("GET", f"{one}/events", await client.call("GET", f"{path}/events"))
    verdict = {"score": 8, "tags": ["clear"], "confidence": 0.5}
    feedback = f"/messages/{waited.body['message_id']}/feedback"
    described.check(
        "PUT", f"{one}/messages/{{message_id}}/feedback", await client.call("PUT", path + feedback, verdict)
    )
    described.check("GET", one, await client.call("GET", path))
    for change in ({"name": "Buns", "active": False, "metadata": {}}, {}):
        described.check("PATCH", one, await client.call("PATCH", path, change))
    described.check("GET", one, await client.call("GET", "/v1/conversations/x"))
    described.check("GET", "/v1/conversations", await client.call("GET", "/v1/conversations"))
    described.check("POST", "/v1/tickets", await client.call("POST", "/v1/tickets", {"path": "/v1/ws"}))
    described.check("GET", "/v1/ws", await client.call("GET", "/v1/ws"))
    for query in ("from=2000-01-01", f"from={today()}&by=day,persona,key", f"from={today()}&by=turn"):
        described.check("GET", "/v1/usage", await backend.call("GET", f"/v1/usage?{query}"))
    for form in ("csv", "jsonl"):
        described.check("GET", "/v1/usage", await backend.call("GET", f"/v1/usage?from={today()}&format={form}"))
    described.check("GET", "/v1/usage", await client.call("GET", f"/v1/usage?from={today()}"))
    statuses = [waited.status, accepted.status, busy.status, stop.status, at_the_ending.status]
    assert statuses == [200, 202, 409, 200, 204]


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


async def test_events_have_the_members_that_are_described(description: Json, client: Client) -> None:
    """Every event of a stream has its data as its name's schema tells."""
    described = Described(description)
    path = "/v1/turns/{turn_id}/events"
    media = description["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"]
    told = [one["properties"] for one in media["schema"]["oneOf"]]
    kinds = {one["event"]["const"]: one["data"]["contentSchema"] for one in told}
    seen = await client.complete(await client.conversation(), "hi")
    for event in seen:
        described.hold(event.data, kinds[event.name])
    assert {event.name for event in seen} >= {"turn.started", "message.started", "message.delta", "turn.completed"}


async def test_failed_turn_that_is_waited_for_is_told_as_described(description: Json, client: Client) -> None:
    """What waits for a turn that fails gets a status and members that are described for it."""
    conversation = await client.conversation()
    failed = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "hi #fault=cut:3"})
    assert failed.status == 502
    assert failed.headers["Content-Type"].startswith(DECLARED_PROBLEM)
    Described(description).check("POST", "/v1/conversations/{conversation_id}/turns", failed)


async def test_message_that_is_not_sent_is_told_as_described(description: Json, start_gateway: StartGateway) -> None:
    """What moderation flags is refused at every door with a status and members that are described."""
    running = await start_gateway(toml=toml(lines="moderation.messages = true"))
    client, described = Client(running, {"Authorization": f"Bearer {await running.token()}"}), Described(description)
    native = "/v1/conversations/{conversation_id}/turns"
    thread = [{"role": "user", "content": FLAGGED}]
    asked: dict[str, Json] = {
        native: {"message": FLAGGED},
        "/v1/chat/completions": {"model": "default", "messages": thread},
        "/api/chat": {"id": "c", "message": spoken(FLAGGED)},
        "/v1/ag-ui": {"threadId": "t", "runId": "r", "messages": thread},
    }
    for told, body in asked.items():
        path = told.format(conversation_id=await client.conversation())
        refused = await client.call("POST", path, body, Accept="application/json")
        assert b"flagged" in refused.raw, (path, refused.raw)
        described.check("POST", told, refused)


def spoken(text: str) -> Json:
    return {"role": "user", "parts": [{"type": "text", "text": text}]}


async def test_chats_of_pages_are_as_described(description: Json, client: Client) -> None:
    """The AI SDK door: streams, a chat with all that messages have, stops, and errors in both forms."""
    described, chat, one = Described(description), "/api/chat", "/api/chat/{chat_id}"
    for message in ("Hi #citations=1", "Hi #fault=cut:3"):
        body = {"id": "c", "message": spoken(message)}
        described.check("POST", chat, await client.call("POST", chat, body))
    read = await client.call("GET", f"{chat}/c")
    described.check("GET", one, read)
    assert [len(message["parts"]) for message in read.body["messages"]] == [1, 2, 1, 1]
    assert "error" in read.body["messages"][-1]["metadata"]
    resumed = await client.call("GET", f"{chat}/c/stream")
    described.check("GET", f"{one}/stream", resumed)
    described.check("POST", f"{one}/stop", await client.call("POST", f"{chat}/c/stop"))
    described.check("GET", one, await client.call("GET", f"{chat}/other"))
    sentence = await client.call("POST", chat, {"id": "c"})
    problem = await client.call("POST", chat, {"id": "c"}, Accept="application/json")
    for refused in (sentence, problem):
        described.check("POST", chat, refused)
    types = [answer.headers["Content-Type"].partition(";")[0] for answer in (sentence, problem)]
    assert (resumed.status, types) == (204, ["text/plain", "application/problem+json"])


async def test_runs_of_agents_are_as_described(description: Json, client: Client) -> None:
    """The AG-UI door: runs, one that is rejoined, what was stopped in mid-answer and when nothing was, and an error."""
    described, runs, stop = Described(description), "/v1/ag-ui", "/v1/ag-ui/{thread_id}/stop"
    run = {"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": "slowly #rate=20"}]}
    async with client.running.http.post(client.running.url + runs, json=run, headers=client.headers) as response:
        assert response.status == 200
        rejoined = asyncio.create_task(client.call("GET", f"{runs}/t/stream?runId=r"))
        await eventually(lambda: len(client.running.gateway.edge.open) == 2, "the second reader")
        stopping = await client.call("POST", f"{runs}/t/stop")
    for answer in (await rejoined, await client.call("GET", f"{runs}/t/stream")):
        described.check("GET", f"{runs}/{{thread_id}}/stream", answer)
    idle = await client.call("POST", f"{runs}/other/stop")
    for stopped in (stopping, idle):
        described.check("POST", stop, stopped)
    assert [stopped.body["state"] for stopped in (stopping, idle)] == ["stopping", "idle"]
    for body in ({**run, "threadId": "u", "messages": [{"role": "user", "content": "Hi"}]}, {"threadId": "t"}):
        described.check("POST", runs, await client.call("POST", runs, body))


async def test_conversation_of_the_drop_in_is_as_described(description: Json, client: Client) -> None:
    """One with an answer, read and listed in Hyperleap's shape."""
    described, path = Described(description), "/hyperleap/conversations"
    conversation = await client.conversation()
    await client.complete(conversation, "hi")
    one = await client.call("GET", f"{path}/{conversation}")
    assert (one.status, one.body["aiSystem"], len(one.body["chatMessages"])) == (200, "azure-openai", 2)
    described.check("GET", f"{path}/{{conversation_id}}", one)
    described.check("GET", path, await client.call("GET", path))


async def test_frames_have_the_members_that_are_described(description: Json, client: Client) -> None:
    """Acks, errors, pongs and events of a socket are as their types tell, and every command is told."""
    described, schemas = Described(description), description["components"]["schemas"]
    conversation = await client.conversation()
    async with client.socket() as socket:
        started = await socket.reply("turn.start", conversation_id=conversation, message="hi")
        await socket.ending(started["data"]["turn_id"])
        await socket.reply("subscribe", turn_id=started["data"]["turn_id"])
        await socket.reply("subscribe", conversation_id=conversation)
        await socket.reply("turn.stop", turn_id=started["data"]["turn_id"])
        await socket.reply("ping")
        await socket.reply("subscribe", turn_id="x")
        _hold_frames(described, socket)
    assert {kind.__name__ for kind in Command.__args__} <= set(schemas)


def _hold_frames(described: Described, socket: Socket) -> None:
    kinds = {"ack": "AckFrame", "pong": "PongFrame", "error": "ErrorFrame"}
    for frame in socket.frames:
        name = kinds.get(frame["event"], "EventFrame")
        described.hold(frame, {"$ref": f"#/components/schemas/{name}"})
    assert {kinds.get(frame["event"], "EventFrame") for frame in socket.frames} == {*kinds.values(), "EventFrame"}
