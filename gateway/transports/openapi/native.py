"""Entries of the native door: sessions, tickets, conversations, turns and the WebSocket."""

from __future__ import annotations

from typing import Final

from gateway.core.conversation import Feedback
from gateway.core.errors import Code
from gateway.core.events import EVENT_TYPES
from gateway.core.idempotency import IDEMPOTENCY_KEY_MAX_CHARS
from gateway.protocol.native import (
    ChangeConversation,
    Command,
    CreateConversation,
    GiveFeedback,
    OpenSession,
    StartTurn,
    TakeTicket,
)
from gateway.protocol.native_answers import (
    AckFrame,
    ConversationPage,
    ConversationRead,
    ErrorFrame,
    EventFrame,
    PongFrame,
    Problem,
    SessionOpened,
    TicketTaken,
    TurnAccepted,
    TurnAnswered,
    TurnCutShort,
    TurnStands,
)
from gateway.services.conversations import PAGE_MAX
from gateway.transports.openapi.document import PROBLEM
from gateway.transports.openapi.native_members import BODY_MEMBERS, COMMAND_MEMBERS, EVENT_MEMBERS
from gateway.transports.openapi.operation import (
    BODY,
    FAILURES,
    SCREENED,
    TOKEN,
    UUID,
    VENDOR,
    Answer,
    Door,
    Events,
    Operation,
    Parameter,
    Schema,
)
from gateway.transports.openapi.usage import TELL_USAGE

JSON: Final = "application/json"
SSE: Final = "text/event-stream"

CONVERSATION_ID: Final = Parameter("conversation_id", "path", "The conversation.", UUID)
TURN_ID: Final = Parameter("turn_id", "path", "The turn.", UUID)
MESSAGE_ID: Final = Parameter("message_id", "path", "One of the assistant's messages.", UUID)
IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    "Makes a repeat safe: the same key of the same user leads to what the first request led to. Printable characters.",
    {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_MAX_CHARS},
)
_CURSOR: Final[Schema] = {
    "type": "string",
    "pattern": "^$|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\\.[0-9]{1,15}$",
}
CURSORS: Final = (
    Parameter(
        "Last-Event-ID",
        "header",
        "The id of the last event that was seen; what comes after it is told. It goes before `after`, and "
        "an empty one is none.",
        _CURSOR,
    ),
    Parameter("after", "query", "The same, where no header can be set.", _CURSOR),
)

EVENTS: Final = Events(
    "Server-sent events, of which this is one. `id` is the cursor after it. The last is `turn.completed`, "
    "`turn.stopped` or `turn.failed`. `stream.error` has no id: it ends the stream, not the turn. Beside events there "
    "are comments, which keep the connection alive, and `retry:`.",
    {**EVENT_TYPES, "stream.error": Problem},
)
_STREAM: Final = Answer(
    what="The events, from after the cursor to the ending, live as they happen.",
    media={SSE: EVENTS},
    headers=("x-turn-id",),
)
_FOLLOW: Final = (
    *TOKEN,
    Code.DOOR_CLOSED,
    Code.INVALID_ID,
    Code.INVALID_CURSOR,
    Code.NOT_FOUND,
    Code.HISTORY_LOST,
    *VENDOR,
)

OPEN_SESSION: Final = Operation(
    method="post",
    path="/v1/sessions",
    id="openSession",
    summary="Open a session",
    detail="A secret key mints a token for the user that it names, narrowed as it asks. A publishable key opens an "
    "anonymous session, from an origin that the tenant lists; it may set `ttl_s` and `visitor_id` alone.",
    credentials=("secret_key", "publishable_key"),
    body=OpenSession,
    answers={201: Answer(what="The token.", media={JSON: SessionOpened})},
    errors=(
        Code.CREDENTIAL_MISSING,
        Code.CREDENTIAL_INVALID,
        Code.REVOKED,
        Code.FORBIDDEN,
        Code.ORIGIN_NOT_ALLOWED,
        Code.ANONYMOUS_DISABLED,
        *BODY,
        Code.INVALID_VALUE,
        Code.PERSONA_UNKNOWN,
        Code.STORE_UNAVAILABLE,
    ),
)
TAKE_TICKET: Final = Operation(
    method="post",
    path="/v1/tickets",
    id="takeTicket",
    summary="Take a ticket for a stream or a socket",
    detail="For `EventSource` and a browser's `WebSocket`, which can set no header. A stream's ticket works again and "
    "again, a socket's once.",
    credentials=("session_token",),
    body=TakeTicket,
    answers={201: Answer(what="The ticket.", media={JSON: TicketTaken})},
    errors=(*TOKEN, *BODY, Code.INVALID_VALUE),
)
CREATE: Final = Operation(
    method="post",
    path="/v1/conversations",
    id="createConversation",
    summary="Open a conversation",
    credentials=("session_token",),
    parameters=(IDEMPOTENCY_KEY,),
    body=CreateConversation,
    answers={
        201: Answer(
            what="The conversation.",
            media={JSON: ConversationRead},
            headers=("Location",),
            links={
                name: {"conversation_id": "$response.body#/id"}
                for name in ("getConversation", "changeConversation", "startTurn", "followConversation")
            },
        )
    },
    errors=(
        *TOKEN,
        *BODY,
        Code.INVALID_VALUE,
        Code.PERSONA_UNKNOWN,
        Code.REPLACEMENT_NOT_ALLOWED,
        Code.IDEMPOTENCY_MISMATCH,
        Code.IDEMPOTENCY_PENDING,
        *VENDOR,
    ),
    limited=True,
)
LIST: Final = Operation(
    method="get",
    path="/v1/conversations",
    id="listConversations",
    summary="List the user's conversations",
    credentials=("session_token",),
    parameters=(
        Parameter("cursor", "query", "`next_cursor` of the page before."),
        Parameter(
            "limit",
            "query",
            "The most that a page may hold.",
            {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_MAX},
        ),
    ),
    answers={200: Answer(what="A page.", media={JSON: ConversationPage})},
    errors=(*TOKEN, Code.INVALID_VALUE, Code.INVALID_CURSOR),
    limited=True,
)
GET: Final = Operation(
    method="get",
    path="/v1/conversations/{conversation_id}",
    id="getConversation",
    summary="Read a conversation with its messages",
    credentials=("session_token",),
    parameters=(CONVERSATION_ID,),
    answers={200: Answer(what="The conversation.", media={JSON: ConversationRead})},
    errors=(*TOKEN, Code.INVALID_ID, Code.NOT_FOUND, *VENDOR),
    limited=True,
)
CHANGE: Final = Operation(
    method="patch",
    path="/v1/conversations/{conversation_id}",
    id="changeConversation",
    summary="Change a conversation",
    detail="What is given is changed, and something must be; null empties a name or a status. Hyperleap is asked once "
    "for each: where it fails at one, those before it stand.",
    credentials=("session_token",),
    parameters=(CONVERSATION_ID,),
    body=ChangeConversation,
    answers={200: Answer(what="The conversation as it is then.", media={JSON: ConversationRead})},
    errors=(*TOKEN, Code.INVALID_ID, *BODY, Code.INVALID_VALUE, Code.NOT_FOUND, *VENDOR),
    limited=True,
)
FEEDBACK: Final = Operation(
    method="put",
    path="/v1/conversations/{conversation_id}/messages/{message_id}/feedback",
    id="giveFeedback",
    summary="Score an answer",
    detail="A user has one verdict on a message: scoring again replaces it.",
    credentials=("session_token",),
    parameters=(CONVERSATION_ID, MESSAGE_ID),
    body=GiveFeedback,
    answers={200: Answer(what="The verdict as it is kept.", media={JSON: Feedback})},
    errors=(*TOKEN, Code.INVALID_ID, *BODY, Code.INVALID_VALUE, Code.NOT_FOUND, *VENDOR),
    limited=True,
)
START: Final = Operation(
    method="post",
    path="/v1/conversations/{conversation_id}/turns",
    id="startTurn",
    summary="Send a message",
    detail="`Accept: text/event-stream` streams the answer, anything else waits for its end, `Prefer: respond-async` "
    "leaves it to be followed. A turn goes on when its reader leaves, as the tenant's rule says. What waits is told a "
    "failure with its own status, the text so far beside it; a stream tells it in `turn.failed`.",
    credentials=("session_token",),
    parameters=(
        CONVERSATION_ID,
        IDEMPOTENCY_KEY,
        Parameter("Prefer", "header", "`respond-async`: do not wait. Any other preference is passed over."),
    ),
    body=StartTurn,
    answers={
        200: Answer(
            what="The answer: its events, or its ending.",
            media={JSON: TurnAnswered | TurnCutShort, SSE: EVENTS},
            headers=("x-turn-id",),
            links={
                "followTurn": {"turn_id": "$response.header.x-turn-id"},
                "stopTurn": {"turn_id": "$response.header.x-turn-id"},
                "giveFeedback": {
                    "conversation_id": "$request.path.conversation_id",
                    "message_id": "$response.body#/message_id",
                },
            },
        ),
        202: Answer(
            what="The turn is under way.",
            media={JSON: TurnAccepted},
            headers=("x-turn-id", "Location", "Preference-Applied"),
            links={name: {"turn_id": "$response.body#/turn_id"} for name in ("followTurn", "stopTurn")},
        ),
    },
    errors=(
        *TOKEN,
        Code.DOOR_CLOSED,
        Code.INVALID_ID,
        *BODY,
        Code.INVALID_VALUE,
        Code.MESSAGE_EMPTY,
        Code.MESSAGE_TOO_LONG,
        Code.NOT_FOUND,
        Code.PERSONA_UNKNOWN,
        Code.TURN_ACTIVE,
        Code.IDEMPOTENCY_MISMATCH,
        Code.HISTORY_LOST,
        Code.DRAINING,
        Code.RATE_LIMITED,
        *SCREENED,
        *FAILURES,
    ),
    limited=True,
)
FOLLOW_TURN: Final = Operation(
    method="get",
    path="/v1/turns/{turn_id}/events",
    id="followTurn",
    summary="Follow or resume a turn",
    detail="A turn that has ended is replayed for as long as its log is kept.",
    credentials=("session_token", "ticket"),
    parameters=(TURN_ID, *CURSORS),
    answers={200: _STREAM, 204: Answer(what="The cursor is at the ending: nothing follows.")},
    errors=_FOLLOW,
    limited=True,
)
FOLLOW_CONVERSATION: Final = Operation(
    method="get",
    path="/v1/conversations/{conversation_id}/events",
    id="followConversation",
    summary="Follow the turn that a conversation's cursor is of, else the active one",
    credentials=("session_token", "ticket"),
    parameters=(CONVERSATION_ID, *CURSORS),
    answers={200: _STREAM, 204: Answer(what="No turn is active, or the cursor is at the ending.")},
    errors=_FOLLOW,
    limited=True,
)
STOP: Final = Operation(
    method="post",
    path="/v1/turns/{turn_id}/stop",
    id="stopTurn",
    summary="Stop a turn",
    detail="Hyperleap's stream is reset at once. Safe to repeat: a turn that has ended is told as it is.",
    credentials=("session_token",),
    parameters=(TURN_ID,),
    answers={200: Answer(what="Where the turn stands.", media={JSON: TurnStands})},
    errors=(*TOKEN, Code.INVALID_ID, Code.NOT_FOUND),
)
CONNECT: Final = Operation(
    method="get",
    path="/v1/ws",
    id="connectWebSocket",
    summary="Open a WebSocket",
    detail="The subprotocol is `hyperleap.chat.v1`; [its page](/docs/websocket) has the commands, frames and close "
    "codes. The token comes as a second subprotocol entry (`hgt.<token>`), in `Authorization`, as a ticket or in a "
    "first frame. Refusals come after the upgrade, as a close code that a page's script can read.",
    credentials=("session_token", "ticket"),
    optional=True,
    parameters=(Parameter("Sec-WebSocket-Protocol", "header", "`hyperleap.chat.v1`, and beside it `hgt.<token>`."),),
    answers={101: Answer(what="The socket is open.")},
    errors=(Code.UPGRADE_REQUIRED,),
)

DOOR: Final = Door(
    name="native",
    what="Sessions, conversations and turns, over HTTP, server-sent events and one WebSocket. Errors are RFC 9457 "
    "problem documents with a `code` ([all of them](/docs/errors)).",
    operations=(
        OPEN_SESSION,
        TAKE_TICKET,
        CREATE,
        LIST,
        GET,
        CHANGE,
        START,
        FOLLOW_TURN,
        FOLLOW_CONVERSATION,
        STOP,
        FEEDBACK,
        CONNECT,
        TELL_USAGE,
    ),
    refusals=PROBLEM,
    types=(Command, EventFrame, AckFrame | PongFrame | ErrorFrame),
    members={**BODY_MEMBERS, **EVENT_MEMBERS, **COMMAND_MEMBERS},
)
