"""The drop-in's turns: messages and prompt runs, in each of the vendor's forms."""

from __future__ import annotations

from functools import partial
from typing import Final
from uuid import UUID

from aiohttp import web

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.operations import RunId
from gateway.protocol.hyperleap_door import RunPrompt, ScorePromptRun, UserMessage, run_score_body
from gateway.protocol.hyperleap_items import Form
from gateway.transports.edge import EDGE, address_of, json_answer, read_body
from gateway.transports.hyperleap.answers import answer
from gateway.transports.hyperleap.door import BASE, SERVICES, caller, path_id

# By the path's last part; those with ``continue`` are older, and still what most apps call.
CHATS: Final[dict[str, Form | None]] = {
    "chat-http2": "array",
    "continue": "array",
    "chat-sse": "sse",
    "continue-sse": "sse",
    "chat": None,
    "continue-sync": None,
}
RUNS: Final[dict[str, Form | None]] = {
    "prompt-runs/async": "array",
    "prompt-runs/run-sse": "sse",
    "prompt-runs/run-sync": None,
}
OLDER_RUNS: Final = ("prompts", "prompt-runs", "prompt-runs/run")  # in the form that the body asks for


async def chat(request: web.Request, form: Form | None) -> web.StreamResponse:
    """Send a message."""
    conversation_id = ConversationId(path_id(request, "conversation_id"))
    principal = await caller(request, conversation=conversation_id)
    if form is None and request.query.get("stream", "true").lower() not in ("true", "false"):
        raise GatewayError(
            Code.INVALID_VALUE, "`stream` is true or false; the answer is whole in any case.", field="stream"
        )
    body = await read_body(request, UserMessage)
    started = await request.app[EDGE].turns.start(
        principal.leaving(principal.tenant.hyperleap_disconnect),
        conversation_id,
        body.message,
        idempotency_key=request.headers.get("Idempotency-Key"),
        address=address_of(request),
    )
    return await answer(request, principal, started.turn_id, form)


async def run(request: web.Request, form: Form | None, *, older: bool = False) -> web.StreamResponse:
    """Run a prompt."""
    principal = await caller(request)
    body = await read_body(request, RunPrompt)
    started = await request.app[SERVICES].prompt_runs.start(
        principal.leaving(principal.tenant.hyperleap_disconnect),
        _alias(principal, body.prompt_id, body.prompt_version_id),
        body.replacements or {},
        idempotency_key=request.headers.get("Idempotency-Key"),
        address=address_of(request),
    )
    return await answer(request, principal, started.turn_id, ("array" if body.stream else None) if older else form)


async def score_run(request: web.Request) -> web.Response:
    run_id = RunId(path_id(request, "run_id"))
    principal = await caller(request, run=run_id)
    body = await read_body(request, ScorePromptRun)
    feedback = await request.app[SERVICES].prompt_runs.score(
        principal,
        run_id,
        score=body.score,
        comments=body.comments,
        confidence=body.score_confidence,
        address=address_of(request),
    )
    return json_answer(run_score_body(run_id, feedback))


def routes() -> list[web.RouteDef]:
    """Return the routes."""
    return [
        *(
            web.patch(f"{BASE}conversations/{{conversation_id}}/{name}", partial(chat, form=form))
            for name, form in CHATS.items()
        ),
        *(web.post(f"{BASE}{path}", partial(run, form=form)) for path, form in RUNS.items()),
        *(web.post(f"{BASE}{path}", partial(run, form=None, older=True)) for path in OLDER_RUNS),
        web.patch(f"{BASE}prompt-runs/{{run_id}}/set-score", score_run),
    ]


def _alias(principal: Principal, prompt_id: UUID, version_id: UUID | None) -> str:
    """Return the tenant's name of a prompt; without a version one that pins none is preferred."""
    version = str(version_id) if version_id is not None else None
    named = [
        prompt
        for prompt in principal.tenant.prompts.values()
        if prompt.prompt_id == str(prompt_id)
        and (principal.personas is None or prompt.alias in principal.personas)
        and version in (None, prompt.prompt_version_id)
    ]
    if not named:
        raise GatewayError(Code.PROMPT_UNKNOWN, "The tenant lists no such prompt.", field="prompt")
    return min(named, key=lambda prompt: prompt.prompt_version_id is not None).alias
