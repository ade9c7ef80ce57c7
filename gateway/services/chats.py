"""Starts turns for clients that name their chats themselves and send all of a chat with every message.

Hyperleap keeps what was said, so in a chat that is known only what is new since the last answer is said: the last
message, and those before it that were never heard. A list that is not how the chat went on (an answer is asked for
again, a message was changed, or the chat is new here and has a past) opens a new conversation whose first message
states it, and the chat is held there from then on.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.chats import Chat, ChatStore, Line
from gateway.core.conversation import Conversation, ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventLog
from gateway.core.idempotency import checked_key
from gateway.core.identity import Principal
from gateway.core.threads import ANSWER, Said, split, stated
from gateway.core.turn import TurnId
from gateway.services.chat_lists import before_turn, goes_on, is_answer, unheard
from gateway.services.conversations import Conversations
from gateway.services.subscriptions import Subscriptions
from gateway.services.turns import Turns

DEFAULT_PERSONA: Final = "default"
CHAT_ID_MAX_CHARS: Final = 255
DIGEST_CHARS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client wants answered: the last of ``lines``, which is the user's, and those before it that are new.

    ``checked``: the lines before are the truth, and must be how the chat went on so far. ``persona`` None: the chat's.
    """

    door: str
    chat_id: str
    lines: Sequence[Line]
    address: str
    checked: bool = False
    persona: str | None = None
    replacements: Mapping[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None


class Begun(NamedTuple):
    """The turn that answers, and where."""

    turn_id: TurnId
    conversation_id: ConversationId


class Chats:
    """Finds or opens the conversation that a chat is held in, and starts its turns by ``Turns`` like any other.

    A chat is its user's and its door's: the same id of another user, or at another door, is another chat.
    """

    def __init__(
        self,
        store: ChatStore,
        conversations: Conversations,
        turns: Turns,
        subscriptions: Subscriptions,
        log: EventLog,
        *,
        pepper: bytes,
    ) -> None:
        self._store = store
        self._conversations = conversations
        self._turns = turns
        self._subscriptions = subscriptions
        self._log = log
        self._pepper = pepper
        self._beginning: set[asyncio.Task[Begun]] = set()

    async def begin(self, principal: Principal, ask: Ask) -> Begun:
        """Say what is new where the chat is held. Safe to cancel: what has begun goes on in a task of this service.

        Of two requests that are the first of a chat, one opens it and the other is told ``turn_active``.
        Raises GatewayError: invalid_value (``id``, or ``persona`` where the chat has another), and what
        ``Conversations.create`` and ``Turns.start`` raise.
        """
        task = asyncio.get_running_loop().create_task(self._begin(principal, ask))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return await asyncio.shield(task)

    async def active(self, principal: Principal, door: str, chat_id: str) -> TurnId | None:
        """Return the turn that is running in a chat; None where there is none, or no such chat."""
        chat = await self._store.find(principal.tenant.id, self._digest(principal, door, chat_id))
        if chat is None:
            return None
        try:
            return await self._subscriptions.active_turn(principal, chat.conversation_id)
        except GatewayError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise

    async def read(self, principal: Principal, door: str, chat_id: str) -> Conversation:
        """Return the conversation of a chat, as the chat went; raises GatewayError(not_found)."""
        chat = await self._store.find(principal.tenant.id, self._digest(principal, door, chat_id))
        if chat is None:
            raise GatewayError(Code.NOT_FOUND)
        conversation = await self._conversations.get(principal, chat.conversation_id)
        if not (chat.said and conversation.messages):
            return conversation
        first, *rest = conversation.messages
        before = [Message(one.role, one.text) for one in chat.said[:-1]]
        first = msgspec.structs.replace(first, content=chat.said[-1].text)
        return msgspec.structs.replace(conversation, messages=[*before, first, *rest])

    async def _begin(self, principal: Principal, ask: Ask) -> Begun:
        self._turns.check(ask.lines[-1].text)
        if ask.idempotency_key is not None:
            checked_key(ask.idempotency_key)
        digest = self._digest(principal, ask.door, ask.chat_id)
        chat = await self._store.find(principal.tenant.id, digest)
        if chat is not None:
            if principal.personas is not None and chat.persona not in principal.personas:
                raise GatewayError(Code.NOT_FOUND)
            if ask.persona not in (None, chat.persona):
                raise GatewayError(
                    Code.INVALID_VALUE, "The chat was opened with another persona and keeps it.", field="persona"
                )
            try:
                words = await self._words(principal, chat, ask)
                if words is not None:
                    return await self._say(principal, chat.conversation_id, words, ask)
            except GatewayError as error:
                if error.code is not Code.NOT_FOUND:
                    raise  # else it is gone at Hyperleap
        return await self._open(principal, ask, digest, chat)

    async def _words(self, principal: Principal, chat: Chat, ask: Ask) -> str | None:
        """Return what is to be said in the chat's conversation; None where the chat cannot go on there."""
        new = split(_said(ask.lines))[1]
        if not (ask.checked or chat.said or len(new) > 1):
            return new[-1].text
        same = bool(chat.said) and chat.said == _said(ask.lines)  # as the one that opened the conversation
        if ask.idempotency_key is not None:
            repeated = await self._log.repeated(
                principal.tenant.id, principal.user_hash, chat.conversation_id, ask.idempotency_key
            )
            if repeated is not None:
                if len(new) == 1 and not same:
                    return new[-1].text
                conversation = await self._conversations.get(principal, chat.conversation_id)
                before = before_turn(conversation.messages, repeated[0], new[-1].text)
                return stated(chat.said if same and not before else unheard(ask.lines, before))
        conversation = await self._conversations.get(principal, chat.conversation_id)
        answered = any(is_answer(one) for one in conversation.messages)
        known = any(one.role == ANSWER for one in _said(ask.lines))
        if answered == known or (answered and not ask.checked):
            if ask.checked and known and not goes_on(ask.lines, conversation.messages, chat.said):
                return None
            return stated(unheard(ask.lines, conversation.messages))
        if same and not conversation.messages and not conversation.messages_unavailable:
            return stated(chat.said)  # nothing of it has begun yet
        return None  # what was told before its first answer failed, nobody knows

    async def _open(self, principal: Principal, ask: Ask, digest: str, before: Chat | None) -> Begun:
        """Open a conversation whose first message states all lines, and hold the chat there."""
        said = _said(ask.lines)
        words = stated(said)
        self._turns.check(words)
        alias = ask.persona or (before.persona if before is not None else DEFAULT_PERSONA)
        opened = await self._conversations.create(
            principal,
            alias=alias,
            replacements=ask.replacements,
            metadata=ask.metadata,
            address=ask.address,
            idempotency_key=self._creation(digest, before, alias, ask),
        )
        chat = Chat(opened.id, alias, said if len(said) > 1 else [])
        if await self._store.put(principal.tenant.id, digest, chat, instead_of=before) != chat:
            raise GatewayError(
                Code.TURN_ACTIVE, "Another request has just moved this chat on; send this one again.", retry_after_s=1.0
            )
        return await self._say(principal, opened.id, words, ask)

    async def _say(self, principal: Principal, conversation_id: ConversationId, words: str, ask: Ask) -> Begun:
        started = await self._turns.start(
            principal, conversation_id, words, idempotency_key=ask.idempotency_key, address=ask.address
        )
        return Begun(started.turn_id, conversation_id)

    def _creation(self, digest: str, before: Chat | None, alias: str, ask: Ask) -> str:
        """Return the key under which requests at the same point of a chat open one conversation, on any worker."""
        parts = [digest, before.conversation_id if before else None, alias, dict(ask.replacements), ask.metadata]
        return f"chat-{hmac.digest(self._pepper, msgspec.json.encode(parts, order='sorted'), hashlib.sha256).hex()}"

    def _digest(self, principal: Principal, door: str, chat_id: str) -> str:
        if not (0 < len(chat_id) <= CHAT_ID_MAX_CHARS and chat_id.isprintable()):
            raise GatewayError(
                Code.INVALID_VALUE, f"A chat's id has 1 to {CHAT_ID_MAX_CHARS} printable characters.", field="id"
            )
        data = msgspec.json.encode(["chat", principal.user_hash, door, chat_id])
        return hmac.digest(self._pepper, data, hashlib.sha256).hex()[:DIGEST_CHARS]


def _said(lines: Sequence[Line]) -> list[Said]:
    return [Said(one.role, one.text) for one in lines if one.text.strip()]
