"""The ledger: one settlement a turn, written once, that says what the turn cost and how that is known."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import msgspec

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId, UserHash
from gateway.core.turn import TurnId, TurnState
from gateway.core.vendor_keys import KeyLabel

Source = Literal["reported", "read_back", "estimated"]


class Settlement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one turn cost. ``reason`` is the finish reason, stop reason or error code.

    ``source`` says where the tokens are from: the vendor's stream (``reported``), its copy of the conversation,
    looked up later (``read_back``), or the text that was sent and delivered (``estimated``).

    An estimate is a quarter of the characters, rounded up. Against a tokenizer whose tokens have one to eight
    characters it is at least a quarter of the true count of that text and at most one more than twice of it; in
    English it is usually within a quarter. What the vendor adds to the prompt (the persona, earlier messages) and
    what it made and nobody received is not in it.

    ``duration_s`` and ``first_token_s`` count from the turn's start, its wait for the vendor included. What is None
    by default is left out where it is kept: entries of earlier versions lack it, and earlier versions pass over it.
    """

    turn_id: TurnId
    conversation_id: ConversationId
    owner: UserHash
    persona: str
    state: TurnState
    reason: str
    message_id: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: Source
    duration_s: float
    ended_at: str
    vendor_key: KeyLabel | None = None  # by which it was last sent to the vendor; None: never, or by a lost worker
    first_token_s: float | None = None  # until its first text; None: there was none, or a lost worker saw it
    cost_micros: int | None = None  # in millionths of the currency; None: no price was in force
    currency: str | None = None


class Due(NamedTuple):
    """A turn whose tokens are to be looked up, as estimated so far; ``last`` says that no later try follows."""

    settlement: Settlement
    last: bool


class Ledger(Protocol):
    """The settlements of every tenant. Raises GatewayError(store_unavailable)."""

    async def due(self, tenant: TenantId, limit: int) -> list[Due]:
        """Take some turns whose tokens are to be looked up now; no other worker is given them meanwhile."""
        ...

    async def settle(self, tenant: TenantId, settlement: Settlement) -> bool:
        """Write a turn's settlement for good; False when it was written before, which stands."""
        ...

    async def add(self, tenant: TenantId, settlement: Settlement) -> bool:
        """Write the settlement of what was metered without being a turn, and correct its charge; False for a repeat.

        ``settlement.turn_id`` is the id that it was admitted under.
        """
        ...

    async def settled(self, tenant: TenantId, after: str | None, limit: int) -> list[tuple[str, Settlement]]:
        """Return a page of settlements, the oldest first, each with its cursor."""
        ...

    def cursor(self, at_s: float) -> str:
        """Return a cursor before everything that was written from a moment on (Unix time, by the store's clock)."""
        ...
