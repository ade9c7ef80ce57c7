"""The conversation endpoints through a stock HTTP/2 client."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.simulator.answers import answer
from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start, http_client

PERSONA = "5b1f1a0e-3d3c-4d53-9a52-0d1d6a7f0001"


async def create(http: httpx.AsyncClient, **fields: Any) -> str:
    """Creates a persona conversation and returns its id."""
    response = await http.post("/conversations/persona", json={"personaId": PERSONA} | fields)
    assert response.status_code == 200
    return str(response.json()["conversationId"])


async def say(http: httpx.AsyncClient, conversation_id: str, message: str) -> dict[str, Any]:
    """Sends a message without streaming and returns the answer."""
    response = await http.patch(f"/conversations/{conversation_id}/chat", json={"message": message})
    assert response.status_code == 200
    return dict(response.json())


async def test_create_persona_returns_an_empty_conversation(http: httpx.AsyncClient) -> None:
    """A new conversation has its owner, no messages, no name, and comes over HTTP/2."""
    body = {"personaId": PERSONA, "externalUserId": "t:u1", "metadata": {"a": 1}, "stream": False, "unknown": True}
    response = await http.post("/conversations/persona", json=body)
    entry = response.json()
    assert (response.status_code, response.http_version) == (200, "HTTP/2")
    assert response.headers["content-type"].startswith("application/json")
    assert (entry["personaId"], entry["externalUserId"], entry["metadata"]) == (PERSONA, "t:u1", {"a": 1})
    assert (entry["chatMessages"], entry["isActive"], entry["conversationName"]) == ([], True, None)


async def test_create_general_keeps_the_system_message(http: httpx.AsyncClient) -> None:
    """A general conversation starts with its system message and names model and provider."""
    body = {"aiSystem": 2, "model": "m-1", "systemMessage": "Be brief.", "configuration": {"temperature": 0.5}}
    entry = (await http.post("/conversations", json=body)).json()
    assert entry["model"] == "m-1"
    assert entry["configuration"] == {"temperature": 0.5}
    assert [(one["role"], one["content"]) for one in entry["chatMessages"]] == [("system", "Be brief.")]


async def test_get_after_a_turn_shows_messages_and_totals(http: httpx.AsyncClient) -> None:
    """Both messages are stored under one run, the tokens add up, and the ids are those that the answer carried."""
    conversation_id = await create(http)
    reply = await say(http, conversation_id, "Hello there")
    entry = (await http.get(f"/conversations/{conversation_id}")).json()
    user, assistant = entry["chatMessages"]
    said = answer("Hello there")
    assert (user["role"], user["content"]) == ("user", "Hello there")
    assert (assistant["role"], assistant["content"]) == ("assistant", said.text)
    assert assistant["messageId"] == reply["messageId"]
    assert user["conversationRunId"] == assistant["conversationRunId"] == reply["runId"]
    assert reply["usage"]["total_tokens"] == entry["totalTokens"] == said.total_tokens
    assert (entry["chatMessagesCount"], entry["chatStarted"]) == (2, True)


async def test_lists_page_by_ten_without_gap_or_repeat(http: httpx.AsyncClient) -> None:
    """Pages are newest first, ten each, and stay right when conversations are made between two pages."""
    mine = [await create(http, externalUserId="a:b/c") for _ in range(23)]
    await create(http, externalUserId="other")
    seen: list[str] = []
    token: str | None = None
    pages = 0
    while pages == 0 or token:
        query = {"continuationToken": token} if token else {}
        page = (await http.get("/conversations/user/a%3Ab%2Fc", params=query)).json()
        seen += [entry["conversationId"] for entry in page["data"]]
        token = page["continuationToken"]
        pages += 1
        await create(http, externalUserId="a:b/c")
    assert (pages, seen) == (3, mine[::-1])
    assert len((await http.get("/conversations")).json()["data"]) == 10
    assert (await http.get(f"/conversations/persona/{uuid4()}")).json() == {"data": [], "continuationToken": None}
    assert (await http.get("/conversations", params={"continuationToken": "xyz"})).status_code == 400


@pytest.mark.parametrize(
    ("action", "body", "field", "value"),
    [
        ("set-active", {"isActive": False}, "isActive", False),
        ("set-metadata", {"metadata": {"k": ["v", 1e20]}}, "metadata", {"k": ["v", 1e20]}),
        ("set-conversation-name", {"conversationName": "Zoë’s <b>"}, "conversationName", "Zoë’s <b>"),
        ("set-conversation-status", {"conversationStatus": "Closed"}, "conversationStatus", "Closed"),
        ("set-score", {"score": 3, "scoreText": "fine", "scoreTags": "a,b"}, "isActive", True),
    ],
)
async def test_changes_are_stored(
    http: httpx.AsyncClient, action: str, body: dict[str, Any], field: str, value: Any
) -> None:
    """Each set-… endpoint answers with the whole entry, changed, and reading shows the same."""
    conversation_id = await create(http)
    response = await http.patch(
        f"/conversations/{conversation_id}/{action}", json=body | {"conversationId": conversation_id}
    )
    assert response.status_code == 200
    assert response.json()[field] == value
    assert (await http.get(f"/conversations/{conversation_id}")).json() == response.json()


async def test_message_score_same_feedback_id_updates(http: httpx.AsyncClient) -> None:
    """A feedback is added to its message, and its id again replaces it."""
    conversation_id = await create(http)
    message_id = (await say(http, conversation_id, "Hi"))["messageId"]
    path = f"/conversations/{conversation_id}/set-score/{message_id}"
    first = {"messageId": message_id, "score": 8, "comments": "good", "tags": ["clear"], "scoreConfidence": 0.5}
    entry = (await http.patch(path, json=first)).json()
    (feedback,) = entry["chatMessages"][1]["feedbacks"]
    assert (feedback["score"], feedback["tags"], feedback["scoreConfidence"]) == (8, ["clear"], 0.5)
    second = {"messageId": message_id, "feedbackId": feedback["feedbackId"], "score": -10}
    entry = (await http.patch(path, json=second)).json()
    assert [one["score"] for one in entry["chatMessages"][1]["feedbacks"]] == [-10]
    entry = (await http.patch(path, json={"score": 1})).json()
    assert [one["score"] for one in entry["chatMessages"][1]["feedbacks"]] == [-10, 1]


@pytest.mark.parametrize("prefix", ["", "/api", "/app"])
async def test_paths_answer_under_every_prefix(http: httpx.AsyncClient, prefix: str) -> None:
    """The same paths work bare, under /api and under /app."""
    assert (await http.get(f"{prefix}/conversations")).status_code == 200


async def test_authorisation_wrong_key_is_401_in_the_error_shape(simulator: Simulator) -> None:
    """A missing or wrong key is refused; the key is taken from either header."""
    async with http_client(simulator, headers={}) as http:
        for headers in ({}, {"x-hl-api-key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            response = await http.get("/conversations", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "unauthorized"
        bearer = {"authorization": f"Bearer {simulator.settings.api_key}"}
        assert (await http.get("/conversations", headers=bearer)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"message":""}',
        b'{"message":null}',
        b'{"message":3}',
        b'{"message":"#rate=x"}',
        b'"\xff"',
        b'{"message":"\\ud83d"}',
        b'{"message":' + b"[" * 100_000,
    ],
)
async def test_chat_bad_body_is_400_in_the_array_shape(http: httpx.AsyncClient, body: bytes) -> None:
    """What is not a message is refused with an array of exception and errorMessage."""
    conversation_id = await create(http)
    response = await http.patch(
        f"/conversations/{conversation_id}/chat-http2", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    (problem,) = response.json()
    assert set(problem) == {"exception", "errorMessage"}


async def test_errors_have_the_documented_statuses(http: httpx.AsyncClient) -> None:
    """Unknown things are 404, ids and scores that cannot be are 400, and a wrong content type is 415."""
    conversation_id = await create(http)
    message_id = (await say(http, conversation_id, "Hi"))["messageId"]
    base = f"/conversations/{conversation_id}"
    unknown = await http.get(f"/conversations/{uuid4()}")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert (await http.get("/conversations/not-a-uuid")).status_code == 400
    nowhere = await http.get("/nowhere")
    assert (nowhere.status_code, nowhere.content) == (404, b"")
    assert (await http.patch(f"{base}/set-score/{uuid4()}", json={"score": 1})).status_code == 404
    for body in ({"score": 11}, {"score": 1, "scoreConfidence": 1.5}, {"score": 1, "messageId": str(uuid4())}):
        assert (await http.patch(f"{base}/set-score/{message_id}", json=body)).status_code == 400
    for general in ({"model": "m"}, {"aiSystem": 7, "model": "m"}, {"aiSystem": 1, "model": ""}):
        assert (await http.post("/conversations", json=general)).status_code == 400
    text = await http.patch(f"{base}/chat", content=b"{}", headers={"content-type": "text/plain"})
    assert (text.status_code, text.json()["title"]) == (415, "Unsupported Media Type")
    big = await http.patch(f"{base}/chat", content=b" " * (1 << 20) + b"{}", headers={"content-type": "text/json"})
    assert big.status_code == 413


async def test_personas_unknown_one_is_404_when_a_list_is_set(start: Start) -> None:
    """With known personas configured, another is not found; a persona's prompt opens its conversations."""
    simulator = await start(personas=(PERSONA.upper(),), persona_prompt="You are kind.")
    async with http_client(simulator) as http:
        assert (await http.post("/conversations/persona", json={"personaId": str(uuid4())})).status_code == 404
        entry = (await http.get(f"/conversations/{await create(http)}")).json()
    assert [one["role"] for one in entry["chatMessages"]] == ["system"]


async def test_blob_setting_moves_messages_behind_a_uri(start: Start) -> None:
    """With messages in a blob the entry says so, and only the signed URI shows them, without a key."""
    simulator = await start(blob=True)
    async with http_client(simulator) as http:
        conversation_id = await create(http)
        await say(http, conversation_id, "Hello")
        entry = (await http.get(f"/conversations/{conversation_id}")).json()
        assert (entry["chatMessages"], entry["areChatMessagesInBlob"], entry["chatMessagesCount"]) == (None, True, 2)
        uri = entry["chatMessagesBlobUri"]
        async with http_client(simulator, headers={}) as anyone:
            assert [one["role"] for one in (await anyone.get(uri)).json()] == ["user", "assistant"]
            assert (await anyone.get(uri.partition("?")[0])).status_code == 404


async def test_plan_limit_answers_429_past_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer tells what is left of the minute, and the call past the limit says when to come back."""
    monkeypatch.setattr("gateway.simulator.allowance.time.time", lambda: 1_000_000_020.0)
    simulator = await start(limit_per_minute=2)
    async with http_client(simulator) as http:
        left = [(await http.get("/conversations")).headers["x-ratelimit-remaining"] for _ in range(2)]
        refused = await http.get("/conversations")
    assert left == ["1", "0"]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


async def test_own_paths_need_no_key(simulator: Simulator) -> None:
    """Bill and state are readable by anyone, over HTTP as in process."""
    async with http_client(simulator) as http:
        conversation_id = await create(http)
        await say(http, conversation_id, "Hello")
    async with http_client(simulator, headers={}) as http:
        (run,) = (await http.get("/_simulator/bill")).json()["runs"]
        state = (await http.get("/_simulator/state")).json()
        assert (await http.get("/_simulator/else")).status_code == 404
    assert (run["conversation_id"], run["outcome"], run["stored"]) == (conversation_id, "finished", True)
    assert simulator.bill.of(conversation_id)[0].completion_tokens == run["completion_tokens"]
    assert (state["chats"], state["open_streams"]) == (1, 1)


async def test_h2c_prior_knowledge_answers(start: Start) -> None:
    """Without TLS the same API answers by prior knowledge."""
    simulator = await start(h2c=True)
    assert simulator.url.startswith("h2c://127.0.0.1:")
    assert simulator.ca_file is None
    async with http_client(simulator) as http:
        assert (await http.get("/conversations")).http_version == "HTTP/2"


@pytest.mark.parametrize(
    "metadata", [b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"]
)
async def test_odd_metadata_is_refused_or_kept_but_breaks_nothing(http: httpx.AsyncClient, metadata: bytes) -> None:
    """Values that JSON writers choke on are refused with 400, and the server goes on."""
    body = b'{"personaId":"' + PERSONA.encode() + b'","metadata":' + metadata + b"}"
    response = await http.post("/conversations/persona", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert (await http.get("/conversations")).status_code == 200
