"""How a turn begins: charged, let through to the vendor, and its conversation claimed, or nothing of it at all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.conversation import Conversation, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Claim, Heading
from gateway.core.identity import Principal, TenantId
from gateway.core.limits import Ask, Decision
from gateway.core.turn import TurnId
from gateway.services.admission import Admission, Admitted
from gateway.services.clock import timestamp
from gateway.services.conversations import Conversations
from gateway.services.holdings import Holdings
from gateway.services.owned_turn import TurnPorts
from gateway.services.recovery import Recovery
from gateway.services.roster import Roster
from gateway.services.turn import Turn
from gateway.telemetry.spans import CURRENT

CLAIMS_MAX: Final = 3  # again after a lost worker's turn has got its ending, and after the record is read back
RELEASE_ATTEMPTS: Final = 40
RELEASE_PAUSE_S: Final = 0.25
UNDECIDED: Final = Decision(None, 0, 0, 0, 0, ())  # of a repeat: it starts nothing


class Started(NamedTuple):
    """``repeated`` says that an idempotency key led back to an earlier turn; ``ordinal`` is 0 then."""

    turn_id: TurnId
    ordinal: int
    repeated: bool


class Starts:
    """Begins turns for ``Turns``: what does not begin is not charged, and leaves nothing behind."""

    def __init__(
        self,
        ports: TurnPorts,
        roster: Roster,
        *,
        admission: Admission,
        conversations: Conversations,
        recovery: Recovery,
        holdings: Holdings,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """``spawn`` runs what cleans up after an answer of the store that was lost."""
        self._ports = ports
        self._roster = roster
        self._log = ports.log
        self._gate = ports.vendor.gate
        self._admission = admission
        self._conversations = conversations
        self._recovery = recovery
        self._holdings = holdings
        self._spawn = spawn

    async def begin(
        self,
        principal: Principal,
        conversation: Conversation,
        message: str,
        *,
        idempotency_key: str | None,
        address: str,
        make: Callable[..., Turn],
        set_going: Callable[[Turn], None],
    ) -> Started:
        """Charge the turn, claim the conversation and hand the turn to ``set_going``, in the step that makes it ours.

        ``make`` makes the turn as ``Turn`` does. A conversation that is not listed is made by the claim: one that is
        refused leaves none behind.

        Where nothing is in the way to the vendor, the store decides on limits and claim in one step. Else the limits
        come first, then the vendor's gate, which is not to be asked for what they refuse, and the claim last, since
        one that waits for a place would hold its conversation. Run it in a task that no client can cancel.
        """
        tenant = principal.tenant
        turn_id = TurnId(str(uuid.uuid4()))
        heading = Heading(
            turn_id=turn_id,
            conversation_id=conversation.id,
            owner=conversation.owner,
            persona=conversation.persona,
            message=Message("user", message, turn_id=turn_id, created_at=timestamp()),
            body_hash=_hash(message),
            idempotency_key=idempotency_key,
            listed=conversation.listed,
            trace=CURRENT.get().traceparent,
        )
        passage = self._gate.enter_free(tenant, turn_id)
        gone = conversation.listed and conversation.persona not in tenant.personas  # taken away since it was opened
        admitted: Admitted | None = None
        turn: Turn | None = None
        charged = False
        try:
            if passage is None or gone:
                # A repeat is answered whatever limits and caps say: it starts nothing.
                known = await self._repeated(tenant.id, heading)
                if known is not None:
                    return known
            if gone:
                raise GatewayError(Code.PERSONA_UNKNOWN)
            if passage is None:
                admitted = await self._admission.admit_turn(principal, conversation, message, address, turn_id)
                charged = True
                self._holdings.hold(tenant.id, turn_id, admitted.slots)
                passage = await self._gate.enter(tenant, turn_id)
            for _ in range(CLAIMS_MAX):
                if charged:
                    claim = await self._claim(tenant.id, heading)
                else:
                    claim, admitted = await self._start(principal, conversation, heading, address)
                if claim.outcome == "unknown" and conversation.listed:  # left the cache since it was read
                    conversation = await self._conversations.of_turn(principal, conversation.id, anew=True)
                    if conversation.persona not in tenant.personas:
                        raise GatewayError(Code.PERSONA_UNKNOWN)
                    heading = msgspec.structs.replace(heading, persona=conversation.persona)
                elif claim.outcome == "orphaned" and self._roster.find(claim.turn_id) is None:  # else late, not lost
                    await self._recovery.end(tenant.id, claim.turn_id)
                else:
                    break
            if claim.outcome != "started":
                return _refused(claim)
            assert admitted is not None, "no claim is started without"
            self._holdings.hold(tenant.id, turn_id, admitted.slots)
            turn = make(
                self._ports,
                tenant,
                msgspec.structs.replace(
                    heading,
                    ordinal=claim.ordinal,
                    messages_before=claim.messages_before,
                    last_message_id=claim.last_message_id,
                ),
                passage=passage,
                allowance=self._admission.allowance(tenant, turn_id, admitted),
            )
            set_going(turn)
            return Started(turn_id, claim.ordinal, False)
        finally:
            if turn is None:
                if passage is not None:
                    passage.leave()
                if charged:
                    self._holdings.drop(tenant.id, turn_id)
                    await self._admission.undo(tenant.id, turn_id)

    async def _repeated(self, tenant: TenantId, heading: Heading) -> Started | None:
        key = heading.idempotency_key
        if key is None:
            return None
        known = await self._log.repeated(tenant, heading.owner, heading.conversation_id, key)
        if known is None:
            return None
        turn_id, body_hash = known
        if body_hash != heading.body_hash:
            raise GatewayError(Code.IDEMPOTENCY_MISMATCH, field="Idempotency-Key")
        return Started(turn_id, 0, True)

    async def _start(
        self, principal: Principal, conversation: Conversation, heading: Heading, address: str
    ) -> tuple[Claim, Admitted]:
        """Decide on the limits and claim in one step; nothing is charged unless the claim is ``started``."""
        tenant = principal.tenant.id
        claim: Claim | None = None

        async def decide(ask: Ask) -> Decision:
            nonlocal claim
            try:
                begun = await self._log.start(tenant, heading, ask)
            except GatewayError:
                # Written or not, nobody knows. The client is refused, so what may be there must not stand in its way.
                self._spawn(self._release(tenant, heading))
                await self._admission.undo(tenant, heading.turn_id)
                raise
            claim = begun.claim
            return begun.decision or UNDECIDED

        admitted = await self._admission.admit_turn(
            principal, conversation, heading.message.content, address, heading.turn_id, decide=decide
        )
        return claim or await self._claim(tenant, heading), admitted  # without any limit nobody was asked

    async def _claim(self, tenant: TenantId, heading: Heading) -> Claim:
        try:
            return await self._log.claim(tenant, heading)
        except GatewayError:
            self._spawn(self._release(tenant, heading))
            raise

    async def _release(self, tenant: TenantId, heading: Heading) -> None:
        """Undo a claim that may have been written, once the store answers; its lease runs out where it does not."""
        answers = 0
        for _ in range(RELEASE_ATTEMPTS):
            await asyncio.sleep(RELEASE_PAUSE_S)
            with contextlib.suppress(GatewayError):
                await self._log.release(tenant, heading)
                answers += 1
            if answers == 2:  # the claim may have been on its way still at the first
                return


def _refused(claim: Claim) -> Started:
    """Say why a claim did not start a turn; a repeat leads to the one that it started before."""
    match claim.outcome:
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


def _hash(message: str) -> str:
    return hashlib.sha256(message.encode("utf-8", "surrogatepass")).hexdigest()[:32]
