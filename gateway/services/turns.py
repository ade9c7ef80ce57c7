"""Starts, finds, stops and drains the turns of this worker; each runs in a task of this service.

Connections come and go (see ``subscriptions``); a turn goes on until the vendor, a stop or a deadline ends it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from gateway.core.conversation import Conversation, ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventLog
from gateway.core.identity import Principal
from gateway.core.turn import StopReason, TurnId, TurnState, Upstream
from gateway.services.admission import Admission
from gateway.services.clock import timestamp
from gateway.services.conversations import Conversations
from gateway.services.journal import Journal
from gateway.services.recovery import Recovery
from gateway.services.turn import FINISH_ATTEMPTS, FINISH_PAUSE_S, Turn, TurnPorts, TurnRules
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.metrics import Metrics

__all__ = ["Started", "Turn", "TurnRules", "Turns"]

logger = logging.getLogger(__name__)

IDEMPOTENCY_KEY_MAX_CHARS: Final = 255


class Started(NamedTuple):
    """``repeated`` says that an idempotency key led back to an earlier turn; ``ordinal`` is 0 then."""

    turn_id: TurnId
    ordinal: int
    repeated: bool


class Turns:
    """Starts, finds, stops and drains this worker's turns."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        log: EventLog,
        journal: Journal,
        admission: Admission,
        conversations: Conversations,
        recovery: Recovery,
        metrics: Metrics,
        rules: TurnRules,
    ) -> None:
        self._ports = TurnPorts(upstream=upstream, log=log, journal=journal, metrics=metrics, rules=rules)
        self._log = log
        self._metrics = metrics
        self._rules = rules
        self._admission = admission
        self._conversations = conversations
        self._recovery = recovery
        self._turns: dict[TurnId, Turn] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchers: dict[ConversationId, list[Callable[[Turn], None]]] = {}
        self._draining = False

    async def start(
        self,
        principal: Principal,
        conversation_id: ConversationId,
        message: str,
        *,
        idempotency_key: str | None,
        address: str,
    ) -> Started:
        """Claim the conversation and set its next turn going; returns once ``turn.started`` is stored.

        The work runs in a task of this service, so a caller that is cancelled leaves no half-started turn.
        Raises GatewayError: message_empty, message_too_long, not_found, rate_limited, turn_active,
        idempotency_mismatch, draining, store_unavailable.
        """
        received_s = time.monotonic()
        if self._draining:
            raise GatewayError(Code.DRAINING, retry_after_s=1.0)
        if not message.strip():
            raise GatewayError(Code.MESSAGE_EMPTY, field="message")
        if len(message) > self._rules.message_max_chars:
            raise GatewayError(
                Code.MESSAGE_TOO_LONG,
                f"A message may have {self._rules.message_max_chars} characters at most.",
                field="message",
            )
        if idempotency_key is not None and not (
            0 < len(idempotency_key) <= IDEMPOTENCY_KEY_MAX_CHARS and idempotency_key.isprintable()
        ):
            raise GatewayError(
                Code.INVALID_VALUE,
                f"An idempotency key has 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable characters.",
                field="Idempotency-Key",
            )
        conversation = await self._conversations.owned(principal, conversation_id)
        if idempotency_key is not None:  # a repeat is answered whatever the caps say: it starts nothing
            known = await self._log.repeated(principal.tenant.id, conversation.owner, conversation_id, idempotency_key)
            if known is not None:
                return self._repeated(known, message)
        await self._admission.admit(principal, "turn", address)
        started: Started = await asyncio.shield(
            self._spawn(self._begin(principal, conversation, message, idempotency_key))
        )
        self._metrics.gateway_added(time.monotonic() - received_s)
        return started

    def find(self, turn_id: TurnId) -> Turn | None:
        """Return a turn that runs on this worker."""
        return self._turns.get(turn_id)

    async def stop(self, principal: Principal, turn_id: TurnId, reason: StopReason) -> TurnState:
        """Stop a turn of this principal, wherever it runs; returns ``stopping`` or how it had already ended.

        Raises GatewayError(not_found) for a turn that is not the principal's.
        """
        turn = self._turns.get(turn_id)
        if turn is not None:
            if turn.tenant.id != principal.tenant.id or turn.conversation.owner != principal.user_hash:
                raise GatewayError(Code.NOT_FOUND)
            if principal.personas is not None and turn.conversation.persona not in principal.personas:
                raise GatewayError(Code.NOT_FOUND)
            turn.stop(reason)
            return TurnState.STOPPING
        record = await self._log.record(principal.tenant.id, turn_id)
        if record is None or record.owner != principal.user_hash:
            raise GatewayError(Code.NOT_FOUND)
        if principal.personas is not None:
            await self._conversations.owned(principal, record.conversation_id)
        if not record.state.ended and not record.leased and await self._recovery.recover(principal.tenant.id, turn_id):
            return TurnState.FAILED  # its worker is gone: nobody else would ever end it
        if record.state.ended:
            return record.state
        await self._log.request_stop(principal.tenant.id, turn_id, reason)
        return TurnState.STOPPING

    def watch(self, conversation_id: ConversationId, watcher: Callable[[Turn], None]) -> None:
        """Call ``watcher`` for every turn that this worker starts in a conversation from now on."""
        self._watchers.setdefault(conversation_id, []).append(watcher)

    def unwatch(self, conversation_id: ConversationId, watcher: Callable[[Turn], None]) -> None:
        watchers = self._watchers.get(conversation_id, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._watchers.pop(conversation_id, None)

    @property
    def running(self) -> int:
        return len(self._turns)

    def drain(self) -> None:
        """Refuse new turns from now on."""
        self._draining = True

    async def ended(self) -> None:
        """Wait until no turn runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self, *, grace_s: float, settle: bool = True) -> None:
        """Let running turns end for up to ``grace_s``, then stop the rest with reason ``shutdown`` and settle them.

        Without ``settle`` (the store is gone for good) their endings are not waited for.
        """
        self.drain()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for turn in tuple(self._turns.values()):
            turn.stop(StopReason.SHUTDOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_ATTEMPTS * FINISH_PAUSE_S if settle else 0.0)
        for task in self._tasks:  # their endings are shown; a store that is away this long will not get them from here
            task.cancel()

    def _repeated(self, known: tuple[TurnId, str], message: str) -> Started:
        turn_id, body_hash = known
        if body_hash != _hash(message):
            raise GatewayError(Code.IDEMPOTENCY_MISMATCH, field="Idempotency-Key")
        return Started(turn_id, 0, True)

    async def _begin(
        self, principal: Principal, conversation: Conversation, message: str, idempotency_key: str | None
    ) -> Started:
        tenant = principal.tenant
        body_hash = _hash(message)
        started_at = timestamp()
        for _ in range(3):  # again after a lost worker's turn has got its ending, and after the record is read back
            turn_id = TurnId(str(uuid.uuid4()))
            claim = await self._log.claim(
                tenant.id,
                conversation.id,
                turn_id,
                owner=conversation.owner,
                idempotency_key=idempotency_key,
                body_hash=body_hash,
                message=Message("user", message, turn_id=turn_id, created_at=started_at),
            )
            if claim.outcome == "unknown":  # left the cache since it was read
                conversation = await self._conversations.owned(principal, conversation.id)
            elif claim.outcome == "orphaned" and claim.turn_id not in self._turns:  # else late, not lost: it lives here
                await self._recovery.recover(tenant.id, claim.turn_id)
            else:
                break
        match claim.outcome:
            case "started":
                pass
            case "repeated":
                return Started(claim.turn_id, 0, True)
            case "mismatched":
                raise GatewayError(Code.IDEMPOTENCY_MISMATCH, field="Idempotency-Key")
            case "busy" | "orphaned":
                raise GatewayError(
                    Code.TURN_ACTIVE,
                    "Wait for the conversation's active turn to end, or stop it.",
                    retry_after_s=1.0,
                    extra={"turn_id": claim.turn_id},
                )
            case _:
                raise GatewayError(Code.NOT_FOUND)
        turn = Turn(self._ports, tenant, conversation, message, claim.turn_id, claim.ordinal)
        self._turns[turn.turn_id] = turn
        self._metrics.turn_started(tenant.id, conversation.persona)
        log_event(
            logger,
            logging.INFO,
            "turn.started",
            turn_id=turn.turn_id,
            tenant=tenant.id,
            conversation_id=conversation.id,
            persona=conversation.persona,
            user=principal.user_hash,
        )
        self._spawn(self._run(turn))
        for watcher in tuple(self._watchers.get(conversation.id, ())):
            watcher(turn)
        return Started(turn.turn_id, claim.ordinal, False)

    async def _run(self, turn: Turn) -> None:
        try:
            await turn.run()
        except Exception:
            logger.exception("turn.crashed")
            turn.stop(StopReason.ADMIN)
            await turn.crash()
        finally:
            self._turns.pop(turn.turn_id, None)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _hash(message: str) -> str:
    return hashlib.sha256(message.encode("utf-8", "surrogatepass")).hexdigest()[:32]
