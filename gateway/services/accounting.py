"""Settles what turns cost where the vendor's stream did not tell: looked up in its copy, else estimated.

The end of a turn and its settlement are one step in the store (see ``EventLog.finish``). What is left to look up is
kept there too, so any worker does it, and a worker that dies in the middle leaves nothing unsettled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from gateway.core.conversation import ConversationStore, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventLog
from gateway.core.identity import Tenant
from gateway.core.ledger import Due, Ledger, Settlement
from gateway.core.turn import TurnId, TurnState
from gateway.services.clock import age_s
from gateway.services.vendor_copy import AfterLoss, Asked, VendorCopies, copied_usage
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_UPS_MAX: Final = 20  # at a time, of one tenant …
SWEEP_S: Final = 1.0  # … and for so long in one sweep, before it is another tenant's turn
ROOM_S: Final = 3600.0  # for so long the last look-up of a turn waits for room under the plan limit
ABSENT_MAX: Final = 10_000


class Accounting:
    """Looks up the tokens of turns that were stopped or cut off."""

    def __init__(
        self,
        ledger: Ledger,
        log: EventLog,
        conversations: ConversationStore,
        copies: VendorCopies,
        after_loss: AfterLoss,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._conversations = conversations
        self._copies = copies
        self._after_loss = after_loss
        self._metrics = metrics
        self._absent: dict[TurnId, None] = {}  # seen not to be at the vendor, by this worker

    async def sweep(self, tenant: Tenant) -> None:
        """Settle what is due of a tenant; raises store_unavailable."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SWEEP_S
        while due := await self._ledger.due(tenant.id, LOOK_UPS_MAX):
            await asyncio.gather(*(self._settle(tenant, one) for one in due))
            if len(due) < LOOK_UPS_MAX or loop.time() > until_s:
                return

    async def _settle(self, tenant: Tenant, due: Due) -> None:
        estimate = due.settlement
        try:
            copy = await self._look_up(tenant, estimate)
        except GatewayError as error:
            if error.code is Code.UPSTREAM_OVERLOADED and due.last and age_s(estimate.ended_at) < ROOM_S:
                return  # nobody was asked; it comes back, until there is room
            copy = None
        usage = copied_usage(copy) if copy is not None else None
        if usage is not None:
            price = tenant.prices.of(estimate.persona)
            cost = price.cost_micros(usage.prompt_tokens, usage.completion_tokens) if price is not None else None
            settlement = msgspec.structs.replace(
                estimate,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                source="read_back",
                cost_micros=cost,
                currency=price.currency if price is not None else None,
            )
            if estimate.turn_id in self._absent and estimate.state is TurnState.STOPPED:
                await self._after_loss.saw_finish()
        elif due.last:
            settlement = estimate
        else:
            return
        self._absent.pop(estimate.turn_id, None)
        if await self._ledger.settle(tenant.id, settlement):
            self._metrics.turn_settled(tenant.id, settlement.source)

    async def _look_up(self, tenant: Tenant, estimate: Settlement) -> Message | None:
        """Return the vendor's copy of a turn's answer, or None. Raises GatewayError, also where there is no room."""
        record = await self._log.record(tenant.id, estimate.turn_id)
        if record is None or record.persona in tenant.prompts:  # a prompt's run has no copy that could be read
            return None
        transcript: list[Message] = []
        if estimate.message_id is None:
            conversation = await self._conversations.get(tenant.id, estimate.conversation_id)
            transcript = conversation.messages if conversation is not None else []
        asked = Asked.of(record, estimate.message_id, transcript)
        if asked.message_id is None and asked.question is None:
            return None  # other turns may have followed: nobody can say which answer is this one's
        copy = await self._copies.answer(tenant, estimate.conversation_id, asked)
        if copy is None:
            self._note_absent(estimate.turn_id)
        return copy

    def _note_absent(self, turn_id: TurnId) -> None:
        self._absent[turn_id] = None
        if len(self._absent) > ABSENT_MAX:  # another worker has settled the oldest
            del self._absent[next(iter(self._absent))]
