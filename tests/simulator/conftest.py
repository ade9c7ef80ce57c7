"""Fixtures: a running simulator with any settings, and a stock httpx client that trusts it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.simulator.server import Simulator, SimulatorSettings

Start = Callable[..., Awaitable[Simulator]]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Is a directory that all simulators of a test run keep their certificates in."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture
async def start(certificates: Path) -> AsyncIterator[Start]:
    """Starts simulators that are closed after the test; answers go as fast as flow control allows unless told."""
    async with AsyncExitStack() as stack:

        async def start_one(**settings: Any) -> Simulator:
            wanted: dict[str, Any] = {"data_dir": certificates, "rate_per_s": 0.0} | settings
            return await stack.enter_async_context(Simulator(SimulatorSettings(**wanted)))

        yield start_one


@pytest.fixture
async def simulator(start: Start) -> Simulator:
    """Is a simulator without faults."""
    return await start()


def http_client(simulator: Simulator, **options: Any) -> httpx.AsyncClient:
    """Makes a stock httpx client for a simulator, HTTP/2 over TLS or with prior knowledge."""
    base_url = simulator.url.replace("h2c://", "http://")
    verify = ssl.create_default_context(cafile=str(simulator.ca_file)) if simulator.ca_file else False
    headers = {"x-hl-api-key": simulator.settings.api_key}
    wanted = {"http2": True, "http1": False, "verify": verify, "base_url": base_url, "headers": headers} | options
    return httpx.AsyncClient(**wanted)


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    """Is a stock client of `simulator`."""
    async with http_client(simulator) as client:
        yield client
