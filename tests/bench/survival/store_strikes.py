"""Faults of the store: killed, stalled, away, and back without its last second."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Final

from tests.bench.survival.field import Load, over, said, struck, until
from tests.bench.survival.site import POLL_S, Plan
from tests.bench.survival.verdict import Verdict

LOST_S: Final = 1.0  # what ``appendfsync everysec`` or a failover may lose
STORE_STOP_S: Final = 5.0


async def kill_stalled(load: Load) -> Verdict:
    """A worker dies while the store stands still: for one lease after that nobody takes a turn over."""
    async with struck(Plan(workers=2, store="shared"), load) as (place, clients):
        assert place.store is not None
        os.kill(place.store.pid, signal.SIGSTOP)
        os.kill(place.workers[0], signal.SIGKILL)
        clients.struck()
        await asyncio.sleep(STORE_STOP_S)
        os.kill(place.store.pid, signal.SIGCONT)
        return await over("kill-stalled", place, clients)


async def store_kill(load: Load, *, own: bool) -> Verdict:
    """``kill -9`` the store: the gateway restarts its own, an operator another one."""
    async with struck(Plan(workers=2, store="own" if own else "shared"), load) as (place, clients):
        killed = place.store_pid
        late = asyncio.create_task(clients.begin(load.late_turns))
        await asyncio.sleep(POLL_S)
        os.kill(killed, signal.SIGKILL)
        clients.struck()
        if place.store is not None:
            await place.store.open()
        await late
        return await over(f"store-kill-{'own' if own else 'shared'}", place, clients)


async def store_rewind(load: Load) -> Verdict:
    """The store comes back without its last second, in which turns began and ended, as after a failover."""
    async with struck(Plan(workers=2, store="shared"), load) as (place, clients):
        assert place.store is not None
        await until(lambda: any(reader.log.ended for reader in clients.readers), "no turn ended")
        place.store.keep()
        kept_at_s = time.monotonic()
        await clients.begin(load.late_turns)
        await asyncio.sleep(kept_at_s + LOST_S - time.monotonic())
        clients.struck()
        await place.store.rewind()
        await said(place, 0, '"log.lost"')  # else nothing had been lost that owners could write again
        return await over("store-rewind", place, clients)


async def store_stop(load: Load) -> Verdict:
    """The store hangs for some seconds: it keeps its connections and says nothing."""
    async with struck(Plan(workers=2, store="shared"), load) as (place, clients):
        assert place.store is not None
        late = asyncio.create_task(clients.begin(load.late_turns))
        await asyncio.sleep(POLL_S)  # some calls are on their way
        os.kill(place.store.pid, signal.SIGSTOP)
        clients.struck()
        await asyncio.sleep(STORE_STOP_S)
        os.kill(place.store.pid, signal.SIGCONT)
        await late
        return await over("store-stop", place, clients)


async def storm(load: Load) -> Verdict:
    """All at once: answers that the vendor cuts off, turns that users stop, a worker killed and then the store."""
    async with struck(Plan(workers=2, store="shared"), load) as (place, clients):
        assert place.store is not None
        whole = list(clients.turns)
        cut = await clients.begin(load.late_turns, words="#fault=cut:5")
        await until(lambda: all(reader.log.ended for turn in cut for reader in turn.readers), "not cut off")
        before, after = whole[: load.late_turns], whole[load.late_turns : 2 * load.late_turns]
        await asyncio.gather(*(clients.stop(turn, after_s=0) for turn in before))
        os.kill(place.workers[0], signal.SIGKILL)
        clients.struck()
        await asyncio.gather(*(clients.stop(turn, after_s=0) for turn in after))
        os.kill(place.store.pid, signal.SIGKILL)
        await place.store.open()
        return await over("storm", place, clients)


async def store_away(load: Load) -> Verdict:
    """The store is gone until after every answer has ended."""
    async with struck(Plan(workers=2, store="shared"), load) as (place, clients):
        assert place.store is not None
        os.kill(place.store.pid, signal.SIGKILL)
        clients.struck()
        await asyncio.sleep(load.answer_s + 2)
        await place.store.open()
        return await over("store-away", place, clients)
