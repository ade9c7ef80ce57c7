"""Conversations: created with an alias, read back with their transcript, listed, rated; the vendor's is the truth."""

from __future__ import annotations

import uuid

from gateway.simulator.answers import answer as said
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn


async def test_conversation_when_created_shows_alias_and_no_vendor_id(running: Running, client: Client) -> None:
    """A created conversation names the persona's alias; the vendor's persona id and the owner stay inside."""
    answer = await client.call("POST", "/v1/conversations", {"persona": "other", "metadata": {"page": "pricing"}})
    assert answer.status == 201
    body = answer.body
    assert answer.headers["Location"] == f"/v1/conversations/{body['id']}"
    assert uuid.UUID(body["id"])
    assert (body["persona"], body["messages"], body["metadata"]) == ("other", [], {"page": "pricing"})
    assert {"status", "name", "created_at"} <= body.keys()
    assert b"0c5fdd25" not in answer.raw
    assert "owner" not in body


async def test_conversation_when_created_is_known_to_the_vendor_by_hashed_user(
    running: Running, client: Client
) -> None:
    """The vendor sees the persona id, the allowed replacements and ``<tenant>:<hash>``, never the user's id."""
    conversation = await client.conversation(replacements={"name": "Zoë"}, metadata={"k": 1})
    kept = running.simulator.conversations.get(conversation)
    assert kept is not None
    assert kept.persona_id == PERSONA_ID
    assert kept.replacements == {"name": "Zoë"}
    tenant, _, user = (kept.external_user_id or "").partition(":")
    assert tenant == running.tenant
    assert len(user) == 32
    assert "u1" not in (kept.external_user_id or "").split(":")


async def test_conversation_after_turn_holds_both_messages(client: Client) -> None:
    """The transcript has the user's message and the answer with its ids and tokens."""
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=5"))[-1].data
    body = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    user, assistant = body["messages"]
    assert (user["role"], user["content"]) == ("user", "Hi #tokens=5")
    assert (assistant["role"], assistant["content"]) == ("assistant", ending["text"])
    assert assistant["message_id"] == ending["message_id"]
    assert assistant["usage"]["completion_tokens"] == 5
    assert body["active_turn_id"] is None


async def test_conversation_during_turn_names_the_active_turn(client: Client) -> None:
    """Whoever reads the conversation while it is being answered learns which turn to follow."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #rate=5")
    body = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    assert body["active_turn_id"] == turn


async def test_conversation_not_in_the_cache_is_read_back_from_the_vendor(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """When the cache has lost a conversation its owner gets the vendor's copy, and a stranger gets 404."""
    running = await start_gateway(simulator={"persona_prompt": "You are a secret system prompt."})
    client, stranger = await sign_in(running), await sign_in(running, "u2")
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=5"))[-1].data
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{conversation}")
    refused = await stranger.call("GET", f"/v1/conversations/{conversation}")
    assert (refused.status, refused.body["code"]) == (404, "not_found")
    answer = await client.call("GET", f"/v1/conversations/{conversation}")
    assert answer.status == 200
    assert [(m["role"], m["content"]) for m in answer.body["messages"]] == [
        ("user", "Hi #tokens=5"),
        ("assistant", ending["text"]),
    ]
    assert b"secret system prompt" not in answer.raw
    assert (await client.complete(conversation, "And now? #tokens=3"))[0].data["ordinal"] == 2


async def test_conversation_kept_in_a_blob_says_that_messages_are_unavailable(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Messages behind a URI that no setting allows are said to be unavailable, and chatting goes on."""
    running = await start_gateway(simulator={"blob": True})
    client = await sign_in(running)
    conversation = await client.conversation()
    await client.complete(conversation, "Hi #tokens=2")
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{conversation}")
    body = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    assert body["messages_unavailable"] is True
    assert (await client.complete(conversation, "Hi #tokens=2"))[-1].name == "turn.completed"


async def test_conversations_listed_come_latest_used_first_page_by_page(running: Running, sign_in: SignIn) -> None:
    """Pages hold every conversation of the user once, the latest used first, without what was said."""
    client, stranger = await sign_in(running), await sign_in(running, "u2")
    made = [await client.conversation() for _ in range(5)]
    await stranger.conversation()
    await client.complete(made[1], "Hi #tokens=1")
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await client.call("GET", f"/v1/conversations?limit=2{cursor}")).body
        seen += [entry["id"] for entry in page["data"]]
        assert all("messages" not in entry for entry in page["data"])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(seen) == sorted(made)
    assert seen[0] == made[1]


async def test_feedback_reaches_the_vendor_and_the_transcript(running: Running, client: Client) -> None:
    """A score lands at the vendor with comments, tags and confidence, and in the transcript."""
    conversation = await client.conversation()
    message = (await client.complete(conversation, "Hi #tokens=2"))[-1].data["message_id"]
    path = f"/v1/conversations/{conversation}/messages/{message}/feedback"
    body = {"score": 8, "comments": "très clair", "tags": ["clear"], "confidence": 0.9}
    answer = await client.call("PUT", path, body)
    assert answer.status == 200
    assert body.items() <= answer.body.items()
    kept = running.simulator.conversations.get(conversation)
    assert kept is not None
    rated = kept.message(message)
    assert rated is not None
    (feedback,) = rated.feedbacks
    assert (feedback["score"], feedback["comments"], feedback["feedbackId"]) == (
        8,
        "très clair",
        answer.body["feedback_id"],
    )
    shown = (await client.call("GET", f"/v1/conversations/{conversation}")).body["messages"][1]
    assert shown["feedback"]["score"] == 8


async def test_feedback_given_twice_updates_the_first(running: Running, client: Client) -> None:
    """The feedback id is stable for a user and a message, so that a second PUT changes the first."""
    conversation = await client.conversation()
    message = (await client.complete(conversation, "Hi #tokens=2"))[-1].data["message_id"]
    path = f"/v1/conversations/{conversation}/messages/{message}/feedback"
    first, second = await client.call("PUT", path, {"score": 10}), await client.call("PUT", path, {"score": -10})
    assert first.body["feedback_id"] == second.body["feedback_id"]
    kept = running.simulator.conversations.get(conversation)
    assert kept is not None
    rated = kept.message(message)
    assert rated is not None
    assert [feedback["score"] for feedback in rated.feedbacks] == [-10]


async def test_conversations_of_many_users_never_cross(running: Running, sign_in: SignIn) -> None:
    """Twelve users who chat at once each get their own answer and only their own conversation."""
    clients = [await sign_in(running, f"user-{number}") for number in range(12)]
    conversations = [await client.conversation() for client in clients]
    turns = [
        await client.start(conversation, f"I am number {number} #echo")
        for number, (client, conversation) in enumerate(zip(clients, conversations, strict=True))
    ]
    await eventually(lambda: running.gateway.turns.running == 0, "all turns to end")
    for number, client in enumerate(clients):
        events = await client.replay(turns[number])
        assert events[-1].data["text"] == said(f"I am number {number} #echo").text
        listed = (await client.call("GET", "/v1/conversations")).body["data"]
        assert [entry["id"] for entry in listed] == [conversations[number]]
