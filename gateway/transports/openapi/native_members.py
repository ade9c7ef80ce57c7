"""What is to be said of the native door's members beyond their types: what they mean, and the bounds services keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.core.conversation import SCORE_MAX, SCORE_MIN
from gateway.core.events import (
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import USER_ID_MAX_CHARS
from gateway.protocol.native import (
    AuthCommand,
    ChangeConversation,
    CreateConversation,
    GiveFeedback,
    OpenSession,
    PingCommand,
    RefreshCommand,
    SessionLimits,
    StartCommand,
    StartTurn,
    StopCommand,
    SubscribeCommand,
    TakeTicket,
    UnsubscribeCommand,
)
from gateway.services.changes import TEXT_MAX_CHARS
from gateway.services.conversations import EXTRAS_MAX_BYTES, METADATA_MAX_ENTRIES
from gateway.services.feedback import COMMENTS_MAX_CHARS, TAG_MAX_CHARS, TAGS_MAX
from gateway.services.sessions import LIMITS_MAX, ORIGINS_MAX, PERSONAS_MAX
from gateway.transports.openapi.operation import Schema

BODY_MEMBERS: Final[Mapping[Any, Mapping[str, Schema]]] = {
    OpenSession: {
        "user_id": {
            "description": "With a secret key: whom the token is for, in your own words.",
            "minLength": 1,
            "maxLength": USER_ID_MAX_CHARS,
        },
        "ttl_s": {"description": "Seconds that the token lives; the gateway's settings bound it.", "minimum": 1},
        "personas": {
            "description": "Aliases that the token reaches; all of the tenant's unless given.",
            "minItems": 1,
            "maxItems": PERSONAS_MAX,
        },
        "origins": {
            "description": "Origins that the token works from, beside what the tenant allows.",
            "maxItems": ORIGINS_MAX,
        },
        "limits": {"description": "Limits of the token's own; they only tighten."},
        "single_use": {"description": "Good for one request or one socket."},
        "visitor_id": {"description": "With a publishable key: the `visitor_id` of a session before."},
    },
    SessionLimits: {name: {"minimum": 1, "maximum": most} for name, most in LIMITS_MAX.items()},
    TakeTicket: {
        "path": {
            "description": "`/v1/turns/{id}/events`, `/v1/conversations/{id}/events` or `/v1/ws`.",
            "examples": ["/v1/ws"],
        }
    },
    CreateConversation: {
        "persona": {"description": "An alias of the tenant's."},
        "replacements": {
            "description": f"Values of what the persona lets be replaced; {EXTRAS_MAX_BYTES} bytes of JSON at most."
        },
        "metadata": {
            "description": f"Yours to keep with the conversation; {EXTRAS_MAX_BYTES} bytes of JSON at most.",
            "maxProperties": METADATA_MAX_ENTRIES,
        },
    },
    ChangeConversation: {
        "name": {"maxLength": TEXT_MAX_CHARS},
        "status": {"maxLength": TEXT_MAX_CHARS},
        "metadata": {
            "description": f"In the place of all that there was; {EXTRAS_MAX_BYTES} bytes of JSON at most.",
            "maxProperties": METADATA_MAX_ENTRIES,
        },
        "active": {"description": "Hyperleap's switch."},
    },
    StartTurn: {"message": {"description": "The user's words; the gateway's settings bound them.", "minLength": 1}},
    GiveFeedback: {
        "score": {"minimum": SCORE_MIN, "maximum": SCORE_MAX},
        "comments": {"maxLength": COMMENTS_MAX_CHARS},
        "tags": {
            "maxItems": TAGS_MAX,
            "items": {"type": "string", "minLength": 1, "maxLength": TAG_MAX_CHARS},
        },
        "confidence": {"minimum": 0, "maximum": 1},
    },
}

_ANSWER: Final[Mapping[str, Schema]] = {
    "message_id": {"description": "Hyperleap's id of the answer, by which it is scored."},
    "run_id": {"description": "Hyperleap's id of the run."},
    "text": {"description": "The whole answer, or what there is of it."},
}
_REQUEST: Final[Mapping[str, Schema]] = {"request_id": {"description": "Yours, to know the answer by."}}
_FOLLOWED: Final[Mapping[str, Schema]] = {
    "turn_id": {"description": "The turn, or …"},
    "conversation_id": {"description": "… the conversation."},
}

EVENT_MEMBERS: Final[Mapping[Any, Mapping[str, Schema]]] = {
    TurnStarted: {"ordinal": {"description": "Turns of a conversation are numbered 1, 2, …"}},
    TurnQueued: {
        "position": {"description": "The place in the line for Hyperleap's plan limit."},
        "wait_s": {"description": "Seconds that it will take, as far as can be told."},
    },
    MessageStarted: {name: _ANSWER[name] for name in ("message_id", "run_id")},
    TextDelta: {
        "text": {"description": "What comes next of the answer. Pieces may come merged or split when replayed."}
    },
    MessageExtra: {"index": {"description": "Hyperleap's number of the choice."}},
    MessageCitations: {"citations": {"description": "In Hyperleap's shape."}},
    MessageModerated: {"categories": {"description": "Objects of `category`, `filtered` and `severity`."}},
    TurnCompleted: {**_ANSWER, "finish_reason": {"description": "As Hyperleap tells it, such as `stop`."}},
    TurnStopped: _ANSWER,
    TurnFailed: _ANSWER,
    TurnError: {
        "detail": {"description": "For developers; users are told by the code."},
        "retryable": {"description": "Whether the same message may succeed later."},
    },
}

COMMAND_MEMBERS: Final[Mapping[Any, Mapping[str, Schema]]] = {
    StartCommand: {
        "message": {"description": "The user's words."},
        "client_message_id": {"description": "Makes a repeat safe."},
        **_REQUEST,
    },
    SubscribeCommand: {
        **_FOLLOWED,
        "after": {"description": "The cursor: the `id` of the last event that was seen."},
        **_REQUEST,
    },
    UnsubscribeCommand: {**_FOLLOWED, **_REQUEST},
    StopCommand: _REQUEST,
    PingCommand: _REQUEST,
    AuthCommand: _REQUEST,
    RefreshCommand: _REQUEST,
}
