"""The clients of AI SDK UI and AG-UI themselves, for Node: ``useChat`` in a page, and ``HttpAgent``."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.conversation import ConversationId
from gateway.simulator.answers import answer as truth
from tests.conftest import Running
from tests.transports.client import eventually
from tests.transports.npm import needs, play
from tests.transports.openai.loop import heard

CHAT = "c/1 é"  # an id is the page's own: any text, one segment of a path

pytestmark = [pytest.mark.slow, *needs("ai", "@ai-sdk/react", "react-dom", "jsdom", "@ag-ui/client")]


async def use_chat(scene: str, running: Running, *users: str, **environ: str) -> Any:
    return await play("ai_sdk.mjs", scene, running, *users, **{"CHAT": CHAT, **environ})


async def agent(scene: str, running: Running) -> Any:
    return await play("ag_ui.mjs", scene, running, THREAD="t1")


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return ["".join(part.get("text", "") for part in one["parts"] if part["type"] == "text") for one in messages]


# --- useChat ----------------------------------------------------------------------------------------------------------


async def test_use_chat_holds_a_conversation(running: Running) -> None:
    """Texts, sources, tokens and states, turn after turn in one conversation of Hyperleap's."""
    page = await use_chat("chat", running)
    words = ["One? #tokens=12 #citations=2", "Two? #tokens=8"]
    assert texts(page["messages"]) == [words[0], truth(words[0]).text, words[1], truth(words[1]).text]
    assert heard(running) == [words]
    assert page["shown"] == "|".join(truth(one).text for one in words)
    assert page["statuses"] == ["ready", "submitted", "streaming", "ready", "submitted", "streaming", "ready"]
    assert page["finishes"] == [{"finishReason": "stop", "isAbort": False, "isError": False}] * 2
    assert page["errors"] == []
    first = page["messages"][1]
    sources = [part for part in first["parts"] if part["type"] == "source-url"]
    assert [source["url"] for source in sources] == [one["sourceUrl"] for one in truth(words[0]).citations]
    assert first["metadata"]["usage"]["totalTokens"] == truth(words[0]).total_tokens
    assert all(part["state"] == "done" for part in first["parts"] if part["type"] == "text")


async def test_use_chat_resumes_an_answer_after_a_reload(running: Running) -> None:
    """A page that dies in mid-answer is loaded again: the same message, whole, and Hyperleap was asked once."""
    words = "Hi #tokens=160 #rate=20"  # longer than a page takes to load
    left = await use_chat("leave", running, WORDS=words)
    assert 20 < len(left["shown"]) < len(truth(words).text)
    page = await use_chat("reload", running)
    assert [one["role"] for one in page["before"]["messages"]] == ["user"]
    assert page["before"]["active_turn_id"] == left["messages"][1]["id"]
    assert texts(page["messages"]) == [words, truth(words).text]
    assert page["messages"][1]["id"] == left["messages"][1]["id"]
    assert page["messages"][1]["metadata"]["usage"]["totalTokens"] == truth(words).total_tokens
    assert page["errors"] == []
    assert heard(running) == [[words]]


async def test_use_chat_goes_on_after_a_lost_connection(running: Running) -> None:
    """In the page that it was lost in, too: what is replayed takes the place of what had come."""
    words = "Hi #tokens=60 #rate=40"
    page = await use_chat("lost", running, WORDS=words)
    assert page["left"]["statuses"][-1] == "error"
    assert 0 < len(texts(page["left"]["messages"])[1]) < len(truth(words).text)
    assert texts(page["messages"]) == [words, truth(words).text]
    assert heard(running) == [[words]]


async def test_stop_of_a_chat_ends_its_answer_everywhere(running: Running) -> None:
    """The page is told why, Hyperleap's stream is reset, and there is nothing to resume."""
    page = await use_chat("stop", running)
    (run,) = running.simulator.bill
    assert run.saw_cancel
    assert page["told"]["turn_id"] == page["messages"][1]["id"]
    assert page["again"] == {"turn_id": None, "state": "idle"}
    assert page["resumed"] == 204
    assert page["messages"][1]["metadata"]["stopReason"] == "user"
    assert page["statuses"][-1] == "ready"
    assert page["errors"] == []


async def test_own_stop_of_use_chat_only_leaves(running: Running) -> None:
    """``stop()`` closes the connection, which is no wish to end the answer: it can be resumed, and ends as it would."""
    page = await use_chat("own_stop", running)
    assert page["finishes"] == [{"isAbort": True, "isError": False}]
    assert page["resumed"] == 200
    (run,) = running.simulator.bill
    log = running.gateway.turns.find
    await eventually(lambda: log(page["messages"][1]["id"]) is None, "the answer to end by itself", within_s=10.0)
    assert not run.saw_cancel


async def test_use_chat_regenerates_in_a_conversation_of_its_own(running: Running) -> None:
    """What was said before is stated; the chat goes on there, and reads back as the page has it."""
    page = await use_chat("regenerate", running)
    first = truth("One? #tokens=6").text
    stated = f"Conversation so far:\nUser: One? #tokens=6\n\nAssistant: {first}\n\nMessage:\nTwo? #tokens=7"
    assert heard(running) == [["One? #tokens=6", "Two? #tokens=7"], [stated, "Three? #tokens=5"]]
    assert page["errors"] == []
    assert texts(page["read"]["messages"]) == texts(page["messages"])


async def test_use_chat_changes_a_message(running: Running) -> None:
    """A message that is edited is answered as if the one before it had never been sent."""
    page = await use_chat("edit", running)
    told = heard(running)[-1]
    assert len(told) == 1
    assert told[0].endswith("Message:\nChanged? #tokens=8")
    assert "Two?" not in told[0]
    assert texts(page["messages"])[2] == "Changed? #tokens=8"
    assert page["errors"] == []


async def test_use_chat_shows_errors(running: Running) -> None:
    """In mid-answer, before it, and as refusals: a sentence each, and what had come stays."""
    told = await use_chat("failures", running)
    assert told["middle"]["errors"] == ["The answer was cut off."]
    assert told["middle"]["statuses"][-1] == "error"
    assert texts(told["middle"]["messages"])[1]
    assert told["middle"]["messages"][1]["metadata"]["error"] == {"code": "upstream_truncated", "retryable": True}
    assert told["vendor"]["errors"] == ["Hyperleap answered with status 500."]
    assert told["file"]["errors"] == ["messages[0].parts[0]: Files cannot be given to Hyperleap."]
    assert told["persona"]["errors"] == ["persona: The chat was opened with another persona and keeps it."]


async def test_two_users_pages_share_nothing_by_a_chats_id(running: Running) -> None:
    """The same id in two pages is two conversations."""
    ada, bob = await use_chat("two_users", running, "ada", "bob")
    ids = {page["messages"][1]["metadata"]["conversationId"] for page in (ada, bob)}
    assert len(ids) == 2
    owners = {(await owner(running, id)) for id in ids}
    assert len(owners) == 2


async def owner(running: Running, conversation: str) -> str | None:
    found = running.simulator.conversations.get(ConversationId(conversation))
    assert found is not None
    return found.external_user_id


# --- HttpAgent --------------------------------------------------------------------------------------------------------


async def test_agent_runs_a_thread(running: Running) -> None:
    """The client's own checks pass every event; a thread is one conversation."""
    told = await agent("thread", running)
    words = ["One? #tokens=12 #citations=2", "Two? #tokens=8"]
    contents = [one["content"] for one in told["messages"]]
    assert contents == [words[0], truth(words[0]).text, words[1], truth(words[1]).text]
    assert heard(running) == [words]
    assert told["warnings"] == []
    events = told["first"]["events"]
    assert (events[0]["type"], events[0]["threadId"]) == ("RUN_STARTED", "t1")
    assert (events[-1]["type"], events[-1]["outcome"]) == ("RUN_FINISHED", {"type": "success"})
    assert events[-1]["usage"][0]["totalTokens"] == truth(words[0]).total_tokens
    (cited,) = [event["value"] for event in events if event.get("name") == "message.citations"]
    assert cited["citations"] == list(truth(words[0]).citations)


async def test_agent_whose_thread_was_changed_has_it_stated(running: Running) -> None:
    """Messages are the client's: a thread that is not how the conversation went on gets one of its own."""
    told = await agent("changed", running)
    assert [one["role"] for one in told["messages"]] == ["user", "assistant", "user", "assistant"]
    first = truth("One? #tokens=6").text
    assert heard(running) == [
        ["One? #tokens=6", "Two? #tokens=7"],
        [f"Conversation so far:\nUser: One? #tokens=6\n\nAssistant: {first}\n\nMessage:\nAnother? #tokens=8"],
    ]
    assert told["warnings"] == []


@pytest.mark.parametrize("scene", ["stop", "early"])
async def test_agents_run_is_stopped(running: Running, scene: str) -> None:
    """In mid-answer and before the first word: the run is over, cancelled and no error."""
    told = await agent(scene, running)
    last = told["told"]["events"][-1]
    assert (last["type"], last["outcome"], last["result"]["reason"]) == ("RUN_FINISHED", {"type": "cancelled"}, "user")
    assert "error" not in told["told"]
    assert told["warnings"] == []


async def test_agent_goes_on_with_a_run_that_it_left(running: Running) -> None:
    """By ``connectAgent``, as the page of documentation has it: the whole text once, and nothing when it is over."""
    told = await agent("left", running)
    words = "Hi #tokens=120 #rate=60"
    partial, whole = told["before"][1], told["messages"][1]
    assert 0 < len(partial["content"]) < len(truth(words).text)
    assert [one["content"] for one in told["messages"]] == [words, truth(words).text]
    assert whole["id"] == partial["id"]
    assert (told["rejoined"][-1]["type"], told["rejoined"][-1]["outcome"]) == ("RUN_FINISHED", {"type": "success"})
    assert told["idle"] == {"events": [], "messages": told["messages"]}
    assert told["warnings"] == []
    assert heard(running) == [[words]]


async def test_agent_knows_the_errors(running: Running) -> None:
    """Refusals by their status and problem, failures by their event and code."""
    told = await agent("failures", running)
    for name, status, code, field in (
        ("tools", 400, "unsupported_parameter", "tools"),
        ("context", 400, "unsupported_parameter", "context"),
        ("persona", 422, "persona_unknown", "forwardedProps.persona"),
    ):
        payload = told[name]["payload"]
        assert (told[name]["status"], payload["code"], payload["field"]) == (status, code, field)
    for name, code in (("vendor", "upstream_error"), ("middle", "upstream_truncated")):
        last = told[name]["events"][-1]
        assert (last["type"], last["code"]) == ("RUN_ERROR", code)
