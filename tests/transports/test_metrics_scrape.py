"""A scrape of many tenants beside streams: the loop is never kept for long, and what is told is whole."""

from __future__ import annotations

import asyncio
import http.client
import time
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from gateway.telemetry import exposition
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.telemetry.filling import fill, no_collections
from tests.transports.client import Client

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TENANTS = {f"tenant-{number:03}": ("default", "sales", "support") for number in range(200)}
TOML = "".join(
    f'[tenants.{tenant}.personas.{persona}]\npersona_id = "{PERSONA_ID}"\n'
    for tenant, personas in TENANTS.items()
    for persona in personas
)
LONGEST_S = 0.005
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def fetch(url: str) -> tuple[str, bytes]:
    """Scrape as Prometheus does, from another thread: what that costs is none of the loop's."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        connection.request("GET", "/metrics", headers={"Accept": OPENMETRICS})
        answer = connection.getresponse()
        return answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


async def longest_step(running: Running) -> tuple[float, bytes]:
    """Scrape once, and return the longest step of the loop meanwhile: the time that its thread ran between two turns.

    That is processor time, so a machine that is busy with other things makes it no longer.
    """
    loop = asyncio.get_running_loop()
    longest_s, last_s, over = 0.0, time.thread_time(), False

    def turn() -> None:
        nonlocal longest_s, last_s
        now_s = time.thread_time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
        if not over:
            loop.call_soon(turn)

    turn()
    try:
        content_type, body = await asyncio.to_thread(fetch, running.internal_url)
    finally:
        over = True
    assert content_type.startswith("application/openmetrics-text")
    return longest_s, body


async def test_scrape_of_two_hundred_tenants_never_keeps_the_loop(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every label value of 200 tenants and 3 personas each in use no step of the loop takes 5 ms."""
    running = await start_gateway(toml=TOML)
    fill(running.gateway.metrics, TENANTS)
    with no_collections():
        await longest_step(running)  # prepares what all later ones use
        longest_s, body = await longest_step(running)
        monkeypatch.setattr(exposition, "SLICE_S", 60.0)
        at_once_s, _ = await longest_step(running)
    lines = [line for line in body.splitlines() if not line.startswith(b"#")]
    assert len(lines) > 200_000
    assert longest_s < LONGEST_S
    assert at_once_s > 4 * LONGEST_S  # so a scrape that is made in one go would be noticed


async def test_first_scrape_of_two_hundred_tenants_never_keeps_the_loop(start_gateway: StartGateway) -> None:
    """Nor does the first scrape, which prepares the lines of all."""
    running = await start_gateway(toml=TOML)
    fill(running.gateway.metrics, TENANTS)
    with no_collections():
        longest_s, _ = await longest_step(running)
    assert longest_s < LONGEST_S


async def test_exemplars_lead_to_the_trace_of_the_request(running: Running, client: Client) -> None:
    """A turn in a caller's trace shows up with its id in the buckets of its request, its first text and its end."""
    conversation = await client.conversation()
    caller = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    async with client.ask(conversation, "Hi #tokens=3", **caller) as reader:
        await reader.rest()
    _, body = await asyncio.to_thread(fetch, running.internal_url)
    families = openmetrics.text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]  # the library's
    found = {
        family.name: sample
        for family in families
        for sample in family.samples
        if sample.exemplar is not None and sample.exemplar.labels == {"trace_id": TRACE}
    }
    assert found.keys() == {
        "gateway_request_duration_seconds",
        "gen_ai_client_operation_duration_seconds",
        "gen_ai_client_operation_time_to_first_chunk_seconds",
    }
    for sample in found.values():
        assert sample.exemplar is not None
        assert 0 < sample.exemplar.value <= float(sample.labels["le"])
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        assert TRACE not in await response.text()
