"""What a fault has left: one row of figures, and every promise that was broken."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import Final

import msgspec

from tests.bench.survival.books import Books, balance, settlements
from tests.bench.survival.crowd import Crowd
from tests.bench.survival.newcomers import NAMED, Pause
from tests.bench.survival.reports import reported
from tests.bench.survival.site import Site

SOON_S: Final = 2.5  # a refusal takes the store's one short timeout, and what else a request costs


class Verdict(msgspec.Struct, kw_only=True):
    """The figures of one fault. Lost and duplicated are counted in positions."""

    fault: str
    turns: int
    readers: int
    lost: int
    duplicated: int
    disordered: int
    completed: int  # by the worker that began them
    recovered: int  # completed by another
    others: dict[str, int]  # stopped and failed turns, by why
    wrong: list[str]
    endings: int  # readers, late ones included, whose endings are not one
    returns: int  # connections that readers made anew
    next_p50_s: float
    next_max_s: float
    books: Books
    stop_ms: list[float] = []  # from each request to stop until the vendor saw the stream reset
    notes: list[str] = []
    pause: Pause | None = None  # where newcomers came

    @property
    def broken(self) -> list[str]:
        """Every promise that was not kept, in words; empty when all were."""
        found = [
            f"{count} {what}"
            for what, count in (
                ("positions lost", self.lost),
                ("positions duplicated", self.duplicated),
                ("events out of order", self.disordered),
                ("readers without exactly one ending", self.endings),
                ("turns not settled", self.books.unsettled),
                ("settlements too many", self.books.doubled),
            )
            if count
        ]
        if self.pause is not None:
            found += [f"{count} refused with {code}" for code, count in self.pause.refused.items() if code != NAMED]
            if self.pause.slowest_s > SOON_S:
                found.append(f"a newcomer waited {self.pause.slowest_s:.1f} s for an answer")
        for what, count in Counter([*self.wrong, *self.books.wrong]).most_common():
            found.append(f"{count} × {what}")
        return found


async def judge(
    fault: str, site: Site, crowd: Crowd, *, settled_within_s: float, pause: Pause | None = None
) -> Verdict:
    """Look at what readers have, what somebody who comes late is given, and what the ledger and the bill say."""
    late = await crowd.replayed()
    epochs = await site.epochs(turn.turn_id for turn in crowd.turns)
    wrong: list[str] = []
    nexts: list[float] = []
    untouched: list[float] = []
    kinds: Counter[str] = Counter()
    recovered = 0
    for turn, again, epoch in zip(crowd.turns, late, epochs, strict=True):
        for reader in turn.readers:
            if reader.next_s is not None:
                (nexts if reader.returns or epoch > 1 else untouched).append(reader.next_s)
        readers = [*turn.readers, again]
        for reader in readers:
            wrong += [reader.fault] if reader.fault is not None else reader.log.faults(turn.answer.text)
        endings = {(one.position, one.kind) for reader in readers for one in reader.log.endings}
        if len(endings) > 1:
            wrong.append(f"readers of one turn have other endings: {sorted(kind for _, kind in endings)}")
        for ending in again.log.endings[:1]:
            moved = ending.kind == "completed" and epoch > 1
            recovered += moved
            kinds[ending.kind] += not moved
    logs = [reader.log for reader in (*crowd.readers, *late)]
    found = await settlements(site, crowd.turns, within_s=settled_within_s)
    books = balance(crowd.turns, found, await site.bill())
    wrong += await reported(site, found)
    if pause is not None:
        pause.gap_own_s, pause.gap_other_s = _gaps(crowd, len(site.urls))
    nexts = nexts or untouched  # where nobody lost a connection or a worker, all count
    completed = kinds.pop("completed", 0)
    return Verdict(
        fault=fault,
        turns=len(crowd.turns),
        readers=len(crowd.readers),
        lost=sum(log.lost for log in logs),
        duplicated=sum(log.duplicated for log in logs),
        disordered=sum(log.disordered for log in logs),
        completed=completed,
        recovered=recovered,
        others={kind: count for kind, count in kinds.items() if count},
        wrong=wrong,
        endings=sum(len(log.endings) != 1 for log in logs),
        returns=sum(reader.returns for reader in crowd.readers),
        next_p50_s=median(nexts) if nexts else math.nan,
        next_max_s=max(nexts, default=math.nan),
        books=books,
        pause=pause,
    )


def _gaps(crowd: Crowd, gateways: int) -> tuple[float, float]:
    """The longest time without an event, of readers at their turn's own gateway, and of those at another."""
    own, other = [0.0], [0.0]
    for turn in crowd.turns:
        for place, reader in enumerate(turn.readers):
            (own if place % gateways == turn.at % gateways else other).append(reader.gap_s)
    return max(own), max(other)
