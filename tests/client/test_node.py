"""The client in Node, against a real gateway and through a proxy that cuts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.answers import answer as said
from tests.client.conftest import Play
from tests.client.cutter import Cutter
from tests.conftest import PERSONA_ID, TENANT_TOML, Running, StartGateway
from tests.test_commands import STEP_S, chat, ports, run
from tests.test_supervisor import workers

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("sockets", [True, False], ids=["ws", "sse"])]
SLOWLY = "How do I reset my password? #tokens=150 #rate=100"


def check_whole(told: dict[str, Any], message: str, *, sockets: bool) -> None:
    """Every event once and in order, one ending, and the text that was streamed is the answer."""
    truth = said(message)
    assert told["transport"] == ("ws" if sockets else "sse")
    assert told["joined"] == told["text"] == truth.text
    assert told["positions"] == sorted(set(told["positions"]))
    assert (told["state"], told["last"], told["finishReason"]) == ("completed", "turn.completed", "stop")
    assert told["usage"]["total_tokens"] == truth.total_tokens
    assert told["types"] == ["turn.started", "message.started", "message.delta", "turn.completed"]


async def test_answer_streams(running: Running, play: Play, sockets: bool) -> None:
    """A token, a conversation, a message, and its events; Node without WebSocket reads server-sent events."""
    message = "Hello #tokens=40 #rate=0"
    told = await play("chat", running.url, sockets=sockets, TOKEN=await running.token(), MESSAGE=message)
    check_whole(told, message, sockets=sockets)


async def test_answer_survives_cuts(running: Running, play: Play, sockets: bool) -> None:
    """A connection that is cut in mid-answer, four times, costs no event and repeats none."""
    async with Cutter(running.url, (900, 2_000, 1_200, 4_000)) as proxy:
        told = await play(
            "chat", running.url, through=proxy.url, sockets=sockets, TOKEN=await running.token(), MESSAGE=SLOWLY
        )
        assert (proxy.cut, proxy.streams) == (4, 5)
    check_whole(told, SLOWLY, sockets=sockets)


async def test_stop_ends_the_answer_where_it_is(running: Running, play: Play, sockets: bool) -> None:
    """``stop`` may be repeated; its ending comes as an event, with what had been written."""
    told = await play("stop", running.url, sockets=sockets, TOKEN=await running.token(), MESSAGE=SLOWLY)
    assert (told["state"], told["reason"], told["last"]) == ("stopped", "user", "turn.stopped")
    assert told["joined"] == told["text"] != ""
    assert len(told["text"]) < len(said(SLOWLY).text)


async def test_answer_is_gone_on_with_elsewhere(running: Running, play: Play, sockets: bool) -> None:
    """Another client goes on after the cursor, over the other transport; without a cursor it reads all of it."""
    told = await play("elsewhere", running.url, sockets=sockets, TOKEN=await running.token(), MESSAGE=SLOWLY)
    whole, seen = said(SLOWLY).text, told["seen"]
    assert whole.startswith(told["first"])
    assert told["rest"]["joined"] == whole[seen:]
    assert told["rest"]["text"] == told["whole"]["text"] == told["whole"]["joined"] == whole
    assert told["rest"]["transport"] == ("sse" if sockets else told["rest"]["transport"])
    assert told["idle"] is None


async def test_running_answer_is_found_again(running: Running, play: Play, sockets: bool) -> None:
    """``resume`` finds the turn that is being answered, for a page that knows no more than its conversation."""
    environ = {"TOKEN": await running.token(), "MESSAGE": SLOWLY}
    same, first, second = await play("resume", running.url, sockets=sockets, **environ)
    assert same
    check_whole(first, SLOWLY, sockets=sockets)
    check_whole(second, SLOWLY, sockets=sockets)


async def test_message_sent_twice_is_one_turn(running: Running, play: Play, sockets: bool) -> None:
    """The same client message id is the same turn, also at the same time."""
    told = await play("twice", running.url, sockets=sockets, TOKEN=await running.token())
    assert told == {"same": True, "questions": 1}


async def test_rating_reaches_the_message(running: Running, play: Play, sockets: bool) -> None:
    """An answer is rated by its turn; a score out of bounds names its field; the conversation is listed."""
    told = await play("rate", running.url, sockets=sockets, TOKEN=await running.token())
    assert (told["given"]["score"], told["given"]["comments"], told["listed"]) == (8, "clear", True)
    assert (told["outside"]["code"], told["outside"]["field"]) == ("invalid_value", "score")


async def test_errors_are_typed(running: Running, play: Play, sockets: bool) -> None:
    """Code, status, field and whether to try again, over either transport; a failed turn is a result, not a throw."""
    told = await play("errors", running.url, sockets=sockets, TOKEN=await running.token())
    facts = {
        name: (error["name"], error["code"], error["status"], error.get("field"), error["retryable"], error["quotable"])
        for name, error in told.items()
        if name != "failed"
    }
    assert facts == {
        "persona": ("GatewayError", "persona_unknown", 422, "persona", False, True),
        "empty": ("GatewayError", "message_empty", 422, "message", False, True),
        "unknown": ("GatewayError", "not_found", 404, None, False, True),
        "stranger": ("GatewayError", "not_found", 404, None, False, True),
    }
    failed = told["failed"]
    assert (failed["state"], failed["last"]) == ("failed", "turn.failed")
    assert (failed["error"]["code"], failed["error"]["retryable"]) == ("upstream_reset", True)


@pytest.mark.parametrize("token", ["hgt_a.b.c", "not-a-token"])
async def test_refused_token_ends_it(running: Running, play: Play, sockets: bool, token: str) -> None:
    """A token that is not taken and cannot be renewed is told at once, not tried for ever."""
    told = await play("refused", running.url, sockets=sockets, TOKEN=token)
    assert (told["code"], told["status"], told["retryable"]) == ("credential_invalid", 401, False)


async def test_limit_says_when_to_come_back(start_gateway: StartGateway, play: Play, sockets: bool) -> None:
    """A refusal for a limit carries the seconds after which it may be tried again."""
    limited = TENANT_TOML.replace("limits.user = {{ requests_per_min = 0", "limits.user = {{ requests_per_min = 1")
    gateway = await start_gateway(toml=limited.format(tenant=f"t-{uuid.uuid4().hex[:12]}", persona=PERSONA_ID))
    told = await play("limited", gateway.url, sockets=sockets, TOKEN=await gateway.token())
    assert (told["code"], told["status"], told["retryable"]) == ("rate_limited", 429, True)
    assert 0 < told["retryAfter"] < 70


async def test_token_is_renewed_before_it_ends(start_gateway: StartGateway, play: Play, sockets: bool) -> None:
    """A stream that outlives its token is not cut: the callback is asked for the next one in time."""
    message = "Hello #tokens=100 #rate=20"  # 5 s; a token lives 3
    gateway = await start_gateway(environ={"GATEWAY_SESSIONS_TTL_MIN_S": "3"})
    async with Cutter(gateway.url) as proxy:
        told = await play(
            *("renewed", gateway.url),
            through=proxy.url,
            sockets=sockets,
            SECRET_KEY=gateway.secret_key,
            MESSAGE=message,
        )
        assert proxy.streams == (1 if sockets else 2)  # of two turns
    check_whole(told, message, sockets=sockets)
    assert told["minted"] >= 2


async def test_options_that_cannot_be_meant_are_refused(running: Running, play: Play, sockets: bool) -> None:
    """No credential, two of them, a secret key, no address: a TypeError; a closed client says so."""
    told = await play("useless", running.url, sockets=sockets, TOKEN="hgt_a.b.c")
    assert [error["name"] for error in told] == ["TypeError"] * 5 + ["GatewayError"]
    assert told[-1]["code"] == "closed"


async def test_nobody_there_is_told_in_time(play: Play, running: Running, sockets: bool) -> None:
    """A gateway that cannot be reached is a network error after some attempts."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        told = await play("refused", running.url, through=nowhere, sockets=sockets, TOKEN="hgt_a.b.c")
    assert (told["code"], told["status"], told["retryable"]) == ("network", 0, True)


async def test_worker_that_is_killed_costs_no_event(tmp_path: Path, play: Play, sockets: bool) -> None:
    """``kill -9`` of all workers in mid-answer: what comes after them brings the turn to one ending, without a gap."""
    message, begun = "Hello #tokens=200 #rate=40", tmp_path / "begun"
    patience = {"GATEWAY_TURNS_RECOVERY_TIMEOUT_S": "4"}
    async with run(tmp_path, "demo", "--workers", "2", *ports(tmp_path), **patience) as command:
        facts = await command.facts()
        token = (await chat(facts, "Hello #tokens=3"))["token"]
        environ = {"TOKEN": token, "MESSAGE": message, "BEGUN": str(begun)}
        playing = asyncio.create_task(play("chat", facts["GATEWAY_URL"], sockets=sockets, **environ))
        async with asyncio.timeout(STEP_S):
            while not begun.exists():
                await asyncio.sleep(0.02)
        for pid in workers(command.process.pid):
            os.kill(pid, signal.SIGKILL)
        told = await playing
        await command.end()
    assert told["positions"] == sorted(set(told["positions"]))
    whole = said(message).text
    if told["state"] == "completed":
        assert told["joined"] == told["text"] == whole
    else:  # what was shown stays true, also where the store had not got it yet
        assert (told["state"], told["error"]["code"]) == ("failed", "worker_lost")
        assert told["joined"] != ""
        assert whole.startswith(told["joined"])
