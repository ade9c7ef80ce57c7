"""A turn that this worker owns: its live log and journal, who reads it, and how its ending is settled.

Where the events come from is the subclass's: ``turn`` takes the vendor's stream, ``rescue`` the vendor's copy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.core.conversation import Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    ENDING_STATE,
    Append,
    Ending,
    Entry,
    EventLog,
    Fenced,
    Heading,
    LogBehind,
    LogLost,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnStopped,
)
from gateway.core.identity import Disconnect, Principal, Tenant, WorkerId
from gateway.core.ledger import Settlement
from gateway.core.revocation import Holder
from gateway.core.turn import StopReason, TurnId, TurnState, Usage, estimate_usage
from gateway.core.vendor_keys import KeyLabel
from gateway.services.clock import timestamp, unix_s
from gateway.services.journal import Journal
from gateway.services.live_log import LiveLog
from gateway.services.presence import Presence
from gateway.services.showing import Showing
from gateway.services.vendor import Vendor
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.spans import NOWHERE, Span
from gateway.telemetry.tracing import OFF, Tracing, example

logger = logging.getLogger(__name__)

FINISH_ATTEMPTS: Final = 20  # about 10 s of a store that is away before the ending is shown unsaved
FINISH_PAUSE_S: Final = 0.5
UNUSED: Final = Usage(0, 0, 0, "estimated")  # of a message that the vendor did not take: never sent, or refused


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRules:
    """Bounds of a turn. Sizes are code points."""

    answer_max_chars: int = 1_000_000
    message_max_chars: int = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPorts:
    """What a turn works with: the vendor, the log and its journal, other workers, the metrics, and its bounds."""

    vendor: Vendor
    log: EventLog
    journal: Journal
    showing: Showing
    metrics: Metrics
    rules: TurnRules
    tracing: Tracing = OFF


class OwnedTurn(ABC):
    """One turn in its owner's hands. ``run`` brings it to its ending; only that task writes it."""

    # More attributes than Python keeps without a dictionary of each instance's own: 1.5 KiB, and slower to read.
    __slots__ = (
        "_awaited",
        "_citations",
        "_done",
        "_ending_position",
        "_fenced",
        "_finish_reason",
        "_first_text_s",
        "_followed_at_s",
        "_handed_over",
        "_journal_entry",
        "_message_id",
        "_outlet",
        "_over",
        "_ports",
        "_run_id",
        "_settled",
        "_stop",
        "_usage",
        "_vendor_key",
        "epoch",
        "first_token_s",
        "heading",
        "holder",
        "live",
        "presence",
        "queued_s",
        "span",
        "started_at_s",
        "tenant",
        "turn_id",
    )

    def __init__(
        self,
        ports: TurnPorts,
        tenant: Tenant,
        heading: Heading,
        stored: Sequence[Entry],
        *,
        epoch: int,
        disconnect: Disconnect,
    ) -> None:
        self.tenant = tenant
        self.heading = heading
        self.turn_id: TurnId = heading.turn_id
        self.live = LiveLog(heading.turn_id, heading.conversation_id, stored)
        self.started_at_s = time.monotonic()
        self.holder: Holder | None = None  # who started it, where it was started on this worker
        self.span: Span = NOWHERE  # set by who sets it going
        self.queued_s: float | None = None  # how long it waited for its way to the vendor, where it had to
        self.first_token_s: float | None = None  # from when it was sent, where it had one here
        self.presence = Presence(disconnect, self.stop, tenant.id, ports.metrics.turns)
        self._ports = ports
        self.epoch = epoch
        self._outlet = ports.showing.outlet(self.live)
        self._followed_at_s = 0.0
        self._journal_entry = ports.journal.open(tenant.id, self.live, epoch=epoch, owner=self)
        self._over: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self._stop: StopReason | None = None
        self._fenced = False
        self._handed_over = False
        self._message_id: str | None = None
        self._run_id: str | None = None
        self._finish_reason: str | None = None
        self._first_text_s: float | None = None  # on the clock of started_at_s
        self._vendor_key: KeyLabel | None = None
        self._usage: Usage | None = None
        self._citations: list[dict[str, Any]] = []
        self._done = False
        self._awaited: asyncio.Event | None = None  # made by who waits; 800 bytes
        self._settled: tuple[Ending, Message, Settlement] | None = None
        self._ending_position = 0  # known once it is settled

    @abstractmethod
    async def run(self) -> None:
        """Bring the turn to its ending and settle it."""

    async def ended(self) -> None:
        """Wait until the ending has been shown, or another worker has the turn."""
        if not self._done:
            if self._awaited is None:
                self._awaited = asyncio.Event()
            await self._awaited.wait()

    # --- what reaches it -----------------------------------------------------------------------------------------

    @property
    def rescued(self) -> bool:
        """Whether another worker owned it before, which may have shown readers more than the log holds."""
        return self.epoch > 1

    @property
    def asked_at_s(self) -> float:
        """When it was asked for, Unix time."""
        at = self.heading.message.created_at
        return unix_s(at) if at is not None else time.time()

    def is_of(self, principal: Principal) -> bool:
        return self.tenant.id == principal.tenant.id and principal.owns(self.heading.owner, self.heading.persona)

    @property
    def unsaved_since_s(self) -> float | None:
        """When the oldest event came that the store does not have, on the loop's clock; None: it has all."""
        return self._journal_entry.unsaved_since_s

    @property
    def stopping(self) -> bool:
        return self._stop is not None

    def stop(self, reason: StopReason, /) -> None:
        """End the turn for a reason of ours. Safe to repeat."""
        if not self._over.done():
            self._stop = reason
            self._end_with(None)

    def followed(self, workers: Sequence[WorkerId], asked_at_s: float | None = None, /) -> None:
        """Take in which other workers have readers; an answer that is older than what is known is passed over."""
        if not workers and not self._outlet.workers:
            return
        if asked_at_s is not None and asked_at_s < self._followed_at_s:
            return
        self._followed_at_s = asyncio.get_running_loop().time()
        self._outlet.show_to(workers)
        if not self._over.done():
            self.presence.followed(len(workers))

    def let_go(self) -> None:
        """Another worker owns this turn: stop without writing anything."""
        self._fenced = True
        self._ports.metrics.store.lease_lost()
        if not self._over.done():
            self._end_with(None)

    async def restore(self) -> None:
        """Write the record again that the store has lost; raises GatewayError."""
        await self._ports.log.restore(self.tenant.id, self.heading, self.epoch)

    def hand_over(self) -> None:
        """Leave the turn to another worker, which brings it to its end from the vendor's copy. Safe to repeat."""
        if not self._over.done():
            self._handed_over = True
            self._end_with(None)

    def _end_with(self, error: GatewayError | None) -> None:
        self._over.set_result(error)

    # --- ending --------------------------------------------------------------------------------------------------

    async def crash(self) -> None:
        """Give a turn whose task failed an honest ending."""
        await self._ports.journal.close(self._journal_entry)
        if not self.live.ended:
            await self._settle(self._failed(GatewayError(Code.INTERNAL)))

    async def reassert(self) -> None:
        """Write the ending again after an outage, in case the store has lost it; nothing happens where it has not."""
        if self._settled is not None:
            await self._write(*self._settled)

    async def _close(self) -> bool:
        """Stop saving; False when the turn is another worker's from now on, and there is no ending to write."""
        self.presence.close()
        await self._ports.journal.close(self._journal_entry)
        if self._handed_over:
            live = self.live
            try:
                await self._ports.log.hand_over(
                    self.tenant.id, Append(self.turn_id, self.epoch, live.saved_position, live.unsaved())
                )
                self._ports.metrics.store.lease_handed_over()
            except (GatewayError, Fenced, LogBehind, LogLost) as error:  # then its lease runs out
                throttled(logger, "turn.left", error=error, turn_id=self.turn_id)
            self._fenced = True
        if self._fenced:
            self._abandon()
        return not self._fenced

    def _failed(self, error: GatewayError) -> TurnFailed:
        told = TurnError(error.code, error.detail, error.wire.retryable, error.vendor_status, error.retry_after_s)
        return TurnFailed(self._message_id, self._run_id, told, self.live.text(), self._tokens())

    def _tokens(self) -> Usage:
        return self._usage or estimate_usage(self.heading.message.content, self.live.text())

    async def _settle(self, ending: Ending, *, skip: int = 0) -> None:
        """Write the ending, the transcript's answer and the settlement in one step, then show the ending.

        ``skip`` leaves so many positions out before it, for what readers may have been shown beyond the log.
        """
        live = self.live
        self._ending_position = live.position + skip + 1
        written = self._settled = (ending, self._answer(ending), self._settlement(ending))
        attempts = 0
        while True:
            try:
                await self._write(*written)
                self._note_saved()
                break
            except Fenced:
                self._ports.metrics.store.lease_lost()
                if not live.ended:
                    self._abandon()
                self._settled = None
                return
            except GatewayError:
                attempts += 1
                if attempts == FINISH_ATTEMPTS:  # readers here wait no longer; the store is owed it until it takes it
                    log_event(logger, logging.ERROR, "turn.unsaved", turn_id=self.turn_id, tenant=self.tenant.id)
                    if self._journal_entry.unsaved_since_s is None:
                        self._journal_entry.unsaved_since_s = asyncio.get_running_loop().time()
                    self._show(ending)
                await asyncio.sleep(FINISH_PAUSE_S)
        if not live.ended:
            self._show(ending)

    async def _write(self, ending: Ending, answer: Message, settlement: Settlement) -> None:
        """Write what the store lacks and the ending; raises Fenced, GatewayError."""
        live, heading = self.live, self.heading
        while True:
            entries = [entry for entry in live.unsaved() if entry.position < self._ending_position]
            entries.append(Entry(self._ending_position, ending))
            try:
                await self._ports.log.finish(
                    *(self.tenant.id, heading.conversation_id, self.turn_id, self.epoch, live.saved_position),
                    *(entries, [answer], settlement),
                    look_up=self._looks_up(ending.usage),
                )
                return
            except LogBehind as behind:
                live.saved_position = behind.position
            except LogLost:
                await self.restore()
                live.saved_position = 0

    def _note_saved(self) -> None:
        since_s = self._journal_entry.unsaved_since_s
        if since_s is not None:
            self._journal_entry.unsaved_since_s = None
            self._ports.metrics.store.saved(asyncio.get_running_loop().time() - since_s)

    def _looks_up(self, usage: Usage) -> bool:
        """Whether the vendor may know better than this what the turn cost."""
        return usage.source == "estimated" and usage is not UNUSED

    def _show(self, ending: Ending) -> None:
        self.live.end(Entry(self._ending_position, ending))
        self._outlet.show_to(())
        self._be_done()
        self._count(ending)

    def _abandon(self) -> None:
        """Leave the turn to the worker that took it over, which writes its ending and its tokens."""
        self._outlet.show_to(())
        self.live.abandon()
        self._be_done()
        seconds = time.monotonic() - self.started_at_s
        self._ports.metrics.turn_ended(
            *(self.tenant.id, self.heading.persona, TurnState.FAILED, Code.WORKER_LOST, seconds, self._example())
        )
        self.span.end(None if self._handed_over else Code.WORKER_LOST, state="abandoned")
        log_event(
            logger,
            logging.INFO,
            "turn.abandoned",
            turn_id=self.turn_id,
            tenant=self.tenant.id,
            conversation_id=self.heading.conversation_id,
            persona=self.heading.persona,
            user=self.heading.owner,
            handed_over=self._handed_over,
            duration_s=round(seconds, 3),
        )

    def _be_done(self) -> None:
        self._done = True
        if self._awaited is not None:
            self._awaited.set()

    def _answer(self, ending: Ending) -> Message:
        completed = isinstance(ending, TurnCompleted)
        return Message(
            "assistant",
            ending.text,
            message_id=ending.message_id,
            run_id=ending.run_id,
            turn_id=self.turn_id,
            created_at=timestamp(),
            prompt_tokens=ending.usage.prompt_tokens,
            completion_tokens=ending.usage.completion_tokens,
            total_tokens=ending.usage.total_tokens,
            finish_reason=self._finish_reason,
            state=None if completed else ENDING_STATE[type(ending)],
            reason=ending.reason if isinstance(ending, TurnStopped) else None,
            error=msgspec.to_builtins(ending.error) if isinstance(ending, TurnFailed) else None,
            citations=self._citations or None,
        )

    def _settlement(self, ending: Ending) -> Settlement:
        heading, usage, first_s = self.heading, ending.usage, self._first_text_s
        price = self.tenant.prices.of(heading.persona)
        return Settlement(
            turn_id=heading.turn_id,
            conversation_id=heading.conversation_id,
            owner=heading.owner,
            persona=heading.persona,
            state=ENDING_STATE[type(ending)],
            reason=_reason(ending),
            message_id=ending.message_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            source=usage.source,
            duration_s=round(time.monotonic() - self.started_at_s, 3),
            ended_at=timestamp(),
            vendor_key=self._vendor_key,
            first_token_s=round(first_s - self.started_at_s, 3) if first_s is not None else None,
            cost_micros=price.cost_micros(usage.prompt_tokens, usage.completion_tokens) if price is not None else None,
            currency=price.currency if price is not None else None,
        )

    def _example(self) -> str:
        """Return the id of a trace in which to see this turn, if there is one."""
        return example(self._ports.tracing, self.span)

    def _count(self, ending: Ending) -> None:
        seconds = time.monotonic() - self.started_at_s
        state, reason, usage = ENDING_STATE[type(ending)], _reason(ending), ending.usage
        labels = (self.tenant.id, self.heading.persona)
        metrics = self._ports.metrics
        metrics.turn_ended(*labels, state, reason, seconds, self._example())
        metrics.turn_attempted(ending.error.code if isinstance(ending, TurnFailed) else None)
        metrics.tokens_counted(*labels, usage.prompt_tokens, usage.completion_tokens, usage.source)
        self.span.end(
            reason if state is TurnState.FAILED else None,
            state=state,
            reason=reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usage_source=usage.source,
        )
        if not self._looks_up(usage):
            metrics.turn_settled(self.tenant.id, usage.source)
        log_event(
            logger,
            logging.INFO,
            "turn.ended",
            turn_id=self.turn_id,
            tenant=self.tenant.id,
            conversation_id=self.heading.conversation_id,
            persona=self.heading.persona,
            user=self.heading.owner,
            state=state,
            reason=reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usage_source=usage.source,
            queued_s=self.queued_s,
            first_token_s=self.first_token_s,
            duration_s=round(seconds, 3),
        )


def _reason(ending: Ending) -> str:
    match ending:
        case TurnCompleted():
            return ending.finish_reason
        case TurnStopped():
            return str(ending.reason)
        case TurnFailed():
            return str(ending.error.code)
