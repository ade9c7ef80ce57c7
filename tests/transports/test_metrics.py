"""What the metrics of a whole gateway tell of what happens to it: each is caused for real and looked up in a scrape."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from gateway.store.embedded import EmbeddedValkey
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, eventually, metric
from tests.transports.conftest import SignIn

SHORT = "Hi #tokens=3 #rate=0"
LONG = "Hi #tokens=2000 #rate=100"
SWEEP = {"GATEWAY_TURNS_LEASE_S": "1", "GATEWAY_TURNS_HEARTBEAT_S": "0.3"}  # budgets are looked up twice a lease


def tenant_toml(name: str, limits: str = "") -> str:
    return f"""
[tenants.{name}]
[tenants.{name}.limits]
{limits}
[tenants.{name}.personas.default]
persona_id = "{PERSONA_ID}"
"""


async def gauge(running: Running, name: str, **labels: str) -> float | None:
    """Return the one series of a metric that has these labels; None where there is none."""
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        text = await response.text()
    found = [
        float(value)
        for shown, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        if all(f'{label}="{wanted}"' in shown for label, wanted in labels.items())
    ]
    assert len(found) < 2, found
    return found[0] if found else None


async def reaches(running: Running, wanted: float | None, name: str, **labels: str) -> None:
    """Wait until a series is what it should be."""

    async def is_so() -> bool:
        return await gauge(running, name, **labels) == wanted

    await eventually(is_so, f"{name}{labels} to be {wanted}, not {await gauge(running, name, **labels)}", within_s=15)


async def test_turn_whose_reader_left_is_detached_until_one_comes_back(running: Running, client: Client) -> None:
    """The last reader's leaving makes a turn detached, not the first one's; a return ends that, and so does the end."""
    of = {"tenant": running.tenant}
    async with client.ask(await client.conversation(), LONG) as reader:
        turn = (await reader.until("message.delta")).turn_id
        async with client.follow(turn) as second:
            await second.until("message.delta")
        await eventually(lambda: len(running.gateway.edge.open) == 1, "the second reader to be gone")
        assert await gauge(running, "gateway_turns_detached", **of) is None
        reader.response.close()
        await reaches(running, 1, "gateway_turns_detached", **of)
    async with client.follow(turn) as again:
        await again.until("message.delta")
        assert await gauge(running, "gateway_turns_detached", **of) == 0
        again.response.close()
        await reaches(running, 1, "gateway_turns_detached", **of)
    await client.stop(turn)
    await reaches(running, 0, "gateway_turns_detached", **of)
    assert await gauge(running, "gateway_turn_detachments_total", **of) == 2
    assert await gauge(running, "gateway_turn_returns_total", **of) == 1
    assert await metric(running, "gateway_turns_total", **of, outcome="stopped", reason="user") == 1


async def test_reader_that_stays_to_the_end_detaches_nothing(running: Running, client: Client) -> None:
    """A stream that was read to its ending, and one that was read by nobody, are no detached turns."""
    conversation = await client.conversation()
    await client.complete(conversation, SHORT)
    turn = await client.start(conversation, SHORT)
    await eventually(lambda: running.gateway.turns.find(turn) is None, "the turn to end")  # type: ignore[arg-type]  # a plain id
    assert await metric(running, "gateway_turns_total", tenant=running.tenant) == 2
    assert await gauge(running, "gateway_turn_detachments_total", tenant=running.tenant) is None


async def test_budget_and_what_is_left_of_it_are_told(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The tenant's budgets show before any turn, fall with each, and end in a cut-off that is counted."""
    toml = tenant_toml("budgeted", "tenant = { tokens_per_day = 900, tokens_per_month = 100000 }")
    running = await start_gateway(toml=toml, environ=SWEEP)
    client = await sign_in(running)
    day, month = ({"tenant": "budgeted", "period": period} for period in ("day", "month"))
    await reaches(running, 900, "gateway_budget_left_tokens", **day)
    assert await gauge(running, "gateway_budget_tokens", **day) == 900
    assert await gauge(running, "gateway_budget_tokens", **month) == 100_000
    conversation = await client.conversation()
    ending = (await client.complete(conversation, SHORT))[-1].data
    used = ending["usage"]["total_tokens"]
    await reaches(running, 900 - used, "gateway_budget_left_tokens", **day)
    await reaches(running, 100_000 - used, "gateway_budget_left_tokens", **month)
    ending = (await client.complete(conversation, "Hi #tokens=5000 #rate=2000"))[-1].data
    assert ending["reason"] == "budget"
    await reaches(running, 0, "gateway_budget_left_tokens", **day)
    assert await gauge(running, "gateway_cutoffs_total", tenant="budgeted", cap="budget") == 1
    assert await metric(running, "gateway_turns_total", outcome="stopped", reason="budget") == 1
    tenants = running.gateway.tenants
    tenants.fix(msgspec.structs.replace(tenants._fixed, tenants={}))
    await reaches(running, None, "gateway_budget_left_tokens", **day)


async def test_answer_beyond_the_cap_is_counted_as_cut_off(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """An answer that is longer than any may be fails, and shows as cut off by the cap."""
    running = await start_gateway(environ={"GATEWAY_TURNS_ANSWER_MAX_CHARS": "50"})
    client = await sign_in(running)
    ending = (await client.complete(await client.conversation(), "Hi #tokens=100"))[-1]
    assert ending.data["error"]["code"] == "answer_too_long"
    assert await gauge(running, "gateway_cutoffs_total", tenant=running.tenant, cap="answer_cap") == 1


async def test_limits_tell_what_each_allowed_and_refused(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Every limit that a request was charged under has allowed it; a refusal is counted for the one that refused."""
    limits = "tenant = { requests_per_min = 100 }\nuser = { requests_per_min = 2, concurrent_turns = 5 }"
    running = await start_gateway(toml=tenant_toml("limited", limits))
    client = await sign_in(running)
    conversation = await client.conversation()
    for expected in (200, 200, 429):
        answer = await client.call("POST", f"/v1/conversations/{conversation}/turns", {"message": SHORT})
        assert answer.status == expected

    async def count(limit: str, decision: str) -> float | None:
        return await gauge(running, "gateway_limit_decisions_total", tenant="limited", limit=limit, decision=decision)

    created = 1
    assert await count("tenant_requests_per_min", "allowed") == created + 2
    assert await count("user_requests_per_min", "allowed") == created + 2
    assert await count("user_concurrent_turns", "allowed") == 2
    assert await count("user_requests_per_min", "refused") == 1
    assert await count("tenant_requests_per_min", "refused") is None


async def test_vendor_limit_and_what_is_left_of_it_are_told_by_every_worker(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """What one worker has used of the plan shows at all of them; only the windows that have a limit are told."""
    options = {"environ": {**SWEEP, "HYPERLEAP_PLAN_LIMIT": "5/min"}}
    running = await start_gateway(**options)
    other = await start_gateway(simulator=running.simulator, tenant=running.tenant, **options)
    client = await sign_in(running)
    await client.complete(await client.conversation(), SHORT)  # two calls
    for worker in (running, other):
        await reaches(worker, 3, "gateway_vendor_limit_left_requests", key="default", window="minute")
        assert await gauge(worker, "gateway_vendor_limit_requests", key="default", window="minute") == 5
        assert await gauge(worker, "gateway_vendor_limit_requests", key="default", window="hour") is None


async def test_breaker_log_lag_and_deafness_show_while_redis_is_away(
    start_gateway: StartGateway, sign_in: SignIn, tmp_path: Path
) -> None:
    """An outage in mid-answer opens the breaker, ages what Redis lacks and fails the probe; afterwards all is well."""
    valkey = EmbeddedValkey(tmp_path / "own")
    await valkey.open()
    try:
        running = await start_gateway(redis_url=valkey.url, environ={"GATEWAY_TURNS_PROBE_S": "0.2"})
        client = await sign_in(running)
        await reaches(running, 1, "gateway_delivery_ok")
        assert await metric(running, "gateway_delivery_probes_total", outcome="delivered") >= 1
        assert await metric(running, "gateway_delivery_probe_seconds_count") >= 1
        assert await gauge(running, "gateway_redis_breaker_open") == 0
        async with client.ask(await client.conversation(), "Hi #tokens=400 #rate=40") as reader:
            await reader.until("message.delta", 20)
            assert await gauge(running, "gateway_leases_held") == 1
            assert await metric(running, "gateway_log_save_seconds_count") >= 1
            await valkey.aclose()
            await reaches(running, 1, "gateway_redis_breaker_open")
            await reaches(running, 0, "gateway_delivery_ok")
            assert await metric(running, "gateway_redis_breaker_openings_total") == 1

            async def lags() -> bool:
                return (await gauge(running, "gateway_log_lag_seconds") or 0) > 0.5

            await eventually(lags, "the log to lag")
            await valkey.open()
            await reaches(running, 0, "gateway_redis_breaker_open")
            await reaches(running, 1, "gateway_delivery_ok")

            async def caught_up() -> bool:
                return (await gauge(running, "gateway_log_lag_seconds") or 0) < 0.5

            await eventually(caught_up, "the log to catch up")
            missed = await metric(running, "gateway_delivery_probes_total")
            missed -= await metric(running, "gateway_delivery_probes_total", outcome="delivered")
            assert missed >= 0  # the connection may have ended between two probes
            assert await metric(running, "gateway_log_save_seconds_count") > await metric(
                running, "gateway_log_save_seconds_bucket", le="0.5"
            )
            await client.stop(reader.turn_id)
        await reaches(running, 0, "gateway_leases_held")
        assert await gauge(running, "gateway_log_lag_seconds") == 0
    finally:
        await valkey.aclose()


async def test_leases_are_counted_where_they_are_lost_and_where_they_are_taken_over(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A worker that is taken for dead loses its turn to another: one lease lost here, one taken over there."""
    running = await start_gateway(environ={"HYPERLEAP_AFTER_DISCONNECT": "drops"})
    other = await start_gateway(
        simulator=running.simulator, tenant=running.tenant, environ={"HYPERLEAP_AFTER_DISCONNECT": "drops"}
    )
    client = await sign_in(running)
    turn = await client.start(await client.conversation(), LONG)
    await eventually(lambda: running.simulator.bill, "the vendor to hear the message")
    await other.gateway.recovery.worker_lost(running.gateway.worker_id)
    await reaches(running, 1, "gateway_leases_lost_total")
    await reaches(running, 0, "gateway_leases_held")
    assert await gauge(other, "gateway_leases_taken_over_total") == 1
    await client.stop(turn)
    await reaches(other, 0, "gateway_leases_held")
    assert await metric(other, "gateway_turns_recovered_total", tenant=running.tenant) == 1
    assert await gauge(other, "gateway_leases_lost_total") == 0


async def test_lease_that_is_handed_over_is_no_lost_one(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A worker that drains leaves its turn to the others, and says so."""
    running = await start_gateway(environ={"HYPERLEAP_AFTER_DISCONNECT": "finishes"})
    client = await sign_in(running)
    await client.start(await client.conversation(), LONG)
    await eventually(lambda: running.simulator.bill, "the vendor to hear the message")
    await running.gateway.turns.aclose(grace_s=0, successors=True)
    assert await gauge(running, "gateway_leases_handed_over_total") == 1
    assert await gauge(running, "gateway_leases_lost_total") == 0
    assert await gauge(running, "gateway_leases_held") == 0


async def test_upstream_streams_and_resets_are_counted(running: Running, client: Client) -> None:
    """Each request to Hyperleap is a stream opened; a stop resets it from here."""
    before = await gauge(running, "gateway_upstream_streams_opened_total") or 0
    turn = await client.start(await client.conversation(), LONG)
    await eventually(lambda: running.simulator.bill, "the vendor to hear the message")
    await client.stop(turn)
    await reaches(running, 1, "gateway_upstream_resets_total", code="cancel", by="gateway")
    assert await gauge(running, "gateway_upstream_streams_opened_total") == before + 2
    assert await gauge(running, "gateway_upstream_queued") == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_metrics_are_told_in_the_format_that_is_asked_for(running: Running, method: str) -> None:
    """A scrape is streamed whole, and a HEAD of it is answered with the headers alone."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with running.http.request(method, f"{running.internal_url}/metrics", headers=accept) as response:
        body = await response.read()
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith(b"# EOF\n") == (method == "GET")
        assert bool(body) == (method == "GET")
