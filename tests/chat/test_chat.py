"""``hyperleap-gateway chat`` as a person uses it at a terminal and a program through pipes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from gateway.simulator.answers import answer as said
from tests.chat.terminal import CTRL_C, CTRL_D, PATIENCE_S, Way, environment, terminal
from tests.conftest import Running, StartGateway
from tests.transports.client import Event, check_log, eventually, metric

SLOW = "Tell me a long story #tokens=400 #rate=40"


@pytest.fixture
async def running(start_gateway: StartGateway) -> Running:
    return await start_gateway(simulator={"h2c": True})


def reaching(running: Running, **environ: str) -> dict[str, str]:
    return {"GATEWAY_URL": running.url, "GATEWAY_SECRET_KEY": running.secret_key, **environ}


async def piped(
    environ: Mapping[str, str],
    *arguments: str,
    stdin: str = "",
    during: Callable[[asyncio.subprocess.Process], Awaitable[None]] | None = None,
) -> tuple[int, str, str]:
    """Run ``chat`` with pipes; return how it ended and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "chat", *arguments),
        env=environment(environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(3 * PATIENCE_S):
        told = asyncio.ensure_future(process.communicate(stdin.encode()))
        if during is not None:
            await during(process)
        out, err = await told
    return process.returncode or 0, out.decode(), err.decode()


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def events(out: str) -> list[Event]:
    """The answer's own events among the lines."""
    return [Event(line["id"], line["event"], line["data"]) for line in lines(out) if "id" in line]


# --- at a terminal ----------------------------------------------------------------------------------------------------


async def test_chat_streams_an_answer_and_tells_what_it_took(running: Running) -> None:
    """The answer is written as it comes; under it stand its tokens and the time to the first."""
    async with terminal(**reaching(running)) as at:
        greeting = await at.until("> ")
        assert "default, conversation" in greeting
        at.type("Zoë 你好 #tokens=20\n")
        shown = await at.until(" s in all\n")
        assert said("Zoë 你好 #tokens=20").text in shown
        (run,) = running.simulator.bill.runs
        assert f"{run.prompt_tokens + run.completion_tokens} tokens · first after 0." in shown
        await at.until("> ")
        at.type("/quit\n")
        assert await at.ended() == 0
    (conversation,) = running.simulator.conversations.newest()
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


async def test_chat_rates_the_last_answer(running: Running) -> None:
    """``/rate 8 nice`` reaches Hyperleap; before there is an answer, or beyond the bounds, it says why not."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type("/rate 8\n")
        await at.until("no answer to rate")
        at.type("Hi #tokens=2\n")
        await at.until("in all\n")
        at.type("/rate 11\n")
        await at.until("refused (invalid_value) [score]")
        at.type("/rate 8 nice, and clear\n")
        await at.until("rated +8")
        at.type("/rate nice\n")
        await at.until("-10 to 10")
    (conversation,) = running.simulator.conversations.newest()
    (feedback,) = conversation.messages[-1].feedbacks
    assert (feedback["score"], feedback["comments"]) == (8, "nice, and clear")


async def test_chat_stops_by_command_and_goes_on(running: Running) -> None:
    """``/stop`` in mid-answer ends it at Hyperleap too; the next message is answered."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type(SLOW + "\n")
        await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill.runs), "the answer to begin")
        at.type("/stop\n")
        await at.until("stopped (user) · about")
        assert running.simulator.bill.runs[0].saw_cancel
        await at.until("> ")
        at.type("Hi #tokens=2\n")
        await at.until("in all\n")
        at.type(CTRL_D)
        assert await at.ended() == 0


async def test_chat_ctrl_c_stops_first_and_leaves_second(running: Running) -> None:
    """The first Ctrl-C ends the answer and nothing else; one with no answer under way leaves."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type(SLOW + "\n")
        await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill.runs), "the answer to begin")
        at.type(CTRL_C)
        await at.until("stopped (user)")
        await at.until("> ")
        at.type(CTRL_C)
        assert await at.ended() == 130
    assert "Traceback" not in at.text


async def test_chat_second_ctrl_c_leaves_where_the_stop_cannot_be_sent(running: Running) -> None:
    """With the gateway out of reach the second Ctrl-C still leaves, soon."""
    async with Way(running.url) as way, terminal(**reaching(running, GATEWAY_URL=way.url)) as at:
        await at.until("> ")
        at.type(SLOW + "\n")
        await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill.runs), "the answer to begin")
        way.passes = False
        way.cut()
        await at.until("connection lost")
        at.type(CTRL_C)
        await at.until("stopping")
        at.type(CTRL_C)
        assert await at.ended() == 130


async def test_chat_that_is_left_in_mid_answer_stops_it(running: Running) -> None:
    """``/quit`` while an answer is written leaves at once, and nobody pays for the rest."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type(SLOW + "\n")
        await eventually(lambda: any(run.items_sent > 3 for run in running.simulator.bill.runs), "the answer to begin")
        at.type("/quit\n")
        assert await at.ended() == 0
    await eventually(lambda: running.simulator.bill.runs[0].saw_cancel, "the vendor to see the reset")


async def test_chat_tells_its_commands_and_sends_a_slash(running: Running) -> None:
    """What is no command is not sent as a message by mistake; two slashes send one."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type("/help\n")
        await at.until("/rate 8 nice")
        at.type("/halp\n")
        await at.until("/rate 8 nice")
        at.type("\n//stop is a word #echo #rate=0\n")
        await at.until("/stop is a word")
        await at.until("in all\n")
    assert [run.message for run in running.simulator.bill.runs] == ["/stop is a word #echo #rate=0"]


async def test_chat_tells_a_failure_and_a_refusal_and_goes_on(running: Running) -> None:
    """A turn that fails, and a message that is refused, are told by their codes; the talk goes on."""
    async with terminal(**reaching(running)) as at:
        await at.until("> ")
        at.type("Hi #tokens=9 #fault=cut:4\n")
        await at.until("failed (upstream_truncated)")
        at.type("x" * 3000 + "\n")
        await at.until("in all\n")
        at.type("Hi #tokens=2\n")
        await at.until("in all\n")


# --- through a connection that is cut -----------------------------------------------------------------------------


async def test_chat_comes_back_from_every_cut_with_nothing_missing_or_twice(running: Running) -> None:
    """An answer whose connection is cut again and again is one log, each event once and in order, and is sent once."""
    message = "Zoë 你好 #tokens=120 #rate=60"
    async with Way(running.url) as way:

        async def cut(process: asyncio.subprocess.Process) -> None:
            for count in (10, 40, 70):

                def went_on(count: int = count) -> bool:
                    return any(run.items_sent > count for run in running.simulator.bill.runs)

                await eventually(went_on, "the answer to go on", within_s=PATIENCE_S)
                way.cut()

        code, out, _ = await piped(reaching(running, GATEWAY_URL=way.url), stdin=message + "\n", during=cut)
    assert code == 0
    assert sum(line["event"] == "connection.cut" for line in lines(out)) == 3
    ending = check_log(events(out))
    assert (ending.name, ending.data["text"]) == ("turn.completed", said(message).text)
    assert [run.message for run in running.simulator.bill.runs] == [message]
    assert await metric(running, "gateway_turns_total", tenant=running.tenant) == 1


async def test_chat_whose_message_was_cut_off_sends_it_once(running: Running) -> None:
    """A connection that is lost before the answer begins is no second message: the same key leads to the same turn."""
    message = "Hi #tokens=6 #delay=0.7"
    async with Way(running.url) as way:

        async def cut(process: asyncio.subprocess.Process) -> None:
            await eventually(lambda: running.gateway.turns.running, "the turn to run", within_s=PATIENCE_S)
            way.passes = False
            way.cut()
            await asyncio.sleep(0.3)
            way.passes = True

        code, out, _ = await piped(reaching(running, GATEWAY_URL=way.url), stdin=message + "\n", during=cut)
    assert code == 0
    assert check_log(events(out)).data["text"] == said(message).text
    assert len(running.simulator.bill.runs) == 1


async def test_chat_outlives_its_tokens(start_gateway: StartGateway) -> None:
    """With a key a token that ends in mid-answer is replaced, and the answer goes on where it was."""
    running = await start_gateway(
        simulator={"h2c": True}, environ={"GATEWAY_SESSIONS_TTL_MIN_S": "1", "GATEWAY_SESSIONS_TTL_S": "1"}
    )
    message = "Hi #tokens=60 #rate=25"
    code, out, _ = await piped(reaching(running), stdin=message + "\n")
    assert code == 0
    assert check_log(events(out)).data["text"] == said(message).text


# --- through pipes ------------------------------------------------------------------------------------------------


async def test_chat_in_a_pipe_speaks_json(running: Running) -> None:
    """Messages are answered in their order, each line is an object, and what an answer took follows it."""
    code, out, err = await piped(reaching(running), stdin="One #tokens=3\n/rate 7\nTwo #tokens=4\n/quit\nThree\n")
    assert (code, err) == (0, "")
    told = lines(out)
    assert told[0]["event"] == "conversation"
    assert [line["data"]["score"] for line in told if line["event"] == "feedback"] == [7]
    measured = [line["data"] for line in told if line["event"] == "answer.measured"]
    assert all(0 < one["first_token_s"] <= one["duration_s"] for one in measured)
    endings = [line["data"]["text"] for line in told if line["event"] == "turn.completed"]
    assert endings == [said("One #tokens=3").text, said("Two #tokens=4").text]
    assert len(measured) == 2


async def test_chat_goes_on_with_a_conversation(running: Running) -> None:
    """``--conversation`` takes up the same user's conversation; another's is not found."""
    _, out, _ = await piped(reaching(running), "--user", "ada", stdin="One #tokens=2\n")
    conversation = lines(out)[0]["data"]["id"]
    arguments = ("--conversation", conversation)
    code, out, _ = await piped(reaching(running), *arguments, "--user", "ada", stdin="Two #tokens=2\n")
    assert (code, lines(out)[0]["data"]["id"]) == (0, conversation)
    assert len(running.simulator.bill.of(conversation)) == 2
    code, _, err = await piped(reaching(running), *arguments, "--user", "eve")
    assert (code, "not_found" in err) == (1, True)


async def test_chat_takes_a_token_and_a_publishable_key(running: Running) -> None:
    """A token is whoever it says; a publishable key a visitor of the page that it belongs to."""
    token = await running.token("ada")
    code, out, _ = await piped({"GATEWAY_TOKEN": token}, "--url", running.url, stdin="Hi #tokens=2\n")
    assert (code, events(out)[-1].name) == (0, "turn.completed")
    page = ("--credential", running.publishable_key, "--origin", "https://app.example")
    code, out, _ = await piped({}, "--url", running.url, *page, "--text", stdin="Hi #tokens=2\n")
    assert code == 0
    assert said("Hi #tokens=2").text in out
    assert "\x1b" not in out


async def test_chat_lets_no_answer_give_a_terminal_orders(running: Running) -> None:
    """What would move a cursor, set a title or ring a bell comes out as the harmless rest of it."""
    code, out, _ = await piped(reaching(running), "--text", stdin="#echo a\x1b]0;owned\x07b\x9b2Jc\td\n")
    assert code == 0
    assert "a]0;ownedb2Jc\td" in out
    assert not any(order in out for order in "\x1b\x07\x9b")


async def test_chat_interrupted_in_a_pipe_stops_the_answer(running: Running) -> None:
    """SIGINT means the same without a terminal; the answer's ending still comes out."""

    async def interrupt(process: asyncio.subprocess.Process) -> None:
        await eventually(
            lambda: any(run.items_sent > 3 for run in running.simulator.bill.runs), "the answer", within_s=PATIENCE_S
        )
        process.send_signal(signal.SIGINT)

    code, out, _ = await piped(reaching(running), stdin=SLOW + "\n", during=interrupt)
    assert (code, check_log(events(out)).data["reason"]) == (0, "user")


async def test_chat_that_fails_ends_with_one(running: Running) -> None:
    """A message without a whole answer, a key that is refused, a gateway that is not there: one line and code 1."""
    code, out, _ = await piped(reaching(running), stdin="Hi #tokens=9 #fault=cut:4\n")
    assert (code, events(out)[-1].name) == (1, "turn.failed")
    code, out, _ = await piped(reaching(running), stdin="x" * 32_001 + "\n")
    assert (code, lines(out)[-1]["data"]["code"]) == (1, "message_too_long")
    for environ, words in (
        (reaching(running, GATEWAY_SECRET_KEY="hgs_" + "x" * 20), "credential_invalid"),
        (reaching(running, GATEWAY_URL="http://127.0.0.1:1"), "cannot be reached"),
    ):
        code, out, err = await piped(environ, stdin="Hi\n")
        assert (code, out) == (1, "")
        assert words in err
        assert "Traceback" not in err
        assert "xxxx" not in err


@pytest.mark.parametrize(
    "answer",
    [
        "200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        "302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "404 Not Found\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
async def test_chat_with_something_that_is_no_gateway_says_so(answer: str) -> None:
    """Whatever else listens there, it is told in one line; a key is not taken elsewhere by a redirection."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answer}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, _, err = await piped({"GATEWAY_URL": url, "GATEWAY_TOKEN": "hgt_x"})
    assert (code, "is not a gateway's" in err, "Traceback" in err) == (1, True, False)


async def test_chat_called_wrongly_ends_with_two() -> None:
    """Without a credential, or with an address that is none, it says what to give."""
    code, _, err = await piped({})
    assert (code, "GATEWAY_TOKEN" in err) == (2, True)
    code, _, err = await piped({"GATEWAY_TOKEN": "t"}, "--url", "example.com")
    assert (code, "http://" in err) == (2, True)
