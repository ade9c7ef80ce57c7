"""The gate in front of the vendor: what its plan lets through for one key, who waits for it, and when nobody may pass.

A vendor key has one plan limit, however many tenants and workers share it. A call *passes* at once, or it *waits* in
the key's fair queue, or it is refused. ``gate_books`` has the rules themselves, exact and in memory; the store has them
as scripts, and a test holds the two against each other. All numbers are whole, times in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from gateway.core.identity import TenantId
from gateway.core.limits import US_PER_S
from gateway.core.vendor_keys import KeyLabel

# Calls that pass a period apart reach the vendor up to this much less apart: the ways there differ in length.
MARGIN_US: Final = US_PER_S
MINUTE_US: Final = 60 * US_PER_S + MARGIN_US
HOUR_US: Final = 3600 * US_PER_S + MARGIN_US
SHARE_US: Final = 1_000_000  # of virtual time: one call of a tenant of weight 1
LEASE_US: Final = 5 * US_PER_S  # a worker that has not been heard of for so long waits no more, and probes no more
PROBE_LOOK_US: Final = US_PER_S  # nobody knows when a probe is answered: ask again after this
GRANTS_MAX: Final = 100  # calls that one step lets through at most


class Asker(NamedTuple):
    """Who wants to pass: a turn, or another call under an id of its own. ``wait_max_us`` 0: now or not at all."""

    id: str
    tenant: TenantId
    weight: int
    wait_max_us: int


class Outcome(StrEnum):
    """What became of somebody who asked."""

    PASSED = "passed"
    WAITING = "waiting"
    FULL = "full"  # refused: too many wait, or too many of this tenant's
    LATE = "late"  # refused: it would wait for longer than it may
    OPEN = "open"  # refused: the breaker is open
    LEFT = "left"  # it has left before


class State(StrEnum):
    """What stands in the way beside the plan limit, the gravest of all. Unless clear, who has no limit asks too."""

    CLEAR = "clear"
    BUSY = "busy"  # somebody waits
    HELD = "held"  # the vendor has said when to come back
    OPEN = "open"  # the breaker is


class Answer(NamedTuple):
    """``wait_us`` and ``position`` (1: the next) are of one who waits, ``wait_us`` also of one who is refused.

    ``probe``: this call decides whether the breaker closes; say how it went.
    """

    outcome: Outcome
    wait_us: int
    position: int
    probe: bool
    state: State


FORGOTTEN: Final = -1


class Place(NamedTuple):
    """Where somebody stands who was let wait. ``position`` 0: not asked for; ``FORGOTTEN``: the store has lost him."""

    passed: bool
    probe: bool
    position: int
    wait_us: int


class Served(NamedTuple):
    """What a look at the queue found. ``next_us`` is when to look again at the latest; -1: nobody waits."""

    next_us: int
    state: State
    places: tuple[Place, ...]


class Left(NamedTuple):
    """How many more calls a key's plan limit lets through now; None: there is no such limit."""

    per_hour: int | None
    per_min: int | None


class Departure(StrEnum):
    """What somebody was who has left."""

    WAITING = "waiting"  # and was never let through
    PASSED = "passed"
    UNKNOWN = "unknown"


class Gate(Protocol):
    """The gates of all vendor keys, as one worker sees them. Raises GatewayError(store_unavailable)."""

    async def enter(self, label: KeyLabel, asker: Asker) -> Answer:
        """Pass, join the queue, or be refused, in one step. The same id again gets the same place, charged once.

        Who waits must look (``serve``) at least every lease: a worker that is gone must not clog the queue.
        """
        ...

    async def serve(self, label: KeyLabel, ids: Sequence[str], *, places: bool) -> Served:
        """Let through who may pass, whoever they are, and say where these are; with ``places`` exactly."""
        ...

    async def leave(self, label: KeyLabel, id_: str, *, unsent: bool) -> Departure:
        """Wait no more, and be let in under this id never again; ``unsent`` gives back what was charged for it."""
        ...

    async def left(self, label: KeyLabel) -> Left:
        """Return what is left of the plan limit, for all workers together."""
        ...

    async def hold(self, label: KeyLabel, wait_us: int) -> None:
        """Let nobody through before then; of several the latest holds."""
        ...

    async def trip(self, label: KeyLabel, rest_us: int) -> None:
        """Open the breaker, unless it is open: nobody passes for ``rest_us``, and then one as a probe."""
        ...

    async def judge(self, label: KeyLabel, id_: str, *, alive: bool, rest_max_us: int) -> None:
        """Say how the probe went: close the breaker, or leave it open for twice as long as before."""
        ...


class GateHearer(Protocol):
    """Takes the gates' words to this worker. Methods return quickly and do not raise. Anything may be lost."""

    def passed(self, label: KeyLabel, ids: Sequence[str], probe: str, /) -> None: ...

    def changed(self, label: KeyLabel, state: State, /) -> None:
        """A hold or a breaker has come into force, or a breaker is closed."""
