"""Every operation of Hyperleap's public API, by a stock client whose base URL and key alone were changed."""

from __future__ import annotations

import json
import uuid
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import jsonschema  # type: ignore[import-untyped]  # has no types
import pytest

from gateway.simulator.answers import answer as said
from gateway.transports.hyperleap.door import PREFIX
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.simulator.test_contract import as_json_schema
from tests.transports.conftest import SignIn
from tests.transports.dropin import PROMPT_ID, App, error_of, sse_items, start, text_of

CONTRACT: Final = Path(__file__).parents[3] / "shared" / "hyperleap" / "openapi.json"
HI: Final = "Hi #tokens=6 #citations=1"
SPAN: Final = {"callerId": PROMPT_ID, "startDate": "2026-01-01T00:00:00Z", "endDate": "2027-01-01T00:00:00Z"}


class Operation(NamedTuple):
    """How an operation is called, and what of the contract's schemas its answer has; ``{name}`` is of the world."""

    body: Any = None
    schema: str | None = None
    form: str = "json"  # array, sse: a stream of such
    secret: bool = False  # for the tenant's backend


ENTRY: Final = "ChatEntryResponse"
LIST: Final = "ChatEntryResponseResultSet"
ITEM: Final = "GenAiStreamingChatChoice"
WHOLE: Final = "GenAiChatResponse"
MESSAGE: Final = {"message": HI}
RUN: Final = {"promptId": PROMPT_ID, "replacements": {"topic": HI}}

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("POST", "/prompt-runs/run-sync"): Operation(RUN, WHOLE),
    ("POST", "/prompt-runs/async"): Operation(RUN, ITEM, "array"),
    ("POST", "/prompt-runs/run-sse"): Operation(RUN, ITEM, "sse"),
    ("POST", "/conversations"): Operation({"aiSystem": 1, "model": "m-1"}, ENTRY),
    ("GET", "/conversations"): Operation(schema=LIST),
    ("POST", "/conversations/persona"): Operation({"personaId": PERSONA_ID, "stream": True}, ENTRY),
    ("GET", "/conversations/persona/{personaId}"): Operation(schema=LIST),
    ("GET", "/conversations/user/{externalUserId}"): Operation(schema=LIST),
    ("PATCH", "/conversations/{conversationId}/chat-http2"): Operation(MESSAGE, ITEM, "array"),
    ("PATCH", "/conversations/{conversationId}/chat-sse"): Operation(MESSAGE, ITEM, "sse"),
    ("PATCH", "/conversations/{conversationId}/chat"): Operation(MESSAGE, WHOLE),
    ("GET", "/conversations/{conversationId}"): Operation(schema=ENTRY),
    ("PATCH", "/conversations/{conversationId}/set-active"): Operation({"isActive": False}, ENTRY),
    ("PATCH", "/conversations/{conversationId}/set-metadata"): Operation({"metadata": {"a": 1}}, ENTRY),
    ("PATCH", "/conversations/{conversationId}/set-conversation-name"): Operation({"conversationName": "n"}, ENTRY),
    ("PATCH", "/conversations/{conversationId}/set-conversation-status"): Operation(
        {"conversationStatus": "Done"}, ENTRY
    ),
    ("PATCH", "/conversations/{conversationId}/set-score"): Operation(
        {"score": 4, "scoreText": "good", "scoreTags": "a,b"}, ENTRY
    ),
    ("PATCH", "/conversations/{conversationId}/set-score/{messageId}"): Operation(
        {"messageId": "{messageId}", "score": 7, "comments": "ok", "scoreConfidence": 0.5}, ENTRY
    ),
    ("PATCH", "/prompt-runs/{promptRunId}/set-score"): Operation({"score": 3}),
    ("POST", "/audit/conversations"): Operation({}, secret=True),
    ("POST", "/audit/prompt-runs"): Operation({}, secret=True),
    ("GET", "/audit/prompt-run/{promptRunId}"): Operation(secret=True),
    ("GET", "/audit/conversation-run/{conversationRunId}"): Operation(secret=True),
    ("POST", "/feedback-report/conversations"): Operation(SPAN, secret=True),
    ("POST", "/feedback-report/prompt-runs"): Operation({}, secret=True),
    ("POST", "/moderations"): Operation({"input": "Hi"}),
}
# What older apps call, and the operation that it is the same as.
ALIASES: Final = {
    ("PATCH", "/conversations/{conversationId}/continue"): ("PATCH", "/conversations/{conversationId}/chat-http2"),
    ("PATCH", "/conversations/{conversationId}/continue-sse"): ("PATCH", "/conversations/{conversationId}/chat-sse"),
    ("PATCH", "/conversations/{conversationId}/continue-sync"): ("PATCH", "/conversations/{conversationId}/chat"),
    ("POST", "/prompt-runs/run"): ("POST", "/prompt-runs/run-sync"),
    ("POST", "/prompt-runs"): ("POST", "/prompt-runs/run-sync"),
    ("POST", "/prompts"): ("POST", "/prompt-runs/run-sync"),
}


class World(NamedTuple):
    """A gateway with a user and a backend, and something of the user's for every id of the contract's paths."""

    running: Running
    user: App
    backend: App
    things: dict[str, str]

    async def ask(self, method: str, path: str, operation: Operation, base: str = "") -> httpx.Response:
        app = self.backend if operation.secret else self.user
        body = json.loads(json.dumps(operation.body).replace("{messageId}", self.things["messageId"]))
        return await app.call(method, base + path.format_map(self.things), body)


@pytest.fixture
async def world(start_gateway: StartGateway, sign_in: SignIn) -> Any:
    running = await start(start_gateway)
    token = (await sign_in(running, "ada")).token
    async with App(running, token) as user, App(running, running.secret_key) as backend:
        conversation = await user.create(metadata={"from": "tests"})
        answered = (await user.chat(conversation, HI, "chat")).json()
        ran = (await user.run(HI)).json()
        yield World(
            running,
            user,
            backend,
            {
                "conversationId": conversation,
                "messageId": answered["messageId"],
                "conversationRunId": answered["runId"],
                "promptRunId": ran["runId"],
                "personaId": PERSONA_ID,
                "externalUserId": "ada",
            },
        )


def items_of(answer: httpx.Response, form: str) -> list[Any]:
    if form == "sse":
        assert answer.headers["content-type"].startswith("text/event-stream")
        return sse_items(answer.text)
    assert answer.headers["content-type"].startswith("application/json")
    return list(answer.json()) if form == "array" else [answer.json()]


@pytest.mark.skipif(not CONTRACT.exists(), reason="the vendor's openapi.json is not beside this repository")
def test_table_has_every_operation_of_the_contract() -> None:
    """What the vendor publishes is in the table, and nothing else is."""
    paths = json.loads(CONTRACT.read_text())["paths"]
    assert {(method.upper(), path) for path, operations in paths.items() for method in operations} == OPERATIONS.keys()


async def test_every_route_is_in_the_table(running: Running) -> None:
    """A path that the drop-in has is an operation of the table or one of its older names."""
    routes = {
        (route.method, route.resource.canonical.removeprefix(f"{PREFIX}/{{base}}"))
        for route in running.gateway.public.router.routes()
        if route.resource is not None and route.resource.canonical.startswith(PREFIX) and route.method != "HEAD"
    }
    names = {"conversation_id": "conversationId", "persona_id": "personaId", "user": "externalUserId"}
    names |= {"message_id": "messageId"}

    def named(path: str) -> str:
        run = "conversationRunId" if "conversation-run" in path else "promptRunId"
        for ours, theirs in (*names.items(), ("run_id", run)):
            path = path.replace(f"{{{ours}}}", f"{{{theirs}}}")
        return f"/{path}"

    assert {(method, named(path)) for method, path in routes} == OPERATIONS.keys() | ALIASES.keys()


@pytest.mark.parametrize("base", ["", "/api", "/app"])
async def test_every_operation_answers_at_every_prefix(world: World, base: str) -> None:
    """Each is answered with 200 in its form, and an older name of it in the same."""
    for key, operation in OPERATIONS.items():
        names = [key, *(alias for alias, same in ALIASES.items() if same == key)]
        for method, path in names:
            answer = await world.ask(method, path, operation, base)
            assert answer.status_code == 200, (method, path, answer.text)
            items = items_of(answer, operation.form)
            if operation.schema == ITEM:
                assert text_of(items) == said(HI).text
                assert items[-1]["choice"]["finish_reason"] == "stop"
            elif operation.schema == WHOLE:
                assert items[0]["choices"][0]["message"]["content"] == said(HI).text


@pytest.mark.skipif(not CONTRACT.exists(), reason="the vendor's openapi.json is not beside this repository")
async def test_every_answer_keeps_to_the_contract(world: World) -> None:
    """What the contract has a schema for is valid by it, formats included."""
    components = as_json_schema(deepcopy(json.loads(CONTRACT.read_text())["components"]))
    components["schemas"]["Partition"]["properties"]["tags"] = {"type": ["object", "null"]}
    components["schemas"]["RunFeedback"]["properties"]["tags"] = {"type": ["array", "null"]}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for (method, path), operation in OPERATIONS.items():
        if operation.schema is not None:
            schema = {"$ref": f"#/components/schemas/{operation.schema}", "components": components}
            validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
            for item in items_of(await world.ask(method, path, operation), operation.form):
                validator.validate(item)


async def test_changes_are_at_the_vendor_and_in_what_is_read(world: World) -> None:
    """Name, status, metadata, the switch and scores reach the vendor, and are shown from then on."""
    conversation, user = world.things["conversationId"], world.user
    for path in ("set-active", "set-metadata", "set-conversation-name", "set-conversation-status", "set-score"):
        operation = OPERATIONS["PATCH", f"/conversations/{{conversationId}}/{path}"]
        assert (await world.ask("PATCH", f"/conversations/{{conversationId}}/{path}", operation)).status_code == 200
    scoring = OPERATIONS["PATCH", "/conversations/{conversationId}/set-score/{messageId}"]
    scored = (await world.ask("PATCH", "/conversations/{conversationId}/set-score/{messageId}", scoring)).json()
    entry = (await user.call("GET", f"/conversations/{conversation}")).json()
    assert entry == scored
    told = (entry["isActive"], entry["metadata"], entry["conversationName"], entry["conversationStatus"])
    assert told == (False, {"a": 1}, "n", "Done")
    assert [one["score"] for one in entry["chatMessages"][1]["feedbacks"]] == [7]
    kept = world.running.simulator.conversations.get(conversation)
    assert kept is not None
    assert (kept.is_active, kept.metadata, kept.name, kept.status) == (False, {"a": 1}, "n", "Done")
    assert kept.score == {"score": 4, "scoreText": "good", "scoreTags": "a,b"}
    # Once more with nothing: what was set is unset, for the next reader too.
    for path in ("set-metadata", "set-conversation-name"):
        assert (await user.call("PATCH", f"/conversations/{conversation}/{path}", {})).status_code == 200
    entry = (await user.call("GET", f"/conversations/{conversation}")).json()
    assert (entry["metadata"], entry["conversationName"]) == ({}, None)


async def test_entry_has_messages_and_totals_and_no_system_prompt(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A conversation is shown as the vendor shows it, but for what is the tenant's: prompts and configuration."""
    running = await start(start_gateway, simulator={"persona_prompt": "You are a secret."})
    async with App(running, (await sign_in(running)).token) as app:
        conversation = await app.create()
        whole = (await app.chat(conversation, HI, "chat")).json()
        await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{conversation}")  # as after a week
        entry = (await app.call("GET", f"/conversations/{conversation}")).json()
    assert [(one["role"], one["content"]) for one in entry["chatMessages"]] == [
        ("user", HI),
        ("assistant", said(HI).text),
    ]
    assert entry["chatMessages"][1]["messageId"] == whole["messageId"]
    assert entry["totalTokens"] == whole["usage"]["total_tokens"]
    assert (entry["model"], entry["personaId"], entry["chatStarted"]) == ("gpt-4o", PERSONA_ID, True)


async def test_lists_are_pages_of_ten_and_of_a_persona(world: World) -> None:
    """A token leads to the next page; a persona's list has its conversations alone, with their messages."""
    mine = {await world.user.create() for _ in range(11)} | {world.things["conversationId"]}
    general = (await world.user.call("POST", "/conversations", {"aiSystem": 1, "model": "m-1"})).json()
    found: list[dict[str, Any]] = []
    sizes: list[int] = []
    token: str | None = ""
    while token is not None:
        path = f"/conversations/persona/{PERSONA_ID}?continuationToken={token}"
        page = (await world.user.call("GET", path)).json()
        sizes.append(len(page["data"]))
        found += page["data"]
        token = page["continuationToken"]
    assert sizes == [10, 2]
    assert {one["conversationId"] for one in found} == mine
    assert next(one for one in found if one["chatMessages"])["conversationId"] == world.things["conversationId"]
    everything = (await world.user.call("GET", "/conversations")).json()["data"]
    assert everything[0]["conversationId"] == general["conversationId"]
    nobody = (await world.user.call("GET", f"/conversations/persona/{uuid.uuid4()}")).json()
    assert nobody == {"data": [], "continuationToken": None}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/conversation"),
        ("POST", "/workspaces"),
        ("GET", "/api/api/conversations"),
        ("DELETE", f"/conversations/{PROMPT_ID}/messages"),
    ],
)
async def test_unknown_paths_are_not_found_in_the_vendors_shape(world: World, method: str, path: str) -> None:
    """What the vendor does not have is told as the vendor tells errors."""
    answer = await world.user.call(method, path)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"


async def test_wrong_method_is_told_with_those_that_there_are(world: World) -> None:
    """A path that exists says what it allows."""
    answer = await world.user.call("DELETE", "/conversations")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(","))


ONE: Final = "/conversations/{conversationId}"
LONG: Final = {"topic": "x" * 40_000}
MANY: Final = {str(number): number for number in range(40)}
BAD: Final = [
    ("PATCH", f"{ONE}/chat", {"message": " "}, 422, "message"),
    ("PATCH", f"{ONE}/chat", {}, 422, "message"),
    ("PATCH", f"{ONE}/chat?stream=7", MESSAGE, 422, "stream"),
    ("PATCH", "/conversations/x/chat", MESSAGE, 400, "conversationId"),
    ("PATCH", f"{ONE}/set-active", {"isActive": "yes"}, 422, "isActive"),
    ("PATCH", f"{ONE}/set-active", {"conversationId": PROMPT_ID}, 422, "conversationId"),
    ("PATCH", f"{ONE}/set-conversation-name", {"conversationName": "x" * 300}, 422, "conversationName"),
    ("PATCH", f"{ONE}/set-metadata", {"metadata": MANY}, 422, "metadata"),
    ("PATCH", f"{ONE}/set-score", {"score": 11}, 422, "score"),
    ("PATCH", f"{ONE}/set-score", {"scoreText": "x" * 5000}, 422, "scoreText"),
    ("PATCH", f"{ONE}/set-score/{{messageId}}", {"scoreConfidence": 2}, 422, "scoreConfidence"),
    ("PATCH", f"{ONE}/set-score/{{messageId}}", {"messageId": PROMPT_ID}, 422, "messageId"),
    ("PATCH", "/prompt-runs/{promptRunId}/set-score", {"score": -11}, 422, "score"),
    ("POST", "/conversations/persona", {}, 422, "personaId"),
    ("POST", "/conversations/persona", {"personaId": "x"}, 422, "personaId"),
    ("POST", "/conversations/persona", {"personaId": PROMPT_ID}, 422, "personaId"),
    ("POST", "/conversations/persona", {"personaId": PERSONA_ID, "personaVersionId": PROMPT_ID}, 422, "personaId"),
    ("POST", "/conversations/persona", {"personaId": PERSONA_ID, "replacements": {"x": 1}}, 422, "replacements.x"),
    ("POST", "/conversations", {"aiSystem": 1, "model": "gpt-9"}, 422, "model"),
    ("POST", "/conversations", {"aiSystem": 2, "model": "m-1"}, 422, "model"),
    ("POST", "/conversations", {"aiSystem": 9, "model": "m-1"}, 422, "aiSystem"),
    ("POST", "/conversations", {"aiSystem": 1, "model": "m-1", "systemMessage": "x"}, 403, "systemMessage"),
    ("POST", "/conversations", {"aiSystem": 1, "model": "m-1", "dataspaceIds": [PROMPT_ID]}, 403, "dataspaceIds"),
    ("POST", "/prompt-runs/async", {"promptId": PERSONA_ID}, 422, "promptId"),
    ("POST", "/prompt-runs/async", {"promptId": PROMPT_ID, "promptVersionId": PERSONA_ID}, 422, "promptId"),
    ("POST", "/prompt-runs/async", {"promptId": PROMPT_ID, "replacements": {"x": 1}}, 422, "replacements.x"),
    ("POST", "/prompt-runs/async", {"promptId": PROMPT_ID, "replacements": LONG}, 413, "replacements"),
    ("POST", "/moderations", {"input": "x" * 40_000}, 413, "input"),
    ("POST", "/moderations", {"input": 7}, 422, "input"),
    ("GET", "/conversations?continuationToken=x", None, 400, "continuationToken"),
    ("GET", "/conversations/persona/x", None, 400, "personaId"),
    ("GET", "/conversations/persona", None, 405, None),
]  # fmt: skip


async def test_bad_input_names_its_field_in_the_vendors_shape(world: World) -> None:
    """Each wrong request has its status and the field by the name that this dialect has for it."""
    told = []
    for method, path, body, _, _ in BAD:
        answer = await world.user.call(method, path.format_map(world.things), body)
        error = error_of(answer)
        told.append(
            (method, path, body, answer.status_code, error["details"][0]["field"] if error["details"] else None)
        )
    assert told == BAD


async def test_models_are_what_the_tenant_lists(world: World) -> None:
    """A model brings the tenant's system message, or the client's where that may be stated, and named dataspaces."""
    plain = {"aiSystem": 1, "model": "m-1", "dataspaceIds": ["7c0d7c8e-4444-4d53-9a52-0d1d6a7f0004"]}
    free = {"aiSystem": 2, "model": "m-2", "systemMessage": "Sing.", "configuration": {"temperature": 0}}
    kept = []
    for body in (plain, free):
        entry = (await world.user.call("POST", "/conversations", body)).json()
        assert (entry["personaId"], entry["model"], entry["chatMessages"]) == (None, body["model"], [])
        assert text_of(items_of(await world.user.chat(entry["conversationId"], HI), "array")) == said(HI).text
        await world.running.gateway.redis.call(
            "DEL", f"hg:{{{world.running.tenant}}}:conv:{entry['conversationId']}"
        )  # as after a week: by its model it is known whose alias it has
        assert (await world.user.chat(entry["conversationId"], HI)).status_code == 200
        one = world.running.simulator.conversations.get(entry["conversationId"])
        assert one is not None
        kept.append((one.messages[0].content, one.configuration))
    assert kept == [("Be brief.", None), ("Sing.", {"temperature": 0})]
