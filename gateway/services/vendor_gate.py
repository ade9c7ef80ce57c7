"""Who may call Hyperleap now: the way of every call, with any of its tenant's vendor keys, through that key's gate."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.core.gate import Answer, Asker, Departure, Gate, Left, Outcome, State
from gateway.core.gate_books import GateBooks
from gateway.core.identity import Tenant, WorkerId
from gateway.core.limits import US_PER_S
from gateway.core.plan import StoreAway
from gateway.core.vendor_keys import KeyLabel, PlanLimit, VendorKeys
from gateway.services.key_gate import GateRules, KeyGate
from gateway.services.passage import Passage
from gateway.telemetry.vendor_gate import VendorGateMetrics, Window

JITTER_SHARE: Final = 0.1  # of the wait that a refusal names, so that those refused together come back apart …
JITTER_MIN_S: Final = 0.5
RETRY_MIN_S: Final = 1.0
TELL_S: Final = 2.0  # between two looks at what is left of a key's plan limit, which many tenants may share
WORDS: Final = {
    Outcome.FULL: "Too many wait for Hyperleap already.",
    Outcome.LATE: "Hyperleap has no room for this soon enough (plan limit).",
    Outcome.OPEN: "Hyperleap has failed several times in a row; it is asked again in a moment.",
    Outcome.LEFT: "This has been given up already.",
}


class VendorGate:
    """The gates of all vendor keys in this worker; a GateHearer. ``aclose`` it after the turns.

    A key that has no limit, and for which nothing is in force, costs nothing. Where Hyperleap has been told to hold off
    or the breaker is open, the store's word reaches every worker, and each asks the store from then on.
    """

    def __init__(
        self,
        gate: Gate,
        metrics: VendorGateMetrics,
        rules: GateRules,
        *,
        keys: VendorKeys,
        limit_of: Callable[[KeyLabel], PlanLimit],
    ) -> None:
        self._gate = gate
        self._metrics = metrics
        self._rules = rules
        self._limit_of = limit_of
        self._ring = keys
        self._keys: dict[KeyLabel, KeyGate] = {}
        self._told_at_s: dict[KeyLabel, float] = {}
        self._alone: dict[KeyLabel, GateBooks] = {}  # while the store is away

    async def aclose(self) -> None:
        for key in self._keys.values():
            await key.aclose()

    def enter_free(self, tenant: Tenant, id_: str) -> Passage | None:
        """Pass with the best of the tenant's keys where nothing is in the way, so that nobody need be asked; or None.

        Nothing is charged by it. The caller says by it how the call went, as with one from ``enter``.
        """
        key = self._key(self._ring.candidates(tenant.vendor_keys)[0])
        return key.pass_free(self._asker(tenant, id_)) if key.free else None

    async def enter(
        self, tenant: Tenant, id_: str, *, ring: Sequence[KeyLabel] | None = None, waits: bool = True
    ) -> Passage:
        """Pass with a key of the tenant's (or of ``ring``), or join its queue.

        The caller must ``wait`` for its passage before it sends, and say by it how the call went.

        Raises GatewayError: upstream_overloaded when it would have to wait too long (without ``waits`` at all), too
        many wait, or the breaker is open; store_unavailable. Nothing is charged then. Safe to cancel.
        """
        first, *others = self._ring.candidates(ring or tenant.vendor_keys)
        keys = [self._key(label) for label in (first, *filter(self._ring.works, others))]
        asker = self._asker(tenant, id_) if waits else self._asker(tenant, id_)._replace(wait_max_us=0)
        # The first that lets it through at once, else the line that is told to be the shortest.
        lines: list[tuple[bool, int, KeyGate]] = []
        for key in keys:
            if key.free:
                return key.pass_free(asker)
            if len(keys) > 1:
                found = await key.enter(asker._replace(wait_max_us=0))
                if isinstance(found, Passage):
                    return found
                lines.append((found.outcome is Outcome.OPEN, found.wait_us, key))
        nearest = min(lines, key=lambda line: line[:2])[2] if lines else keys[0]
        found = await nearest.enter(asker)
        if isinstance(found, Passage):
            return found
        self._metrics.refused(nearest.label, found.outcome)
        raise _refusal(found)

    @contextlib.asynccontextmanager
    async def call(
        self, tenant: Tenant, *, ring: Sequence[KeyLabel] | None = None, waits: bool = True
    ) -> AsyncIterator[KeyLabel]:
        """Make one call that is no turn, by the key that is given; what it raises is taken in. Raises as ``enter``.

        While the store is away, a tenant whose plan goes on without it does so under this worker's share of the limit.
        """
        try:
            passage = await self.enter(tenant, uuid.uuid4().hex, ring=ring, waits=waits)
        except GatewayError as error:
            if error.code is not Code.STORE_UNAVAILABLE or tenant.plan.store_away is StoreAway.CLOSED:
                raise
            passage = self._pass_alone(tenant, ring or tenant.vendor_keys)
        try:
            await passage.wait()
            yield passage.key
        except GatewayError as error:
            passage.failed(error)
            raise
        except BaseException:
            passage.leave(unsent=not passage.passed)
            raise
        passage.answered()

    async def sweep(self, tenant: Tenant) -> None:
        """Tell the metrics what is left of the plan limits of a tenant's keys, unless that was told just now.

        Raises store_unavailable.
        """
        now_s = time.monotonic()
        for label in tenant.vendor_keys:
            if now_s < self._told_at_s.get(label, float("-inf")) + TELL_S:
                continue
            self._told_at_s[label] = now_s
            limit = self._limit_of(label)
            left = await self._gate.left(label) if limit != PlanLimit() else Left(None, None)
            known: dict[Window, tuple[int, int]] = {}
            if limit.per_hour is not None and left.per_hour is not None:
                known["hour"] = limit.per_hour, left.per_hour
            if limit.per_min is not None and left.per_min is not None:
                known["minute"] = limit.per_min, left.per_min
            self._metrics.limits_known(label, known)

    async def never_sent(self, tenant: Tenant, turn_id: str) -> bool:
        """Whether a lost worker's turn was still waiting, so that Hyperleap certainly never saw it.

        It never passes from now on. False where that is not known. Raises store_unavailable.
        """
        departures = [await self._gate.leave(label, turn_id, unsent=False) for label in tenant.vendor_keys]
        return Departure.WAITING in departures and Departure.PASSED not in departures

    # --- GateHearer ------------------------------------------------------------------------------------------------

    def passed(self, label: KeyLabel, ids: Sequence[str], probe: str, /) -> None:
        self._key(label).passed(ids, probe)

    def changed(self, label: KeyLabel, state: State, /) -> None:
        self._key(label).changed(state)

    def _asker(self, tenant: Tenant, id_: str) -> Asker:
        return Asker(id_, tenant.id, tenant.weight, int(self._rules.wait_s * US_PER_S))

    def _key(self, label: KeyLabel) -> KeyGate:
        key = self._keys.get(label)
        if key is None:
            key = self._keys[label] = KeyGate(
                label, self._gate, self._metrics, self._rules, lambda: self._limit_of(label) != PlanLimit()
            )
        return key

    def _pass_alone(self, tenant: Tenant, ring: Sequence[KeyLabel]) -> Passage:
        """Decide without the store, under this worker's share of the limit; nobody waits then."""
        label = self._ring.candidates(ring)[0]
        share = tenant.plan.away_share
        whole = self._limit_of(label)
        limit = PlanLimit(*(each and max(1, int(each * share)) for each in (whole.per_hour, whole.per_min)))
        books = self._alone.get(label)
        if books is None or books.limit != limit:
            books = self._alone[label] = GateBooks(limit, 0)
        asker = Asker(uuid.uuid4().hex, tenant.id, tenant.weight, 0)
        answer = books.enter(asker, WorkerId(""), time.time_ns() // 1000)
        books.known.clear()  # no id comes again
        if answer.outcome is not Outcome.PASSED:
            raise _refusal(answer)
        return self._key(label).pass_free(asker)


def _refusal(answer: Answer) -> GatewayError:
    wait_s = max(RETRY_MIN_S, answer.wait_us / US_PER_S)
    jitter_s = random.uniform(0, max(JITTER_MIN_S, wait_s * JITTER_SHARE))  # noqa: S311 - spreads load
    return GatewayError(Code.UPSTREAM_OVERLOADED, WORDS[answer.outcome], retry_after_s=wait_s + jitter_s)
