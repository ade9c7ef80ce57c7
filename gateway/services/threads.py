"""Starts turns for clients that keep what was said themselves, or know it by its last turn (``core.threads``)."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.conversation import Conversation, ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventLog
from gateway.core.idempotency import checked_key
from gateway.core.identity import Principal
from gateway.core.threads import (
    ANSWER,
    INSTRUCTION,
    QUESTION,
    Said,
    Taken,
    ThreadStore,
    Tip,
    instructions,
    split,
    stated,
)
from gateway.core.turn import TurnId, TurnState
from gateway.services.conversations import Conversations
from gateway.services.turns import Turns
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

DIGEST_CHARS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client wants answered. ``said`` is not empty; where a turn or a conversation is gone on from, it is new.

    ``matched`` says whether the principal is one user of the tenant's, whose lists may be matched with what was said.
    """

    alias: str
    said: Sequence[Said]
    address: str
    matched: bool = True
    replacements: Mapping[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    tokens_max: int | None = None  # of the answer


class Begun(NamedTuple):
    """The turn that answers, and where; ``tip`` is what it has used up, taken by ``digest`` where that led to it."""

    turn_id: TurnId
    conversation_id: ConversationId
    tip: Tip | None = None
    digest: str | None = None


class Threads:
    """Finds or opens the conversation that an ask belongs to, and starts its turn by ``Turns`` like any other.

    The methods that start raise what ``Conversations.create`` and ``Turns.start`` raise. Cancelled in between they
    leave no half-started turn; a list that was about to go on in its conversation may open a new one next time.
    """

    def __init__(
        self, store: ThreadStore, conversations: Conversations, turns: Turns, log: EventLog, *, pepper: bytes
    ) -> None:
        self._store = store
        self._conversations = conversations
        self._turns = turns
        self._log = log
        self._pepper = pepper

    async def start(self, principal: Principal, ask: Ask) -> Begun:
        """Answer a whole list: in the conversation of its beginning's last answer, else in a new one that states it."""
        self._check(ask)
        known, new = split(ask.said)
        if not (known and ask.matched):
            return await self._open(principal, ask)
        digest, key = self._digest(principal, ask.alias, known), self._key(principal, ask)
        taken = await self._store.take(principal.tenant.id, digest, key)
        if taken.tip is not None:
            begun = await self._go_on(principal, taken, replace(ask, said=new), digest)
            if begun is not None:
                return begun
            await self._store.decline(principal.tenant.id, key)
        return await self._open(principal, ask)

    async def start_in(self, principal: Principal, conversation_id: ConversationId, ask: Ask) -> Begun:
        """Say something in a conversation; raises GatewayError(not_found) besides.

        A conversation keeps its persona: invalid_value where the ask names another.
        """
        self._check(ask)
        conversation = await self._conversations.get(principal, conversation_id)
        if conversation.persona != ask.alias:
            raise GatewayError(
                Code.INVALID_VALUE, "The conversation was opened with another persona and keeps it.", field="persona"
            )
        return await self._say(principal, conversation_id, _unstated(conversation, ask))

    async def start_after(self, principal: Principal, turn_id: TurnId, ask: Ask) -> Begun:
        """Go on from a turn: in its conversation where it is the last one there, else in a new one that states it.

        Raises GatewayError(not_found) besides; history_lost where what was said cannot be read back.
        """
        self._check(ask)
        tenant = principal.tenant.id
        record = await self._log.record(tenant, turn_id)
        if record is None or not principal.owns(record.owner, record.persona):
            raise GatewayError(Code.NOT_FOUND)
        if await self._store.forgotten(tenant, turn_id):
            raise GatewayError(Code.NOT_FOUND)
        conversation = await self._conversations.get(principal, record.conversation_id)
        tip = Tip(record.conversation_id, turn_id, record.message_id)
        if record.persona == ask.alias:
            key = self._key(principal, ask)
            taken = await self._store.use(tenant, tip, key)
            if taken.tip is not None:
                begun = await self._go_on(principal, taken, _unstated(conversation, ask), None)
                if begun is not None:
                    return begun
                await self._store.decline(tenant, key)
        return await self._open(principal, replace(ask, said=[*_history(conversation, tip), *ask.said], matched=False))

    async def remember(self, principal: Principal, ask: Ask, begun: Begun, answer: str, message_id: str | None) -> None:
        """Let the list that a client has now, its answer included, be gone on from. Done before the client has it all.

        What the store does not take is no error: the list opens a new conversation then.
        """
        if not ask.matched:
            return
        said = [*ask.said, Said(ANSWER, answer)]
        tip = Tip(begun.conversation_id, begun.turn_id, message_id)
        try:
            await self._store.put(principal.tenant.id, self._digest(principal, ask.alias, said), tip)
        except GatewayError as error:
            throttled(logger, "thread.unsaved", tenant=principal.tenant.id, error=error)

    async def undo(self, principal: Principal, ask: Ask, begun: Begun) -> None:
        """Let what a turn went on from be gone on from again, since Hyperleap did not take its message.

        What the store does not take is no error: the list opens a new conversation then.
        """
        if begun.tip is None:
            return
        try:
            await self._store.give_back(principal.tenant.id, begun.digest, begun.tip, self._key(principal, ask))
        except GatewayError as error:
            throttled(logger, "thread.unsaved", tenant=principal.tenant.id, error=error)

    def _check(self, ask: Ask) -> None:
        """Refuse what would only be refused later, before anything is used up or opened for it."""
        self._turns.check(ask.said[-1].text)
        if ask.idempotency_key is not None:
            checked_key(ask.idempotency_key)

    async def _open(self, principal: Principal, ask: Ask) -> Begun:
        """Open a conversation whose first message states the list, or use one that was opened before in vain."""
        self._turns.check(stated(ask.said))
        tenant, spare = principal.tenant.id, self._spare(principal, ask)
        while ask.idempotency_key is None:  # such a key leads to its conversation by itself
            taken = await self._store.take(tenant, spare, None)
            if taken.tip is None:
                break
            begun = await self._go_on(principal, taken, ask, spare)
            if begun is not None:
                return begun
        conversation = await self._conversations.create(
            principal,
            alias=ask.alias,
            replacements=ask.replacements,
            metadata=ask.metadata,
            address=ask.address,
            idempotency_key=ask.idempotency_key,
        )
        unused = Tip(conversation.id, TurnId(conversation.id))
        try:
            begun = await self._say(principal, conversation.id, ask)
        except GatewayError:
            if ask.idempotency_key is None:
                with contextlib.suppress(GatewayError):
                    await self._store.put(tenant, spare, unused)
            raise
        return begun._replace(tip=unused, digest=spare) if ask.idempotency_key is None else begun

    async def _go_on(self, principal: Principal, taken: Taken, ask: Ask, digest: str | None) -> Begun | None:
        """Say something in the conversation that was taken; None where it is gone, or has gone on since.

        What is refused was not taken, unless an earlier request by the same key has had it.
        """
        tip = taken.tip
        assert tip is not None
        try:
            if not taken.repeated:
                conversation = await self._conversations.get(principal, tip.conversation_id)
                if not _is_last(conversation, tip) and not await self._begun(principal, tip, ask):
                    return None
            begun = await self._say(principal, tip.conversation_id, ask)
            return begun._replace(tip=tip, digest=digest)
        except GatewayError as error:
            if error.code is Code.NOT_FOUND:
                return None
            if not taken.repeated:
                with contextlib.suppress(GatewayError):
                    await self._store.give_back(principal.tenant.id, digest, tip, self._key(principal, ask))
            raise

    async def _begun(self, principal: Principal, tip: Tip, ask: Ask) -> bool:
        """Whether a repeat by the same key was faster, so that what was said after the turn is this very ask."""
        key, user = ask.idempotency_key, principal.user_hash
        if key is None:
            return False
        return await self._log.repeated(principal.tenant.id, user, tip.conversation_id, key) is not None

    async def _say(self, principal: Principal, conversation_id: ConversationId, ask: Ask) -> Begun:
        started = await self._turns.start(
            principal,
            conversation_id,
            stated(ask.said),
            idempotency_key=ask.idempotency_key,
            address=ask.address,
            tokens_max=ask.tokens_max,
        )
        return Begun(started.turn_id, conversation_id)

    # --- digests: what was said is neither kept nor to be guessed from what is ------------------------------------

    def _digest(self, principal: Principal, alias: str, said: Sequence[Said]) -> str:
        """White space around a message is not part of it: clients are free with it."""
        return self._hash(principal, "said", [alias, [(one.role, one.text.strip()) for one in said]])

    def _spare(self, principal: Principal, ask: Ask) -> str:
        return self._hash(principal, "spare", [ask.alias, ask.replacements, ask.metadata])

    def _key(self, principal: Principal, ask: Ask) -> str | None:
        key = ask.idempotency_key
        return self._hash(principal, "key", key) if key is not None else None

    def _hash(self, principal: Principal, what: str, value: object) -> str:
        data = msgspec.json.encode([what, principal.user_hash, value], order="sorted")
        return hmac.digest(self._pepper, data, hashlib.sha256).hex()[:DIGEST_CHARS]


def _is_last(conversation: Conversation, tip: Tip) -> bool:
    """Whether nothing was said in a conversation after a turn, as far as can be known."""
    messages = _taken(conversation)
    if not messages:
        return True
    last = messages[-1]
    if last.turn_id is not None:
        return last.turn_id == tip.turn_id
    return last.message_id is not None and last.message_id == tip.message_id


def _taken(conversation: Conversation) -> Sequence[Message]:
    """Return the messages that Hyperleap has: of a turn that failed before it took the question it has none."""
    messages = conversation.messages
    failed = {m.turn_id for m in messages if m.state == TurnState.FAILED and m.total_tokens == 0 and not m.message_id}
    return [m for m in messages if m.turn_id is None or m.turn_id not in failed] if failed else messages


def _history(conversation: Conversation, tip: Tip) -> list[Said]:
    """Return what was said up to a turn's answer; raises GatewayError(history_lost)."""

    def is_of_turn(one: Message) -> bool:
        return one.turn_id == tip.turn_id or (one.message_id is not None and one.message_id == tip.message_id)

    messages = [one for one in _taken(conversation) if one.role in (QUESTION, ANSWER)]
    end = next((index for index in range(len(messages), 0, -1) if is_of_turn(messages[index - 1])), 0)
    if not end:
        raise GatewayError(Code.HISTORY_LOST, "What was said up to this turn cannot be read back from Hyperleap.")
    return [Said(one.role, one.content) for one in messages[:end]]


def _unstated(conversation: Conversation, ask: Ask) -> Ask:
    """Leave instructions out that the conversation has been given already, and no others since.

    Under an idempotency key they stay: a repeat must say the same, and finds them given.
    """
    if ask.idempotency_key is not None:
        return ask
    new = list(dropwhile(lambda one: one.role == INSTRUCTION, ask.said))
    if not new or len(new) == len(ask.said):
        return ask
    head = instructions(one.text for one in ask.said[: len(ask.said) - len(new)])
    given = (one.content for one in reversed(_taken(conversation)) if one.content.startswith(instructions(())))
    if next(given, "").startswith((f"{head}\n\nMessage:\n", f"{head}\n\nConversation so far:\n")):
        return replace(ask, said=new)
    return ask
