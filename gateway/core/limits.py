"""Limits: what a tenant, a user, a persona or an address may use, and the port that decides on them.

Four kinds of rule, all in whole numbers, times in microseconds:

- a *rate* of requests, and *tokens* a minute, both by GCRA in the form of a leaky bucket as a meter (ITU-T I.371,
  annex A: the form that needs no rounding): what is taken fills the bucket, which drains at ``limit`` a period;
- *slots*, of which each running turn holds one under a lease that its owner renews;
- a *budget* of tokens up to the end of a calendar day or month.

``limit_books`` has the rules themselves; the store has them as a script, and a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from gateway.core.identity import TenantId

ROUNDING_S: Final = 1e-6  # a wait below this is an interval that is no exact number, not a request too many
US_PER_S: Final = 1_000_000
REQUESTS_PER_MIN_MAX: Final = 6_000_000
CONCURRENT_TURNS_MAX: Final = 1_000_000
LIMIT_MAX: Final = 100_000_000  # of rates and tokens a minute: limit times period must fit a double's 53 bits
LEVEL_MAX: Final = 8 * 10**15  # of a bucket, however absurd the tokens that a vendor tells
BUDGET_MAX: Final = 10**15
SLOT_WAIT_US: Final = US_PER_S  # nobody knows when a turn ends: come back after this
SLOT_LEASE_US: Final = 6 * US_PER_S  # a slot whose holder is gone is free again after this
COMPLETION_UNKNOWN: Final = 1024  # tokens of an answer, as long as too few have been seen
COMPLETIONS_KEPT: Final = 64  # of a persona, for their 90th percentile …
COMPLETIONS_MIN: Final = 8  # … which is known from this many on


class Kind(StrEnum):
    """How a rule counts."""

    RATE = "r"
    TOKENS = "t"
    SLOTS = "s"
    BUDGET = "b"


class Rule(NamedTuple):
    """One limit. ``key`` names its count and must hold no user id and no address in clear.

    ``period_us`` is the period of a rate or of tokens a minute, the end of a budget's period (Unix time), 0 for slots.
    """

    name: str
    key: str
    kind: Kind
    limit: int
    period_us: int


class Work(NamedTuple):
    """What a turn is going to use, as far as the asker knows: the rest is remembered where the limits are."""

    conversation_id: str
    persona: str
    message_tokens: int


class Ask(NamedTuple):
    """A request for admission under all of its rules. The same ``id`` again gets the same answer and charges once.

    Budgets hold for one calendar period, so they come with the span of time (Unix, microseconds) in which they may be
    used; ``work`` is given for turns only.
    """

    id: str
    rules: Sequence[Rule]
    work: Work | None = None
    since_us: int = 0
    until_us: int = 0


class Quota(NamedTuple):
    """How a rule stands after a decision; ``reset_us`` is until it is whole again, or has one more if it has none."""

    rule: Rule
    remaining: int
    reset_us: int


class Decision(NamedTuple):
    """``refused`` is the rule that refused, the one with the longest wait (None: admitted). A refusal charges nothing.

    ``tokens`` were reserved, the estimate or what a budget had left of it, ``prompt_tokens`` of them for the prompt.
    ``stale`` says that nothing was decided, because a budget's period is over at ``now_us``: ask with the next one's.
    """

    refused: Rule | None
    wait_us: int
    tokens: int
    prompt_tokens: int
    now_us: int
    quotas: tuple[Quota, ...]
    stale: bool = False


class Slot(NamedTuple):
    """A slot that a turn holds: the key of its rule and the turn."""

    key: str
    id: str


class Limiter(Protocol):
    """Decides all limits of a request of one tenant together, charging all or none. Raises store_unavailable.

    What a turn was charged is corrected to its settlement by the event log and the ledger, in the step that writes it.
    """

    async def admit(self, tenant: TenantId, ask: Ask) -> Decision: ...

    async def check(self) -> None:
        """Return if the store answers; for a request that no limit is asked about."""
        ...

    async def extend(self, tenant: TenantId, request_id: str, tokens: int) -> int:
        """Reserve up to ``tokens`` in all for an admitted turn; return what is reserved now, all budgets heeded."""
        ...

    async def undo(self, tenant: TenantId, request_id: str) -> None:
        """Give everything back that a request was charged; safe to repeat."""
        ...

    async def renew(self, tenant: TenantId, slots: Sequence[Slot]) -> None:
        """Renew the leases of slots, many in one call."""
        ...

    async def spent(self, tenant: TenantId, keys: Sequence[str]) -> Sequence[int]:
        """Return how much of some budgets, by the keys of their rules, is used up or reserved by running turns."""
        ...

    async def sweep(self, tenant: TenantId) -> int:
        """Give back what was charged for turns that never began, as when their worker died; return how many."""
        ...


def gcra(tat_s: float, now_s: float, limit: float, period_s: float) -> tuple[float, float]:
    """Pace something within one process, by the theoretical arrival time (TAT) of the next request.

    Return (the TAT after admitting, seconds to wait); admit when the wait is 0, else keep the old TAT.
    """
    interval_s = period_s / limit
    new_tat_s = max(tat_s, now_s) + interval_s
    wait_s = new_tat_s - period_s - now_s
    return new_tat_s, wait_s if wait_s > ROUNDING_S else 0.0


def percentile_90(completions: Sequence[int]) -> int | None:
    """Return the 90th percentile (nearest rank) of what answers cost, or None while too few are known."""
    if len(completions) < COMPLETIONS_MIN:
        return None
    return sorted(completions)[-(-9 * len(completions) // 10) - 1]
