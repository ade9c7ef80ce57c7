"""OpenAI's client for Node against a running gateway: the same promises, kept to another client of another hand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import Running
from tests.transports.client import eventually
from tests.transports.openai.loop import heard

FOLDER = Path(__file__).parents[2] / "npm"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="no Node: install Node.js 20 or later"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules" / "openai").is_dir(), reason="no npm packages: run `npm ci --prefix tests/npm`"
    ),
]


async def play(scene: str, running: Running, *users: str, **environ: str) -> Any:
    """Run a scene of ``openai.mjs`` and return what it prints."""
    assert NODE is not None
    tokens = [await running.token(user) for user in users or ("u1",)]
    process = await asyncio.create_subprocess_exec(
        *(NODE, "openai.mjs", scene),
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], "GATEWAY_URL": running.url, "TOKENS": json.dumps(tokens), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def test_node_client_reads_chat_completions(running: Running) -> None:
    """Whole, in chunks, and as the client's own helper puts them together: the same answer and tokens."""
    told, truth = await play("chat", running), said("Hi #tokens=12")
    assert told["whole"]["choices"][0]["message"]["content"] == truth.text
    assert told["put_together"]["choices"][0]["message"]["content"] == truth.text
    chunks = told["chunks"]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == truth.text
    for usage in (told["whole"]["usage"], chunks[-1]["usage"], told["put_together"]["usage"]):
        assert usage["total_tokens"] == truth.total_tokens
    assert told["models"] == ["default", "other"]


async def test_node_clients_loops_stay_in_their_conversations(running: Running) -> None:
    """One conversation a user for several turns; the same words of another user, and a regenerate, have their own."""
    words = ["One? #tokens=6", "Two? #tokens=7", "Three? #tokens=8"]
    lists = await play("loop", running, "ada", "bob", WORDS="|".join(words))
    first = lists[0][1]["content"]
    stated = f"Conversation so far:\nUser: {words[0]}\n\nAssistant: {first}\n\nMessage:\n{words[1]}"
    assert heard(running) == [words, words, [stated]]


async def test_node_client_reads_responses(running: Running) -> None:
    """Gone on from by their ids, streamed, read back, cancelled and deleted."""
    told = await play("responses", running)
    assert told["first"]["output_text"] == said("One? #tokens=6").text
    assert told["events"][0]["type"] == "response.created"
    assert told["events"][-1]["type"] == "response.completed"
    deltas = [event["delta"] for event in told["events"] if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == said("Two? #tokens=7").text
    assert told["put_together"]["output_text"] == said("Hi #tokens=9").text
    assert told["kept"]["output"] == told["first"]["output"]
    assert told["cancelled"]["status"] == "cancelled"
    assert told["deleted"]["status"] == 404
    assert heard(running)[0] == ["One? #tokens=6", "Two? #tokens=7"]


async def test_node_client_knows_the_errors(running: Running) -> None:
    """Its own classes, by status; codes and parameters; and it tries again where it is told to."""
    told = await play("failures", running)
    assert told["key"] == {"name": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None}
    assert told["model"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert (told["tools"]["name"], told["tools"]["param"]) == ("BadRequestError", "tools")
    assert (told["refused"]["status"], told["refused"]["code"]) == (502, "upstream_rejected")
    assert (told["vendor"]["status"], told["vendor"]["code"]) == (502, "upstream_error")
    assert told["middle"]["code"] == "upstream_truncated"
    assert sum(len(told) for told in heard(running)) == 4  # one refused, one tried twice, one cut off


async def test_node_client_that_aborts_stops_the_turn(running: Running) -> None:
    """The vendor is told at once that nobody reads."""
    assert (await play("leave", running))["chunks"] < 50  # what had come by then may still be told
    (run,) = running.simulator.bill
    await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset", within_s=1.0)
