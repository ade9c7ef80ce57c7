"""Turns whose worker is gone get an honest ending, so no reader waits for ever and no conversation stays locked."""

from __future__ import annotations

import logging

import msgspec

from gateway.core.conversation import Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Entry,
    EventLog,
    Fenced,
    LogLost,
    MessageStarted,
    TextDelta,
    TurnError,
    TurnFailed,
    is_ending,
)
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId, TurnState, estimate_usage
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Recovery:
    """Ends orphaned turns as ``turn.failed {worker_lost}`` with the text that the log holds."""

    def __init__(self, log: EventLog, metrics: Metrics, *, answer_max_chars: int) -> None:
        self._log = log
        self._metrics = metrics
        self._answer_max_chars = answer_max_chars

    async def recover(self, tenant: TenantId, turn_id: TurnId) -> bool:
        """End a turn whose lease ran out; False when its owner lives or it has ended. Raises store_unavailable."""
        epoch = await self._log.take_over(tenant, turn_id)
        record = await self._log.record(tenant, turn_id)
        if epoch is None or record is None:
            return False
        position, text = 1, ""
        message_id, run_id = None, None
        while page := await self._log.read(tenant, turn_id, position, 1000):
            for entry in page:
                position = entry.position
                if isinstance(entry.event, TextDelta):
                    text += entry.event.text
                elif isinstance(entry.event, MessageStarted):
                    message_id, run_id = entry.event.message_id, entry.event.run_id
                elif is_ending(entry.event):
                    return False
        error = GatewayError(Code.WORKER_LOST)
        ending = TurnFailed(
            message_id,
            run_id,
            TurnError(error.code, error.detail, error.wire.retryable),
            text,
            estimate_usage("", text),
        )
        # Readers may have been shown more than the log holds; one answer cap further on lies after all of it.
        last = Entry(position + self._answer_max_chars, ending)
        answer = Message(
            "assistant",
            text,
            message_id=message_id,
            run_id=run_id,
            turn_id=turn_id,
            state=TurnState.FAILED,
            error=msgspec.to_builtins(ending.error),
        )
        try:
            await self._log.finish(tenant, record.conversation_id, turn_id, epoch, [last], [answer])
        except (Fenced, LogLost):
            return False
        self._metrics.turn_recovered(tenant)
        log_event(logger, logging.WARNING, "turn.recovered", turn_id=turn_id, tenant=tenant, state="failed")
        return True
