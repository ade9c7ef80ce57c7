"""Strangers: to another's id every door says, byte for byte and step for step, what it says to one that does not exist.

The tables name every route of the public port and every command of the WebSocket: one that is added fails here until it
is decided what of it could be another's. Time is told by what takes it: the store's commands and the vendor's requests
must be the same ones. That is sharper than a clock, and never wrong by chance.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, get_args

import pytest
from aiohttp import ClientTimeout
from multidict import CIMultiDict

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.protocol.native import Command
from gateway.store.event_log import CLAIM
from gateway.store.redis import Redis
from gateway.telemetry.logging import REQUEST_ID
from tests.conftest import OTHER_PERSONA_ID, PERSONA_ID, TENANT_TOML, Running, StartGateway
from tests.transports.client import Client, Event, Socket, eventually
from tests.transports.conftest import SignIn

ORIGIN: Final = "https://app.example"
PATIENCE: Final = ClientTimeout(total=5)
UUIDS: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MASKS: Final = (  # what differs between any two answers
    (re.compile(r"\bhg[tvk]_[\w.-]+"), "<token>"),
    (re.compile(r'"token_id":"[\w-]+"'), '"token_id":<id>'),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<time>"),
    (UUIDS, "<uuid>"),
)
VARYING: Final = frozenset({"date", "content-length", "x-request-id", "traceparent"})


class Attempt(NamedTuple):
    """A way to ask for something of another's. ``{name}`` is a thing of the owner's, ``{own_name}`` the asker's."""

    path: str
    owner: int | None  # the status that its owner gets, which shows that the row is about something real
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}
    begins: bool = False  # a turn, whose own work is not the answer's
    of_user: bool = False  # what it names is its user's, whatever persona his token is narrowed to


def _at(path: str, owner: int | None, **headers: str) -> Attempt:
    return Attempt(path, owner, headers={name.replace("_", "-"): value for name, value in headers.items()})


HI: Final = {"message": "Hi #tokens=1 #rate=0"}
ASYNC: Final = {"Prefer": "respond-async"}
SCORE: Final = {"score": 1}
SAID: Final = {"role": "user", "parts": [{"type": "text", "text": HI["message"]}]}
RUN: Final = {"runId": "r", "messages": [{"role": "user", "content": HI["message"]}]}
LONG: Final = "Hi #tokens=3000 #rate=20"
REFERENCE: Final = {"type": "item_reference", "id": "msg_{turn}"}
ASKED: Final = {"model": "{persona}", "input": HI["message"]}
PROMPT_ID: Final = "7c0d7c8e-1111-4d53-9a52-0d1d6a7f0001"
PROMPT: Final = {"promptId": PROMPT_ID, "replacements": {"topic": HI["message"]}}
MORE_TOML: Final = """
[tenants.{tenant}.prompts.summary]
prompt_id = "{prompt}"
replacements = ["topic"]
"""

# Every route of the public port: how something of another's could be asked for, or why nothing could.
ROUTES: Final[dict[tuple[str, str], tuple[Attempt, ...] | str]] = {
    # An idempotency key leads nobody to another's: tests/transports/test_hyperleap_access.py.
    ("POST", "/hyperleap/{base}conversations/persona"): "a persona is its tenant's",
    ("POST", "/hyperleap/{base}conversations"): "a model is its tenant's",
    ("GET", "/hyperleap/{base}conversations"): (
        Attempt("/hyperleap/api/conversations?continuationToken={page}", 200, of_user=True),
    ),
    ("GET", "/hyperleap/{base}conversations/persona/{persona_id}"): (
        Attempt("/hyperleap/conversations/persona/{persona_id}?continuationToken={page}", 200, of_user=True),
    ),
    ("GET", "/hyperleap/{base}conversations/user/{user}"): (
        Attempt("/hyperleap/conversations/user/{external}", 200, of_user=True),
    ),
    ("GET", "/hyperleap/{base}conversations/{conversation_id}"): (
        _at("/hyperleap/conversations/{conversation}", 200),
        _at("/hyperleap/app/conversations/{busy}", 200),
    ),
    **{
        ("PATCH", f"/hyperleap/{{base}}conversations/{{conversation_id}}/{form}"): (
            Attempt(f"/hyperleap/conversations/{{conversation}}/{form}", 200, HI),
            Attempt(f"/hyperleap/conversations/{{busy}}/{form}", 409, HI),
        )
        for form in ("chat-http2", "continue", "chat-sse", "continue-sse", "chat")
    },
    ("PATCH", "/hyperleap/{base}conversations/{conversation_id}/continue-sync"): (
        Attempt("/hyperleap/conversations/{conversation}/continue-sync", 200, HI, {"Idempotency-Key": "{key}"}),
        Attempt(
            "/hyperleap/conversations/{own_conversation}/continue-sync",
            200,
            HI,
            {"Idempotency-Key": "{key}"},
            begins=True,
        ),
    ),
    **{
        ("PATCH", f"/hyperleap/{{base}}conversations/{{conversation_id}}/{change}"): (
            Attempt(f"/hyperleap/conversations/{{conversation}}/{change}", 200, {}),
        )
        for change in ("set-active", "set-metadata", "set-conversation-name", "set-conversation-status", "set-score")
    },
    ("PATCH", "/hyperleap/{base}conversations/{conversation_id}/set-score/{message_id}"): (
        Attempt("/hyperleap/conversations/{conversation}/set-score/{message}", 200, SCORE),
        Attempt("/hyperleap/conversations/{own_conversation}/set-score/{message}", None, SCORE),
        Attempt("/hyperleap/conversations/{conversation}/set-score/{own_message}", None, SCORE),
    ),
    **{
        ("POST", f"/hyperleap/{{base}}{path}"): "a prompt is its tenant's"
        for path in (
            *("prompt-runs/run-sync", "prompt-runs/async", "prompt-runs/run-sse"),
            *("prompt-runs/run", "prompt-runs", "prompts"),
        )
    },
    ("PATCH", "/hyperleap/{base}prompt-runs/{run_id}/set-score"): (
        Attempt("/hyperleap/prompt-runs/{run}/set-score", 200, SCORE),
    ),
    ("POST", "/hyperleap/{base}moderations"): "names nothing",
    # What follows takes a tenant's secret key alone: tests/transports/test_hyperleap_reports.py.
    **{
        ("POST", f"/hyperleap/{{base}}{path}"): (
            Attempt(f"/hyperleap/{path}", None, {"conversationId": "{conversation}", "promptRunId": "{run}"}),
        )
        for path in (
            *("audit/conversations", "audit/prompt-runs"),
            *("feedback-report/conversations", "feedback-report/prompt-runs"),
        )
    },
    ("GET", "/hyperleap/{base}audit/prompt-run/{run_id}"): (_at("/hyperleap/audit/prompt-run/{run}", None),),
    ("GET", "/hyperleap/{base}audit/conversation-run/{run_id}"): (
        _at("/hyperleap/audit/conversation-run/{run}", None),
    ),
    ("POST", "/v1/sessions"): (Attempt("/v1/sessions", None, {"visitor_id": "{visitor}"}),),
    ("POST", "/v1/conversations"): (
        Attempt("/v1/conversations", 201, {"persona": "{persona}"}, {"Idempotency-Key": "{key}"}, of_user=True),
    ),
    ("GET", "/v1/conversations"): (Attempt("/v1/conversations?cursor={page}", 200, of_user=True),),
    ("GET", "/v1/conversations/{conversation_id}"): (
        _at("/v1/conversations/{conversation}", 200),
        _at("/v1/conversations/{busy}", 200),
    ),
    ("PATCH", "/v1/conversations/{conversation_id}"): (
        Attempt("/v1/conversations/{conversation}", 200, {"name": "Mine", "active": False}),
        Attempt("/v1/conversations/{busy}", 200, {"metadata": {}, "status": "Mine"}),
    ),
    ("PUT", "/v1/conversations/{conversation_id}/messages/{message_id}/feedback"): (
        Attempt("/v1/conversations/{conversation}/messages/{message}/feedback", 200, SCORE),
        Attempt("/v1/conversations/{own_conversation}/messages/{message}/feedback", None, SCORE),
        Attempt("/v1/conversations/{conversation}/messages/{own_message}/feedback", None, SCORE),
    ),
    ("POST", "/v1/conversations/{conversation_id}/turns"): (
        Attempt("/v1/conversations/{conversation}/turns", 202, HI, ASYNC),
        Attempt("/v1/conversations/{busy}/turns", 409, HI, ASYNC),
        Attempt("/v1/conversations/{conversation}/turns", 202, HI, {**ASYNC, "Idempotency-Key": "{key}"}),
        Attempt(
            "/v1/conversations/{own_conversation}/turns", 202, HI, {**ASYNC, "Idempotency-Key": "{key}"}, begins=True
        ),
    ),
    ("GET", "/v1/turns/{turn_id}/events"): (
        _at("/v1/turns/{turn}/events", 200),
        _at("/v1/turns/{running}/events", 200),
        _at("/v1/turns/{turn}/events", 200, Last_Event_ID="{turn}.2"),
        _at("/v1/turns/{turn}/events?after={turn}.2", 200),
        _at("/v1/turns/{running}/events?after={running}.1", 200),
        _at("/v1/turns/{own_turn}/events", 400, Last_Event_ID="{turn}.2"),
        _at("/v1/turns/{own_turn}/events?after={running}.1", 400),
    ),
    ("GET", "/v1/conversations/{conversation_id}/events"): (
        _at("/v1/conversations/{conversation}/events", 204),
        _at("/v1/conversations/{busy}/events", 200),
        _at("/v1/conversations/{conversation}/events", 200, Last_Event_ID="{turn}.2"),
        _at("/v1/conversations/{busy}/events?after={running}.1", 200),
        _at("/v1/conversations/{own_conversation}/events", 400, Last_Event_ID="{turn}.2"),
        _at("/v1/conversations/{own_conversation}/events?after={running}.1", 400),
    ),
    ("POST", "/v1/chat/completions"): (
        "names nothing: lists are matched among their user's own, see openai/test_threads.py"
    ),
    ("POST", "/v1/responses"): (
        Attempt("/v1/responses", 200, {**ASKED, "previous_response_id": "resp_{turn}"}),
        Attempt("/v1/responses", 409, {**ASKED, "previous_response_id": "resp_{running}"}),
        Attempt("/v1/responses", 200, {**ASKED, "conversation": "{conversation}"}),
        Attempt("/v1/responses", 409, {**ASKED, "conversation": "conv_{busy}"}),
        Attempt("/v1/responses", 200, {**ASKED, "input": [REFERENCE, {"role": "user", "content": HI["message"]}]}),
    ),
    ("GET", "/v1/responses/{response_id}"): (
        _at("/v1/responses/resp_{turn}", 200),
        _at("/v1/responses/resp_{running}", 200),
        _at("/v1/responses/resp_{turn}?stream=true", 200),
        _at("/v1/responses/resp_{running}?stream=true&starting_after=4", 200),
    ),
    ("POST", "/v1/responses/{response_id}/cancel"): (
        _at("/v1/responses/resp_{turn}/cancel", 200),
        _at("/v1/responses/resp_{running}/cancel", 200),
    ),
    ("DELETE", "/v1/responses/{response_id}"): (
        _at("/v1/responses/resp_{running}", None),
        _at("/v1/responses/resp_{turn}", 200),
    ),
    ("POST", "/api/chat"): (
        Attempt("/api/chat", 200, {"id": "{told_chat}", "message": SAID}, begins=True, of_user=True),
    ),
    ("GET", "/api/chat/{chat_id}"): (
        Attempt("/api/chat/{chat}", 200, of_user=True),
        Attempt("/api/chat/{busy_chat}", 200, of_user=True),
    ),
    ("GET", "/api/chat/{chat_id}/stream"): (
        Attempt("/api/chat/{chat}/stream", 204, of_user=True),
        Attempt("/api/chat/{busy_chat}/stream", 200, of_user=True),
    ),
    ("POST", "/api/chat/{chat_id}/stop"): (
        Attempt("/api/chat/{chat}/stop", 200, of_user=True),
        Attempt("/api/chat/{busy_chat}/stop", 200, of_user=True),
    ),
    ("POST", "/v1/ag-ui"): (Attempt("/v1/ag-ui", 200, RUN | {"threadId": "{told_thread}"}, begins=True, of_user=True),),
    ("GET", "/v1/ag-ui/{thread_id}/stream"): (
        Attempt("/v1/ag-ui/{thread}/stream", 204, of_user=True),
        Attempt("/v1/ag-ui/{busy_thread}/stream?runId=r", 200, of_user=True),
    ),
    ("POST", "/v1/ag-ui/{thread_id}/stop"): (
        Attempt("/v1/ag-ui/{thread}/stop", 200, of_user=True),
        Attempt("/v1/ag-ui/{busy_thread}/stop", 200, of_user=True),
    ),
    ("POST", "/v1/turns/{turn_id}/stop"): (_at("/v1/turns/{turn}/stop", 200), _at("/v1/turns/{running}/stop", 200)),
    ("GET", "/v1/usage"): "a tenant's backend alone is told, of its own tenant: tests/transports/test_usage.py",
    ("POST", "/v1/tickets"): (
        Attempt("/v1/tickets", 201, {"path": "/v1/turns/{turn}/events"}),
        Attempt("/v1/tickets", 201, {"path": "/v1/conversations/{busy}/events"}),
    ),
    ("GET", "/v1/models"): "names nothing",
    ("GET", "/v1/models/{model}"): "a persona is the tenant's, and the same for all whom a token lets ask it",
    ("GET", "/v1/ws"): "commands have a table of their own",
    ("GET", "/docs"): "the same for everybody",
    ("GET", "/docs/"): "leads there",
    ("GET", "/docs/{name}"): "the same for everybody",
    ("GET", "/docs/{name}.md"): "the same for everybody",
    ("GET", "/docs/style.css"): "the same for everybody",
    ("GET", "/openapi.json"): "the same for everybody",
    ("GET", "/"): "the same for everybody",
    ("GET", "/page/{path}"): "the same for everybody",
    ("GET", "/client.js"): "the same for everybody",
    ("GET", "/client.d.ts"): "the same for everybody",
    ("GET", "/widget.js"): "the same for everybody",
}

Fields = dict[str, str]

# Every command of the WebSocket, likewise.
COMMANDS: Final[dict[str, tuple[Fields, ...] | str]] = {
    "turn.start": (
        {"conversation_id": "{conversation}", "message": "Hi"},
        {"conversation_id": "{busy}", "message": "Hi"},
        {"conversation_id": "{conversation}", "message": "Hi", "client_message_id": "{key}"},
        {"conversation_id": "{own_conversation}", "message": HI["message"], "client_message_id": "{key}"},
    ),
    "subscribe": (
        {"turn_id": "{turn}"},
        {"turn_id": "{running}"},
        {"turn_id": "{turn}", "after": "{turn}.2"},
        {"turn_id": "{own_turn}", "after": "{running}.1"},
        {"conversation_id": "{conversation}"},
        {"conversation_id": "{busy}"},
        {"conversation_id": "{busy}", "after": "{running}.1"},
        {"conversation_id": "{own_conversation}", "after": "{turn}.2"},
        {"conversation_id": "{own_conversation}", "after": "{running}.1"},
    ),
    "unsubscribe": (
        {"turn_id": "{turn}"},
        {"turn_id": "{running}"},
        {"conversation_id": "{conversation}"},
        {"conversation_id": "{busy}"},
    ),
    "turn.stop": ({"turn_id": "{turn}"}, {"turn_id": "{running}"}),
    "ping": "names nothing",
    "auth": "a token is a credential: whoever has it is who it says",
    "refresh": "a token is a credential: whoever has it is who it says",
}

Things = dict[str, str]


def filled(value: Any, things: Things) -> Any:
    if isinstance(value, str):
        return value.format_map(things)
    if isinstance(value, list):
        return [filled(item, things) for item in value]
    return {name: filled(item, things) for name, item in value.items()} if isinstance(value, Mapping) else value


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text


class Outcome(NamedTuple):
    """What somebody saw, and what it took."""

    status: int
    headers: dict[str, str]
    body: str
    commands: list[tuple[str, str]]
    vendor_requests: int


class StoreSpy:
    """Which commands the store was sent on behalf of which request; they go on to it."""

    def __init__(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: defaultdict[str | None, list[tuple[str, str]]] = defaultdict(list)
        send = redis.call

        async def call(*command: Any) -> Any:
            name = str(command[0])
            self.sent[REQUEST_ID.get()].append((name, str(command[1]) if name.startswith("EVAL") else ""))
            return await send(*command)

        monkeypatch.setattr(redis, "call", call)


@dataclass(slots=True)
class Asker:
    """Somebody with a credential, and what is his own."""

    name: str
    client: Client
    persona: str = "default"
    ticket: Callable[[str], Awaitable[str | None]] | None = None  # shown in the URL, in the place of a token
    same_user: bool = False
    own: Things = field(default_factory=dict)

    async def settle_in(self) -> None:
        """Get a conversation with a finished turn."""
        conversation = await self.client.conversation(persona=self.persona)
        ending = (await self.client.complete(conversation, HI["message"]))[-1]
        self.own = {"own_turn": ending.turn_id, "own_message": ending.data["message_id"]} | self.named

    @property
    def named(self) -> Things:
        """What he calls the persona that he may talk to."""
        return {"persona": self.persona, "persona_id": PERSONA_ID if self.persona == "default" else OTHER_PERSONA_ID}


@dataclass(slots=True)
class House:
    """A gateway with two tenants, a user with things of his own, and those who are curious about them."""

    running: Running
    spy: StoreSpy
    owner: Asker
    askers: list[Asker]
    things: Things
    nobodys_visitor: str
    requests: int = 0

    async def things_of(self, asker: Asker, things: Things) -> Things:
        """Add the asker's own to things; the conversation is fresh, for it may be used once only."""
        fresh = await asker.client.conversation(persona=asker.persona) if asker.own else str(uuid.uuid4())
        nothing = {"own_turn": str(uuid.uuid4()), "own_message": str(uuid.uuid4()), **asker.named}
        return {**things, **nothing, **asker.own, "own_conversation": fresh}

    def nobodys(self) -> Things:
        """Name things that nobody has, in the form of those that the owner has."""
        made = {name: str(uuid.uuid4()) for name in self.things}
        when = self.things["page"].partition(".")[0]
        return {**made, "page": f"{when}.{made['page']}", "visitor": self.nobodys_visitor}

    def request_id(self) -> str:
        self.requests += 1
        return f"attempt-{self.requests:05d}"

    async def ask(self, method: str, attempt: Attempt, asker: Asker, things: Things) -> Outcome | None:
        """Ask for a thing; None where the asker has no credential to ask with."""
        things = await self.things_of(asker, things)
        path, headers = filled(attempt.path, things), CIMultiDict(filled(attempt.headers, things))
        if asker.ticket is not None:
            ticket = await asker.ticket(path.partition("?")[0])
            if ticket is None:
                return None
            path += f"{'&' if '?' in path else '?'}ticket={ticket}"
        request_id = headers["x-request-id"] = self.request_id()
        before, simulator = self.running.simulator.state.requests, self.running.simulator.state
        async with self.running.http.request(
            method,
            self.running.url + path,
            json=filled(attempt.body, things),
            headers={**asker.client.headers, **headers},
            timeout=PATIENCE,
        ) as response:
            streams = response.content_type == "text/event-stream"
            body = "" if streams else masked((await response.text()).replace(request_id, "<request>"))
            told = {name.lower(): value for name, value in response.headers.items() if name.lower() not in VARYING}
        commands = list(self.spy.sent[request_id])
        if attempt.begins and ("EVALSHA", CLAIM.sha) in commands:
            commands = commands[: commands.index(("EVALSHA", CLAIM.sha)) + 1]
        asked = 0 if attempt.begins else simulator.requests - before
        limits = {name: re.sub(r"\d+", "N", told[name]) for name in told if "ratelimit" in name}
        told = {name: masked(value) for name, value in told.items()}
        return Outcome(response.status, {**told, **limits}, body, commands, asked)

    async def command(self, type_: str, fields: Fields, asker: Asker, things: Things) -> Outcome:
        """Send a command over a socket of its own."""
        things = await self.things_of(asker, things)
        request_id = self.request_id()
        async with self.running.http.ws_connect(
            f"{self.running.url}/v1/ws",
            protocols=("hyperleap.chat.v1", f"hgt.{asker.client.token}"),
            headers={"x-request-id": request_id},
        ) as ws:
            socket = Socket(ws)
            await socket.reply("ping")
            commands, state = self.spy.sent[request_id], self.running.simulator.state
            done, before = len(commands), state.requests
            reply = await socket.reply(type_, **filled(fields, things))
            await eventually(lambda: not self.running.gateway.watches._tasks, "watches to be taken down")
            commands, asked = commands[done:], state.requests - before
        if ("EVALSHA", CLAIM.sha) in commands:
            commands, asked = commands[: commands.index(("EVALSHA", CLAIM.sha)) + 1], 0
        body = re.sub(r"'r\d+-", "'r-", masked(str(reply).replace(request_id, "<request>")))
        if "limits" in body:
            body = re.sub(r"\d+", "N", body)
        return Outcome(0, {}, body, commands, asked)


async def same(what: str, ask: Callable[[Things], Awaitable[Outcome | None]], house: House) -> None:
    """Check that a thing of another's and one that nobody has are answered alike.

    Thrice, because a cache of a few seconds may run out in between: a difference that is real is there every time.
    """
    for _ in range(3):
        await ask(house.nobodys())  # scripts loaded, keys known
        of_another, of_nobody = await ask(house.things), await ask(house.nobodys())
        if of_another == of_nobody:
            return
    assert of_another == of_nobody, what


@pytest.fixture
async def house(start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch) -> House:
    """Limits that nobody reaches are told on every answer that asked for them, and with that, that it did."""
    first, second = (f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    toml = "".join(
        TENANT_TOML.format(tenant=tenant, persona=PERSONA_ID) + MORE_TOML.format(tenant=tenant, prompt=PROMPT_ID)
        for tenant in (first, second)
    )
    running = await start_gateway(toml=toml.replace("requests_per_min = 0", "requests_per_min = 50_000"))
    keys = running.gateway.auth.keys
    secret = (await keys.mint(TenantId(second), KeyKind.SECRET, "tests")).key
    site = (await keys.mint(TenantId(second), KeyKind.PUBLISHABLE, "tests")).key

    async def session(key: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        bearer = {"Authorization": f"Bearer {key}", **headers}
        async with running.http.post(f"{running.url}/v1/sessions", json=body, headers=bearer) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 201, answer
            return answer

    def bearing(token: str) -> Client:
        return Client(running, {"Authorization": f"Bearer {token}"})

    owner = Asker("the owner", await sign_in(running, "owner"))
    neighbour = Asker("another user", await sign_in(running, "neighbour"))
    visitor = await session(running.publishable_key, {}, Origin=ORIGIN)
    askers = [
        Asker("another tenant's user", bearing((await session(secret, {"user_id": "owner"}))["token"])),
        neighbour,
        Asker("a visitor", bearing(visitor["token"])),
        Asker(
            "a token for another persona",
            await sign_in(running, "owner", personas=["other"]),
            persona="other",
            same_user=True,
        ),
    ]
    for asker in (owner, *askers):
        await asker.settle_in()

    async def for_elsewhere(path: str) -> str:
        return await ticket(owner.client, "/v1/ws") if path != "/v1/ws" else ""

    async def for_there(path: str) -> str | None:
        return await ticket(neighbour.client, path) if path.endswith("/events") else None

    async def ticket(client: Client, path: str) -> str:
        return str((await client.call("POST", "/v1/tickets", {"path": path})).body["ticket"])

    askers += [
        Asker("the owner's ticket for elsewhere", Client(running, {}), ticket=for_elsewhere),
        Asker("another user's ticket for there", Client(running, {}), ticket=for_there),
        Asker(
            "the tenant's own site",
            Client(running, {"Authorization": f"Bearer {running.publishable_key}", "Origin": ORIGIN}),
        ),
        Asker("another tenant's site", Client(running, {"Authorization": f"Bearer {site}", "Origin": ORIGIN})),
    ]
    client, key = owner.client, "key-of-the-owner"
    created = await client.call("POST", "/v1/conversations", {"persona": "default"}, Idempotency_Key=key)
    conversation, busy = created.body["id"], await client.conversation()
    ending = await finished(client, conversation, key)
    ran = await client.call("POST", "/hyperleap/prompt-runs/run-sync", PROMPT)
    page = (await client.call("GET", "/v1/conversations?limit=1")).body["next_cursor"]
    assert page is not None
    things = {
        "conversation": conversation,
        "busy": busy,
        "turn": ending.turn_id,
        "running": await client.start(busy, LONG),
        **await chats(client),
        "message": ending.data["message_id"],
        "key": key,
        "page": page,
        "visitor": visitor["visitor_id"],
        "run": ran.body["runId"],
        "external": f"{first}:{running.gateway.auth.user_hash(TenantId(first), 'owner')}",
    }
    nobodys = running.gateway.auth.tokens.visitor_id(TenantId(f"t-{uuid.uuid4().hex[:12]}"), f"anon-{uuid.uuid4()}")
    return House(running, StoreSpy(running.gateway.redis, monkeypatch), owner, askers, things, nobodys)


async def chats(client: Client) -> Things:
    """Hold chats and threads: some to be told something, for whoever does that has one of the name himself then."""
    named: Things = {}
    for words, prefix in ((HI["message"], ""), (HI["message"], "told_"), (LONG, "busy_")):
        named |= {prefix + what: uuid.uuid4().hex for what in ("chat", "thread")}
        said = {"role": "user", "parts": [{"type": "text", "text": words}]}
        run = {"runId": "r", "threadId": named[f"{prefix}thread"], "messages": [{"role": "user", "content": words}]}
        for path, body in (("/api/chat", {"id": named[f"{prefix}chat"], "message": said}), ("/v1/ag-ui", run)):
            url = client.running.url + path
            async with client.running.http.post(url, json=body, headers=client.headers) as response:
                assert response.status == 200
                if words != LONG:
                    await response.read()
    return named


async def finished(client: Client, conversation: str, key: str) -> Event:
    async with client.ask(conversation, HI["message"], Idempotency_Key=key) as reader:
        return (await reader.rest())[-1]


async def seen_by_owner(house: House) -> list[bytes]:
    """Return all that a stranger could have changed; a conversation that was gone would have left the list, too."""
    paths = ("/v1/conversations/{conversation}", "/v1/conversations/{busy}")
    answers = [await house.owner.client.call("GET", filled(path, house.things)) for path in paths]
    assert answers[1].body["active_turn_id"] == house.things["running"]
    listed: set[str] = set()
    cursor: str | None = ""
    while cursor is not None:
        page = await house.owner.client.call("GET", f"/v1/conversations?cursor={cursor}")
        listed |= {one["id"] for one in page.body["data"]}
        cursor = page.body["next_cursor"]
    assert {house.things["conversation"], house.things["busy"]} <= listed
    return [answer.raw for answer in answers]


async def test_isolation_table_names_every_route_and_command(house: House) -> None:
    """What is added to a door or to the socket is decided upon here, or fails."""
    routes = {
        (route.method, route.resource.canonical)
        for route in house.running.gateway.public.router.routes()
        if route.resource is not None and route.method != "HEAD"  # a GET without its body
    }
    assert routes == ROUTES.keys()
    assert {command.__struct_config__.tag for command in get_args(Command)} == COMMANDS.keys()


@pytest.mark.timeout(120)
async def test_strangers_see_at_every_route_what_nobodys_ids_give(house: House) -> None:
    """Status, headers, body, the store's commands and the vendor's requests; the owner gets what is his, unchanged."""
    before = await seen_by_owner(house)
    for (method, route), attempts in ROUTES.items():
        for attempt in attempts if not isinstance(attempts, str) else ():
            for asker in house.askers:
                if attempt.of_user and asker.same_user:
                    continue

                async def ask(
                    things: Things, method: str = method, attempt: Attempt = attempt, asker: Asker = asker
                ) -> Outcome | None:
                    return await house.ask(method, attempt, asker, things)

                await same(f"{asker.name}: {method} {route} as {attempt}", ask, house)
    assert await seen_by_owner(house) == before
    for (method, _), attempts in ROUTES.items():
        for attempt in attempts if not isinstance(attempts, str) else ():
            if attempt.owner is not None:
                outcome = await house.ask(method, attempt, house.owner, house.things)
                assert outcome is not None
                assert outcome.status == attempt.owner, (method, attempt, outcome)


@pytest.mark.timeout(120)
async def test_strangers_are_told_on_a_socket_what_nobodys_ids_give(house: House) -> None:
    """Every command that names something; while the owner's own socket watches the same."""
    before = await seen_by_owner(house)
    async with house.owner.client.socket() as watching:
        for name in ("conversation", "busy"):
            assert (await watching.reply("subscribe", conversation_id=house.things[name]))["event"] == "ack"
        for type_, rows in COMMANDS.items():
            for fields in rows if not isinstance(rows, str) else ():
                for asker in house.askers[:4]:

                    async def ask(
                        things: Things, type_: str = type_, fields: Fields = fields, asker: Asker = asker
                    ) -> Outcome:
                        return await house.command(type_, fields, asker, things)

                    await same(f"{asker.name}: {type_} {fields}", ask, house)
        await watching.until(lambda frame: frame.get("turn_id") == house.things["running"])
    assert await seen_by_owner(house) == before
