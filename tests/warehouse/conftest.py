"""A database of PostgreSQL a test, and warehouses over it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId, UserHash
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnId, TurnState
from gateway.core.warehouse import Line, Mark, Page
from gateway.options import LedgerSettings
from gateway.sections import Secret
from gateway.warehouse.postgres import Postgres
from gateway.warehouse.target import Target
from tests.postgres import PostgresServer

OpenWarehouse = Callable[..., Postgres]
ACME = TenantId("acme")


@pytest.fixture
async def database(postgres: PostgresServer) -> str:
    """A new, empty database."""
    return await postgres.database()


@pytest.fixture
async def warehouse_of(postgres: PostgresServer, database: str) -> AsyncIterator[OpenWarehouse]:
    """Make warehouses over the test's database, closed after it: ``warehouse_of(url=…, schema=…, steps=…)``."""
    async with contextlib.AsyncExitStack() as stack:

        def make(*, url: str | None = None, schema: str = "hyperleap", **options: Any) -> Postgres:
            settings = LedgerSettings(url=Secret(url or postgres.url(database)), schema=schema)
            warehouse = Postgres(Target(settings), **options)
            stack.push_async_callback(warehouse.aclose)
            return warehouse

        yield make


def settlement(**fields: Any) -> Settlement:
    """A settlement of a turn of its own."""
    values: dict[str, Any] = {
        "turn_id": TurnId(str(uuid.uuid4())),
        "conversation_id": ConversationId(str(uuid.uuid4())),
        "owner": UserHash("0" * 32),
        "persona": "default",
        "state": TurnState.COMPLETED,
        "reason": "stop",
        "message_id": "m",
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "total_tokens": 46,
        "source": "reported",
        "duration_s": 1.25,
        "ended_at": "2026-11-21T20:15:00.123Z",
    }
    return Settlement(**(values | fields))


def lines(*settlements: Settlement, first: int = 1) -> list[Line]:
    return [Line(f"{first + i}-0", msgspec.json.encode(one)) for i, one in enumerate(settlements)]


def page(some: Sequence[Line], before: Mark | None = None, tenant: TenantId = ACME) -> Page:
    return Page(tenant, before, some)
