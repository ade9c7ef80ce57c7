"""Schemathesis, which reads the description and knows nothing else of the gateway, finds nothing that is not so."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import Running, StartGateway

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis comes with `dev`"),
]

SESSIONS = ("--include-operation-id", "openSession", "--phases", "coverage,fuzzing")  # which no link leads to


async def fuzz(running: Running, folder: Path, credential: str, *options: str) -> None:
    """Run every check of the tool against a gateway; fail with what it found.

    Left out is one check: that what a schema allows is accepted. No schema tells which personas there are.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"),
        *("--max-examples", "40", "--seed", "7", "--generation-database", "none"),
        *("--request-timeout", "20", "--warnings", "off", "--no-color"),
        *("--header", f"Authorization: Bearer {credential}", *options),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")[-20_000:]


async def test_fuzzed_users_find_the_gateway_as_it_is_described(start_gateway: StartGateway, tmp_path: Path) -> None:
    """A user's operations, alone and one leading to another: no undocumented status, member or type, and no 5xx."""
    running = await start_gateway(simulator={"rate_per_s": 0})
    await fuzz(running, tmp_path, await running.token(ttl_s=3600), "--exclude-operation-id", "openSession")


async def test_fuzzed_backends_find_the_gateway_as_it_is_described(start_gateway: StartGateway, tmp_path: Path) -> None:
    """The same for all that a tenant's backend may ask with its secret key; its reports do reach Hyperleap."""
    running = await start_gateway(simulator={"rate_per_s": 0})
    async with running.http.get(f"{running.url}/openapi.json") as response:
        paths = (await response.json())["paths"]
    named = [
        operation["operationId"]
        for operations in paths.values()
        for operation in operations.values()
        if {"secret_key": []} in operation.get("security", ())
    ]
    assert {"openSession", "tellUsage", "createResponse", "hyperleapPostAuditConversations"} <= {*named}
    chosen = [option for name in named for option in ("--include-operation-id", name)]
    await fuzz(running, tmp_path, running.secret_key, "--phases", "coverage,fuzzing", *chosen)
    assert running.simulator.state.requests > 0


async def test_fuzzed_pages_find_sessions_as_they_are_described(start_gateway: StartGateway, tmp_path: Path) -> None:
    """The same for what a page of the tenant's asks with its publishable key."""
    running = await start_gateway()
    await fuzz(running, tmp_path, running.publishable_key, "--header", "Origin: https://app.example", *SESSIONS)
