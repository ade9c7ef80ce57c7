"""Finds turns whose worker is gone, takes them over, and sets their rescue going."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.core.conversation import ConversationStore, Message
from gateway.core.errors import GatewayError
from gateway.core.events import Entry, Heading, TurnRecord, TurnStarted, is_ending
from gateway.core.identity import Tenant, TenantId, WorkerId
from gateway.core.turn import TurnId
from gateway.services.owned_turn import TurnPorts
from gateway.services.rescue import Rescue, RescueRules
from gateway.services.roster import Roster
from gateway.services.vendor_copy import AfterLoss, Asked, VendorCopies
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

PAGE: Final = 1000
AT_ONCE: Final = 50  # turns that are taken over together, so that their calls share round trips


class Recovery:
    """Takes over the turns of lost workers. Each is rescued by one worker; see ``rescue``."""

    def __init__(
        self,
        ports: TurnPorts,
        roster: Roster,
        conversations: ConversationStore,
        copies: VendorCopies,
        after_loss: AfterLoss,
        *,
        tenants: Mapping[TenantId, Tenant],
        rules: RescueRules,
    ) -> None:
        self._ports = ports
        self._roster = roster
        self._conversations = conversations
        self._copies = copies
        self._after_loss = after_loss
        self._tenants = tenants
        self._rules = rules
        self._closed = False
        self._under_way: dict[TurnId, asyncio.Task[bool]] = {}

    async def recover(self, tenant: TenantId, turn_id: TurnId) -> bool:
        """Take over a turn whose lease ran out; True when it is rescued here now. Raises store_unavailable."""
        return await self._recover(tenant, turn_id, None, hurried=False)

    async def end(self, tenant: TenantId, turn_id: TurnId) -> bool:
        """Take over a turn whose lease ran out and end it after one look: its user wants to go on."""
        taken = await self._recover(tenant, turn_id, None, hurried=True)
        turn = self._roster.find(turn_id)
        if taken and turn is not None:
            await turn.ended()
        return taken

    async def worker_lost(self, lost: WorkerId) -> None:
        """Take over whatever a worker owned that is known to be dead."""
        log_event(logger, logging.WARNING, "peer.lost", worker_id=lost)
        for tenant in tuple(self._tenants):
            try:
                await self._recover_all(tenant, await self._ports.log.orphans(tenant, lost), lost)
            except GatewayError as error:
                throttled(logger, "recovery.postponed", error=error)  # the lease will tell

    async def sweep(self, tenant: Tenant) -> None:
        """Take over the turns of a tenant that nobody owns any more; raises store_unavailable."""
        if not self._closed:
            await self._recover_all(tenant.id, await self._ports.log.orphans(tenant.id, None), None)

    async def completes(self) -> bool:
        """Whether a turn that is left to another worker is completed there from the vendor's copy."""
        return await self._after_loss.finishes()

    def close(self) -> None:
        """Take over nothing any more: this worker is about to end."""
        self._closed = True

    async def _recover_all(self, tenant: TenantId, turn_ids: Sequence[TurnId], lost: WorkerId | None) -> None:
        for first in range(0, len(turn_ids), AT_ONCE):
            some = turn_ids[first : first + AT_ONCE]
            await asyncio.gather(*(self._recover(tenant, turn_id, lost, hurried=False) for turn_id in some))

    async def _recover(self, tenant: TenantId, turn_id: TurnId, lost: WorkerId | None, *, hurried: bool) -> bool:
        if self._closed or self._roster.find(turn_id) is not None:  # late, not lost: it lives here
            return False
        task = self._under_way.get(turn_id)
        if task is None:
            # In a task of its own: whoever asked may be gone before the turn has an owner again.
            task = asyncio.get_running_loop().create_task(self._take_over(tenant, turn_id, lost, hurried=hurried))
            self._under_way[turn_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(turn_id))
        return await asyncio.shield(task)

    async def _take_over(self, tenant: TenantId, turn_id: TurnId, lost: WorkerId | None, *, hurried: bool) -> bool:
        log = self._ports.log
        epoch = await log.take_over(tenant, turn_id, lost)
        if epoch is None:
            return False
        record = await log.record(tenant, turn_id)
        if record is None or tenant not in self._tenants:
            return False
        stored: list[Entry] = []
        while page := await log.read(tenant, turn_id, stored[-1].position if stored else 0, PAGE):
            stored += page
        if stored and is_ending(stored[-1].event):
            return False
        if not stored:
            stored = [Entry(1, TurnStarted(turn_id, record.conversation_id, record.messages_before // 2 + 1))]
        is_run = record.persona in self._tenants[tenant].prompts
        conversation = await self._conversations.get(tenant, record.conversation_id)
        transcript = conversation.messages if conversation is not None else []
        rescue = Rescue(
            self._ports,
            self._tenants[tenant],
            _heading(record, transcript),
            stored,
            epoch=epoch,
            asked=Asked.of(record, None, transcript),
            copies=self._copies,
            after_loss=self._after_loss,
            # The vendor keeps no copy of a prompt's run that could be read.
            looks_s=[] if is_run else [0.0] if hurried else self._rules.looks_s(),
            process_died=lost is not None,
        )
        rescue.span = self._ports.tracing.rescue(
            record.trace,
            tenant=tenant,
            user=record.owner,
            turn_id=turn_id,
            conversation_id=record.conversation_id,
            persona=record.persona,
            epoch=epoch,
        )
        log_event(logger, logging.WARNING, "turn.taken_over", turn_id=turn_id, tenant=tenant, epoch=epoch)
        self._ports.metrics.turn_taken_over(tenant, record.persona)
        self._ports.metrics.store.lease_taken_over()
        self._roster.add(rescue)
        return True


def _heading(record: TurnRecord, transcript: Sequence[Message]) -> Heading:
    """Bring together what is known of a turn; its question only where the transcript is still cached."""
    question = next((m for m in transcript if m.role == "user" and m.turn_id == record.turn_id), None)
    return Heading(
        turn_id=record.turn_id,
        conversation_id=record.conversation_id,
        owner=record.owner,
        persona=record.persona,
        message=question or Message("user", "", turn_id=record.turn_id),
        body_hash="",
        idempotency_key=None,
        messages_before=record.messages_before,
        last_message_id=record.last_message_id,
        trace=record.trace,
    )
