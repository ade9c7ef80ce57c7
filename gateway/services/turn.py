"""One turn: takes the vendor's answer in as it arrives, gives it positions, and settles its ending.

The answer is driven by callbacks from the upstream connection: no task wakes for an event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.core.conversation import Conversation, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    ENDING_STATE,
    Ending,
    Entry,
    Event,
    EventLog,
    Fenced,
    LogLost,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import Tenant
from gateway.core.turn import AnswerItem, Chat, StopReason, TurnId, TurnState, Upstream, Usage, estimate_usage
from gateway.services.clock import timestamp
from gateway.services.journal import Journal
from gateway.services.live_log import LiveLog
from gateway.services.presence import Presence
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

FINISH_ATTEMPTS: Final = 20  # about 10 s of a store that is away before the ending is shown unsaved
FINISH_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRules:
    """Bounds of a turn. Sizes are code points."""

    answer_max_chars: int = 1_000_000
    message_max_chars: int = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPorts:
    """What a turn works with: the vendor, the log and its journal, the metrics, and its bounds."""

    upstream: Upstream
    log: EventLog
    journal: Journal
    metrics: Metrics
    rules: TurnRules


class Turn:
    """One answer under way; a ChatReceiver. Created by ``Turns`` once the conversation is claimed."""

    def __init__(
        self, ports: TurnPorts, tenant: Tenant, conversation: Conversation, message: str, turn_id: TurnId, ordinal: int
    ) -> None:
        self.tenant = tenant
        self.conversation = conversation
        self.message = message
        self.turn_id = turn_id
        self.live = LiveLog(turn_id, conversation.id, Entry(1, TurnStarted(turn_id, conversation.id, ordinal)))
        self.started_at_s = time.monotonic()
        self._ports = ports
        self.presence = Presence(tenant.disconnect, self.stop)
        self._journal_entry = ports.journal.open(
            tenant.id,
            self.live,
            epoch=1,
            on_stop=self.stop,
            on_followers=self.presence.followed,
            on_fenced=self._let_go,
        )
        self._gaps = ports.metrics.gap_histogram(tenant.id, conversation.persona)
        self._last_item_s = 0.0
        self._over: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self._chat: Chat | None = None
        self._stop: StopReason | None = None
        self._fenced = False
        self._chars = 0
        self._capped = False
        self._message_id: str | None = None
        self._run_id: str | None = None
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._citations: list[dict[str, Any]] = []
        self._announced = False

    # --- ChatReceiver: called from the upstream connection -------------------------------------------------------

    def chat_items(self, items: Sequence[AnswerItem], /) -> None:
        if self._over.done():
            return
        now_s = time.monotonic()
        if self._last_item_s:
            self._gaps.observe(now_s - self._last_item_s)
        self._last_item_s = now_s
        events: list[Event] = []
        for item in items:
            self._take(item, events)
            if self._capped:
                break
        if events:
            self.live.add(events)
            self._ports.journal.touch(self._journal_entry)
        if self._capped:
            self._end_with(GatewayError(Code.ANSWER_TOO_LONG))

    def chat_ended(self, error: GatewayError | None, /) -> None:
        if not self._over.done():
            self._over.set_result(error)

    def _take(self, item: AnswerItem, events: list[Event]) -> None:
        text = item.text
        if item.message_id is not None and self._message_id is None:
            self._message_id = item.message_id
        if item.run_id is not None and self._run_id is None:
            self._run_id = item.run_id
        if item.index or item.role not in (None, "assistant"):
            events.append(MessageExtra(item.index, item.role, item.name, item.tool_call_id, text))
        else:
            if not self._announced:
                self._announced = True
                self._ports.metrics.first_token(
                    self.tenant.id, self.conversation.persona, time.monotonic() - self.started_at_s
                )
                events.append(MessageStarted(self._message_id, self._run_id, "assistant"))
            if text and len(text) > (room := self._ports.rules.answer_max_chars - self._chars):
                text, self._capped = text[:room], True  # no reader ever gets further than recovery steps over
            if text:
                self._chars += len(text)
                events.append(TextDelta(text))
            if item.finish_reason is not None:
                self._finish_reason = item.finish_reason
        if item.moderation:
            events.append(MessageModerated(item.moderation))
        if item.citations:
            self._citations += item.citations
            events.append(MessageCitations(item.citations))
        if item.usage is not None:
            self._usage = Usage(*item.usage, "reported")

    # --- ending --------------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stop is not None

    def stop(self, reason: StopReason) -> None:
        """End the turn for a reason of ours; the upstream stream is reset at once. Safe to repeat."""
        if not self._over.done():
            self._stop = reason
            self._end_with(None)

    def _let_go(self) -> None:
        """Another worker owns this turn: stop without writing anything."""
        self._fenced = True
        if not self._over.done():
            self._end_with(None)

    def _end_with(self, error: GatewayError | None) -> None:
        self._over.set_result(error)
        if self._chat is not None:
            self._chat.cancel()

    async def run(self) -> None:
        """Send the message, wait for the answer's end and settle it. Only this task writes the ending."""
        opening = asyncio.ensure_future(self._ports.upstream.open_chat(self.conversation.id, self.message, self))
        first: set[asyncio.Future[Any]] = {opening, self._over}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self._over.done() and not opening.done():
            opening.cancel()  # stopped while the message was waiting for a stream
        try:
            self._chat = await opening
        except GatewayError as refused:
            self.chat_ended(refused)
        except asyncio.CancelledError:
            if not self._over.done():
                raise
        if self._over.done() and self._chat is not None:
            self._chat.cancel()  # a stop that fell between the two; no effect on an answer that ended by itself
        error = await self._over
        self.presence.close()
        await self._ports.journal.close(self._journal_entry)
        if self._fenced:
            self._abandon()
        else:
            await self._settle(self._ending(error))

    async def crash(self) -> None:
        """Give a turn whose task failed an honest ending."""
        await self._ports.journal.close(self._journal_entry)
        if not self.live.ended:
            error = GatewayError(Code.INTERNAL)
            await self._settle(
                TurnFailed(
                    self._message_id,
                    self._run_id,
                    TurnError(error.code, error.detail, error.wire.retryable),
                    self.live.text(),
                    self._usage or estimate_usage(self.message, self.live.text()),
                )
            )

    def _ending(self, error: GatewayError | None) -> Ending:
        text = self.live.text()
        usage = self._usage or estimate_usage(self.message, text)
        ids = (self._message_id, self._run_id)
        if self._stop is not None:
            return TurnStopped(*ids, self._stop, text, usage)
        if error is not None and self._finish_reason is not None and error.code is not Code.ANSWER_TOO_LONG:
            # The answer was complete before the stream broke; the oddity is counted, the answer stands.
            self._ports.metrics.upstream_oddity("broken_after_finish")
            return TurnCompleted(*ids, self._finish_reason, text, usage)
        if error is None and self._finish_reason is None:
            if not self._announced:
                error = GatewayError(Code.UPSTREAM_TRUNCATED, "Hyperleap ended the answer before it began.")
            else:
                self._ports.metrics.upstream_oddity("no_finish_reason")
                return TurnCompleted(*ids, "unknown", text, usage)
        if error is not None:
            told = TurnError(error.code, error.detail, error.wire.retryable, error.vendor_status, error.retry_after_s)
            return TurnFailed(*ids, told, text, usage)
        return TurnCompleted(*ids, self._finish_reason or "unknown", text, usage)

    async def _settle(self, ending: Ending) -> None:
        live = self.live
        entries = [*live.unsaved(), Entry(live.position + 1, ending)]
        messages = [self._answer(ending)]
        attempts = 0
        while True:
            try:
                await self._ports.log.finish(self.tenant.id, self.conversation.id, self.turn_id, 1, entries, messages)
                break
            except Fenced:
                if not live.ended:
                    self._abandon()
                return
            except LogLost:
                log_event(logger, logging.ERROR, "turn.unsaved", turn_id=self.turn_id, tenant=self.tenant.id)
                break
            except GatewayError:
                attempts += 1
                if attempts == FINISH_ATTEMPTS:  # readers here wait no longer; the store is owed it until it takes it
                    log_event(logger, logging.ERROR, "turn.unsaved", turn_id=self.turn_id, tenant=self.tenant.id)
                    self._show(ending)
                await asyncio.sleep(FINISH_PAUSE_S)
        if not live.ended:
            self._show(ending)

    def _show(self, ending: Ending) -> None:
        self.live.add([ending])
        self.live.saved(self.live.position)
        self._count(ending)

    def _abandon(self) -> None:
        """Leave the turn to the worker that took it over, which writes its ending and its tokens."""
        self.live.abandon()
        seconds = time.monotonic() - self.started_at_s
        self._ports.metrics.turn_ended(
            self.tenant.id, self.conversation.persona, TurnState.FAILED, Code.WORKER_LOST, seconds
        )

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

    def _count(self, ending: Ending) -> None:
        seconds = time.monotonic() - self.started_at_s
        state = ENDING_STATE[type(ending)]
        match ending:
            case TurnCompleted():
                reason = ending.finish_reason
            case TurnStopped():
                reason = str(ending.reason)
            case TurnFailed():
                reason = str(ending.error.code)
        labels = (self.tenant.id, self.conversation.persona)
        usage = ending.usage
        metrics = self._ports.metrics
        metrics.turn_ended(*labels, state, reason, seconds)
        metrics.tokens_counted(*labels, usage.prompt_tokens, usage.completion_tokens, usage.source)
        log_event(
            logger,
            logging.INFO,
            "turn.ended",
            turn_id=self.turn_id,
            tenant=self.tenant.id,
            conversation_id=self.conversation.id,
            persona=self.conversation.persona,
            state=state,
            reason=reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usage_source=usage.source,
            duration_s=round(seconds, 3),
        )
