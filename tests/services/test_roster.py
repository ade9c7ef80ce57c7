"""A turn that has ended is kept until nobody can find the store without it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import GatewayError
from gateway.store.embedded import EmbeddedValkey
from tests.services.conftest import SetStage
from tests.services.stage import Stage, until

LINGER_S = 0.3
TIMEOUT_S = 0.1


@pytest.fixture
async def own_store(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    """A store that a test may stop; asked for before the stage, so that it ends after it."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    yield server
    await server.aclose()


async def notice(stage: Stage) -> None:
    """Have the worker find out that its store is away."""
    with pytest.raises(GatewayError):
        await stage.store.call("PING")


async def test_ended_turn_is_kept_through_an_outage_and_written_again(
    own_store: EmbeddedValkey, set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the store is away, what ended just before is written again where the store comes back without it."""
    monkeypatch.setattr("gateway.services.roster.LINGER_S", LINGER_S)
    stage = set_stage(own_store.url, store_timeout_s=TIMEOUT_S)
    stage.store.on_return = stage.peers.heard_again
    conversation = await stage.conversation()
    turn = (await stage.start(conversation)).turn_id
    (await stage.vendor.chat()).complete("Hello")
    await until(lambda: stage.turns.running == 0)
    keys = await stage.store.call("KEYS", f"hg:{{{stage.tenant.id}}}:*{turn}")
    assert len(keys) >= 2
    await stage.store.call("DEL", *keys, f"hg:{{{stage.tenant.id}}}:usage:settled")  # as the next server will be
    assert own_store._process is not None
    os.kill(own_store._process.pid, signal.SIGSTOP)
    try:
        await notice(stage)
        await asyncio.sleep(4 * LINGER_S)
    finally:
        os.kill(own_store._process.pid, signal.SIGCONT)
    written = None
    async with asyncio.timeout(10):
        while written is None or not written.state.ended:
            try:
                written = await stage.log.record(stage.tenant.id, turn)
            except GatewayError:
                continue  # not awake yet
    (settlement,) = [one for _, one in await stage.ledger.settled(stage.tenant.id, None, 100)]
    assert settlement.turn_id == turn
    await until(lambda: not stage.roster._ended)  # and nothing is kept for good


async def test_ended_turn_is_let_go_where_the_store_is_well(
    set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an outage an ended turn lingers for its few seconds only."""
    monkeypatch.setattr("gateway.services.roster.LINGER_S", LINGER_S)
    stage = set_stage()
    conversation = await stage.conversation()
    await stage.start(conversation)
    (await stage.vendor.chat()).complete("Hello")
    await until(lambda: stage.turns.running == 0)
    assert len(stage.roster._ended) == 1
    await until(lambda: not stage.roster._ended)
