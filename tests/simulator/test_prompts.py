"""Prompt runs, moderations and reports through a stock HTTP/2 client."""

from __future__ import annotations

import json
from uuid import uuid4

import httpx
import pytest

from gateway.simulator.answers import answer
from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start, http_client
from tests.simulator.test_conversations import create, say

PROMPT = "7c0d7c8e-1111-4d53-9a52-0d1d6a7f0001"
SPAN = {"callerId": PROMPT, "startDate": "2026-01-01T00:00:00Z", "endDate": "2027-01-01T00:00:00Z"}


async def run(http: httpx.AsyncClient, words: str, path: str = "run-sync", **fields: object) -> httpx.Response:
    body = {"promptId": PROMPT, "replacements": {"topic": words}, **fields}
    return await http.post(f"/prompt-runs/{path}" if path else "/prompt-runs", json=body)


@pytest.mark.parametrize("path", ["/prompt-runs/run-sync", "/prompt-runs/run", "/prompt-runs", "/prompts"])
async def test_prompt_run_whole_answers_the_replacements(http: httpx.AsyncClient, path: str) -> None:
    """Every path that answers whole does so with what the values of the replacements ask for."""
    body = {"promptId": PROMPT, "replacements": {"topic": "refunds #tokens=5"}}
    response = await http.post(path, json=body)
    whole = response.json()
    assert response.status_code == 200
    assert whole["choices"][0]["message"]["content"] == answer("refunds #tokens=5").text
    assert whole["usage"]["completion_tokens"] == 5


async def test_prompt_run_streams_as_array_and_as_events(http: httpx.AsyncClient) -> None:
    """``async`` and an older path that is asked to stream give an array, ``run-sse`` events, of the same items."""
    items = (await run(http, "Hi #tokens=4", "async")).json()
    older = (await run(http, "Hi #tokens=4", "run", stream=True)).json()
    events = (await run(http, "Hi #tokens=4", "run-sse")).text.split("\n\n")[:-1]
    said = ["".join(item["choice"]["message"]["content"] or "" for item in form) for form in (items, older)]
    said.append("".join(json.loads(e.removeprefix("data: "))["choice"]["message"]["content"] or "" for e in events))
    assert said == [answer("Hi #tokens=4").text] * 3


async def test_prompt_run_is_no_conversation_and_is_billed(http: httpx.AsyncClient, simulator: Simulator) -> None:
    """A run is in no list and on the bill, under its prompt."""
    await run(http, "Hi")
    assert (await http.get("/conversations")).json()["data"] == []
    assert [one.prompt_id for one in simulator.bill] == [PROMPT]


async def test_prompt_run_score_replaces_the_same_feedback(http: httpx.AsyncClient) -> None:
    """The same feedbackId twice is one feedback; a run that is not there is not found."""
    run_id = (await run(http, "Hi")).json()["runId"]
    feedback = str(uuid4())
    for score in (3, -2):
        body = {"feedbackId": feedback, "score": score}
        scored = (await http.patch(f"/prompt-runs/{run_id}/set-score", json=body)).json()
    assert [one["score"] for one in scored["feedbacks"]] == [-2]
    assert (await http.patch(f"/prompt-runs/{uuid4()}/set-score", json={"score": 1})).status_code == 404


async def test_prompt_unknown_is_not_found(start: Start) -> None:
    """Of a workspace with known prompts any other one is not found."""
    async with http_client(await start(prompts=(str(uuid4()),))) as http:
        assert (await run(http, "Hi")).status_code == 404


async def test_moderation_flags_by_words(http: httpx.AsyncClient) -> None:
    """A text is flagged by a few words, and not without them."""
    results = [(await http.post("/moderations", json={"input": text})).json() for text in ("a bomb", "a bun")]
    assert [one["results"][0]["flagged"] for one in results] == [True, False]


async def test_moderation_fails_as_its_text_says(http: httpx.AsyncClient) -> None:
    """A word makes a judgement fail with a status, or come without a result."""
    failed = await http.post("/moderations", json={"input": "a bun #moderation=503"})
    odd = await http.post("/moderations", json={"input": "a bomb #moderation=odd"})
    assert (failed.status_code, odd.status_code, odd.json()["results"]) == (503, 200, [])


async def test_reports_are_pages_of_what_was_asked_and_rated(http: httpx.AsyncClient) -> None:
    """Audit reports hold everything, feedback reports what was rated; a token leads to the next page."""
    conversation_id = await create(http, externalUserId="t:u")
    replies = [await say(http, conversation_id, f"Hi {number}") for number in range(3)]
    await http.patch(f"/conversations/{conversation_id}/set-score/{replies[1]['messageId']}", json={"score": 4})
    run_id = (await run(http, "Hi")).json()["runId"]
    page = (await http.post("/audit/conversations", json={"pageSize": 2})).json()
    more = (await http.post("/audit/conversations", json={"continuationToken": page["continuationToken"]})).json()
    assert [one["conversationRunId"] for one in page["data"] + more["data"]] == [r["runId"] for r in reversed(replies)]
    assert (page["data"][0]["externalUserId"], more["continuationToken"]) == ("t:u", None)
    rated = (await http.post("/feedback-report/conversations", json=SPAN)).json()["data"]
    assert [one["conversationRunId"] for one in rated] == [replies[1]["runId"]]
    one = (await http.get(f"/audit/conversation-run/{replies[0]['runId']}")).json()
    assert one["conversationId"] == conversation_id
    assert (await http.get(f"/audit/prompt-run/{run_id}")).json()["promptId"] == PROMPT
    assert [r["promptRunId"] for r in (await http.post("/audit/prompt-runs", json={})).json()["data"]] == [run_id]
    assert (await http.post("/feedback-report/prompt-runs", json={})).json()["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/audit/prompt-run/{PROMPT}", 404),
        ("GET", f"/audit/conversation-run/{PROMPT}", 404),
        ("GET", "/audit/prompt-run/x", 400),
        ("GET", "/audit", 404),
        ("GET", "/prompts", 404),
        ("POST", "/prompt-runs/other", 404),
    ],
)
async def test_unknown_runs_and_paths_are_not_found(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """What is not there is told as the vendor tells it."""
    assert (await http.request(method, path, json={} if method == "POST" else None)).status_code == status
