"""The vendor's bad days: each becomes an honest ending with a code of the gateway's own, and what came is kept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.simulator.answers import answer as said
from gateway.simulator.faults import FaultName
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, Event, check_log, metric, text_of
from tests.transports.conftest import SignIn

# Words of the simulator's error bodies and broken streams, and what no client may ever be shown
VENDOR_WORDS = (b"Something went wrong", b"Bad Gateway", b"internal_server_error", b"<html", b"too_many_requests")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a chat, the settings that it needs, and the failure that it must become."""

    directive: str
    code: str
    detail: str = ""
    vendor_status: int | None = None
    says_something: bool = True
    retryable: bool = True
    environ: dict[str, str] = field(default_factory=dict)


FAULTS = [
    Fault("stall:6", "upstream_timeout", "between tokens", environ={"HYPERLEAP_BETWEEN_TOKENS_TIMEOUT_S": "0.3"}),
    Fault("cut:6", "upstream_truncated"),
    Fault("cut:0", "upstream_truncated", says_something=False),
    Fault("reset:6", "upstream_reset"),
    Fault("drop:6", "upstream_reset"),
    Fault(
        "deaf:6",
        "upstream_reset",
        "silent",
        environ={"HYPERLEAP_PING_INTERVAL_S": "0.2", "HYPERLEAP_PING_TIMEOUT_S": "0.2"},
    ),
    Fault("429:7", "upstream_rate_limited", vendor_status=429, says_something=False),
    Fault("500", "upstream_error", vendor_status=500, says_something=False),
    Fault("empty-body-error:502", "upstream_error", vendor_status=502, says_something=False),
    Fault("empty-body-error:503", "upstream_error", vendor_status=503, says_something=False),
    Fault("empty-body-error:504", "upstream_timeout", vendor_status=504, says_something=False),
    Fault("empty-body-error:401", "upstream_unauthorized", vendor_status=401, says_something=False, retryable=False),
    Fault("empty-body-error:404", "upstream_rejected", vendor_status=404, says_something=False, retryable=False),
    Fault(
        "slow-headers:30",
        "upstream_timeout",
        "first token",
        says_something=False,
        environ={"HYPERLEAP_FIRST_TOKEN_TIMEOUT_S": "0.3"},
    ),
    Fault(
        "slow-first-token:30",
        "upstream_timeout",
        "first token",
        says_something=False,
        environ={"HYPERLEAP_FIRST_TOKEN_TIMEOUT_S": "0.3"},
    ),
    Fault("garbage:6", "upstream_malformed"),
    Fault("garbage:0", "upstream_malformed", says_something=False),
    Fault(
        "batch:1 #rate=20",
        "upstream_timeout",
        "whole turn",
        environ={"HYPERLEAP_TURN_TIMEOUT_S": "0.5"},
    ),
    Fault("huge-item:900", "answer_too_long", retryable=False, environ={"GATEWAY_TURNS_ANSWER_MAX_CHARS": "500"}),
]


@pytest.mark.parametrize("form", ["array", "sse"])
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.directive.replace(" ", "") for fault in FAULTS])
async def test_fault_that_breaks_an_answer_fails_the_turn_honestly(
    fault: Fault, form: str, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The turn fails with the gateway's own code, keeps what was received, and is replayed as it was shown."""
    running = await start_gateway(simulator={"rate_per_s": 500.0}, environ={"HYPERLEAP_STREAM": form, **fault.environ})
    client = await sign_in(running)
    conversation = await client.conversation()
    message = f"Tell me #tokens=40 #fault={fault.directive}"
    async with client.ask(conversation, message) as reader:
        events = await reader.rest()
    ending = check_log(events)
    assert ending.name == "turn.failed"
    error = ending.data["error"]
    assert (error["code"], error["retryable"], error.get("vendor_status")) == (
        fault.code,
        fault.retryable,
        fault.vendor_status,
    )
    assert fault.detail in error["detail"]
    assert ("429" not in fault.directive) or error["retry_after_s"] == 7
    assert bool(text_of(events)) == fault.says_something
    if "huge" not in fault.directive:
        assert said(message).text.startswith(text_of(events))
    assert ending.data["usage"]["source"] == "estimated"
    assert not any(words in reader.raw for words in VENDOR_WORDS)
    replayed = await client.replay(reader.turn_id)
    assert check_log(replayed).data == ending.data
    for event in events[:-1]:
        check_log(await client.replay(reader.turn_id, event.id), after=event.position)
    shown = (await client.call("GET", f"/v1/conversations/{conversation}")).body["messages"]
    assert [entry["role"] for entry in shown] == ["user", "assistant"]
    assert (shown[1]["content"], shown[1]["state"]) == (text_of(events), "failed")
    counted = await metric(running, "gateway_turns_total", outcome="failed", reason=fault.code, tenant=running.tenant)
    assert counted == 1
    assert (await client.complete(conversation, "Hi #tokens=1 #rate=0"))[-1].name == "turn.completed"
    attempts = [await metric(running, "gateway_turn_attempts_total", served=served) for served in ("no", "yes")]
    assert attempts == [1, 1]


async def complete(running: Running, sign_in: SignIn, message: str) -> list[Event]:
    client = await sign_in(running)
    events = await client.complete(await client.conversation(), message)
    assert check_log(events).name == "turn.completed", events[-1]
    return events


async def test_fault_cut_after_finish_completes_and_is_counted(running: Running, sign_in: SignIn) -> None:
    """What was cut off after its logical end is a whole answer; the oddity is counted."""
    events = await complete(running, sign_in, "Hi #tokens=8 #fault=cut-after-finish")
    assert events[-1].data["text"] == said("Hi #tokens=8 #fault=cut-after-finish").text
    assert events[-1].data["finish_reason"] == "stop"
    assert await metric(running, "gateway_upstream_oddities_total") == 1


@pytest.mark.parametrize("form", ["array", "sse"])
@pytest.mark.parametrize("fault", ["batch:5", "split:1", "split:7", "goaway:4", "low-streams:1"])
async def test_fault_that_only_bends_the_wire_changes_nothing(
    fault: str, form: str, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Several items in a frame, items cut anywhere, a GOAWAY in mid-answer, few streams: the answer is exact."""
    running = await start_gateway(simulator={"faults": (fault,)}, environ={"HYPERLEAP_STREAM": form})
    message = "Zoë 👩‍👩‍👧‍👦 你好 #tokens=60 #rate=400 #citations"
    events = await complete(running, sign_in, message)
    assert events[-1].data["text"] == said(message).text
    assert events[-1].data["usage"]["source"] == "reported"


async def test_fault_few_streams_makes_turns_share_connections(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """With one stream a connection eight turns at once all complete, over more connections."""
    running = await start_gateway(simulator={"faults": ("low-streams:1",)})
    client = await sign_in(running)
    conversations = [await client.conversation() for _ in range(8)]
    whole = await asyncio.gather(*(client.complete(one, "Hi #tokens=10 #rate=50") for one in conversations))
    assert {check_log(events).name for events in whole} == {"turn.completed"}
    assert running.simulator.state.connections > 1


@pytest.mark.parametrize("fault", ["refuse@2", "goaway-unseen@2"])
async def test_fault_that_the_vendor_certainly_did_not_see_is_sent_again(
    fault: str, running: Running, sign_in: SignIn
) -> None:
    """A message that was refused before it was looked at is sent once more, and the user notices nothing."""
    await complete(running, sign_in, "Hi #tokens=1")
    running.simulator.set_faults(fault)
    await complete(running, sign_in, "Hi #tokens=1")
    await complete(running, sign_in, "Hi #tokens=2")
    assert [run.outcome for run in running.simulator.bill] == ["finished", "finished", "refused", "finished"]


@pytest.mark.parametrize("fault", ["reset:3", "drop:3", "cut:3", "500", "429"])
async def test_fault_after_the_vendor_saw_the_message_is_never_sent_again(
    fault: str, running: Running, client: Client
) -> None:
    """What may have been acted on is not repeated: one message, one chat."""
    conversation = await client.conversation()
    await client.complete(conversation, f"Hi #fault={fault}")
    assert len(running.simulator.bill.of(conversation)) == 1


async def test_fault_refused_for_ever_fails_in_the_end(running: Running, client: Client) -> None:
    """A vendor that refuses every stream is given up on, and soon."""
    running.simulator.set_faults("refuse")
    ending = check_log(await client.complete(await client.conversation(), "Hi"))
    assert ending.name == "turn.failed"
    assert ending.data["error"]["code"] in {"upstream_reset", "upstream_overloaded"}
    assert ending.data["error"]["retryable"] is True


async def test_fault_moderated_is_told_with_its_categories(running: Running, sign_in: SignIn) -> None:
    """A withheld answer completes as ``content_filter`` and says what was filtered."""
    events = await complete(running, sign_in, "Hi #fault=moderated")
    assert events[-1].data["finish_reason"] == "content_filter"
    (moderated,) = (event for event in events if event.name == "message.moderated")
    assert any(category["filtered"] for category in moderated.data["categories"])
    assert all(category.keys() >= {"category", "filtered", "severity"} for category in moderated.data["categories"])


async def test_fault_no_usage_is_labelled_estimated(running: Running, sign_in: SignIn) -> None:
    """Where the vendor told no tokens they are estimated and said to be."""
    usage = (await complete(running, sign_in, "Hi #tokens=40 #rate=0 #fault=no-usage"))[-1].data["usage"]
    assert usage["source"] == "estimated"
    assert usage["completion_tokens"] > 0


async def test_fault_zero_usage_stays_zero(running: Running, sign_in: SignIn) -> None:
    """A reported 0 is 0, not missing."""
    usage = (await complete(running, sign_in, "Hi #tokens=4 #fault=zero-usage"))[-1].data["usage"]
    assert usage == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "source": "reported"}


async def test_fault_extra_role_is_told_apart_from_the_answer(running: Running, sign_in: SignIn) -> None:
    """A tool's item and another choice are events of their own and no part of the text."""
    message = "Hi #tokens=10 #fault=extra-role:3"
    events = await complete(running, sign_in, message)
    assert events[-1].data["text"] == said(message).text
    tool, choice = (event.data for event in events if event.name == "message.extra")
    assert (tool["role"], tool["name"], tool["tool_call_id"]) == ("tool", "search_documents", "call_1")
    assert (choice["index"], choice["content"]) == (1, "another choice")


async def test_fault_beyond_the_answer_cap_of_the_settings_is_cut_there(running: Running, client: Client) -> None:
    """An item of two million characters fails the turn instead of filling the memory."""
    conversation = await client.conversation()
    answer = await client.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=4 #fault=huge-item:2000000"}
    )
    assert answer.status == 502
    assert answer.body["code"] in {"answer_too_long", "upstream_malformed"}


async def test_fault_429_waited_for_is_503_with_retry_after(client: Client) -> None:
    """The vendor's plan limit is the gateway's trouble: 503 with the vendor's Retry-After and its status noted."""
    conversation = await client.conversation()
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #fault=429:7"})
    assert (answer.status, answer.body["code"], answer.body["vendor_status"]) == (503, "upstream_rate_limited", 429)
    assert answer.headers["Retry-After"] == "7"


async def test_fault_429_on_creating_a_conversation_is_503_with_retry_after(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The cold calls tell the plan limit alike."""
    running = await start_gateway(simulator={"limit_per_minute": 1})
    client = await sign_in(running)
    await client.conversation()
    answer = await client.call("POST", "/v1/conversations", {})
    assert (answer.status, answer.body["code"], answer.body["vendor_status"]) == (503, "upstream_rate_limited", 429)
    assert int(answer.headers["Retry-After"]) >= 1


async def test_fault_no_alpn_is_told_as_unavailable(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A peer without HTTP/2 is a clear error, for whoever creates and for whoever asks."""
    running = await start_gateway(simulator={"faults": ("no-alpn",), "h2c": False})
    answer = await (await sign_in(running)).call("POST", "/v1/conversations", {})
    assert (answer.status, answer.body["code"]) == (502, "upstream_unavailable")
    assert "HTTP/2" in answer.body["detail"]


async def test_fault_wrong_vendor_key_is_told_without_it(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A key that the vendor refuses is the operator's trouble, and is not shown."""
    running = await start_gateway(simulator={"api_key": "another-key"})
    answer = await (await sign_in(running)).call("POST", "/v1/conversations", {})
    assert (answer.status, answer.body["code"], answer.body["vendor_status"]) == (502, "upstream_unauthorized", 401)
    assert b"vendor-key" not in answer.raw


async def test_fault_unknown_persona_at_the_vendor_is_told_as_rejected(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A persona that the vendor does not know is a rejection with its status noted."""
    running = await start_gateway(simulator={"personas": ("11111111-2222-4333-8444-555555555555",)})
    answer = await (await sign_in(running)).call("POST", "/v1/conversations", {})
    assert (answer.status, answer.body["code"], answer.body["vendor_status"]) == (502, "upstream_rejected", 404)
    assert b"not_found" not in answer.raw


async def test_fault_of_a_peer_that_never_answers_says_that_connecting_took_too_long(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The first of the four clocks: a peer that accepts and says nothing is given up after the connect deadline."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        running = await start_gateway(
            environ={"HYPERLEAP_BASE_URL": f"https://127.0.0.1:{port}", "HYPERLEAP_CONNECT_TIMEOUT_S": "0.3"}
        )
        started_s = time.monotonic()
        answer = await (await sign_in(running)).call("POST", "/v1/conversations", {})
        assert time.monotonic() - started_s < 2
    assert (answer.status, answer.body["code"]) == (504, "upstream_timeout")
    assert "connect" in answer.body["detail"]


async def test_fault_of_a_peer_that_is_gone_fails_the_turn_as_unavailable(running: Running, client: Client) -> None:
    """When the vendor has gone away the turn fails at once, and the conversation is free again."""
    conversation = await client.conversation()
    await running.simulator.aclose()
    ending = check_log(await client.complete(conversation, "Hi"))
    assert (ending.name, ending.data["error"]["code"]) == ("turn.failed", "upstream_unavailable")
    assert check_log(await client.complete(conversation, "Hi")).name == "turn.failed"


async def test_fault_of_a_full_pool_says_that_no_stream_became_free(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A turn that found no free stream in time fails as overloaded, and the vendor never hears of it."""
    running = await start_gateway(
        simulator={"max_concurrent_streams": 1},
        environ={"HYPERLEAP_CONNECTIONS_MAX": "1", "HYPERLEAP_QUEUE_TIMEOUT_S": "0.3"},
    )
    client = await sign_in(running)
    first, second = await client.conversation(), await client.conversation()
    async with client.ask(first, "Hi #rate=20") as reader:
        await reader.until("message.delta")
        ending = check_log(await client.complete(second, "Hi"))
    assert ending.data["error"]["code"] == "upstream_overloaded"
    assert "queue" in ending.data["error"]["detail"]
    assert running.simulator.bill.of(second) == []


def test_every_fault_of_the_simulator_is_met_here() -> None:
    """A fault that the simulator learns is not forgotten in this file."""
    here = Path(__file__).read_text("utf-8")
    assert [name for name in FaultName if name.value not in here] == []
