"""What the AI SDK and AG-UI doors answer beside their streams, as types: what the API's description tells of them.

Answers are written by ``protocol.ai_sdk`` and the doors, as plain values; tests hold what is sent to these types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core.events import TurnError
from gateway.core.turn import StopReason
from gateway.protocol.native_answers import Id


class UiMessageMetadata(msgspec.Struct, rename="camel"):
    """Whose an answer is. ``stopReason`` or ``error`` is there where it did not complete."""

    turn_id: Id | None
    message_id: Annotated[str, Meta(description="Hyperleap's id of the answer, by which it is scored.")] | None
    run_id: str | None
    stop_reason: StopReason | UnsetType = UNSET
    error: TurnError | UnsetType = UNSET


class UiMessageRead(msgspec.Struct):
    """A ``UIMessage``, for ``useChat`` to begin with. The assistant's have ``metadata``."""

    id: str
    role: Literal["user", "assistant"]
    parts: Annotated[
        list[dict[str, Any]], Meta(description="`text`, and the citations as `source-url` and `source-document`.")
    ]
    metadata: UiMessageMetadata | UnsetType = UNSET


class ChatRead(msgspec.Struct):
    """A chat as it went, and the conversation that it is held in."""

    id: str
    conversation_id: Id
    active_turn_id: Id | None
    messages: list[UiMessageRead]


class ChatStands(msgspec.Struct):
    """Where a chat stands that was to be stopped: ``idle`` where nothing was being answered."""

    turn_id: Id | None
    state: Literal["idle", "stopping", "completed", "stopped", "failed"]
