"""Moderations of texts: one call of the vendor's each, charged before it and settled after it as a turn is."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any, Final

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.ledger import Ledger, Settlement
from gateway.core.limits import Work
from gateway.core.operations import Operations
from gateway.core.turn import CHARS_PER_TOKEN, TurnId, TurnState
from gateway.core.vendor_keys import KeyLabel
from gateway.services.admission import Admission
from gateway.services.clock import timestamp
from gateway.services.holdings import Holdings
from gateway.services.vendor import Vendor
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

REASON: Final = "moderation"  # what a settlement says that it was
SETTLE_S: Final = 8.0  # a settlement that the store does not take is tried again for this long
SETTLE_PAUSE_S: Final = 0.25


class Moderations:
    """Has texts judged by the vendor. ``aclose`` it before the store."""

    def __init__(
        self,
        vendor: Vendor,
        operations: Operations,
        admission: Admission,
        holdings: Holdings,
        ledger: Ledger,
        metrics: Metrics,
        *,
        text_max_chars: int,
    ) -> None:
        self._vendor = vendor
        self._operations = operations
        self._admission = admission
        self._holdings = holdings
        self._ledger = ledger
        self._metrics = metrics
        self._text_max_chars = text_max_chars
        self._tasks: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """Let calls that were made be settled."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SETTLE_S)
        for task in self._tasks:
            task.cancel()

    async def moderate(self, principal: Principal, text: str | None, *, address: str) -> Any:
        """Return the vendor's judgement, the plain value of its JSON.

        Safe to cancel: what was asked is settled. Raises GatewayError: message_too_long, rate_limited, upstream_*,
        store_unavailable.
        """
        if text is not None and len(text) > self._text_max_chars:
            raise GatewayError(
                Code.MESSAGE_TOO_LONG, f"A text may have {self._text_max_chars} characters.", field="input"
            )
        return await asyncio.shield(self._spawn(self._moderate(principal, text, address)))

    async def _moderate(self, principal: Principal, text: str | None, address: str) -> Any:
        tenant, id_ = principal.tenant, TurnId(str(uuid.uuid4()))
        estimate = -(-len(text or "") // CHARS_PER_TOKEN)
        admitted = await self._admission.admit_work(principal, "moderation", Work("", "", estimate), address, id_)
        self._holdings.hold(tenant.id, id_, admitted.slots)
        sent: KeyLabel | None = None

        async def ask(key: KeyLabel) -> Any:
            nonlocal sent
            sent = key
            return await self._operations.moderate(text, key=key)

        begun_s = time.monotonic()
        try:
            judgement = await self._vendor.ask(tenant, ask)
        except GatewayError as error:
            if sent is None:
                await self._admission.undo(tenant.id, id_)
            else:  # what the vendor refused, it did not do
                tokens = 0 if error.vendor_status is not None else estimate
                settlement = _settlement(principal, id_, TurnState.FAILED, error.code, tokens, begun_s, sent)
                self._spawn(self._settle(principal, settlement))
            raise
        except BaseException:
            await self._admission.undo(tenant.id, id_)
            raise
        finally:
            self._holdings.drop(tenant.id, id_)
        settlement = _settlement(principal, id_, TurnState.COMPLETED, REASON, estimate, begun_s, sent)
        self._spawn(self._settle(principal, settlement))
        return judgement

    async def _settle(self, principal: Principal, settlement: Settlement) -> None:
        """Write a settlement; the answer does not wait for it."""
        tenant = principal.tenant.id
        self._metrics.tokens_counted(tenant, None, settlement.prompt_tokens, 0, settlement.source)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SETTLE_S
        while True:
            try:
                await self._ledger.add(tenant, settlement)
            except GatewayError as error:
                if loop.time() >= until_s:
                    log_event(logger, logging.ERROR, "moderation.unsettled", tenant=tenant, error=error)
                    return
                await asyncio.sleep(SETTLE_PAUSE_S)
            else:
                self._metrics.turn_settled(tenant, settlement.source)
                return

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _settlement(
    principal: Principal,
    id_: TurnId,
    state: TurnState,
    reason: str,
    tokens: int,
    begun_s: float,
    key: KeyLabel | None,
) -> Settlement:
    """The vendor tells no tokens of a moderation: they are estimated, and priced as tokens alone, for it is no turn."""
    price = principal.tenant.prices.of("")
    return Settlement(
        turn_id=id_,
        conversation_id=ConversationId(""),
        owner=principal.user_hash,
        persona="",
        state=state,
        reason=reason,
        message_id=None,
        prompt_tokens=tokens,
        completion_tokens=0,
        total_tokens=tokens,
        source="estimated",
        duration_s=round(time.monotonic() - begun_s, 3),
        ended_at=timestamp(),
        vendor_key=key,
        cost_micros=price.cost_micros(tokens, 0, turns=0) if price is not None else None,
        currency=price.currency if price is not None else None,
    )
