"""The internal port: what was measured, whether the process lives, and whether new work may come."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.store.embedded import EmbeddedValkey
from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client, eventually, metric
from tests.transports.conftest import SignIn


async def internal(running: Running, path: str) -> Answer:
    async with running.http.get(running.internal_url + path) as response:
        return Answer(response.status, response.headers, await response.read())


FAMILIES = [
    "gateway_requests_total",
    "gateway_request_duration_seconds",
    "gateway_turns_total",
    "gateway_tokens_total",
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "gen_ai_client_operation_duration_seconds",
    "gateway_added_latency_seconds",
    "gateway_streams_open",
    "gateway_upstream_connections",
    "gateway_upstream_streams",
    "gateway_feedback_total",
    "gateway_feedback_points_total",
    "gateway_redis_call_seconds",
    "gateway_event_loop_lag_seconds",
    "gateway_build_info",
]


async def test_refused_turn_counts_as_missed_unless_the_caller_is_at_fault(running: Running, client: Client) -> None:
    """A turn that is refused at its start is told apart: missed with a 5xx code, and not counted for a bad message."""
    path = f"/v1/conversations/{await client.conversation()}/turns"
    assert (await client.call("POST", path, {"message": " "})).status == 422
    assert await metric(running, "gateway_turn_attempts_total") == 0
    running.gateway.turns.drain()
    assert (await client.call("POST", path, {"message": "Hi"})).body["code"] == "draining"
    assert await metric(running, "gateway_turn_attempts_total", served="no") == 1
    assert await metric(running, "gateway_turn_attempts_total", served="yes") == 0


async def test_metrics_after_a_turn_tell_all_that_was_promised(running: Running, client: Client) -> None:
    """One rated turn shows in every family that the gateway promises, under the tenant's and persona's names."""
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=6"))[-1].data
    path = f"/v1/conversations/{conversation}/messages/{ending['message_id']}/feedback"
    assert (await client.call("PUT", path, {"score": 7})).status == 200
    answer = await internal(running, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    text = answer.raw.decode()
    assert [family for family in FAMILIES if f"# TYPE {family.removesuffix('_total')}" not in text] == []
    labels = {"tenant": running.tenant, "persona": "default"}
    assert await metric(running, "gateway_turns_total", **labels, outcome="completed", reason="stop") == 1
    assert await metric(running, "gateway_turns_started_total", **labels) == 1
    usage = ending["usage"]
    for direction in ("prompt", "completion"):
        counted = await metric(running, "gateway_tokens_total", **labels, direction=direction, source="reported")
        assert counted == usage[f"{direction}_tokens"]
    assert await metric(running, "gen_ai_client_operation_time_to_first_chunk_seconds_count", **labels) == 1
    assert await metric(running, "gen_ai_client_operation_time_per_output_chunk_seconds_count", **labels) >= 5
    assert await metric(running, "gen_ai_client_operation_duration_seconds_count", **labels) == 1
    assert await metric(running, "gateway_added_latency_seconds_count") == 1
    assert await metric(running, "gateway_streams_open", transport="sse") == 0
    assert await metric(running, "gateway_streams_opened_total", transport="sse") == 1
    assert await metric(running, "gateway_upstream_connections") == 1
    assert await metric(running, "gateway_upstream_streams") == 0
    assert await metric(running, "gateway_feedback_total", **labels, sign="positive") == 1
    assert await metric(running, "gateway_feedback_points_total", **labels, sign="positive") == 7
    assert await metric(running, "gateway_redis_call_seconds_count") > 0
    assert await metric(running, "gateway_build_info") == 1
    route = "/v1/conversations/{conversation_id}/turns"
    assert await metric(running, "gateway_requests_total", route=route, method="POST", status="200") == 1


async def test_metrics_count_open_streams_by_transport(running: Running, client: Client) -> None:
    """While streams are open they are counted, and the upstream's stream with them."""
    turn = await client.start(await client.conversation(), "Hi #rate=20")
    async with client.follow(turn) as reader, client.follow(turn), client.socket() as socket:
        await reader.until("message.delta")
        await socket.reply("ping")
        assert await metric(running, "gateway_streams_open", transport="sse") == 2
        assert await metric(running, "gateway_streams_open", transport="websocket") == 1
        assert await metric(running, "gateway_upstream_streams") == 1
        assert await metric(running, "gateway_turns_live", tenant=running.tenant) == 1


async def test_metrics_of_hostile_requests_have_no_new_labels(running: Running, client: Client) -> None:
    """What strangers write becomes no label: a hundred odd requests add no series for each."""
    await client.call("GET", "/v1/nowhere")
    before = (await internal(running, "/metrics")).raw.count(b"\n")
    for number in range(100):
        await client.call("GET", f"/wp-admin/{number}.php")
        await client.call("POST", "/v1/conversations", {"persona": f"p{number}"})
    after = (await internal(running, "/metrics")).raw.count(b"\n")
    assert after - before < 60


async def test_metrics_count_what_a_resume_replayed(running: Running, client: Client) -> None:
    """A stream that was taken up again is counted, with the events that it repeated from the log."""
    whole = await client.complete(await client.conversation(), "Hi #tokens=6")
    await client.replay(whole[0].turn_id, whole[2].id)
    assert await metric(running, "gateway_resumes_total", transport="sse") == 1
    assert await metric(running, "gateway_replayed_events_total", transport="sse") > 0


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
async def test_ops_are_not_on_the_public_port(path: str, client: Client) -> None:
    """The public port knows nothing of them."""
    assert (await client.call("GET", path)).status == 404


async def test_livez_and_readyz_of_a_running_gateway_are_ok(running: Running) -> None:
    """Both answer 200 as soon as the gateway serves."""
    assert (await internal(running, "/livez")).status == 200
    await eventually(lambda: running.gateway.inbox.hears, "the worker to hear the others")
    ready = await internal(running, "/readyz")
    assert (ready.status, ready.body["checks"]) == (200, {"worker": "ok", "store": "ok", "peers": "ok"})


async def test_readyz_of_draining_gateway_is_503_while_livez_is_ok(running: Running) -> None:
    """A gateway that drains takes no new work and is not to be killed for it."""
    running.gateway.draining = True
    ready = await internal(running, "/readyz")
    assert (ready.status, ready.body["checks"]["worker"]) == (503, "draining")
    assert (await internal(running, "/livez")).status == 200


async def test_draining_gateway_refuses_new_turns_and_finishes_those_that_run(running: Running, client: Client) -> None:
    """New turns are 503 with Retry-After; what runs is told to its end."""
    conversation, other = await client.conversation(), await client.conversation()
    async with client.ask(conversation, "Hi #tokens=10 #rate=50") as reader:
        await reader.until("message.delta")
        running.gateway.turns.drain()
        answer = await client.call("POST", f"/v1/conversations/{other}/turns", {"message": "Hi"})
        events = await reader.rest()
    assert (answer.status, answer.body["code"]) == (503, "draining")
    assert int(answer.headers["Retry-After"]) >= 1
    assert events[-1].name == "turn.completed"


async def test_store_that_goes_away_is_told_everywhere_and_never_hangs(
    start_gateway: StartGateway, sign_in: SignIn, tmp_path: Path
) -> None:
    """Without its store the gateway lives, is not ready, and answers requests with 503 in time."""
    valkey = EmbeddedValkey(tmp_path / "own")
    await valkey.open()
    try:
        running = await start_gateway(redis_url=valkey.url)
        client = await sign_in(running)
        conversation = await client.conversation()
    finally:
        await valkey.aclose()
    assert (await internal(running, "/livez")).status == 200
    ready = await internal(running, "/readyz")
    assert ready.status == 503
    assert ready.body["checks"] == {"worker": "ok", "store": "store_unavailable", "peers": "deaf"}
    async with asyncio.timeout(5):
        for method, path, body in (
            ("GET", f"/v1/conversations/{conversation}", None),
            ("GET", "/v1/conversations", None),
            ("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"}),
            ("POST", "/v1/conversations", {}),
        ):
            answer = await client.call(method, path, body)
            assert (answer.status, answer.body["code"]) == (503, "store_unavailable"), path
    assert await metric(running, "gateway_redis_errors_total") > 0
    assert running.simulator.state.chats == 0


async def test_store_that_goes_away_in_mid_answer_does_not_cut_the_reader(
    start_gateway: StartGateway, sign_in: SignIn, tmp_path: Path
) -> None:
    """The store fails while an answer is streamed and comes back: the connected reader loses nothing."""
    valkey = EmbeddedValkey(tmp_path / "own")
    await valkey.open()
    try:
        running = await start_gateway(redis_url=valkey.url)
        client = await sign_in(running)
        async with client.ask(await client.conversation(), "Hi #tokens=60 #rate=60") as reader:
            await reader.until("message.delta", 10)
            await valkey.aclose()
            await reader.until("message.delta", 20)
            await valkey.open()
            events = await reader.rest()
        assert events[-1].name == "turn.completed"
        assert (await client.replay(reader.turn_id))[-1].data == events[-1].data
    finally:
        await valkey.aclose()
