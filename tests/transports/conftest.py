"""Users of the gateway under test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from gateway.simulator.server import Simulator
from tests.conftest import Running, StartGateway
from tests.transports.client import Client
from tests.transports.log_lines import Log, listening

SignIn = Callable[..., Awaitable[Client]]


@pytest.fixture
def start_gateway(start_gateway: StartGateway) -> StartGateway:
    """Start gateways as everywhere, but without TLS to the simulator unless a test asks (``h2c: False``).

    Certificates and contexts are two thirds of a gateway's start, and no door sees a difference.
    """

    async def start(*, simulator: dict[str, Any] | Simulator | None = None, **options: Any) -> Running:
        stand_in = simulator if isinstance(simulator, Simulator) else {"h2c": True, **(simulator or {})}
        return await start_gateway(simulator=stand_in, **options)

    return start


@pytest.fixture
def sign_in() -> SignIn:
    """Give a user of a gateway a session: ``await sign_in(running, "u1", ttl_s=60)``."""

    async def give(running: Running, user: str = "u1", **fields: object) -> Client:
        return Client(running, await running.user(user, **fields))

    return give


@pytest.fixture
async def client(running: Running, sign_in: SignIn) -> Client:
    """One user of one gateway."""
    return await sign_in(running)


@pytest.fixture
def told() -> Iterator[Log]:
    """What gateways log from here on."""
    with listening() as log:
        yield log
