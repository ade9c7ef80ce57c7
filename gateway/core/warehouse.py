"""The warehouse: a database of the operator's own, to which what the ledger says is exported for good.

The ledger keeps a tenant's settlements in a stream. A ``Mark`` is a place in it, and the warehouse keeps a tenant's
mark in the same transaction as the rows before it: whoever exports next, and whatever died, begins there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from gateway.core.identity import TenantId


class Trouble(StrEnum):
    """Why the warehouse took nothing."""

    AWAY = "away"  # it cannot be reached, or went away in the middle
    REFUSED = "refused"  # one side does not let the other in: password, database, certificate
    READ_ONLY = "read_only"  # a standby, or made read-only
    FORBIDDEN = "forbidden"  # the role lacks a privilege
    NEWER = "newer"  # a newer gateway has changed its schema
    STALE = "stale"  # somebody else has exported meanwhile, or it went back in time
    UNSET = "unset"  # what the settings say of it cannot be used
    FAILED = "failed"  # anything else that it said


class WarehouseError(Exception):
    """The warehouse took nothing of what it was given; the words name it, and hold neither passwords nor rows."""

    def __init__(self, trouble: Trouble, words: str) -> None:
        self.trouble = trouble
        super().__init__(words)


class Mark(NamedTuple):
    """An entry of a tenant's stream. The turn is named too: a stream that was lost may give an id a second time."""

    entry: str
    turn_id: str


class Line(NamedTuple):
    """One settlement as the ledger keeps it: the id of its entry, and JSON."""

    entry: str
    body: bytes


class Page(NamedTuple):
    """The next settlements of a tenant, and the mark that the warehouse has of it (None: none yet)."""

    tenant: TenantId
    before: Mark | None
    lines: Sequence[Line]

    @property
    def last(self) -> Mark:
        """The mark behind the page, which must not be empty."""
        return Mark(self.lines[-1].entry, turn_of(self.lines[-1].body))


class Taken(NamedTuple):
    """What became of some pages: settlements written or changed (others were there), and lines set aside."""

    written: int
    unreadable: int


class Warehouse(Protocol):
    """Takes settlements for good. Every method raises WarehouseError; cancelling one leaves nothing half-done."""

    async def open(self) -> Mapping[TenantId, Mark]:
        """Connect anew, make or renew the tables if need be, and return every tenant's mark."""
        ...

    async def take(self, pages: Sequence[Page]) -> Taken:
        """Write pages of different tenants and move their marks, each page with its mark in one transaction.

        A settlement that is there already is written again only where it differs; one that the vendor reported is
        never replaced by one that is known less well. A line that is no settlement is set aside. Raises STALE when a
        mark is not the one that its page follows: then ``open`` again, and go on from the marks.
        """
        ...

    async def aclose(self) -> None:
        """Safe to repeat."""
        ...


class Reading(NamedTuple):
    """What a stream holds behind a mark. ``intact`` is False when it does not hold the mark itself any more."""

    intact: bool
    lines: Sequence[Line]


class Post(NamedTuple):
    """What the store says of the one post of an exporter that there is, by the store's clock."""

    held: bool  # by the worker that asked
    now_s: float
    complete_s: float  # all that was settled before this has been exported


class LedgerTap(Protocol):
    """The ledger as an exporter sees it. Raises GatewayError(store_unavailable)."""

    async def take_post(self, *, complete_s: float | None = None) -> Post:
        """Take or keep the post, unless another worker has it, and note how far the export is complete."""
        ...

    async def leave_post(self) -> None:
        """Let another worker take over at once."""
        ...

    async def tenants(self, known: Collection[TenantId]) -> Sequence[TenantId]:
        """Return whoever may have settlements: tenants known now, and known to any worker while they were kept."""
        ...

    async def read(self, tenant: TenantId, after: Mark | None, limit: int) -> Reading:
        """Return the settlements behind a mark, or the oldest ones, in their order."""
        ...


class _Turn(msgspec.Struct):
    turn_id: str


_turn = msgspec.json.Decoder(_Turn)


def turn_of(body: bytes) -> str:
    """Return the turn that a settlement is of; empty for what is none."""
    try:
        return _turn.decode(body).turn_id
    except msgspec.DecodeError:
        return ""
