"""Users of the OpenAI door, who hold nothing but OpenAI's own client, a base URL and a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.conftest import Running

Hire = Callable[..., AsyncOpenAI]


@pytest.fixture
async def hire() -> AsyncIterator[Hire]:
    """Give OpenAI's client with a credential: ``hire(running, await running.token("u1"))``. It does not try again."""
    hired: list[AsyncOpenAI] = []

    def give(running: Running, api_key: str, **options: Any) -> AsyncOpenAI:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": 20.0, **options}
        hired.append(AsyncOpenAI(base_url=f"{running.url}/v1", api_key=api_key, **settings))
        return hired[-1]

    yield give
    for one in hired:
        await one.close()


@pytest.fixture
async def client(running: Running, hire: Hire) -> AsyncOpenAI:
    """One user of one gateway, by OpenAI's client."""
    return hire(running, await running.token())
