"""Resuming: a cursor means "everything up to here"; what follows comes once, in order, wherever the reader stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import PERSONA_ID, SECRETS, TENANT_TOML, VENDOR_KEY, Running, StartGateway
from tests.transports.client import Client, Event, Reader, check_log, eventually, text_of
from tests.transports.conftest import SignIn

# Every kind of event, and text in which code points, UTF-16 units and bytes are three different counts
EVERYTHING = "Zoë 👩‍👩‍👧‍👦 says “你好” \\ \n\n and\ttabs #echo #citations #fault=extra-role:3"


async def test_resume_of_ended_turn_at_every_position_gives_exactly_the_rest(client: Client) -> None:
    """From any position of a finished turn, in the middle of a delta too, the rest comes whole and once."""
    whole = await client.complete(await client.conversation(), EVERYTHING)
    ending = check_log(whole)
    assert {"message.extra", "message.citations", "message.delta"} <= {event.name for event in whole}
    others = [event for event in whole if event.name != "message.delta"]
    for position in range(1, ending.position):
        rest = await client.replay(ending.turn_id, f"{ending.turn_id}.{position}")
        check_log(rest, after=position)
        text = text_of([event for event in whole if event.position <= position])
        for event in whole:  # of a delta that the cursor cuts, the reader has had the first part
            if event.name == "message.delta" and event.position - len(event.text) < position < event.position:
                text += event.text[: position - event.position]
        assert text + text_of(rest) == said(EVERYTHING).text
        assert [event for event in rest if event.name != "message.delta"] == [
            event for event in others if event.position > position
        ]


async def test_resume_by_query_gives_the_same_as_by_header(client: Client) -> None:
    """``?after=`` is the cursor of whoever cannot send headers; where both are given the header is the newer."""
    whole = await client.complete(await client.conversation(), "Hi #tokens=8")
    early, late = whole[2].id, whole[5].id
    by_query = await client.call("GET", f"/v1/turns/{whole[0].turn_id}/events?after={late}")
    by_header = await client.call("GET", f"/v1/turns/{whole[0].turn_id}/events", Last_Event_ID=late)
    by_both = await client.call("GET", f"/v1/turns/{whole[0].turn_id}/events?after={early}", Last_Event_ID=late)
    assert by_query.raw == by_header.raw == by_both.raw
    assert by_query.raw.count(b"\nid: ") > 0


async def test_resume_of_running_turn_at_every_event_loses_and_repeats_nothing(client: Client) -> None:
    """While the answer is being made, a reader that comes with any cursor gets the rest whole and once."""
    message = "Hi #tokens=40 #rate=100"
    conversation = await client.conversation()
    readers: list[tuple[int, asyncio.Task[list[Event]]]] = []

    def come_back(turn: str, position: int) -> None:
        readers.append((position, asyncio.create_task(client.replay(turn, f"{turn}.{position}"))))

    async with client.ask(conversation, message) as reader:
        while (event := await reader.next()) is not None:
            if event.name == "turn.completed":
                break
            come_back(reader.turn_id, event.position)
            if len(event.text) > 2:
                come_back(reader.turn_id, event.position - 1)
                come_back(reader.turn_id, event.position - len(event.text) + 1)
    assert len(readers) > 60
    for position, task in readers:
        rest = await task
        assert check_log(rest, after=position).data["text"] == said(message).text


@pytest.mark.parametrize("every_bytes", [150, 333, 1024])
async def test_resume_after_cuts_anywhere_in_the_stream_joins_to_the_exact_text(
    every_bytes: int, client: Client
) -> None:
    """A reader cut off again and again, in the middle of events, joins what it kept to the exact answer."""
    message = "Hi 👋 #tokens=40 #rate=150"
    turn = await client.start(await client.conversation(), message)
    kept: list[Event] = []
    for _ in range(200):
        cursor = kept[-1].id if kept else None
        async with client.follow(turn, cursor) as reader:
            while reader.response.status == 200 and len(reader.raw) < every_bytes and await reader.next() is not None:
                pass
            kept += reader.seen
            reader.response.close()
        if kept and kept[-1].name == "turn.completed":
            break
    assert check_log(kept).data["text"] == said(message).text


async def test_resume_at_the_ending_is_204(client: Client) -> None:
    """A cursor at the ending has everything: 204, which stops an EventSource from reconnecting."""
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=2"))[-1]
    for path in (f"/v1/turns/{ending.turn_id}/events", f"/v1/conversations/{conversation}/events"):
        for cursor in ({"Last_Event_ID": ending.id}, {}):
            query = "" if cursor else f"?after={ending.id}"
            answer = await client.call("GET", path + query, **cursor)
            assert (answer.status, answer.raw) == (204, b"")


async def test_resume_of_conversation_without_cursor_and_active_turn_is_204(client: Client) -> None:
    """Nothing to follow is 204, before the first turn and after the last."""
    conversation = await client.conversation()
    assert (await client.call("GET", f"/v1/conversations/{conversation}/events")).status == 204
    await client.complete(conversation, "Hi #tokens=2")
    assert (await client.call("GET", f"/v1/conversations/{conversation}/events")).status == 204


async def test_resume_of_conversation_with_cursor_goes_on_after_it(client: Client) -> None:
    """A conversation's events with a cursor are the rest of the turn that the cursor is of, ended or not."""
    conversation = await client.conversation()
    whole = await client.complete(conversation, "Hi #tokens=8")
    path = f"/v1/conversations/{conversation}/events"
    async with client._stream("GET", path, None, {"Last_Event_ID": whole[4].id}) as reader:
        check_log(await reader.rest(), after=whole[4].position)


async def test_resume_of_conversation_without_cursor_follows_the_active_turn(client: Client) -> None:
    """A tab that knows only the conversation sees its active turn from the beginning to the end."""
    conversation = await client.conversation()
    turn = await client.start(conversation, "Hi #tokens=10 #rate=50")
    async with client._stream("GET", f"/v1/conversations/{conversation}/events", None, {}) as reader:
        assert reader.turn_id == turn
        check_log(await reader.rest())


async def test_resume_when_the_log_is_gone_is_410_with_the_text(running: Running, client: Client) -> None:
    """When the log's life is over the reader is told so, and gets the answer's text."""
    conversation = await client.conversation()
    whole = await client.complete(conversation, "Hi #tokens=12")
    turn = whole[0].turn_id
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:log:{turn}")
    for cursor in (None, whole[3].id, whole[-1].id):
        headers = {} if cursor is None else {"Last_Event_ID": cursor}
        answer = await client.call("GET", f"/v1/turns/{turn}/events", **headers)
        assert (answer.status, answer.body["code"]) == (410, "history_lost")
        assert answer.body["text"] == said("Hi #tokens=12").text
        assert answer.body["message_id"] == whole[-1].data["message_id"]


async def test_resume_after_restart_replays_ended_turns_from_the_store(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A gateway that never saw the turn replays it from Redis, and goes on with the conversation."""
    first = await start_gateway()
    client = await sign_in(first)
    conversation = await client.conversation()
    whole = await client.complete(conversation, EVERYTHING)
    await first.gateway.turns.aclose(grace_s=0)
    second = await start_gateway(simulator=first.simulator, tenant=first.tenant)
    returned = Client(second, client.headers)  # the token is still good: the secrets are the same
    replayed = await returned.replay(whole[0].turn_id)
    assert check_log(replayed).data == whole[-1].data
    for event in whole[:-1]:
        check_log(await returned.replay(event.turn_id, event.id), after=event.position)
    assert (await returned.complete(conversation, "Hi #tokens=1"))[0].data["ordinal"] == 2


async def test_resume_after_shutdown_in_mid_answer_ends_stopped_with_what_was_said(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A gateway that goes away settles its turns as stopped by shutdown; nothing that was shown is lost."""
    first = await start_gateway()
    client = await sign_in(first)
    async with client.ask(await client.conversation(), "Hi #rate=50") as reader:
        await reader.until("message.delta", 5)
        await first.gateway.turns.aclose(grace_s=0)
        shown = await reader.rest()
    assert check_log(shown).name == "turn.stopped"
    assert shown[-1].data["reason"] == "shutdown"
    second = await start_gateway(simulator=first.simulator, tenant=first.tenant)
    assert text_of(await Client(second, client.headers).replay(reader.turn_id)) == text_of(shown)


async def test_resume_on_another_gateway_follows_a_turn_that_runs_elsewhere(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A reader whose gateway does not run the turn follows it through the store, to the ending."""
    owner = await start_gateway()
    client = await sign_in(owner)
    message = "Hi #tokens=30 #rate=60"
    turn = await client.start(await client.conversation(), message)
    other = await start_gateway(simulator=owner.simulator, tenant=owner.tenant)
    events = await Client(other, client.headers).replay(turn)
    assert check_log(events).data["text"] == said(message).text


@pytest.mark.parametrize("habit", ["finishes", "drops"])
async def test_resume_after_kill_in_mid_answer(
    habit: str, start_gateway: StartGateway, sign_in: SignIn, store_url: str, tmp_path: Path
) -> None:
    """When a gateway is killed the next one brings the turn to its end, after all that any reader was shown.

    Where the vendor finishes the answer it is completed from there, as one uninterrupted log; where it does not, it
    fails honestly.
    """
    message = "Hi #tokens=60 #rate=60"
    survivor = await start_gateway(
        simulator={"on_disconnect": habit.removesuffix("es").removesuffix("s")},
        environ={
            "HYPERLEAP_AFTER_DISCONNECT": habit,
            "GATEWAY_TURNS_RECOVERY_TIMEOUT_S": "3",
            "GATEWAY_TURNS_RECOVERY_READS_MAX": "3",
        },
    )
    config = tmp_path / "gateway.toml"
    config.write_text(TENANT_TOML.format(tenant=survivor.tenant, persona=PERSONA_ID), "utf-8")
    for name, secret in (("pepper", SECRETS.pepper), ("signing", SECRETS.signing_key)):
        (tmp_path / name).write_bytes(secret)
        (tmp_path / name).chmod(0o600)
    environ = {
        "PATH": os.environ["PATH"],
        "HYPERLEAP_API_KEY": VENDOR_KEY,
        "HYPERLEAP_BASE_URL": survivor.simulator.url,
        "GATEWAY_DATA_DIR": str(tmp_path),
        "GATEWAY_PEPPER_FILE": str(tmp_path / "pepper"),
        "GATEWAY_SIGNING_KEY_FILE": str(tmp_path / "signing"),
        "GATEWAY_TURNS_LEASE_S": "1",
        "GATEWAY_TURNS_HEARTBEAT_S": "0.3",
        "GATEWAY_REDIS_URL": store_url,
    }
    facts = tmp_path / "env"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", "--config", str(config)),
        *("--port", "0", "--internal-port", "0", "--env-file", str(facts)),
        env=environ,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(facts.exists, "the gateway to be ready", within_s=15)
        url = next(line for line in facts.read_text().splitlines() if line.startswith("GATEWAY_URL=")).split("=")[1]
        client = await sign_in(survivor)
        doomed = Client(dataclasses.replace(survivor, url=url), client.headers)
        conversation = await doomed.conversation()
        async with doomed.ask(conversation, message) as reader:
            await reader.until("message.delta", 20)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            shown = reader.seen
        async with client.follow(reader.turn_id, shown[-1].id) as again:
            rest = await again.rest(within_s=20)  # the lease, and the looks
        ending = rest[-1]
        assert ending.data["text"] == text_of([*shown, *rest])
        if habit == "finishes":
            run = survivor.simulator.bill.of(conversation)[-1]
            assert ending.name == "turn.completed"
            assert (ending.data["usage"]["completion_tokens"], ending.data["usage"]["source"]) == (
                run.completion_tokens,
                "reported",
            )
        else:
            assert (ending.name, ending.data["error"]["code"]) == ("turn.failed", "worker_lost")
        assert rest[0].position > shown[-1].position
        assert said(message).text.startswith(ending.data["text"])
        whole = await client.replay(reader.turn_id)
        assert text_of(whole) == ending.data["text"] != ""
        assert (await client.complete(conversation, "again #tokens=1"))[-1].name == "turn.completed"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_resume_in_a_stream_primes_the_cursor_before_the_model_answers(client: Client) -> None:
    """The first event comes with an id at once, so that a stream dropped before the first token can be resumed."""
    message = "Hi #tokens=3 #delay=0.3"
    async with client.ask(await client.conversation(), message) as reader:
        first = await reader.next()
        assert first is not None
        reader.response.close()
    assert (first.name, bool(first.id)) == ("turn.started", True)
    rest = await client.replay(reader.turn_id, first.id)
    assert check_log(rest, after=first.position).data["text"] == said(message).text


async def test_resume_says_how_long_to_wait_first(client: Client) -> None:
    """The stream begins with ``retry:``, so that a browser that is cut off waits as long as the gateway asks."""
    async with client.ask(await client.conversation(), "Hi #tokens=1") as reader:
        await reader.rest()
    assert reader.raw.startswith(b"retry: 2000\n")
    assert isinstance(reader, Reader)
    assert all(line.startswith(b"{") for line in _data(reader.raw))


def _data(raw: bytes | bytearray) -> list[bytes]:
    found = [line.removeprefix(b"data: ") for line in bytes(raw).split(b"\n") if line.startswith(b"data: ")]
    for line in found:
        msgspec.json.decode(line)
    return found
