"""Turns that run just now, as an operator sees them: whose, where and how far, never what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.events import TurnQueued, TurnStarted
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.turn import TurnId


class Stage(StrEnum):
    """How far a running turn is."""

    QUEUED = "queued"  # in line for room with a vendor key
    WAITING = "waiting"  # for the first word of its answer
    STREAMING = "streaming"
    STOPPING = "stopping"  # somebody asked for it; its worker has yet to do it
    LOST = "lost"  # nobody owns it: a worker takes it over soon


class LiveTurn(NamedTuple):
    """A running turn as the store has it, which is an append interval behind at most.

    ``position`` is that of its log's last entry, so about as many characters of its answer are written.
    ``started_at_s`` is None where the store has lost the turn's first record.
    """

    turn_id: TurnId
    conversation_id: ConversationId
    owner: UserHash
    persona: str
    worker: WorkerId
    started_at_s: float | None
    stage: Stage
    position: int


def stage_of(*, leased: bool, stopping: bool, last_event: str) -> Stage:
    """Tell how far a turn is from what is stored of it; ``last_event`` is the name of its log's last entry."""
    if not leased:
        return Stage.LOST
    if stopping:
        return Stage.STOPPING
    match last_event:
        case TurnQueued.name:
            return Stage.QUEUED
        case TurnStarted.name | "":
            return Stage.WAITING
        case _:
            return Stage.STREAMING


class LiveTurnStore(Protocol):
    """The running turns of every worker. Raises GatewayError(store_unavailable)."""

    async def running(self, tenant: TenantId) -> list[TurnId]:
        """Return the turns of a tenant that run, in the order of their ids; ``RUNNING_MAX`` of them at most."""
        ...

    async def look(self, tenant: TenantId, turn_ids: Sequence[TurnId]) -> list[LiveTurn]:
        """Return those of some turns of a tenant that still run."""
        ...

    async def ask_readers(self, worker: WorkerId, turn_ids: Sequence[TurnId]) -> None:
        """Ask a worker how many read some of its turns; it tells that this worker's hearer, or nothing comes."""
        ...

    async def tell_readers(self, worker: WorkerId, readers: Mapping[TurnId, int]) -> None:
        """Answer another worker's question."""
        ...


class ReadersHearer(Protocol):
    """Takes questions and answers about readers. Methods return quickly and do not raise. Anything may be lost."""

    def readers_asked(self, asker: WorkerId, turn_ids: Sequence[TurnId], /) -> None: ...

    def readers_told(self, readers: Mapping[TurnId, int], /) -> None: ...
