"""What is struck, in mid-answer, and how it is waited for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from tests.bench.process import ProcessDied
from tests.bench.survival import reports
from tests.bench.survival.crowd import Crowd, crowd
from tests.bench.survival.newcomers import Pause
from tests.bench.survival.site import POLL_S, Plan, Site, site
from tests.bench.survival.verdict import Verdict, judge

RATE_PER_S: Final = 5.0
WITHIN_S: Final = 120.0  # far beyond what any fault takes; only a hang reaches it


class Load(msgspec.Struct, kw_only=True, frozen=True):
    """How much is struck. Two readers a turn."""

    turns: int = 200
    answer_s: float = 15.0  # from an answer's first token to its last; all turns begin within its first third
    late_turns: int = 20  # that begin in the moment of the strike
    stops: int = 2000  # turns, for the one fault that is no fault

    @property
    def tokens(self) -> int:
        return int(self.answer_s * RATE_PER_S)

    @property
    def settings(self) -> dict[str, str]:
        """Answers end soon, so a lost one need not be looked for much longer, nor its tokens."""
        return {
            "GATEWAY_TURNS_RECOVERY_TIMEOUT_S": f"{self.answer_s + 4:g}",
            "GATEWAY_LEDGER_LOOK_UP_S": f"1,4,{self.answer_s:g}",
            **reports.SETTINGS,
        }


@asynccontextmanager
async def struck(plan: Plan, load: Load, *, at: int | None = None) -> AsyncIterator[tuple[Site, Crowd]]:
    """A site and its crowd, every reader in mid-answer."""
    settings = load.settings | (plan.settings or {})
    async with (
        site(dataclasses.replace(plan, settings=settings)) as place,
        crowd(place.urls, place.secret_key, tokens=load.tokens, rate=RATE_PER_S) as clients,
    ):
        await clients.begin(load.turns, at=at)
        await clients.live()
        yield place, clients


async def over(fault: str, place: Site, clients: Crowd, *, pause: Pause | None = None) -> Verdict:
    await clients.ended(within_s=WITHIN_S)
    return await judge(fault, place, clients, pause=pause, settled_within_s=WITHIN_S)


async def said(place: Site, gateway: int, words: str, *, count: int = 1) -> None:
    """Wait until a gateway has logged something so often."""
    await until(lambda: place.log_of(gateway).count(words) >= count, f"gateway {gateway} never said {words}")


async def until(holds: Callable[[], bool], complaint: str) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise ProcessDied(complaint) from None
