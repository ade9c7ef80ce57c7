"""Whatever happens to a turn, its owner, the store and its readers: one log, one ending, one settlement, no gap."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.services.walk import NAMES, Step, Walk

NUMBERS = st.integers(0, 11)
SAYING = ("say", "say", "say", "say", "open", "open_at", "move", "deafen", "hear", "hear")  # what happens most
STEPS = st.lists(
    st.builds(Step, st.sampled_from(SAYING) | st.sampled_from(NAMES), NUMBERS, NUMBERS, NUMBERS),
    min_size=5,
    max_size=40,
)


def rules(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 50,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


async def go(url: str, steps: list[Step]) -> None:
    async with asyncio.timeout(50), Walk.open(url) as walk:
        for step in steps:
            await walk.take(step)
        await walk.arrive()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a message did not reach looks for itself; have it do so soon."""
    monkeypatch.setattr("gateway.services.following.LOOK_S", 0.1)


@given(steps=STEPS)
@rules(12)
async def test_walk_ends_with_every_event_once(steps: list[Step], store_url: str) -> None:
    """A short walk keeps every promise."""
    await go(store_url, steps)


@pytest.mark.slow
@pytest.mark.timeout(300)
@given(steps=STEPS)
@rules(200)
async def test_walks_end_with_every_event_once(steps: list[Step], store_url: str) -> None:
    """So do many."""
    await go(store_url, steps)
