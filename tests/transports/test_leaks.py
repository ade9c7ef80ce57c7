"""Ten thousand stopped turns, of readers who stayed, left or came to the other worker, leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from gateway.services.accounting import ABSENT_MAX, Accounting
from gateway.services.following import RemoteLog
from gateway.services.journal import JournalEntry
from gateway.services.live_log import LiveLog
from gateway.services.owned_turn import OwnedTurn
from gateway.services.presence import Presence
from gateway.services.roster import LINGER_S
from gateway.services.showing import Outlet
from gateway.services.subscriptions import Subscription
from gateway.services.vendor_copy import READS_MAX
from gateway.store.event_log import RedisEventLog
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn

TURNS, LANES, CONVERSATIONS = 10_000, 40, 500
WARM_UP = 1_000
MESSAGE = "Hi #tokens=80 #rate=40"
EACH_MAX_BYTES = 4_000  # of this process a turn; the stand-in keeps a bill and both messages, about 2,500
OURS = (OwnedTurn, LiveLog, JournalEntry, Presence, Outlet, Subscription, RemoteLog)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(workers: list[Running]) -> int:
    """How many files this process has open, but for connections that wait in pools, which grow to bounds of their own.

    Both ends of a connection to the stand-in are here.
    """
    pooled = 2 * workers[0].simulator.state.open_connections
    for worker in workers:
        pooled += sum(len(node._idle) for node in worker.gateway.redis._servers.nodes())
    return len(os.listdir("/proc/self/fd")) - pooled


def alive() -> dict[int, object]:
    """Find the turns and readers of this process, by identity."""
    gc.collect()
    return {id(thing): thing for thing in gc.get_objects() if isinstance(thing, OURS)}


def forget_records(caplog: pytest.LogCaptureFixture) -> None:
    """Check what was logged, and let go of it: records hold errors, errors frames, and those what they were about.

    pytest keeps records twice, for ``caplog`` and for its report; ``caplog.clear`` empties the one only.
    """
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, type(caplog.handler)):
            handler.records.clear()


def kept(running: Running) -> dict[str, int]:
    """How much a worker keeps of turns, readers and what is on its way, where it keeps any."""
    gateway = running.gateway
    roster, journal = gateway.edge.subscriptions.roster, gateway.recovery._ports.journal
    log = journal._log
    assert isinstance(log, RedisEventLog)
    owners = [getattr(duty, "__self__", None) for duty in gateway.sweeper._duties]
    (accounting,) = (owner for owner in owners if isinstance(owner, Accounting))
    places: dict[str, Any] = {
        "turns": roster._turns,
        "ended": roster._ended,
        "turn tasks": roster.tasks,
        "starting": gateway.turns._starting,
        "journal": journal._entries,
        "beats": [*journal._new, *chain(*journal._due)],
        "ends of logs": log._appending._tails,
        "under rescue": gateway.recovery._under_way,
        "followed": gateway.following._remotes,
        "following": gateway.following._tasks,
        "watched": gateway.watches._watchers,
        "watching": gateway.watches._tasks,
        "showing": gateway.showing._waiting,
        "shown": gateway.showing._tasks,
        "connections": gateway.edge.open,
        "reads of copies": range(READS_MAX - accounting._copies._room._value),
        "store calls": gateway.redis._queue,
    }
    assert len(accounting._absent) <= ABSENT_MAX  # what other workers settled is not known here
    return {name: len(place) for name, place in places.items() if len(place)}


async def until_nothing_is_kept(workers: list[Running]) -> None:
    deadline_s = time.monotonic() + 2 * LINGER_S
    while left := [kept(worker) for worker in workers if kept(worker)]:
        assert time.monotonic() < deadline_s, left
        await asyncio.sleep(0.05)


class Crowd:
    """Users who start turns and stop them, each in one of a few ways."""

    def __init__(self, client: Client, workers: list[Running], http: ClientSession, conversations: list[str]) -> None:
        self._headers = client.headers
        self._workers = workers
        self._http = http
        self._conversations = conversations

    async def stop_turns(self, count: int) -> None:
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                await self._stop_one(number)

        await asyncio.gather(*(lane() for _ in range(LANES)))

    async def _stop_one(self, number: int) -> None:
        owner, other = self._workers[number % 2], self._workers[1 - number % 2]
        turn = await self._start(owner, self._conversations[number % len(self._conversations)])
        match number % 10:
            case 0 | 1:  # a reader that leaves
                await self._read(owner if number % 10 else other, turn, whole=False)
                await self._stop(owner, turn)
            case 2:  # one that stays, on the other worker
                reading = asyncio.create_task(self._read(other, turn, whole=True))
                await self._stop(other, turn)
                await reading
            case 3 | 4:
                await self._stop(other, turn)
            case 5:
                await asyncio.sleep(0.02)
                await self._stop(owner, turn)
            case _:
                await self._stop(owner, turn)

    async def _start(self, worker: Running, conversation: str) -> str:
        headers = {**self._headers, "Prefer": "respond-async"}
        while True:
            async with self._http.post(
                f"{worker.url}/v1/conversations/{conversation}/turns", json={"message": MESSAGE}, headers=headers
            ) as answer:
                body = await answer.json()
                if answer.status == 202:
                    return str(body["turn_id"])
                assert body["code"] == "turn_active", body
            await asyncio.sleep(0.01)

    async def _stop(self, worker: Running, turn: str) -> None:
        async with self._http.post(f"{worker.url}/v1/turns/{turn}/stop", headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()

    async def _read(self, worker: Running, turn: str, *, whole: bool) -> None:
        async with self._http.get(f"{worker.url}/v1/turns/{turn}/events", headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()
            if whole:
                assert b"turn.stopped" in await answer.read()
            else:
                await answer.content.readany()
                answer.close()


async def sweep_on(workers: list[Running], idle: Callable[[], bool]) -> None:
    while not idle():
        for worker in workers:
            for tenant in worker.gateway.auth.tenants.values():
                for duty in worker.gateway.sweeper._duties:
                    await duty(tenant)
        await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_stopped_turns_leave_nothing_behind(
    start_gateway: StartGateway, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sockets, tasks, memory, the maps of the services and the keys of the store are as they were."""
    others = alive()  # of tests before; held, so that no identity comes twice
    soon = {
        "GATEWAY_LEDGER_LOOK_UP_S": "0.05",  # one look-up a turn
        "GATEWAY_REDIS_TIMEOUT_S": "10",  # two workers and their crowd share a core, perhaps with other tests
    }
    monkeypatch.setattr("gateway.services.accounting.LOOK_UPS_MAX", 200)
    first = await start_gateway(simulator={"on_disconnect": "drop"}, environ=soon)
    client = await sign_in(first)
    workers = [first, await start_gateway(simulator=first.simulator, tenant=first.tenant, environ=soon)]
    await eventually(lambda: all(worker.gateway.inbox.hears for worker in workers), "the workers to hear each other")
    store, prefix = first.gateway.redis, f"hg:{{{first.tenant}}}:"
    conversations = [await client.conversation() for _ in range(CONVERSATIONS)]
    over = False
    sweeping = asyncio.create_task(sweep_on(workers, lambda: over))

    async def stop_turns(count: int) -> float:
        begun_s = time.monotonic()
        async with ClientSession(connector=TCPConnector(limit=0)) as http:
            await Crowd(client, workers, http, conversations).stop_turns(count)
        return time.monotonic() - begun_s

    await stop_turns(WARM_UP)
    tasks, files, bytes_before = len(asyncio.all_tasks()), open_files(workers), resident_bytes()
    took_s = await stop_turns(TURNS)

    async def settled() -> bool:
        return not await store.call("EXISTS", f"{prefix}usage:unsettled")

    await eventually(settled, "every turn to be settled", within_s=60)
    over = True
    await sweeping
    await until_nothing_is_kept(workers)
    await eventually(lambda: first.simulator.state.open_streams == 0, "the vendor's streams to be closed")
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "the tasks to be as many as before")
    await eventually(lambda: open_files(workers) <= files, "the sockets to be as many as before")

    def all_let_go() -> bool:
        forget_records(caplog)
        return alive().keys() <= others.keys()

    await eventually(all_let_go, "every turn and reader to be let go", within_s=20)
    grown = resident_bytes() - bytes_before
    print(f"{TURNS} turns in {took_s:.1f} s, {grown / TURNS:.0f} bytes each")
    assert grown < TURNS * EACH_MAX_BYTES
    assert await store.call("XLEN", f"{prefix}usage:settled") == WARM_UP + TURNS
    assert await store.call("EXISTS", f"{prefix}running") == 0
    lasting: Counter[str] = Counter()
    cursor, kinds = b"0", Counter[str]()
    while True:
        cursor, keys = await store.call("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
        lives = await asyncio.gather(*(store.call("TTL", key) for key in keys))
        for key, life_s in zip(keys, lives, strict=True):
            kind = key.decode().removeprefix(prefix).split(":")[0]
            kinds[kind] += 1
            lasting[kind] += life_s < 0
        if cursor in (b"0", 0):
            break
    assert {kind for kind, count in lasting.items() if count} == {"key", "keys"}  # the tenant's own
    assert not {"running", "followers", "watchers", "idem"} & set(kinds)
    leases = await asyncio.gather(
        *(store.call("HEXISTS", key, "lease") for key in await store.call("KEYS", f"{prefix}turn:*"))
    )
    assert len(leases) == WARM_UP + TURNS
    assert not any(leases)
