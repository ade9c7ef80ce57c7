"""Entries of the AI SDK UI door: chats of ``useChat``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.errors import WIRE, Code
from gateway.core.threads import ANSWER, QUESTION
from gateway.protocol.ai_sdk import UiChatRequest, UiMessage
from gateway.protocol.ui_answers import ChatRead, ChatStands
from gateway.services.chats import CHAT_ID_MAX_CHARS, DEFAULT_PERSONA
from gateway.services.conversations import EXTRAS_MAX_BYTES, METADATA_MAX_ENTRIES
from gateway.transports.openapi.native import IDEMPOTENCY_KEY, JSON, SSE
from gateway.transports.openapi.operation import (
    BODY,
    SCREENED,
    TEXT,
    TOKEN,
    VENDOR,
    Answer,
    Door,
    Operation,
    Parameter,
    Refusals,
    Schema,
)

CHAT: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": CHAT_ID_MAX_CHARS}
CHAT_ID: Final = Parameter("chat_id", "path", "The chat, by the id that its page chose. Printable characters.", CHAT)
# What the gateway takes beside the protocols, of the doors whose clients name their chats themselves.
OWN: Final[Mapping[str, Schema]] = {
    "persona": {
        "description": f"An alias of the tenant's. A new chat's is `{DEFAULT_PERSONA}` if none is named, and a chat "
        "keeps the one that it was opened with."
    },
    "replacements": {
        "description": "Values of what the persona lets be replaced, which count when a chat is opened; "
        f"{EXTRAS_MAX_BYTES} bytes of JSON at most."
    },
    "metadata": {
        "description": "Yours to keep with the conversation, when a chat is opened; "
        f"{EXTRAS_MAX_BYTES} bytes of JSON at most.",
        "maxProperties": METADATA_MAX_ENTRIES,
    },
}
REFUSED: Final[Schema] = {"description": "Refused where it is not empty: Hyperleap cannot be given it."}
ANSWERED: Final = (
    *TOKEN,
    *BODY,
    Code.DOOR_CLOSED,
    Code.INVALID_VALUE,
    Code.UNSUPPORTED_PARAMETER,
    Code.PERSONA_UNKNOWN,
    Code.REPLACEMENT_NOT_ALLOWED,
    Code.MESSAGE_EMPTY,
    Code.MESSAGE_TOO_LONG,
    Code.NOT_FOUND,
    Code.HISTORY_LOST,
    Code.TURN_ACTIVE,
    Code.IDEMPOTENCY_MISMATCH,
    Code.IDEMPOTENCY_PENDING,
    Code.DRAINING,
    *SCREENED,
    *VENDOR,
)
FOUND: Final = (*TOKEN, Code.INVALID_VALUE, Code.NOT_FOUND, *VENDOR)

STREAM: Final = Answer(
    what="The answer as it is written.",
    media={
        SSE: {
            "description": "Server-sent events without names: a UI message stream, version 1. `data` is the JSON of a "
            "part; the last is `[DONE]`. Beside events there are comments, which keep the connection alive.",
            "type": "object",
            "properties": {"data": TEXT},
            "required": ["data"],
        }
    },
    headers=("x-turn-id", "x-conversation-id", "x-vercel-ai-ui-message-stream"),
)


DOOR: Final = Door(
    name="ai-sdk",
    what="AI SDK UI's protocol, for pages that use `useChat` ([how it maps](/docs/ui)). A chat is named by its page. "
    "Errors are a sentence, which `useChat` shows as it stands, with the code in `x-error-code`; whoever accepts JSON "
    "by name is told a problem document.",
    operations=(
        Operation(
            method="post",
            path="/api/chat",
            id="sendToChat",
            summary="Answer the last message of a chat",
            detail="Send all `messages`, or the last `message` alone. A chat that went another way is held in a new "
            "conversation from then on. An answer goes on when its reader leaves, as the tenant's rule says.",
            credentials=("session_token",),
            parameters=(IDEMPOTENCY_KEY,),
            body=UiChatRequest,
            answers={
                200: Answer(
                    what=STREAM.what,
                    media=STREAM.media,
                    headers=STREAM.headers,
                    links={
                        **{name: {"chat_id": "$request.body#/id"} for name in ("getChat", "resumeChat", "stopChat")},
                        "followTurn": {"turn_id": "$response.header.x-turn-id"},
                    },
                )
            },
            errors=ANSWERED,
            limited=True,
        ),
        Operation(
            method="get",
            path="/api/chat/{chat_id}",
            id="getChat",
            summary="Read a chat with its messages",
            credentials=("session_token",),
            parameters=(CHAT_ID,),
            answers={200: Answer(what="The chat.", media={JSON: ChatRead})},
            errors=FOUND,
            limited=True,
        ),
        Operation(
            method="get",
            path="/api/chat/{chat_id}/stream",
            id="resumeChat",
            summary="Go on with the answer that is being written, from its beginning",
            credentials=("session_token",),
            parameters=(CHAT_ID,),
            answers={200: STREAM, 204: Answer(what="Nothing is being answered, or there is no such chat.")},
            errors=(*FOUND, Code.DOOR_CLOSED, Code.HISTORY_LOST),
            limited=True,
        ),
        Operation(
            method="post",
            path="/api/chat/{chat_id}/stop",
            id="stopChat",
            summary="Stop the answer that is being written",
            detail="Safe to repeat. A body is not read.",
            credentials=("session_token",),
            parameters=(CHAT_ID,),
            answers={200: Answer(what="Where the chat stands.", media={JSON: ChatStands})},
            errors=FOUND,
            limited=True,
        ),
    ),
    refusals=Refusals(
        "text/plain", lambda code: WIRE[code].http, lambda _: TEXT, headers=("x-error-code",), problems=True
    ),
    members={
        UiChatRequest: {
            "id": {"description": "The chat, by an id of your choice. Printable characters.", **CHAT},
            "messages": {"description": "All of the chat, the user's message last."},
            "message": {
                "description": "The user's message alone, in the place of `messages`.",
                "examples": [{"role": "user", "parts": [{"type": "text", "text": "Hi"}]}],
            },
            "trigger": {"description": "`regenerate-message` asks for an answer again."},
            "messageId": {"description": "The message that was changed, or is to be answered again."},
            **OWN,
            **dict.fromkeys(("model", "system", "tools"), REFUSED),
        },
        UiMessage: {
            "role": {"enum": [QUESTION, ANSWER]},
            "parts": {
                "description": "`text` is what is said. `data-…`, `source-…`, `reasoning` and `step-start` are passed "
                "over, any other is refused."
            },
        },
    },
)
