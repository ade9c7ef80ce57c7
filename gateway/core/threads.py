"""Threads: lists of messages whose clients keep them, and the conversation that each of them goes on in.

A client of such a door sends everything that was said with every request. Where a list's beginning, up to its last
answer, is what a turn of the same user has ended with before, the list goes on in that turn's conversation; anything
else opens a new one. A turn is gone on from once: whoever comes second, as with an answer that is asked for again,
opens a new conversation too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.core.conversation import ConversationId
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId

ANSWER: Final = "assistant"
QUESTION: Final = "user"
INSTRUCTION: Final = "system"
ROLE_NAMES: Final = {QUESTION: "User", ANSWER: "Assistant", INSTRUCTION: "Instructions"}


class Said(NamedTuple):
    """One message of a list: ``user``, ``assistant`` or ``system``, and its words."""

    role: str
    text: str


class Tip(msgspec.Struct, frozen=True, array_like=True):
    """A turn that a list may go on from, and its answer's id at the vendor."""

    conversation_id: ConversationId
    turn_id: TurnId
    message_id: str | None = None


class Taken(NamedTuple):
    """What taking gave: the tip, None where there is none; ``repeated`` where an earlier request had it by this key."""

    tip: Tip | None
    repeated: bool = False


class ThreadStore(Protocol):
    """Which turns lists may go on from, by digests of what was said. Raises GatewayError(store_unavailable).

    ``key`` is a digest of a request's idempotency key, or None. All that a key's first request was given, its repeats
    are given as well.
    """

    async def put(self, tenant: TenantId, digest: str, tip: Tip) -> None:
        """Let whoever says what the digest is of go on from a turn."""
        ...

    async def take(self, tenant: TenantId, digest: str, key: str | None) -> Taken:
        """Use up the last turn put under a digest that nobody has gone on from, in one step."""
        ...

    async def use(self, tenant: TenantId, tip: Tip, key: str | None) -> Taken:
        """Use up a turn that is known by its id, in one step; no tip where somebody has gone on from it."""
        ...

    async def decline(self, tenant: TenantId, key: str | None) -> None:
        """Note that what was taken is not gone on from, but a new conversation opened; repeats open it too."""
        ...

    async def give_back(self, tenant: TenantId, digest: str | None, tip: Tip, key: str | None) -> None:
        """Undo a taking, as when the next turn did not begin; ``digest`` where it was taken by one."""
        ...

    async def forget(self, tenant: TenantId, turn_id: TurnId) -> None:
        """Let nobody go on from a turn, and remember that its answer is not to be found any more."""
        ...

    async def forgotten(self, tenant: TenantId, turn_id: TurnId) -> bool: ...


def split(said: Sequence[Said]) -> tuple[Sequence[Said], Sequence[Said]]:
    """Return what is known to both sides, up to the last answer, and what is new."""
    end = next((index for index in range(len(said), 0, -1) if said[index - 1].role == ANSWER), 0)
    return said[:end], said[end:]


def stated(said: Sequence[Said]) -> str:
    """Return one message that says all of a list: its instructions, what was said before, and its last message.

    A single message of the user's is just its words.
    """
    *before, last = said
    if not before and last.role == QUESTION:
        return last.text
    begin = next((index for index, one in enumerate(said) if one.role != INSTRUCTION), len(said))
    parts = [instructions(one.text for one in said[:begin])] if begin else []
    if history := said[begin:-1]:
        parts.append("Conversation so far:\n" + "\n\n".join(f"{ROLE_NAMES[one.role]}: {one.text}" for one in history))
    if begin < len(said):
        name = "Message" if last.role == QUESTION else ROLE_NAMES[last.role]
        parts.append(f"{name}:\n{last.text}")
    return "\n\n".join(parts)


def instructions(texts: Iterable[str]) -> str:
    """Return how instructions are stated at a message's beginning."""
    return "Instructions:\n" + "\n\n".join(texts)
