"""Faults of workers and whole gateways: killed, stopped, replaced, at a loss for the vendor."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from tests.bench.survival.crowd import crowd
from tests.bench.survival.field import RATE_PER_S, WITHIN_S, Load, over, said, struck, until
from tests.bench.survival.site import POLL_S, Habit, Plan, site
from tests.bench.survival.verdict import Verdict

CRASHES: Final = 6
CRASH_PAUSE_S: Final = 0.7
STOP_WAVE: Final = 100  # turns that are live together to be stopped …
STOPS_PER_S: Final = 100.0  # … by users who do not all do so in the same millisecond

# A lease that ran out does not say that the connection to the vendor is closed, so nothing is learned from what the
# vendor then has; but a gateway that has lost a worker, or stopped a turn, before knows its habit, or is told.
KNOWN_HABIT: Final = {"HYPERLEAP_AFTER_DISCONNECT": "finishes"}


async def kill(load: Load, habit: Habit) -> Verdict:
    """``kill -9`` one of two workers, while more turns begin."""
    plan = Plan(workers=2, habit=habit)
    async with struck(plan, load) as (place, clients):
        late = asyncio.create_task(clients.begin(load.late_turns))
        await asyncio.sleep(POLL_S)  # some have their conversation by now, some their turn
        os.kill(place.workers[0], signal.SIGKILL)
        clients.struck()
        await late
        return await over(f"kill-{habit}", place, clients)


async def kill_twice(load: Load) -> Verdict:
    """Kill the worker that has just taken over what the first one lost."""
    async with struck(Plan(workers=2), load) as (place, clients):
        first, second = place.workers
        os.kill(first, signal.SIGKILL)
        clients.struck()
        await said(place, 0, '"turn.taken_over"')
        os.kill(second, signal.SIGKILL)
        return await over("kill-twice", place, clients)


async def kill_stop(load: Load) -> Verdict:
    """Users stop turns whose worker has just died, and those of the other one."""
    async with struck(Plan(workers=2), load) as (place, clients):
        os.kill(place.workers[0], signal.SIGKILL)
        clients.struck()
        stopped = enumerate(clients.turns)
        await asyncio.gather(*(clients.stop(turn, after_s=number / STOPS_PER_S) for number, turn in stopped))
        return await over("kill-stop", place, clients)


async def roll(load: Load) -> Verdict:
    """Replace both workers, one after the other; every turn has the time to end."""
    plan = Plan(workers=2, settings={"GATEWAY_DRAIN_S": "60", "GATEWAY_DRAIN_SPREAD_S": "3"})
    async with struck(plan, load) as (place, clients):
        before = set(place.workers)
        late = asyncio.create_task(clients.begin(load.late_turns))
        os.kill(place.gateways[0].pid, signal.SIGHUP)
        clients.struck()
        await late
        verdict = await over("roll", place, clients)
        await until(lambda: not before & set(place.workers), "the workers were not replaced")
        return verdict


async def roll_short(load: Load) -> Verdict:
    """The same with less time than the turns take: they are stopped, and say so."""
    plan = Plan(workers=2, settings={"GATEWAY_DRAIN_S": "2", "GATEWAY_DRAIN_SPREAD_S": "1"})
    async with struck(plan, load) as (place, clients):
        os.kill(place.gateways[0].pid, signal.SIGHUP)
        clients.struck()
        return await over("roll-short", place, clients)


async def hand_over(load: Load) -> Verdict:
    """The same where the vendor is known to finish what nobody reads: the replacements complete the turns."""
    drain = {"GATEWAY_DRAIN_S": "2", "GATEWAY_DRAIN_SPREAD_S": "1"}
    async with struck(Plan(workers=2, settings=drain | KNOWN_HABIT), load) as (place, clients):
        os.kill(place.gateways[0].pid, signal.SIGHUP)
        clients.struck()
        return await over("hand-over", place, clients)


async def restart(load: Load) -> Verdict:
    """``kill -9`` of the supervisor, with which its workers and its store end, and a new start on the same data."""
    async with struck(Plan(workers=2, settings=KNOWN_HABIT), load) as (place, clients):
        os.kill(place.gateways[0].pid, signal.SIGKILL)
        clients.struck()
        await place.gateways[0].ended(within_s=WITHIN_S)
        await place.restart(0)
        return await over("restart", place, clients)


async def crash_loop(load: Load) -> Verdict:
    """Workers die one after the other, as soon as there is another one to kill."""
    async with struck(Plan(workers=2), load) as (place, clients):
        killed: set[int] = set()
        clients.struck()
        for _ in range(CRASHES):
            await until(lambda: bool(set(place.workers) - killed), "no worker was started")
            pid = min(set(place.workers) - killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            await asyncio.sleep(CRASH_PAUSE_S)
        return await over("crash-loop", place, clients)


async def vendor_limit(load: Load) -> Verdict:
    """A worker dies when the vendor's plan limit is almost used up: most reads of its turns are refused."""
    calls = 2 * load.turns + load.turns // 4  # a conversation and a chat each, and a few reads
    async with struck(Plan(workers=2, habit="drop", plan_limit_per_min=calls), load) as (place, clients):
        os.kill(place.workers[0], signal.SIGKILL)
        clients.struck()
        return await over("vendor-limit", place, clients)


async def lost_host(load: Load) -> Verdict:
    """``kill -9`` a whole gateway; nobody tells the other one, which learns it from the leases."""
    async with struck(Plan(gateways=2, store="shared", settings=KNOWN_HABIT), load, at=0) as (place, clients):
        os.kill(place.gateways[0].pid, signal.SIGKILL)
        clients.struck()
        return await over("lost-host", place, clients)


async def zombie(load: Load) -> Verdict:
    """A gateway stands still for longer than its leases, and goes on when others have its turns."""
    async with struck(Plan(gateways=2, store="shared", settings=KNOWN_HABIT), load, at=0) as (place, clients):
        pid = place.gateways[0].pid
        os.kill(pid, signal.SIGSTOP)
        clients.struck()
        try:
            await said(place, 1, '"turn.taken_over"', count=load.turns)
        finally:
            os.kill(pid, signal.SIGCONT)
        return await over("zombie", place, clients)


async def stops(load: Load) -> Verdict:
    """Users stop their turns, each at another worker than its own, a wave of turns after the other."""
    plan = Plan(gateways=2, store="shared", settings=load.settings)
    async with (
        site(plan) as place,
        crowd(place.urls, place.secret_key, tokens=load.tokens, rate=RATE_PER_S) as clients,
    ):
        asked_at_s: dict[str, float] = {}
        while len(clients.turns) < load.stops:
            wave = await clients.begin(min(STOP_WAVE, load.stops - len(clients.turns)), at=len(clients.turns) % 2)
            await clients.live()
            asked = await asyncio.gather(
                *(clients.stop(turn, after_s=number / STOPS_PER_S) for number, turn in enumerate(wave))
            )
            asked_at_s |= {turn.conversation_id: at_s for turn, at_s in zip(wave, asked, strict=True)}
        verdict = await over("stops", place, clients)
        for run in await place.bill():
            asked_s = asked_at_s.get(run["conversation_id"])
            if asked_s is None or run["reset_at_s"] is None:
                verdict.wrong.append("the vendor saw no reset")
            else:
                verdict.stop_ms.append((run["reset_at_s"] - asked_s) * 1000)
        return verdict
