"""Users who come while something is broken: when they are let in, how they are refused, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from tests.bench.survival.crowd import Crowd, Turn
from tests.bench.survival.reader import OPEN_S

EVERY_S: Final = 0.25  # one comes to each gateway
AGAIN_S: Final = 0.05  # and asks again after a refusal
AHEAD: Final = 40  # conversations that each gateway's newcomers have from before
CALM_S: Final = 2.0  # as long must they have been let in before it counts as over
WORDS: Final = "#tokens=5 #rate=50"
NAMED: Final = "store_unavailable"


class Pause(msgspec.Struct, kw_only=True):
    """What a fault cost those who came, and how long readers waited for an event."""

    let_in: int
    refused: dict[str, int]  # answers, by code
    closed_s: float  # longest time in which a gateway took no turn
    slowest_s: float  # longest wait for an answer, of either kind
    fault_s: float  # what was done to the store, from the strike until it was whole
    gap_own_s: float = 0.0  # longest between two events of a reader at the gateway that owns the turn …
    gap_other_s: float = 0.0  # … and at another


class Newcomers:
    """Turns that begin one after the other at every gateway, each in a conversation of its own."""

    def __init__(self, clients: Crowd, gateways: int) -> None:
        self._clients = clients
        self._ahead: list[list[Turn]] = [[] for _ in range(gateways)]
        self._let_in_s: list[list[float]] = [[] for _ in range(gateways)]
        self._refused: Counter[str] = Counter()
        self._slowest_s = 0.0
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._struck_s = self._whole_s = 0.0

    async def open(self) -> None:
        """Return once each gateway has taken one."""
        await asyncio.gather(*(self._prepare(at) for at in range(len(self._ahead)) for _ in range(AHEAD)))
        self._tasks = [asyncio.create_task(self._come(at)) for at in range(len(self._ahead))]
        while not all(self._let_in_s):
            await self._moment()

    def struck(self) -> None:
        self._struck_s = asyncio.get_running_loop().time()

    def whole(self) -> None:
        """The store is as it should be, for all that was done to it."""
        self._whole_s = asyncio.get_running_loop().time()

    async def calm(self, *, within_s: float) -> None:
        """Wait until every gateway has let everybody in for a while."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within_s):
            since_s, refused = loop.time(), sum(self._refused.values())
            while loop.time() - since_s < CALM_S:
                await self._moment()
                silent = any(loop.time() - times[-1] > 2 * EVERY_S + OPEN_S for times in self._let_in_s)
                if silent or sum(self._refused.values()) != refused:
                    since_s, refused = loop.time(), sum(self._refused.values())
            while not all(times[-1] > since_s for times in self._let_in_s):
                await self._moment()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def pause(self) -> Pause:
        gaps = (later - one for times in self._let_in_s for one, later in itertools.pairwise(times))
        return Pause(
            let_in=sum(map(len, self._let_in_s)),
            refused=dict(self._refused),
            closed_s=max(gaps, default=0.0),
            slowest_s=self._slowest_s,
            fault_s=self._whole_s - self._struck_s,
        )

    async def _moment(self) -> None:
        await asyncio.sleep(AGAIN_S)
        for task in self._tasks:
            if task.done():
                task.result()

    async def _prepare(self, at: int) -> None:
        message = f"Who comes as number {next(self._numbers)}? {WORDS}"
        self._ahead[at].append(await self._clients.open(message, at=at))

    async def _come(self, at: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._ahead[at]:
                await self._prepare(at)
            turn = self._ahead[at].pop()
            entering = asyncio.create_task(self._enter(turn, at))
            try:
                await asyncio.shield(entering)
            except asyncio.CancelledError:
                await entering  # nobody may leave in the middle: the turn would be nobody's
                raise
            self._let_in_s[at].append(loop.time())
            await asyncio.sleep(EVERY_S)

    async def _enter(self, turn: Turn, at: int) -> None:
        """Ask until let in, with one idempotency key."""
        loop = asyncio.get_running_loop()
        while True:
            asked_s = loop.time()
            refusal = await self._clients.enter(turn, at=at)
            self._slowest_s = max(self._slowest_s, loop.time() - asked_s)
            if refusal is None:
                return
            self._refused[refusal] += 1
            await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def newcomers(clients: Crowd, gateways: int) -> AsyncIterator[Newcomers]:
    """Some who come to each gateway until this is left; their turns are judged like all others."""
    coming = Newcomers(clients, gateways)
    try:
        await coming.open()
        yield coming
    finally:
        await coming.aclose()
