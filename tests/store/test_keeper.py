"""The keeper of an embedded server: it starts one that died again, and knows when to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.core.errors import GatewayError
from gateway.store import keeper
from gateway.store.embedded import EmbeddedError, EmbeddedValkey
from gateway.store.keeper import PAUSE_S, RESTARTS_MAX, WINDOW_S, Deaths, keep
from gateway.store.redis import Redis
from tests.store.conftest import OpenRedis


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_deaths_are_followed_at_once_then_after_growing_pauses_then_never() -> None:
    """Five restarts within a minute, the first without delay; the sixth death ends it."""
    clock = Clock()
    deaths = Deaths(clock)
    pauses = []
    for _ in range(RESTARTS_MAX):
        pauses.append(deaths.pause_s())
        clock.now_s += 1
    assert pauses == [0.0, PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S]
    assert deaths.pause_s() is None


def test_deaths_longer_ago_than_the_window_do_not_count() -> None:
    """A server that dies now and then is restarted for ever, and at once when it had peace for a minute."""
    clock = Clock()
    deaths = Deaths(clock)
    for _ in range(100):
        assert deaths.pause_s() is not None
        deaths.started()
        clock.now_s += WINDOW_S / RESTARTS_MAX
    clock.now_s += WINDOW_S
    assert deaths.pause_s() == 0.0


def test_deaths_end_with_starts_that_fail_slowly() -> None:
    """A server that takes a minute to fail is not tried for ever; one that starts in between is no such."""
    clock = Clock()
    deaths = Deaths(clock)

    def failures() -> int:
        count = 0
        while deaths.pause_s() is not None:
            clock.now_s += WINDOW_S
            deaths.failed()
            count += 1
        return count

    assert failures() == RESTARTS_MAX
    clock.now_s += WINDOW_S
    deaths.started()
    assert failures() == RESTARTS_MAX


async def killed(valkey: EmbeddedValkey) -> None:
    """Kill the server and wait until its death is known."""
    assert valkey._process is not None
    died = valkey.died
    os.kill(valkey._process.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await asyncio.shield(died)


async def answered(client: Redis, key: str, valkey: EmbeddedValkey) -> object:
    """Ask a client that is connected until the store is back, and its keeper knows."""
    async with asyncio.timeout(10):
        while not _announced(valkey):
            await asyncio.sleep(0.005)
        while True:
            try:
                return await client.call("GET", key)
            except GatewayError:
                await asyncio.sleep(0.005)


def _announced(valkey: EmbeddedValkey) -> bool:
    said = json.loads((valkey.data_dir / "valkey.json").read_bytes())
    return valkey._process is not None and said["pid"] == valkey._process.pid


async def test_keep_restarts_under_connected_clients_and_then_gives_up(
    own_server: Callable[[], Awaitable[EmbeddedValkey]], open_redis: OpenRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that holds the URL finds its data again after every death but the last, whose reason is told."""
    monkeypatch.setattr(keeper, "PAUSE_S", 0.01)
    valkey = await own_server()
    client = open_redis(valkey.url, timeout_s=1.0)
    await client.call("SET", "test:kept", "yes")
    keeping = asyncio.create_task(keep(valkey))
    for _ in range(RESTARTS_MAX):
        await killed(valkey)
        assert await answered(client, "test:kept", valkey) == b"yes"
    await killed(valkey)
    with pytest.raises(EmbeddedError, match=r"gave up after 5 restarts: .* status -9"):
        await asyncio.wait_for(keeping, 10)


async def test_keep_gives_up_on_data_that_cannot_be_loaded(
    own_server: Callable[[], Awaitable[EmbeddedValkey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts that fail are bounded too, and the server's own words are told."""
    monkeypatch.setattr(keeper, "PAUSE_S", 0.01)
    valkey = await own_server()
    (manifest,) = (valkey.data_dir / "valkey" / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    keeping = asyncio.create_task(keep(valkey))
    await killed(valkey)
    with pytest.raises(EmbeddedError, match=r"(?i)gave up after 5 restarts: .*did not start: .*manifest"):
        await asyncio.wait_for(keeping, 10)


async def test_keep_cancelled_while_it_restarts_leaves_the_server_to_its_owner(tmp_path: Path) -> None:
    """An owner that ends in the middle of a restart can close the server as ever."""
    valkey = EmbeddedValkey(tmp_path / "own")
    await valkey.open()
    keeping = asyncio.create_task(keep(valkey))
    await asyncio.sleep(0)
    await killed(valkey)
    while valkey.died.done():  # until the next one is being started
        await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert keeping.cancelled()
    await valkey.aclose()
    assert valkey._process is None
    assert valkey._lock is None
