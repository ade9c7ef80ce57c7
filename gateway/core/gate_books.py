"""The rules of the gate, exact and in memory: what the store's scripts must agree with, and what holds without them.

Two rules bound what passes, each a sliding log: the times of the last ``limit`` passes, of which the oldest must lie a
whole period back. So no window of a period ever holds more than the limit, wherever it begins, and a limit that was not
used is there at once and whole. (A leaky bucket with the same burst lets up to twice the limit into one window; one
that does not lets half of it through.) A pass takes 10 bytes of the store for a minute, and another 10 for an hour.

The queue is fair by virtual finish times (self-clocked fair queueing, Golestani 1994): a tenant's next call gets the
virtual time at which it would end if every tenant's calls went through side by side, weighted; the least goes first.
Only the head of each tenant's line has one. So who leaves a line costs nobody his turn and leaves nothing behind, and a
tenant that comes is behind one call of each other tenant at most, however many wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.core.gate import (
    FORGOTTEN,
    GRANTS_MAX,
    HOUR_US,
    LEASE_US,
    MINUTE_US,
    PROBE_LOOK_US,
    SHARE_US,
    Answer,
    Asker,
    Departure,
    Left,
    Outcome,
    Place,
    Served,
    State,
)
from gateway.core.identity import TenantId, WorkerId
from gateway.core.vendor_keys import PlanLimit


@dataclass(slots=True)
class Window:
    """One rule: at most ``limit`` passes in any period; 0 is no limit."""

    limit: int
    period_us: int
    passes: list[int] = field(default_factory=list)

    def wait_us(self, number: int, now_us: int) -> int:
        """Return after how long the ``number``-th pass from now may go, if all before it go as soon as they may."""
        if not self.limit:
            return 0
        cycles, before = divmod(number - 1, self.limit)
        older = self.limit - before  # the pass so many back must have left the window
        wait_us = 0
        if len(self.passes) >= older:
            wait_us = max(0, self.passes[-older] + self.period_us - now_us)
        return wait_us + cycles * self.period_us

    def left(self, now_us: int) -> int | None:
        """Return how many more may pass now."""
        since_us = now_us - self.period_us
        return max(0, self.limit - sum(time_us > since_us for time_us in self.passes)) if self.limit else None

    def fill(self, time_us: int) -> None:
        if self.limit:
            self.passes = [*self.passes, time_us][-self.limit :]

    def give_back(self, time_us: int) -> None:
        if time_us in self.passes:
            self.passes.remove(time_us)


@dataclass(slots=True)
class Waiter:
    tenant: TenantId
    worker: WorkerId
    until_us: int


@dataclass(slots=True)
class GateBooks:
    """The gate of one vendor key. ``queue_max`` calls wait at most."""

    limit: PlanLimit
    queue_max: int
    lease_us: int = LEASE_US
    minute_us: int = MINUTE_US
    hour_us: int = HOUR_US
    windows: tuple[Window, Window] = field(init=False)
    virtual: int = 0
    held_us: int = 0
    open_us: int = 0  # until then the breaker lets nobody through; 0: it is closed
    rest_us: int = 0
    probe: tuple[str, WorkerId] | None = None
    lines: dict[TenantId, list[str]] = field(default_factory=dict)
    finishes: dict[TenantId, int] = field(default_factory=dict)  # of the head of each line
    shares: dict[TenantId, int] = field(default_factory=dict)
    waiting: dict[str, Waiter] = field(default_factory=dict)
    workers: dict[WorkerId, int] = field(default_factory=dict)  # → the end of its lease
    known: dict[str, int | Literal["dropped", "left"]] = field(default_factory=dict)  # a time: passed then

    def __post_init__(self) -> None:
        per_hour, per_min = self.limit.per_hour or 0, self.limit.per_min or 0
        self.windows = (Window(per_hour, self.hour_us), Window(per_min, self.minute_us))

    def enter(self, asker: Asker, worker: WorkerId, now_us: int) -> Answer:
        """Let through, let wait or refuse, in this order."""
        id_, tenant = asker.id, asker.tenant
        was = self.known.get(id_)
        if was == "left":
            return self._answer(Outcome.LEFT, now_us)
        if isinstance(was, int):
            return self._answer(Outcome.PASSED, now_us, probe=self._probes(id_))
        if id_ in self.waiting:
            self.workers[worker] = now_us + self.lease_us
            place = self._place(id_, now_us)
            return self._answer(Outcome.WAITING, now_us, place.wait_us, place.position)
        self._serve(now_us)
        if self.open_us:
            wait_us = max(self._resting_us(now_us), self._wait_us(1, now_us))
            if wait_us or self.lines:
                return self._answer(Outcome.OPEN, now_us, wait_us or PROBE_LOOK_US)
            self.probe = (id_, worker)
            self.workers[worker] = now_us + self.lease_us
        if not self.lines and not self._wait_us(1, now_us):
            self._pass(id_, now_us)
            return self._answer(Outcome.PASSED, now_us, probe=self._probes(id_))
        share, own = SHARE_US // asker.weight, len(self.lines.get(tenant, ()))
        finish = self.finishes.get(tenant, self.virtual + share)
        position = own + 1 + self._ahead(tenant, finish + own * share)
        wait_us = self._wait_us(position, now_us)
        free = self.queue_max - len(self.waiting)
        if not asker.wait_max_us:
            return self._answer(Outcome.LATE, now_us, wait_us)
        if free <= 0 or own >= asker.weight * free:
            return self._answer(Outcome.FULL, now_us, wait_us)
        if wait_us > asker.wait_max_us:
            return self._answer(Outcome.LATE, now_us, wait_us)
        self.known.pop(id_, None)
        self.finishes[tenant], self.shares[tenant] = finish, share
        self.lines.setdefault(tenant, []).append(id_)
        self.waiting[id_] = Waiter(tenant, worker, now_us + asker.wait_max_us + self.lease_us)
        self.workers[worker] = now_us + self.lease_us
        return self._answer(Outcome.WAITING, now_us, wait_us, position)

    def left(self, now_us: int) -> Left:
        """Return how many more calls the plan limit lets through."""
        per_hour, per_min = (window.left(now_us) for window in self.windows)
        return Left(per_hour, per_min)

    def serve(self, worker: WorkerId, ids: list[str], now_us: int) -> Served:
        """Renew a worker's lease, let through who may pass, and say where these are."""
        self.workers[worker] = now_us + self.lease_us
        self._serve(now_us)
        next_us = -1
        if self.lines:
            next_us = max(self._resting_us(now_us), self._wait_us(1, now_us))
        return Served(next_us, self._state(now_us), tuple(self._place(id_, now_us) for id_ in ids))

    def leave(self, id_: str, now_us: int, *, unsent: bool) -> Departure:
        """Forget somebody; he does not come back."""
        was = self.known.get(id_)
        self.known[id_] = "left"
        if id_ in self.waiting:
            self._remove(id_)
            return Departure.WAITING
        if was == "dropped":
            return Departure.WAITING
        if not isinstance(was, int):
            return Departure.UNKNOWN
        if unsent:
            for window in self.windows:
                window.give_back(was)
        if self._probes(id_):
            self.probe = None
        return Departure.PASSED

    def hold(self, wait_us: int, now_us: int) -> None:
        self.held_us = max(self.held_us, now_us + wait_us)

    def trip(self, rest_us: int, now_us: int) -> None:
        if not self.open_us:
            self.open_us, self.rest_us = now_us + rest_us, rest_us

    def judge(self, id_: str, now_us: int, *, alive: bool, rest_max_us: int) -> None:
        if not self._probes(id_):
            return
        self.probe = None
        if alive:
            self.open_us = self.rest_us = 0
            self._serve(now_us)
        else:
            self.rest_us = min(2 * self.rest_us, rest_max_us)
            self.open_us = now_us + self.rest_us

    # --- steps -----------------------------------------------------------------------------------------------------

    def _serve(self, now_us: int) -> None:
        for worker in [name for name, until_us in self.workers.items() if until_us <= now_us]:
            del self.workers[worker]
            for id_ in [id_ for id_, waiter in self.waiting.items() if waiter.worker == worker]:
                self._drop(id_)
            if self.probe is not None and self.probe[1] == worker:
                self.probe = None
        granted = 0
        while self.lines and granted < GRANTS_MAX:
            if self._resting_us(now_us) or self._wait_us(1, now_us):
                return
            finish, tenant = min((finish, tenant) for tenant, finish in self.finishes.items())
            id_ = self.lines[tenant][0]
            waiter = self.waiting[id_]
            if waiter.until_us <= now_us:  # whoever let it wait has given it up long ago
                self._drop(id_)
                continue
            self._remove(id_)
            self.virtual = finish if self.lines else 0
            if tenant in self.lines:
                self.finishes[tenant] = finish + self.shares[tenant]
            self._pass(id_, now_us)
            granted += 1
            if self.open_us:
                self.probe = (id_, waiter.worker)

    def _pass(self, id_: str, now_us: int) -> None:
        latest = max((window.passes[-1] for window in self.windows if window.passes), default=0)
        time_us = max(now_us, latest + 1)  # each its own, so that one can be given back
        for window in self.windows:
            window.fill(time_us)
        self.known[id_] = time_us

    def _drop(self, id_: str) -> None:
        self._remove(id_)
        self.known[id_] = "dropped"

    def _remove(self, id_: str) -> None:
        tenant = self.waiting.pop(id_).tenant
        line = self.lines[tenant]
        line.remove(id_)
        if not line:
            del self.lines[tenant], self.finishes[tenant], self.shares[tenant]
        if not self.lines:
            self.virtual = 0

    # --- how it stands ---------------------------------------------------------------------------------------------

    def _wait_us(self, number: int, now_us: int) -> int:
        return max(0, self.held_us - now_us, *(window.wait_us(number, now_us) for window in self.windows))

    def _resting_us(self, now_us: int) -> int:
        """Return how long the breaker lets nobody through; 0: it is closed, or a probe may go."""
        if not self.open_us:
            return 0
        if now_us < self.open_us:
            return self.open_us - now_us
        return PROBE_LOOK_US if self.probe is not None else 0

    def _probes(self, id_: str) -> bool:
        return self.probe is not None and self.probe[0] == id_

    def _state(self, now_us: int) -> State:
        if self.open_us:
            return State.OPEN
        if self.held_us > now_us:
            return State.HELD
        return State.BUSY if self.lines else State.CLEAR

    def _ahead(self, tenant: TenantId, finish: int) -> int:
        """Return how many calls of other tenants go before one of this tenant that ends at a virtual time."""
        count = 0
        for other, head in self.finishes.items():
            if other != tenant and head <= finish:
                shares, rest = divmod(finish - head, self.shares[other])
                before = shares + 1 if rest or other < tenant else shares
                count += min(before, len(self.lines[other]))
        return count

    def _place(self, id_: str, now_us: int) -> Place:
        was = self.known.get(id_)
        if isinstance(was, int):
            return Place(True, self._probes(id_), 0, 0)
        if id_ not in self.waiting:
            return Place(False, False, FORGOTTEN, 0)
        tenant = self.waiting[id_].tenant
        own = self.lines[tenant].index(id_)
        finish = self.finishes[tenant] + own * self.shares[tenant]
        position = own + 1 + self._ahead(tenant, finish)
        return Place(False, False, position, self._wait_us(position, now_us))

    def _answer(
        self, outcome: Outcome, now_us: int, wait_us: int = 0, position: int = 0, *, probe: bool = False
    ) -> Answer:
        return Answer(outcome, wait_us, position, probe, self._state(now_us))
