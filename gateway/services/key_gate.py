"""One vendor key's gate in this worker: who waits here for it, and what the vendor's answers say of its health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.errors import Code, GatewayError
from gateway.core.gate import FORGOTTEN, Answer, Asker, Gate, Outcome, Place, State
from gateway.core.limits import US_PER_S
from gateway.core.vendor_keys import KeyLabel
from gateway.services.passage import Passage
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.telemetry.vendor_gate import VendorGateMetrics

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # a worker that waits looks this often at least: five times a lease
LOOK_MIN_S: Final = 0.02
PLACES_S: Final = 2.0  # between two looks that ask for places: the dearest, 0.8 ms of the store for 100 of 10 tenants
AT_ONCE: Final = 100  # waiters that one call asks for
LEAVE_ATTEMPTS: Final = 40
LEAVE_PAUSE_S: Final = 0.25
HOLD_S: Final = 5.0  # after a refusal that does not say when to come back
# An answer that never began for one of these says that the vendor fails; others, that it is there, or nothing of it.
FAILURES: Final = frozenset(
    {
        Code.UPSTREAM_UNAVAILABLE,
        Code.UPSTREAM_TIMEOUT,
        Code.UPSTREAM_ERROR,
        Code.UPSTREAM_RESET,
        Code.UPSTREAM_TRUNCATED,
        Code.UPSTREAM_MALFORMED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """How long anybody may wait, after how many failures in a row the breaker opens, and how long it rests."""

    wait_s: float = 90.0
    failures_max: int = 5
    rest_s: float = 5.0
    rest_max_s: float = 60.0


class KeyGate:
    """One vendor key, asked for in the store only while it has a limit or something is in force. ``aclose`` it."""

    def __init__(
        self, label: KeyLabel, gate: Gate, metrics: VendorGateMetrics, rules: GateRules, limited: Callable[[], bool]
    ) -> None:
        self.label = label
        self.rules = rules
        self._gate = gate
        self._metrics = metrics
        self._limited = limited
        self._state = State.CLEAR
        self._away = False
        self._failures = self._heard = 0
        self._waiting: dict[str, tuple[Passage, float]] = {}  # with the time when its wait began
        self._probe: Passage | None = None
        self._look_now = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def free(self) -> bool:
        """Whether a call passes without asking anybody."""
        return self._state is State.CLEAR and not self._limited()

    async def aclose(self) -> None:
        """Wait until the store knows what this worker told last, for a moment."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in (*self._tasks, *((self._looking,) if self._looking is not None else ())):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def enter(self, asker: Asker) -> Passage | Answer:
        """Pass or wait; what is returned else says why not. Raises store_unavailable; what may be charged is undone."""
        entering = asyncio.get_running_loop().create_task(self._gate.enter(self.label, asker))
        self._keep(entering)
        heard = self._heard
        try:
            answer = await asyncio.shield(entering)
        except asyncio.CancelledError:
            self._spawn(self._undo(entering, asker.id))
            raise
        except GatewayError:
            self._spawn(self._leave(asker.id, unsent=True))  # done or not, nobody knows
            raise
        self._note(answer.state, heard)
        if answer.outcome not in (Outcome.PASSED, Outcome.WAITING):
            return answer
        passage = Passage(self, asker, answer)
        if not passage.passed:
            passage.place = answer.position, answer.wait_us / US_PER_S
            self._waiting[asker.id] = passage, asyncio.get_running_loop().time()
            self._metrics.waiting(self.label, 1)
            self._look()
        else:
            self._metrics.waited(asker.tenant, 0.0)
            if answer.probe:
                self._probes(passage)
        return passage

    def pass_free(self, asker: Asker) -> Passage:
        """Pass where nothing is in the way: nobody is asked and nothing charged."""
        return Passage(self, asker)

    def late(self) -> GatewayError:
        """Say why somebody waited in vain."""
        if self._away:
            return GatewayError(Code.STORE_UNAVAILABLE, retry_after_s=1.0)
        return GatewayError(
            Code.UPSTREAM_OVERLOADED,
            "Hyperleap had no room for this in time (plan limit).",
            retry_after_s=LOOK_S,
        )

    # --- what the vendor's answers say -----------------------------------------------------------------------------

    def succeed(self, passage: Passage) -> None:
        self._failures = 0
        if passage.probe:
            self._judged(passage, alive=True)

    def judge(self, passage: Passage, error: GatewayError, *, unsent: bool) -> None:
        status = error.vendor_status
        if status == 429 or (status == 503 and error.retry_after_s is not None):
            self._metrics.held(self.label)
            if self._state is not State.OPEN:
                self.changed(State.HELD)
            wait_us = int((HOLD_S if error.retry_after_s is None else error.retry_after_s) * US_PER_S)
            self._spawn(self._gate.hold(self.label, wait_us))
            self.succeed(passage)
        elif error.code in FAILURES:
            self._failures += 1
            if passage.probe:
                self._judged(passage, alive=False, unsent=unsent)
                return
            if self._failures >= self.rules.failures_max:
                self._failures = 0
                self.changed(State.OPEN)
                self._spawn(self._gate.trip(self.label, int(self.rules.rest_s * US_PER_S)))
            if unsent:
                self.leave(passage, unsent=True)
        elif status is not None:
            self.succeed(passage)  # it is there, and refuses
        else:
            self.leave(passage, unsent=unsent)

    def leave(self, passage: Passage, *, unsent: bool) -> None:
        waited = self._waiting.pop(passage.asker.id, None)
        if waited is not None:
            self._metrics.waiting(self.label, -1)
        if passage.charged and (unsent or waited is not None or passage.probe):
            self._spawn(self._leave(passage.asker.id, unsent=unsent))
        if passage is self._probe:
            self._probe = None

    def _judged(self, passage: Passage, *, alive: bool, unsent: bool = False) -> None:
        if passage is self._probe:
            self._probe = None
        log_event(logger, logging.WARNING, "vendor.probed", key=self.label, alive=alive)

        async def judge() -> None:
            rest_max_us = int(self.rules.rest_max_s * US_PER_S)
            await self._gate.judge(self.label, passage.asker.id, alive=alive, rest_max_us=rest_max_us)
            if unsent:
                await self._leave(passage.asker.id, unsent=True)

        self._spawn(judge())

    # --- what the store says ---------------------------------------------------------------------------------------

    def passed(self, ids: Sequence[str], probe: str) -> None:
        """Take a word of the store's: these may go."""
        for id_ in ids:
            self._open(id_, probe=id_ == probe)

    def changed(self, state: State) -> None:
        """Take a word of the store's; unless it is clear, ask there from now on, also where there is no limit."""
        self._heard += 1
        self._note(state)
        self._look_now.set()

    def _note(self, state: State, heard: int | None = None) -> None:
        """Take in how the gate stands; not that it is clear where a word has come since ``heard`` words had."""
        if state is State.CLEAR and heard not in (None, self._heard):
            return
        if (state is State.OPEN) != (self._state is State.OPEN):
            self._metrics.breaker(self.label, 1 if state is State.OPEN else -1)
            log_event(logger, logging.WARNING, "vendor.breaker", key=self.label, open=state is State.OPEN)
        self._state = state

    def _open(self, id_: str, *, probe: bool) -> None:
        waited = self._waiting.pop(id_, None)
        if waited is not None:
            passage, since_s = waited
            if probe:
                self._probes(passage)
            passage.open(probe=probe)
            self._metrics.waiting(self.label, -1)
            self._metrics.waited(passage.asker.tenant, asyncio.get_running_loop().time() - since_s)

    def _probes(self, passage: Passage) -> None:
        """Keep the lease of a probe, so that nobody else probes while it is under way."""
        self._probe = passage
        self._look()

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Look at the queue whenever something may have changed, as long as somebody waits or probes here."""
        loop = asyncio.get_running_loop()
        wait_s, whole_at_s, places_at_s = 0.0, loop.time() + LOOK_S, loop.time() + PLACES_S
        while self._waiting or self._probe is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(LOOK_MIN_S, min(wait_s, LOOK_S))):
                    await self._look_now.wait()
            self._look_now.clear()
            now_s = loop.time()
            whole, places = now_s >= whole_at_s, now_s >= places_at_s
            if whole or places:
                whole_at_s = now_s + LOOK_S
            if places:
                places_at_s = now_s + PLACES_S
            ids = list(self._waiting)
            try:
                wait_s = await self._look_at(ids if whole or places or len(ids) <= AT_ONCE else [], places=places)
                self._away = False
            except GatewayError as error:
                self._away, wait_s = True, LOOK_S / 4
                throttled(logger, "gate.away", error=error, key=self.label)

    async def _look_at(self, ids: list[str], *, places: bool) -> float:
        """Have the queue served and take in where these stand; return when to look again, in seconds."""
        next_us = -1
        for first in range(0, max(1, len(ids)), AT_ONCE):
            some = ids[first : first + AT_ONCE]
            heard = self._heard
            served = await self._gate.serve(self.label, some, places=places)
            self._note(served.state, heard)
            next_us = served.next_us
            for id_, place in zip(some, served.places, strict=True):
                await self._take(id_, place)
        return LOOK_S if next_us < 0 else next_us / US_PER_S

    async def _take(self, id_: str, place: Place) -> None:
        """Take in where somebody stands; whom the store has lost joins anew, as long as he may wait."""
        waited = self._waiting.get(id_)
        if waited is None:
            return
        passage = waited[0]
        if place.passed:
            self._open(id_, probe=place.probe)
        elif place.position == FORGOTTEN:
            answer = await self._gate.enter(self.label, passage.asker)
            if answer.outcome is Outcome.PASSED:
                self._open(id_, probe=answer.probe)
            elif answer.outcome is not Outcome.WAITING:
                passage.refuse()
        elif place.position:
            passage.place = place.position, place.wait_us / US_PER_S
            passage.on_place()

    # --- tasks -----------------------------------------------------------------------------------------------------

    async def _undo(self, entering: asyncio.Task[Answer], id_: str) -> None:
        """Leave once it is known what was entered."""
        await asyncio.wait([entering])
        await self._leave(id_, unsent=True)

    async def _leave(self, id_: str, *, unsent: bool) -> None:
        """Leave, again while the store is away; a place runs out by itself where it stays away."""
        for _ in range(LEAVE_ATTEMPTS):
            with contextlib.suppress(GatewayError):
                await self._gate.leave(self.label, id_, unsent=unsent)
                return
            await asyncio.sleep(LEAVE_PAUSE_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def told() -> None:
            try:
                await work
            except GatewayError as error:
                throttled(logger, "gate.untold", error=error, key=self.label)

        self._keep(asyncio.get_running_loop().create_task(told()))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
