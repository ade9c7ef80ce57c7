"""Entries of the OpenAI door: chat completions, responses and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.protocol.openai.answers import (
    RESPONSE_EVENTS,
    ChatCompletion,
    ChatCompletionChunk,
    Model,
    ModelList,
    OpenAIError,
    ResponseDeleted,
    ResponseObject,
)
from gateway.protocol.openai.chat import ChatRequest
from gateway.protocol.openai.errors import form
from gateway.protocol.openai.responses import ResponseRequest
from gateway.transports.openapi.native import IDEMPOTENCY_KEY, JSON, SSE
from gateway.transports.openapi.operation import (
    BODY,
    FAILURES,
    SCREENED,
    TEXT,
    TOKEN,
    Answer,
    Credential,
    Door,
    Events,
    Operation,
    Parameter,
    Refusals,
    Schema,
)
from gateway.transports.openapi.schemas import schema

KEYS: Final[Sequence[Credential]] = ("session_token", "secret_key", "publishable_key")
TURN_HEADERS: Final = ("x-turn-id", "x-conversation-id")
USER: Final = Parameter("x-user-id", "header", "With a secret key: whom it is for, where the body does not say.")
MODEL: Final = Parameter("model", "path", "A persona's alias.")
RESPONSE_ID: Final = Parameter("response_id", "path", "The response, `resp_<turn>`.")

CALLER: Final = (*TOKEN, Code.ANONYMOUS_DISABLED, Code.INVALID_VALUE)
TURN: Final = (
    *CALLER,
    *BODY,
    Code.DOOR_CLOSED,
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
    Code.RATE_LIMITED,
    *SCREENED,
    *FAILURES,
)
READ: Final = (*CALLER, Code.NOT_FOUND, Code.HISTORY_LOST, Code.RATE_LIMITED, *FAILURES)

CHUNKS: Final[Schema] = {
    "description": "Server-sent events without names. `data` is the JSON of a `ChatCompletionChunk`; the last is "
    "`[DONE]`. An error in a chunk's place is an `OpenAIError`, and nothing follows it.",
    "type": "object",
    "properties": {"data": TEXT},
    "required": ["data"],
}
EVENTS: Final = Events(
    "Server-sent events, of which this is one. `sequence_number` is where the stream can be taken up again.",
    RESPONSE_EVENTS,
)


def _told(code: Code) -> str:
    return form(GatewayError(code)).code


def _schema(codes: Sequence[Code]) -> Schema:
    names = {_told(code) for code in codes}
    if Code.RATE_LIMITED in codes:
        names.add("insufficient_quota")  # of a day or a month
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": sorted(names)}}}}}
    return {"allOf": [schema(OpenAIError), narrowed]}


DOOR: Final = Door(
    name="openai",
    what="OpenAI's API, for clients that change their base URL and their key ([how it maps](/docs/openai)). A model is "
    "a persona's alias. Errors have OpenAI's shape.",
    operations=(
        Operation(
            method="post",
            path="/v1/chat/completions",
            id="createChatCompletion",
            summary="Answer a list of messages",
            detail="The list goes on in the conversation whose beginning it is, else a new one opens with it stated. "
            "What cannot be served is refused by name.",
            credentials=KEYS,
            parameters=(USER, IDEMPOTENCY_KEY),
            body=ChatRequest,
            answers={
                200: Answer(
                    what="The answer, whole or in chunks.",
                    media={JSON: ChatCompletion, SSE: CHUNKS},
                    headers=TURN_HEADERS,
                )
            },
            errors=TURN,
            limited=True,
        ),
        Operation(
            method="post",
            path="/v1/responses",
            id="createResponse",
            summary="Answer an input",
            detail="`previous_response_id` and `conversation` go on where they say; a list of items goes on in the "
            "conversation whose beginning it is. With `background` the answer comes at once, under way.",
            credentials=KEYS,
            parameters=(USER, IDEMPOTENCY_KEY),
            body=ResponseRequest,
            answers={
                200: Answer(
                    what="The response, whole, under way or as events.",
                    media={JSON: ResponseObject, SSE: EVENTS},
                    headers=TURN_HEADERS,
                    links={
                        name: {"response_id": "$response.body#/id"}
                        for name in ("getResponse", "cancelResponse", "deleteResponse")
                    },
                )
            },
            errors=TURN,
            limited=True,
        ),
        Operation(
            method="get",
            path="/v1/responses/{response_id}",
            id="getResponse",
            summary="Read a response, or go on with its stream",
            credentials=KEYS,
            parameters=(
                RESPONSE_ID,
                USER,
                Parameter("stream", "query", "`true`: as events."),
                Parameter(
                    "starting_after",
                    "query",
                    "With `stream`: the sequence number of the last event that was seen.",
                    {"type": "integer", "minimum": -1, "maximum": 999_999_999_999_999},
                ),
            ),
            answers={200: Answer(what="The response as it stands.", media={JSON: ResponseObject, SSE: EVENTS})},
            errors=(*READ, Code.DOOR_CLOSED),
            limited=True,
        ),
        Operation(
            method="delete",
            path="/v1/responses/{response_id}",
            id="deleteResponse",
            summary="Forget a response",
            detail="Hyperleap keeps the conversation that it is of.",
            credentials=KEYS,
            parameters=(RESPONSE_ID, USER),
            answers={200: Answer(what="It is forgotten.", media={JSON: ResponseDeleted})},
            errors=(*READ, Code.TURN_ACTIVE),
            limited=True,
        ),
        Operation(
            method="post",
            path="/v1/responses/{response_id}/cancel",
            id="cancelResponse",
            summary="Stop a response",
            detail="One that has ended is told as it is.",
            credentials=KEYS,
            parameters=(RESPONSE_ID, USER),
            answers={200: Answer(what="How it ended.", media={JSON: ResponseObject})},
            errors=READ,
            limited=True,
        ),
        Operation(
            method="get",
            path="/v1/models",
            id="listModels",
            summary="List the personas that one may ask",
            credentials=KEYS,
            parameters=(USER,),
            answers={200: Answer(what="The list.", media={JSON: ModelList})},
            errors=CALLER,
        ),
        Operation(
            method="get",
            path="/v1/models/{model}",
            id="getModel",
            summary="Read one of them",
            credentials=KEYS,
            parameters=(MODEL, USER),
            answers={200: Answer(what="The model.", media={JSON: Model})},
            errors=(*CALLER, Code.PERSONA_UNKNOWN),
        ),
    ),
    refusals=Refusals(
        JSON, lambda code: form(GatewayError(code)).status, _schema, (OpenAIError,), ("x-should-retry",), _told
    ),
    types=(ChatCompletionChunk,),
)
