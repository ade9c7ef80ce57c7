"""Chats: what a client names by an id of its own choice, and the conversation that each of them is held in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.threads import Said

LINES_MAX: Final = 2048  # messages of a list, and parts of a message: more would hold up everybody else


def check_count(values: Sequence[object], field: str) -> None:
    """Raise GatewayError(invalid_value) for a list that is too long to be gone through at one stroke."""
    if len(values) > LINES_MAX:
        raise GatewayError(Code.INVALID_VALUE, f"There may be {LINES_MAX} of these.", field=field)


class Line(NamedTuple):
    """One message as a client has it: ``user`` or ``assistant``, its words, and the client's id for it."""

    role: str
    text: str
    id: str = ""


class Chat(msgspec.Struct, frozen=True, array_like=True):
    """Where a chat is held. ``said`` is all that the conversation's first message states, where that is more than one.

    Two that are equal are equal as bytes, so a script can tell which one it sees.
    """

    conversation_id: ConversationId
    persona: str
    said: list[Said] = []


class ChatStore(Protocol):
    """Which conversation a chat is held in, by digests of user and chat id. Raises GatewayError(store_unavailable)."""

    async def find(self, tenant: TenantId, digest: str) -> Chat | None:
        """Return where a chat is held, and remember that for another while."""
        ...

    async def put(self, tenant: TenantId, digest: str, chat: Chat, *, instead_of: Chat | None) -> Chat:
        """Hold a chat elsewhere, if it still is where it was (None: nowhere), in one step; return where it is now."""
        ...
