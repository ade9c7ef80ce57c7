"""Chat completions: lists of messages, each answered in the conversation that it goes on in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiohttp import web

from gateway.core.errors import GatewayError
from gateway.core.events import Ending, Entry, TurnCompleted, TurnFailed, TurnStopped
from gateway.protocol.native import encode_json
from gateway.protocol.openai.chat import ChatRequest, ChunkEncoder, Completion
from gateway.protocol.openai.errors import error_body, failure
from gateway.protocol.openai.messages import said
from gateway.protocol.openai.parameters import check_parameters, tokens_max
from gateway.protocol.sse import encode_event
from gateway.services.threads import Ask
from gateway.transports.edge import EDGE, address_of, check_door
from gateway.transports.openai.door import asked
from gateway.transports.openai.models import check_model
from gateway.transports.openai.telling import tell

routes = web.RouteTableDef()


@routes.post("/v1/chat/completions")
async def complete(request: web.Request) -> web.StreamResponse:
    caller, body = await asked(request, ChatRequest)
    check_parameters(body)
    principal = caller.principal.leaving(caller.principal.tenant.openai_disconnect)
    check_model(principal, body.model)
    if body.stream:
        check_door(principal, "sse")
    ask = Ask(
        alias=body.model,
        said=said(body.messages, "messages"),
        address=address_of(request),
        matched=caller.named,
        replacements=body.replacements,
        metadata=body.metadata or {},
        idempotency_key=request.headers.get("Idempotency-Key"),
        tokens_max=tokens_max(max_completion_tokens=body.max_completion_tokens, max_tokens=body.max_tokens),
    )
    threads = request.app[EDGE].threads
    begun = await threads.start(principal, ask)
    options = body.stream_options
    usage = options is not None and bool(options.include_usage)
    turn = request.app[EDGE].turns.find(begun.turn_id)  # all readers of one are told the same time here
    created_s = turn.asked_at_s if turn is not None else time.time()
    completion = Completion(begun.turn_id, body.model, int(created_s), usage)

    async def remember(ending: TurnCompleted) -> None:
        await threads.remember(principal, ask, begun, ending.text, ending.message_id)

    undo = partial(threads.undo, principal, ask, begun)
    words = _Words(completion)
    return await tell(request, principal, begun, words, streamed=bool(body.stream), remember=remember, undo=undo)


class _Words(ChunkEncoder):
    """Chunks, and what ends them."""

    __slots__ = ("_completion",)

    def __init__(self, completion: Completion) -> None:
        super().__init__(completion)
        self._completion = completion

    def whole(self, ending: Ending, citations: Sequence[dict[str, Any]], /) -> Any:
        return self._completion.whole(ending, citations)

    def last(self, entry: Entry, citations: Sequence[dict[str, Any]], /) -> bytes:
        ending = entry.event
        assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
        error = failure(ending)
        return self.error(error, entry.position) if error is not None else self._completion.last(ending, citations)

    def error(self, error: GatewayError, position: int, /) -> bytes:
        """Encode an error as clients look for it in a chunk's place; no ``[DONE]`` follows."""
        return encode_event(encode_json(error_body(error, "messages")))
