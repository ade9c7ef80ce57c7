"""Traces: what a collector is sent of requests, turns and calls to the vendor; and that it can do no turn any harm."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator

import pytest

from gateway.core.turn import StopReason, TurnId
from gateway.telemetry.tracing import OFF
from tests.collector import Collector, collector
from tests.conftest import StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
START = "POST /v1/conversations/{conversation_id}/turns"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's own decides."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
async def spans(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector that gateways started after it export to."""
    async with collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


async def ask(client: Client, message: str, **headers: str) -> tuple[str, str]:
    """Run a turn to its end; return its id and the trace of its request."""
    conversation = await client.conversation()
    async with client.ask(conversation, message, **headers) as reader:
        trace = reader.response.headers["traceparent"]
        await reader.rest()
        return reader.turn_id, trace


async def test_turn_is_a_tree_from_the_request_to_the_vendor(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Request, admission, turn and the vendor's answer are one trace; the turn outlives its request and is linked."""
    running = await start_gateway()
    client = await sign_in(running)
    turn_id, told = await ask(client, "Hi #tokens=3")
    server = await spans.one(START)
    turn = await spans.one("turn")
    chat = await spans.one("chat default")
    admission = next(span for span in spans.named("admission") if span.parent_id == server.span_id)
    assert told == f"00-{server.trace_id}-{server.span_id}-{told[-2:]}"
    assert {span.trace_id for span in (turn, chat, admission)} == {server.trace_id}
    assert (server.kind, server.parent_id) == ("server", "")
    assert (turn.kind, turn.parent_id, turn.links) == (
        "internal",
        server.span_id,
        ((server.trace_id, server.span_id),),
    )
    assert (chat.kind, chat.parent_id) == ("client", turn.span_id)
    assert not any(span.failed for span in (server, turn, chat, admission))
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["gateway.tenant"] == running.tenant
    assert admission.attributes["gateway.admission.action"] == "turn"
    assert turn.attributes["gateway.turn.id"] == turn_id
    assert turn.attributes["gateway.turn.state"] == "completed"
    assert turn.attributes["enduser.pseudo.id"] == server.attributes["enduser.pseudo.id"]
    assert server.resource["service.name"] == "hyperleap-gateway"
    assert server.resource["service.instance.id"] == running.gateway.worker_id


async def test_request_with_a_key_has_its_tenant(spans: Collector, start_gateway: StartGateway) -> None:
    """The span of a backend's request names the tenant of its key, and no user."""
    running = await start_gateway()
    await running.user("ada")
    server = await spans.one("POST /v1/sessions")
    assert server.attributes["gateway.tenant"] == running.tenant
    assert "enduser.pseudo.id" not in server.attributes


async def test_vendor_call_has_the_genai_attributes(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The span of the vendor's answer says what GenAI conventions ask: operation, provider, model, usage, ending."""
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=3"))[-1]
    chat = await spans.one("chat default")
    told = chat.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "hyperleap"
    assert told["gen_ai.request.model"] == "default"
    assert told["gen_ai.conversation.id"] == conversation
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.response.id"] == ending.data["message_id"]
    assert told["gen_ai.usage.input_tokens"] == ending.data["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == ending.data["usage"]["completion_tokens"]
    assert told["gateway.vendor_key"] == "default"
    assert f"{told['server.address']}:{told['server.port']}" in running.simulator.url
    assert chat.events == ("first_token",)
    create = await spans.one("POST /conversations/persona")
    assert (create.kind, create.failed) == ("client", False)


async def test_trace_goes_on_to_the_vendor(spans: Collector, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The caller's trace and its state reach Hyperleap, with the span of the call as the parent there."""
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "congo=t61rcWkgMzE"}
    async with client.ask(conversation, "Hi #tokens=3", **headers) as reader:
        await reader.rest()
    server, chat = await spans.one(START), await spans.one("chat default")
    assert (server.trace_id, server.parent_id, server.state) == (TRACE, CALLER, "congo=t61rcWkgMzE")
    heard = running.simulator.traced[-1]
    assert heard.path == f"conversations/{conversation}/chat-http2"
    assert heard.traceparent.split("-")[1:3] == [TRACE, chat.span_id]
    assert heard.tracestate == "congo=t61rcWkgMzE"
    created = running.simulator.traced[0]
    assert created.path == "conversations/persona"
    assert created.traceparent.split("-")[2] == (await spans.one("POST /conversations/persona")).span_id


async def test_failed_turn_is_a_failed_span_and_its_request_is_not(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A turn that the vendor breaks off fails its own span and the call's, with the code; its request was answered."""
    running = await start_gateway()
    client = await sign_in(running)
    await ask(client, "Hi #fault=cut:3")
    turn, chat, server = await spans.one("turn"), await spans.one("chat default"), await spans.one(START)
    assert (turn.failed, turn.attributes["error.type"]) == (True, "upstream_truncated")
    assert (turn.attributes["gateway.turn.state"], turn.attributes["gateway.turn.reason"]) == (
        "failed",
        "upstream_truncated",
    )
    assert (chat.failed, chat.attributes["error.type"]) == (True, "upstream_truncated")
    assert "gen_ai.usage.input_tokens" not in chat.attributes
    assert not server.failed


async def test_refusals_tell_who_refused(spans: Collector, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The vendor's refusal tells its status; a limit's refusal names the limit and is no failure of ours."""
    running = await start_gateway(
        toml=f"""
[tenants.limited-{os.urandom(4).hex()}]
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 1 }}
personas.default = {{ persona_id = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c" }}
"""
    )
    client = await sign_in(running)
    conversation = await client.conversation()
    await client.complete(conversation, "Hi #fault=500")
    chat = await spans.one("chat default")
    assert (chat.failed, chat.attributes["error.type"], chat.attributes["http.response.status_code"]) == (
        True,
        "upstream_error",
        500,
    )
    answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"})
    assert answer.status == 429
    await spans.until(lambda: len(spans.named(START)) == 2, "the second request")
    server = spans.named(START)[-1]
    assert (server.failed, server.attributes["gateway.error.code"]) == (False, "rate_limited")
    await spans.until(lambda: [span for span in spans.named("admission") if span.parent_id == server.span_id], "it")
    admission = next(span for span in spans.named("admission") if span.parent_id == server.span_id)
    assert admission.attributes["gateway.admission.limit"] == "user_requests_per_min"
    assert not admission.failed


async def test_key_that_is_refused_gives_two_calls_in_one_turn(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn, tmp_path: os.PathLike[str]
) -> None:
    """A message that is sent again with another key has a span for each time, the first failed with 401."""
    spare = os.path.join(tmp_path, "spare")
    os.mkdir(spare)
    with open(os.path.join(spare, "second"), "w", encoding="utf-8") as file:
        file.write("vendor-key-second-of-two")
    name = f"two-{os.urandom(4).hex()}"
    running = await start_gateway(
        simulator={"more_api_keys": ("vendor-key-second-of-two",)},
        environ={"HYPERLEAP_KEYS_DIR": spare},
        toml=f"""
[tenants.{name}]
vendor_keys = ["default", "second"]
personas.default = {{ persona_id = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c" }}
""",
    )
    client = await sign_in(running)
    conversation = await client.conversation()
    for key in ("vendor-key-that-must-never-leave-the-gateway", "vendor-key-second-of-two"):
        if running.simulator.served(key):
            running.simulator.refuse_key(key)
    for _ in range(3):  # keys take turns
        assert (await client.complete(conversation, "Hi #tokens=2"))[-1].name == "turn.completed"
    await spans.until(lambda: len(spans.named("chat default")) == 4 and len(spans.named("turn")) == 3, "every call")
    second = next(span for span in spans.named("chat default") if "http.request.resend_count" in span.attributes)
    first = next(span for span in spans.named("chat default") if span.parent_id == second.parent_id)
    assert (first.failed, first.attributes["http.response.status_code"]) == (True, 401)
    assert (second.failed, second.attributes["http.request.resend_count"]) == (False, 1)
    assert first.attributes["gateway.vendor_key"] != second.attributes["gateway.vendor_key"]
    turn = next(span for span in spans.named("turn") if span.span_id == first.parent_id)
    assert not turn.failed


@pytest.mark.parametrize(
    ("sampler", "flags", "wanted"),
    [
        ({}, "01", True),
        ({}, "00", False),
        ({}, "", True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, "", False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, "01", True),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "01", False),
    ],
)
async def test_sampling_follows_the_caller(
    spans: Collector,
    start_gateway: StartGateway,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
    sampler: dict[str, str],
    flags: str,
    wanted: bool,
) -> None:
    """A caller's decision holds for all of its trace, the vendor is told of it, and the sampler decides on the rest."""
    for name, value in sampler.items():
        monkeypatch.setenv(name, value)
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #tokens=2", **_shown(flags)) as reader:
        told = reader.response.headers["traceparent"]
        await reader.rest()
    await eventually(lambda: running.gateway.turns.running == 0, "the turn to end")
    assert bool(int(told[-2:], 16) & 1) is wanted
    heard = running.simulator.traced[-1].traceparent
    assert heard[:35] == told[:35]
    assert bool(int(heard[-2:], 16) & 1) is wanted
    await running.gateway.tracing.aclose()  # which sends what there is
    found = {span.name for span in spans.spans if span.trace_id == told[3:35]}
    assert found == ({START, "admission", "turn", "chat default"} if wanted else set())


def _shown(flags: str) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"} if flags else {}


async def test_words_of_strangers_name_no_span(
    spans: Collector, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """A path that is no route, a method that is none of ours and a bad trace state are in no span and no log line."""
    caplog.set_level(logging.DEBUG)
    running = await start_gateway()
    url = f"{running.url}/canary/of/a/path?ticket=canary-of-a-ticket"
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "canary of a state"}
    async with running.http.request("PROPFIND", url, headers=headers) as response:
        assert response.status == 404
    span = await spans.one("HTTP")
    assert span.attributes["http.request.method"] == "_OTHER"
    assert "http.route" not in span.attributes
    assert (span.trace_id, span.state) == (TRACE, "")
    assert not any(word in body for body in spans.bodies for word in (b"PROPFIND", b"canary"))
    assert "canary" not in repr([vars(record) for record in caplog.records])


async def test_command_over_a_socket_is_a_trace_linked_to_its_socket(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A socket lasts for hours, so each of its commands has a trace of its own; its turn is in that."""
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.socket() as ws:
        await ws.reply("ping")
        started = await ws.reply("turn.start", conversation_id=conversation, message="Hi #tokens=2")
        await ws.ending(started["data"]["turn_id"])
        assert (await ws.reply("turn.stop", turn_id="nonsense"))["event"] == "error"
    command, turn = await spans.one("command turn.start"), await spans.one("turn")
    opened = await spans.one("GET /v1/ws")
    assert (command.kind, command.parent_id, command.links) == (
        "server",
        "",
        ((opened.trace_id, opened.span_id),),
    )
    assert command.trace_id != opened.trace_id
    assert (turn.trace_id, turn.parent_id) == (command.trace_id, command.span_id)
    assert command.attributes["gateway.tenant"] == running.tenant
    stop = await spans.one("command turn.stop")
    assert (stop.failed, stop.attributes["gateway.error.code"]) == (False, "invalid_id")
    assert spans.named("command ping") == []


async def test_recovered_turn_is_in_the_trace_that_began_it(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A turn that another worker brings to its end is found in the trace of the request, linked to it."""
    first = await start_gateway(environ={"GATEWAY_TURNS_LEASE_S": "1", "GATEWAY_TURNS_HEARTBEAT_S": "0.2"})
    client = await sign_in(first)
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #tokens=100 #rate=5") as reader:
        told = reader.response.headers["traceparent"]
        await reader.until("message.delta")
        turn_id = TurnId(reader.turn_id)
        first.gateway.turns.drain()
        turn = first.gateway.turns.find(turn_id)
        assert turn is not None
        assert (turn.span.sampled, turn.span.trace_id) == (True, told[3:35])
        turn.hand_over()
        second = await start_gateway(
            simulator=first.simulator,
            tenant=first.tenant,
            environ={"GATEWAY_TURNS_LEASE_S": "1", "GATEWAY_TURNS_HEARTBEAT_S": "0.2"},
        )
        await eventually(lambda: second.gateway.turns.find(turn_id), "another worker to take it over", within_s=20)
    rescue = second.gateway.turns.find(turn_id)
    assert rescue is not None
    rescue.stop(StopReason.USER)
    span = await spans.one("turn recovery")
    assert (span.trace_id, span.parent_id, span.links) == (told[3:35], told[36:52], ((told[3:35], told[36:52]),))
    assert span.attributes["gateway.turn.epoch"] == 2
    assert span.attributes["gateway.turn.id"] == turn_id


@pytest.mark.parametrize("trouble", ["refuses", "fails", "hangs"])
async def test_collector_that_is_broken_costs_no_turn_and_holds_no_end(
    trouble: str,
    spans: Collector,
    start_gateway: StartGateway,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A collector that is away, answers 500 or never answers changes no turn; the end waits a bounded time for it."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")  # full at once
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("GATEWAY_TRACING_FLUSH_S", "0.3")
    if trouble == "refuses":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    elif trouble == "fails":
        spans.status = 500
    else:
        spans.hold.clear()
    running = await start_gateway(environ={"GATEWAY_TRACING_FLUSH_S": "0.3"})
    client = await sign_in(running)
    conversation = await client.conversation()
    for _ in range(8):
        assert (await client.complete(conversation, "Hi #tokens=2"))[-1].name == "turn.completed"
    if trouble != "refuses":
        await spans.until(lambda: spans.bodies, "anything")
    begun_s = time.monotonic()
    await running.gateway.tracing.aclose()
    assert time.monotonic() - begun_s < 5.0  # of which 0.3 s are allowed; the rest is for a busy machine
    assert spans.spans == []


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "GATEWAY_TRACING": "off"},
    ],
)
async def test_tracing_is_off_unless_it_is_wanted(
    start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """Without a collector, or switched off by any of three words, nothing is recorded and the vendor hears nothing."""
    own = {name: value for name, value in environ.items() if name.startswith("GATEWAY_")}
    for name, value in environ.items():
        if name not in own:
            monkeypatch.setenv(name, value)
    running = await start_gateway(environ=own)
    client = await sign_in(running)
    _, told = await ask(client, "Hi #tokens=2", traceparent=f"00-{TRACE}-{CALLER}-01")
    assert running.gateway.tracing is OFF
    assert running.simulator.traced == ()
    assert told.startswith(f"00-{TRACE}-")  # it is carried on all the same
    assert CALLER not in told


async def test_variables_of_opentelemetry_name_the_service(
    spans: Collector, start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, resource attributes and the collector's headers are what the standard variables say."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-edge")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-secret-1")
    running = await start_gateway()
    client = await sign_in(running)
    await ask(client, "Hi #tokens=2")
    turn = await spans.one("turn")
    assert turn.resource["service.name"] == "chat-edge"
    assert turn.resource["deployment.environment.name"] == "staging"
    assert spans.headers[0]["Authorization"] == "Bearer collector-secret-1"
