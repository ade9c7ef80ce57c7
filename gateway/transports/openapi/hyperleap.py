"""Entries of the Hyperleap drop-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from gateway.core.errors import WIRE, Code, GatewayError
from gateway.core.operations import Report, RunKind
from gateway.protocol.hyperleap_answers import ChatEntries, ChatEntryResponse, HyperleapError, PromptRunScore
from gateway.protocol.hyperleap_door import (
    CreateChat,
    CreatePersonaChat,
    Moderate,
    RunPrompt,
    ScoreMessage,
    ScorePromptRun,
    SetScore,
    UserMessage,
    error_body,
)
from gateway.protocol.hyperleap_items import Form
from gateway.transports.hyperleap.chats import CHATS, OLDER_RUNS, RUNS
from gateway.transports.hyperleap.conversations import CHANGES
from gateway.transports.hyperleap.door import PREFIX
from gateway.transports.hyperleap.judgements import REPORTS
from gateway.transports.openapi.native import IDEMPOTENCY_KEY, JSON, SSE
from gateway.transports.openapi.operation import (
    BODY,
    FAILURES,
    SCREENED,
    TEXT,
    TOKEN,
    UUID,
    VENDOR,
    Answer,
    Credential,
    Door,
    Operation,
    Parameter,
    Refusals,
    Schema,
)
from gateway.transports.openapi.schemas import schema

USERS: Final[Sequence[Credential]] = ("hyperleap_header", "session_token", "publishable_key")
BACKEND: Final[Sequence[Credential]] = ("hyperleap_header", "secret_key")
CALLER: Final = (*TOKEN, Code.ANONYMOUS_DISABLED, Code.DOOR_CLOSED, Code.INVALID_VALUE, Code.INVALID_ID, Code.NOT_FOUND)
ASKED: Final = (*CALLER, *VENDOR)
TURN: Final = (
    *CALLER,
    *BODY,
    Code.PERSONA_UNKNOWN,
    Code.PROMPT_UNKNOWN,
    Code.REPLACEMENT_NOT_ALLOWED,
    Code.MESSAGE_EMPTY,
    Code.MESSAGE_TOO_LONG,
    Code.TURN_ACTIVE,
    Code.IDEMPOTENCY_MISMATCH,
    Code.IDEMPOTENCY_PENDING,
    Code.HISTORY_LOST,
    Code.DRAINING,
    Code.RATE_LIMITED,
    *SCREENED,
    *FAILURES,
)
CREATED: Final = (*BODY, Code.REPLACEMENT_NOT_ALLOWED, Code.IDEMPOTENCY_MISMATCH, Code.IDEMPOTENCY_PENDING)
CONVERSATION_ID: Final = Parameter("conversation_id", "path", "The conversation.", UUID)
RUN_ID: Final = Parameter("run_id", "path", "The run.", UUID)
PAGE: Final = Parameter("continuationToken", "query", "Of the page before.")
ENTRY: Final = {200: Answer(what="The conversation.", media={JSON: ChatEntryResponse})}
ENTRIES: Final = {200: Answer(what="A page.", media={JSON: ChatEntries})}
WHOLE: Final[Schema] = {"type": "object", "description": "Hyperleap's `GenAiChatResponse`."}
ITEMS: Final[Schema] = {
    "type": "array",
    "items": {"type": "object", "description": "Hyperleap's streamed item."},
    "description": "Written item by item. An answer that broke has no closing bracket.",
}
EVENTS: Final[Schema] = {
    "type": "object",
    "description": "Server-sent events; `data` is the JSON of one of Hyperleap's streamed items.",
    "properties": {"data": TEXT},
    "required": ["data"],
}
FORMS: Final[dict[Form | None, tuple[str, dict[str, Any]]]] = {
    "array": ("as a JSON array, item by item", {JSON: ITEMS}),
    "sse": ("as server-sent events", {SSE: EVENTS}),
    None: ("whole", {JSON: WHOLE}),
}
ANY_JSON: Final[Schema] = {"description": "As Hyperleap answers it."}


def _operation(
    method: Literal["get", "post", "patch"],
    path: str,
    summary: str,
    answers: dict[int, Answer],
    errors: Sequence[Code],
    *,
    body: Any = None,
    parameters: Sequence[Parameter] = (),
    credentials: Sequence[Credential] = USERS,
) -> Operation:
    words = path.replace("{", "").replace("}", "").replace("_id", "").replace("/", "-").split("-")
    return Operation(
        method=method,
        path=f"{PREFIX}/{path}",
        id="hyperleap" + method.capitalize() + "".join(word.capitalize() for word in words),
        summary=summary,
        credentials=credentials,
        parameters=parameters,
        body=body,
        answers=answers,
        errors=errors,
        limited=True,
        route=f"{PREFIX}/{{base}}{path}",
    )


def _told(what: str, media: dict[str, Any]) -> dict[int, Answer]:
    return {200: Answer(what=what, media=media, headers=("x-turn-id",))}


def _chats() -> list[Operation]:
    one = (CONVERSATION_ID, IDEMPOTENCY_KEY)
    made = []
    for name, form in CHATS.items():
        how, media = FORMS[form]
        told = _told(f"The answer, {how}.", media)
        path = f"conversations/{{conversation_id}}/{name}"
        made.append(
            _operation("patch", path, f"Send a message, answered {how}", told, TURN, body=UserMessage, parameters=one)
        )
    for path, form in RUNS.items():
        how, media = FORMS[form]
        told = _told(f"The answer, {how}.", media)
        made.append(
            _operation("post", path, f"Run a prompt, answered {how}", told, TURN, body=RunPrompt, parameters=one[1:])
        )
    for path in OLDER_RUNS:
        told = _told("The answer, in the form that `stream` asks for.", {JSON: {"anyOf": [WHOLE, ITEMS]}})
        made.append(
            _operation("post", path, "Run a prompt (an older name)", told, TURN, body=RunPrompt, parameters=one[1:])
        )
    return made


def _conversations() -> list[Operation]:
    one = "conversations/{conversation_id}"
    created = (*ASKED, *CREATED, Code.PERSONA_UNKNOWN)
    persona = Parameter("persona_id", "path", "Hyperleap's id of a persona.", UUID)
    user = Parameter("user", "path", "The caller, as the gateway or the app calls him.")
    message = Parameter("message_id", "path", "One of the assistant's messages.", UUID)
    return [
        _operation(
            "post",
            "conversations/persona",
            "Open a conversation with a persona",
            ENTRY,
            created,
            body=CreatePersonaChat,
            parameters=(IDEMPOTENCY_KEY,),
        ),
        _operation(
            "post",
            "conversations",
            "Open a conversation with a model that the tenant lists",
            ENTRY,
            created,
            body=CreateChat,
            parameters=(IDEMPOTENCY_KEY,),
        ),
        _operation("get", "conversations", "List one's conversations", ENTRIES, PAGED, parameters=(PAGE,)),
        _operation(
            "get",
            "conversations/persona/{persona_id}",
            "List one's conversations with a persona",
            ENTRIES,
            PAGED,
            parameters=(persona, PAGE),
        ),
        _operation(
            "get",
            "conversations/user/{user}",
            "List one's conversations; nobody else has any",
            ENTRIES,
            PAGED,
            parameters=(user, PAGE),
        ),
        _operation("get", one, "Read a conversation", ENTRY, ASKED, parameters=(CONVERSATION_ID,)),
        *(
            _operation(
                "patch",
                f"{one}/{name}",
                "Change a conversation",
                ENTRY,
                (*ASKED, *BODY, Code.TURN_ACTIVE),
                body=kind,
                parameters=(CONVERSATION_ID,),
            )
            for name, kind in {**CHANGES, "set-score": SetScore}.items()
        ),
        _operation(
            "patch",
            f"{one}/set-score/{{message_id}}",
            "Score an answer",
            ENTRY,
            (*ASKED, *BODY),
            body=ScoreMessage,
            parameters=(CONVERSATION_ID, message),
        ),
    ]


PAGED: Final = (*ASKED, Code.INVALID_CURSOR)


def _judgements() -> list[Operation]:
    scored = {200: Answer(what="The run's score.", media={JSON: PromptRunScore})}
    plain = {200: Answer(what="As Hyperleap answers it.", media={JSON: ANY_JSON})}
    return [
        _operation(
            "patch",
            "prompt-runs/{run_id}/set-score",
            "Score a prompt run",
            scored,
            (*ASKED, *BODY),
            body=ScorePromptRun,
            parameters=(RUN_ID,),
        ),
        _operation("post", "moderations", "Moderate a text", plain, (*TURN,), body=Moderate),
        *(
            _operation(
                "post",
                str(of),
                "Report on what is the tenant's",
                plain,
                (*ASKED, *BODY),
                body=REPORTS[of],
                credentials=BACKEND,
            )
            for of in Report
        ),
        *(
            _operation(
                "get",
                f"{kind}/{{run_id}}",
                "Tell of a run",
                plain,
                ASKED,
                parameters=(RUN_ID,),
                credentials=BACKEND,
            )
            for kind in RunKind
        ),
    ]


def _schema(codes: Sequence[Code]) -> Schema:
    names = {error_body(GatewayError(code))["error"]["code"] for code in codes} | {"invite_expired"}
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": sorted(names)}}}}}
    return {"allOf": [schema(HyperleapError), narrowed]}


DOOR: Final = Door(
    name="hyperleap",
    what="Hyperleap's own API, for apps that change their base URL and their key ([what differs](/docs/hyperleap)). "
    f"Every path is also below `{PREFIX}/api` and `{PREFIX}/app`. Members that are not known are passed over. Errors "
    "have Hyperleap's documented shape; where it was Hyperleap that refused, its own status, listed here or not.",
    operations=(*_chats(), *_conversations(), *_judgements()),
    refusals=Refusals(JSON, lambda code: WIRE[code].http, _schema, (HyperleapError,), vendors=True),
)
