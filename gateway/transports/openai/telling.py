"""Tells a turn's answer in the OpenAI dialect, as a stream or whole, once it is known what status it has."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiohttp import web

from gateway.core.errors import Code, GatewayError
from gateway.core.events import Ending, Entry, TurnCompleted
from gateway.core.identity import Principal
from gateway.protocol.openai.errors import failure
from gateway.services.threads import Begun
from gateway.transports.edge import EDGE
from gateway.transports.held_stream import Encoder, HeldStream
from gateway.transports.openai.door import answer, turn_headers

logger = logging.getLogger(__name__)

Citations = Sequence[dict[str, Any]]


class Words(Encoder, Protocol):
    """One kind of answer's encoder."""

    def whole(self, ending: Ending, citations: Citations, /) -> Any:
        """Return the answer as one object."""
        ...

    def last(self, ending: Entry, citations: Citations, /) -> bytes:
        """Encode the end of a stream, be it a failure."""
        ...

    def error(self, error: GatewayError, position: int, /) -> bytes:
        """Encode an error that ends a stream before its turn does."""
        ...


async def tell(
    request: web.Request,
    principal: Principal,
    begun: Begun,
    words: Words,
    *,
    streamed: bool,
    remember: Callable[[TurnCompleted], Awaitable[None]] | None = None,
    undo: Callable[[], Awaitable[None]] | None = None,
    replayed: bool = False,
) -> web.StreamResponse:
    """Answer with a turn; one that fails before anything was said is an error's answer, unless it is ``replayed``.

    ``remember`` is called with a whole answer before the client has the last of it, ``undo`` before it is told that
    Hyperleap did not take what it asked. Raises GatewayError.
    """
    edge = request.app[EDGE]
    subscription = await edge.subscriptions.open(principal, begun.turn_id, None)
    assert subscription is not None, "only a cursor can be at the ending"
    stream = HeldStream(request, words if streamed else None, turn_headers(begun), door="sse" if streamed else None)
    try:
        ending = await stream.deliver(subscription)
        error = failure(ending)
        if error is not None and not stream.begun and not replayed:
            if undo is not None and not ending.usage.total_tokens:
                await undo()
            raise error
        if isinstance(ending, TurnCompleted) and remember is not None:
            await remember(ending)
        if not streamed:
            return answer(words.whole(ending, stream.citations), turn_headers(begun))
        if error is not None:
            edge.metrics.error_sent(error.code)
        *before, end = stream.last
        last = words(before) + words.last(end, stream.citations)
    except ConnectionError:
        raise
    except Exception as raised:
        if not stream.begun:
            raise
        if not isinstance(raised, GatewayError):
            logger.exception("stream.crashed")
        error = raised if isinstance(raised, GatewayError) else GatewayError(Code.INTERNAL)
        edge.metrics.error_sent(error.code)
        last = words.error(error, stream.position)
    return await stream.finish(last)
