"""Starts, finds, stops and drains the turns of this worker; each runs in a task of this service.

Connections come and go (see ``subscriptions``); a turn goes on until the vendor, a stop or a deadline ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from gateway.core.conversation import Conversation, ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import TurnRecord
from gateway.core.idempotency import checked_key
from gateway.core.identity import Principal, TenantId
from gateway.core.revocation import Holder
from gateway.core.turn import StopReason, TurnId, TurnState
from gateway.services.admission import Admission
from gateway.services.conversations import Conversations
from gateway.services.holdings import Holdings
from gateway.services.owned_turn import FINISH_ATTEMPTS, FINISH_PAUSE_S, OwnedTurn, TurnPorts
from gateway.services.recovery import Recovery
from gateway.services.roster import Roster
from gateway.services.screening import Screening
from gateway.services.starts import Started, Starts
from gateway.services.turn import Turn
from gateway.services.watches import Watches
from gateway.telemetry.logging import started as log_started
from gateway.telemetry.spans import CURRENT

logger = logging.getLogger(__name__)


class Turns:
    """Starts, finds, stops and drains this worker's turns."""

    def __init__(
        self,
        ports: TurnPorts,
        roster: Roster,
        *,
        admission: Admission,
        conversations: Conversations,
        recovery: Recovery,
        watches: Watches,
        holdings: Holdings,
        screening: Screening | None = None,
    ) -> None:
        """``screening`` judges messages for tenants that want that; without it there must be none."""
        self._ports = ports
        self._roster = roster
        self._log = ports.log
        self._metrics = ports.metrics
        self._rules = ports.rules
        self._conversations = conversations
        self._recovery = recovery
        self._watches = watches
        self._holdings = holdings
        self._screening = screening
        self._starts = Starts(
            ports,
            roster,
            admission=admission,
            conversations=conversations,
            recovery=recovery,
            holdings=holdings,
            spawn=self._spawn,
        )
        roster.on_end = lambda turn: holdings.drop(turn.tenant.id, turn.turn_id)
        self._starting: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.revoked: Callable[[Holder], bool] = lambda _: False  # whether what somebody holds was taken back

    async def start(
        self,
        principal: Principal,
        conversation_id: ConversationId,
        message: str,
        *,
        idempotency_key: str | None,
        address: str,
        tokens_max: int | None = None,
    ) -> Started:
        """Claim the conversation and set its next turn going; returns once ``turn.started`` is stored.

        ``tokens_max`` bounds the answer by an estimate: one that is longer is stopped there as by a budget.

        The work runs in a task of this service, so a caller that is cancelled leaves no half-started turn.
        Raises GatewayError: message_empty, message_too_long, message_flagged, moderation_unavailable, not_found,
        persona_unknown, rate_limited, upstream_overloaded, turn_active, idempotency_mismatch, draining,
        store_unavailable.
        """
        received_s = time.monotonic()
        with self._refusals_counted():
            self._check(message, idempotency_key, "message")
            conversation = await self._conversations.of_turn(principal, conversation_id)
            make = Turn if tokens_max is None else partial(Turn, tokens_max=tokens_max)
            return await self._start(
                *(principal, conversation, message, idempotency_key, address, received_s, make),
                words=message,
                field="message",
            )

    async def run(
        self,
        principal: Principal,
        conversation: Conversation,
        message: str,
        make: Callable[..., Turn],
        *,
        words: str,
        idempotency_key: str | None,
        address: str,
    ) -> Started:
        """Set a turn going that asks something else, in a conversation that is made with it and is in no list.

        ``make`` makes the turn as ``Turn`` does; ``message`` is what it is about, by which its tokens are estimated.
        ``words`` are the user's in it, to be judged where the tenant wants that. Otherwise as ``start``.
        """
        received_s = time.monotonic()
        with self._refusals_counted():
            self._check(message, idempotency_key, field := "replacements")
            return await self._start(
                *(principal, conversation, message, idempotency_key, address, received_s, make),
                words=words,
                field=field,
            )

    @contextlib.contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        """Count what raises as a turn that was asked for and not had; one that begins is counted by its ending."""
        try:
            yield
        except GatewayError as error:
            self._metrics.turn_attempted(error.code)
            raise
        except Exception:
            self._metrics.turn_attempted(Code.INTERNAL)
            raise

    def _check(self, message: str, idempotency_key: str | None, field: str) -> None:
        if self._draining:
            raise GatewayError(Code.DRAINING, retry_after_s=1.0)
        self.check(message, field)
        if idempotency_key is not None:
            checked_key(idempotency_key)

    async def _start(
        self,
        principal: Principal,
        conversation: Conversation,
        message: str,
        idempotency_key: str | None,
        address: str,
        received_s: float,
        make: Callable[..., Turn],
        words: str,
        field: str,
    ) -> Started:
        if words and principal.tenant.moderation.messages:
            begun_s = time.monotonic()
            await self._screen(principal, conversation, words, idempotency_key, address, field)
            received_s += time.monotonic() - begun_s  # the vendor's time
        started: Started = await asyncio.shield(
            self._spawn(
                self._starts.begin(
                    principal,
                    conversation,
                    message,
                    idempotency_key=idempotency_key,
                    address=address,
                    make=make,
                    set_going=partial(self._set_going, principal),
                )
            )
        )
        self._metrics.gateway_added(time.monotonic() - received_s)
        return started

    def check(self, message: str, field: str = "message") -> None:
        """Raise GatewayError(message_empty | message_too_long) for a message that ``start`` would not take."""
        if not message.strip():
            raise GatewayError(Code.MESSAGE_EMPTY, field=field)
        if len(message) > self._rules.message_max_chars:
            raise GatewayError(
                Code.MESSAGE_TOO_LONG,
                f"A message may have {self._rules.message_max_chars} characters at most.",
                field=field,
            )

    async def _screen(
        self,
        principal: Principal,
        conversation: Conversation,
        text: str,
        idempotency_key: str | None,
        address: str,
        field: str,
    ) -> None:
        """Have a text judged, unless it is a repeat, which sends nothing. Raises GatewayError, draining too."""
        if idempotency_key is not None and await self._log.repeated(
            principal.tenant.id, conversation.owner, conversation.id, idempotency_key
        ):
            return
        if self._screening is None:
            raise AssertionError("a tenant wants its messages judged, and there is nobody to do it")
        await self._screening.screen(principal, text, address=address, field=field)
        if self._draining:  # meanwhile
            raise GatewayError(Code.DRAINING, retry_after_s=1.0)

    def find(self, turn_id: TurnId) -> OwnedTurn | None:
        """Return a turn that this worker owns."""
        return self._roster.find(turn_id)

    async def stop(self, principal: Principal, turn_id: TurnId, reason: StopReason) -> TurnState:
        """Stop a turn of this principal, wherever it runs; returns ``stopping`` or how it had already ended.

        Raises GatewayError(not_found) for a turn that is not the principal's.
        """
        turn = self._roster.find(turn_id)
        if turn is None or not turn.is_of(principal):
            record = await self._log.record(principal.tenant.id, turn_id)
            if record is None or not principal.owns(record.owner, record.persona):
                raise GatewayError(Code.NOT_FOUND)
            return await self._stop_elsewhere(principal.tenant.id, record, reason)
        turn.stop(reason)
        return TurnState.STOPPING

    async def stop_for_operator(self, tenant: TenantId, turn_id: TurnId) -> TurnState:
        """Stop any turn of a tenant, wherever it runs, with the reason ``admin``; returns as ``stop`` does.

        Raises GatewayError: not_found, store_unavailable.
        """
        turn = self._roster.find(turn_id)
        if turn is None or turn.tenant.id != tenant:
            record = await self._log.record(tenant, turn_id)
            if record is None:
                raise GatewayError(Code.NOT_FOUND, "The tenant has no such turn.")
            return await self._stop_elsewhere(tenant, record, StopReason.ADMIN)
        turn.stop(StopReason.ADMIN)
        return TurnState.STOPPING

    async def _stop_elsewhere(self, tenant: TenantId, record: TurnRecord, reason: StopReason) -> TurnState:
        """Have another worker stop its turn, or take it over from one that is gone: nobody else would ever end it."""
        if record.state.ended:
            return record.state
        await self._log.request_stop(tenant, record.turn_id, reason)
        if not record.leased:
            await self._recovery.recover(tenant, record.turn_id)
            turn = self._roster.find(record.turn_id)
            if turn is not None:
                turn.stop(reason)
        return TurnState.STOPPING

    def stop_revoked(self) -> None:
        """Stop the turns of this worker whose user has lost access.

        By what token a turn was started is known where it was started; of a turn that was taken over from a lost
        worker only whose it is.
        """
        for turn in self._roster.all():
            if self.revoked(turn.holder or Holder(turn.tenant.id, turn.heading.owner)):
                turn.stop(StopReason.REVOKED)

    @property
    def running(self) -> int:
        return len(self._roster)

    def drain(self) -> None:
        """Refuse new turns from now on, and take over no lost ones."""
        self._draining = True
        self._recovery.close()

    async def ended(self) -> None:
        """Wait until no turn runs."""
        while tasks := self._starting | self._roster.tasks:
            await asyncio.wait(tasks)

    async def aclose(self, *, grace_s: float, settle: bool = True, successors: bool = False) -> None:
        """Let running turns end for up to ``grace_s``, then stop the rest with reason ``shutdown`` and settle them.

        With ``successors`` (other workers on the same store) the rest is handed over to them instead, where the vendor
        is known to finish what nobody reads, and so is what was taken over from a lost worker. Without ``settle`` (the
        store is gone for good) endings are not waited for.
        """
        self.drain()
        if tasks := self._starting | self._roster.tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        if successors and self._roster.all():
            completed = await self._recovery.completes()
            for turn in self._roster.all():
                if completed or turn.rescued:
                    turn.hand_over()
        for turn in self._roster.all():
            turn.stop(StopReason.SHUTDOWN)
        if tasks := self._starting | self._roster.tasks:
            await asyncio.wait(tasks, timeout=FINISH_ATTEMPTS * FINISH_PAUSE_S if settle else 0.0)
        for task in self._starting | self._roster.tasks:
            task.cancel()  # endings are shown; a store that is away this long will not get them from here

    def _set_going(self, principal: Principal, turn: Turn) -> None:
        tenant, heading = turn.tenant, turn.heading
        holder = turn.holder = Holder.of(principal)
        turn.span = CURRENT.get().begin(
            "turn",
            tenant=tenant.id,
            user=heading.owner,
            turn_id=turn.turn_id,
            conversation_id=heading.conversation_id,
            persona=heading.persona,
            ordinal=heading.ordinal,
        )
        self._metrics.turn_started(tenant.id, heading.persona)
        log_started(
            logger,
            "turn.started",
            turn_id=turn.turn_id,
            tenant=tenant.id,
            conversation_id=heading.conversation_id,
            persona=heading.persona,
            user=heading.owner,
        )
        self._roster.add(turn)
        if self.revoked(holder):  # meanwhile
            turn.stop(StopReason.REVOKED)
        self._watches.began(tenant.id, heading.conversation_id, turn.turn_id, heading.owner)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return task
