"""Entries of the AG-UI door: runs of an agent."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import Code
from gateway.protocol.ag_ui import AgMessage, Forwarded, RunInput
from gateway.protocol.native_answers import Problem
from gateway.protocol.ui_answers import ChatStands
from gateway.transports.openapi.ai_sdk import ANSWERED, CHAT, FOUND, OWN, REFUSED
from gateway.transports.openapi.document import PROBLEM
from gateway.transports.openapi.native import IDEMPOTENCY_KEY, JSON, SSE
from gateway.transports.openapi.operation import TEXT, Answer, Door, Operation, Parameter, Refusals, Schema

THREAD_ID: Final = Parameter("thread_id", "path", "The thread, by the id that its client chose.", CHAT)
EVENTS: Final[Schema] = {
    "description": "Server-sent events without names; `data` is the JSON of one of AG-UI's. The last is `RUN_FINISHED` "
    "or `RUN_ERROR`. Beside events there are comments, which keep the connection alive.",
    "type": "object",
    "properties": {"data": TEXT},
    "required": ["data"],
}
STREAM: Final = Answer(what="The run's events.", media={SSE: EVENTS}, headers=("x-turn-id", "x-conversation-id"))


DOOR: Final = Door(
    name="ag-ui",
    what="AG-UI, the protocol of agents and their users ([how it maps](/docs/ui)). A thread is a chat, a run a turn. "
    "Errors are problem documents, declared as the JSON that its clients read.",
    operations=(
        Operation(
            method="post",
            path="/v1/ag-ui",
            id="runAgent",
            summary="Answer the last message of a thread",
            detail="A thread whose last answer is not what was answered here is held in a new conversation from then "
            "on. Members that are not known are passed over, since the protocol grows by them, and so is `state`. An "
            "answer goes on when its reader leaves, as the tenant's rule says.",
            credentials=("session_token",),
            parameters=(IDEMPOTENCY_KEY,),
            body=RunInput,
            answers={
                200: Answer(
                    what=STREAM.what,
                    media=STREAM.media,
                    headers=STREAM.headers,
                    links={
                        **{name: {"thread_id": "$request.body#/threadId"} for name in ("rejoinAgent", "stopAgent")},
                        "followTurn": {"turn_id": "$response.header.x-turn-id"},
                    },
                )
            },
            errors=ANSWERED,
            limited=True,
        ),
        Operation(
            method="get",
            path="/v1/ag-ui/{thread_id}/stream",
            id="rejoinAgent",
            summary="Go on with the run of a thread, from its beginning",
            detail="AG-UI has no word for it: a client's `connect` may ask for this. All of the answer comes again.",
            credentials=("session_token",),
            parameters=(
                THREAD_ID,
                Parameter("runId", "query", "What the run is called in its events; the turn's id unless given."),
                Parameter("protocolVersion", "query", "With it, a run that is stopped has the outcome `cancelled`."),
            ),
            answers={200: STREAM, 204: Answer(what="No run is going on, or there is no such thread.")},
            errors=(*FOUND, Code.DOOR_CLOSED, Code.HISTORY_LOST),
            limited=True,
        ),
        Operation(
            method="post",
            path="/v1/ag-ui/{thread_id}/stop",
            id="stopAgent",
            summary="Stop the run of a thread",
            detail="AG-UI has no word for it: a client just leaves. Safe to repeat. A body is not read.",
            credentials=("session_token",),
            parameters=(THREAD_ID,),
            answers={200: Answer(what="Where the thread stands.", media={JSON: ChatStands})},
            errors=FOUND,
            limited=True,
        ),
    ),
    refusals=Refusals(JSON, PROBLEM.status, PROBLEM.schema, (Problem,)),
    members={
        RunInput: {
            "threadId": {"description": "The thread, by an id of your choice. Printable characters.", **CHAT},
            "runId": {"description": "The run, by an id of your choice."},
            "messages": {
                "description": "All of the thread, the user's message last.",
                "examples": [[{"role": "user", "content": "Hi"}]],
            },
            "forwardedProps": {"description": "What the gateway takes beside the protocol."},
            "protocolVersion": {"description": "With it, a run that is stopped has the outcome `cancelled`."},
            **dict.fromkeys(("tools", "context", "resume"), REFUSED),
        },
        AgMessage: {
            "role": {"description": "`user` or `assistant`; `reasoning` and `activity` are passed over."},
            "content": {"description": "A string, or a list of `text` parts."},
            "toolCalls": REFUSED,
        },
        Forwarded: OWN,
    },
)
