"""Every answer's shape against the vendor's published contract, where a copy of that lies beside the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # has no types
import pytest

from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start, http_client
from tests.simulator.frame_client import connect
from tests.simulator.test_conversations import PERSONA, create, say

CONTRACT = Path(__file__).parents[3] / "shared" / "hyperleap" / "openapi.json"
pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason="the vendor's openapi.json is not beside this repository")

Check = Callable[[str, Any], None]


def as_json_schema(schema: Any) -> Any:
    """Turns OpenAPI 3.0's `nullable` into JSON Schema; a reference may be null too, since the wire form says so."""
    if isinstance(schema, list):
        return [as_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}]}
    turned = {key: as_json_schema(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [turned, {"type": "null"}]} if schema.get("nullable") else turned


@pytest.fixture(scope="module")
def check() -> Check:
    """Is a function that raises unless a value is valid for a schema of the contract, formats included."""
    components = as_json_schema(deepcopy(json.loads(CONTRACT.read_text())["components"]))
    # The vendor's prose has tags where its schemas do not.
    components["schemas"]["Partition"]["properties"]["tags"] = {"type": ["object", "null"]}
    components["schemas"]["RunFeedback"]["properties"]["tags"] = {
        "type": ["array", "null"],
        "items": {"type": "string"},
    }

    def check_one(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)

    return check_one


def test_check_refuses_wrong_values(check: Check) -> None:
    """The check is able to fail: an unknown field, a wrong type and a bad UUID are all noticed."""
    for wrong in ({"surprise": 1}, {"isActive": "yes"}, {"conversationId": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            check("ChatEntryResponse", wrong)


async def test_conversation_answers_are_valid(http: httpx.AsyncClient, check: Check) -> None:
    """Entries, lists and the answers of each change keep to the contract, with messages and feedback in them."""
    conversation_id = await create(http, metadata={"a": None}, externalUserId="t:u")
    message_id = (await say(http, conversation_id, "Hello"))["messageId"]
    general = {"aiSystem": 1, "model": "m", "systemMessage": "s", "configuration": {"x": None}}
    base = f"/conversations/{conversation_id}"
    feedback = {"messageId": message_id, "score": 4, "tags": ["a"], "comments": None}
    answers = [
        await http.post("/conversations", json=general),
        await http.patch(f"{base}/set-score/{message_id}", json=feedback),
        await http.patch(f"{base}/set-score", json={"score": 4}),
        await http.patch(f"{base}/set-active", json={"isActive": True}),
        await http.patch(f"{base}/set-metadata", json={"metadata": None}),
        await http.patch(f"{base}/set-conversation-name", json={"conversationName": "n"}),
        await http.patch(f"{base}/set-conversation-status", json={"conversationStatus": None}),
        await http.get(base),
    ]
    for response in answers:
        assert response.status_code == 200
        check("ChatEntryResponse", response.json())
    for path in ("/conversations", "/conversations/user/t%3Au", f"/conversations/persona/{PERSONA}"):
        check("ChatEntryResponseResultSet", (await http.get(path)).json())


async def test_blob_answers_are_valid(start: Start, check: Check) -> None:
    """With messages in a blob, both the entry and the blob's messages keep to the contract."""
    async with http_client(await start(blob=True)) as http:
        conversation_id = await create(http)
        await say(http, conversation_id, "Hello")
        entry = (await http.get(f"/conversations/{conversation_id}")).json()
        check("ChatEntryResponse", entry)
        for message in (await http.get(entry["chatMessagesBlobUri"])).json():
            check("HyperleapChatMessageResponse", message)


MESSAGES = ["Hello", "What is the refund policy?", "#citations=5", "x #fault=moderated", "x #fault=extra-role",
            "x #fault=no-usage", "x #fault=zero-usage", "x #raw", *(f"q{number}" for number in range(8))]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES)
async def test_chat_answers_are_valid_in_all_three_forms(simulator: Simulator, check: Check, message: str) -> None:
    """Every item of both streams and the whole answer keep to the contract."""
    async with connect(simulator) as client:
        conversation_id = await client.create()
        for item in (await client.answer(client.chat(conversation_id, message))).json():
            check("GenAiStreamingChatChoice", item)
        events = (await client.answer(client.chat(conversation_id, message, "chat-sse"))).body.decode().split("\n\n")
        for event in events[:-1]:
            check("GenAiStreamingChatChoice", json.loads(event.removeprefix("data: ")))
        whole = await client.answer(client.chat(conversation_id, message, "chat"))
        check("GenAiChatResponse", whole.json())


async def test_bad_request_is_valid(http: httpx.AsyncClient, check: Check) -> None:
    """The array shape of 400 is the contract's ModelError."""
    for error in (await http.post("/conversations/persona", json={})).json():
        check("ModelError", error)
