"""What the routes of the OpenAI door share: who asks, how he is refused, and the headers of his answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

from aiohttp import hdrs, web

from gateway.core.errors import GatewayError
from gateway.core.keys import KEY_PREFIX
from gateway.protocol.native import encode_json
from gateway.protocol.openai.errors import error_body, error_headers, form
from gateway.services.sessions import Caller
from gateway.services.threads import Begun
from gateway.transports.edge import EDGE, PRINCIPAL, REQUEST_ID, bearer, origin_of, read_body

PATHS: Final = ("/v1/chat/", "/v1/responses", "/v1/models")
USER_HEADER: Final = "x-user-id"
KEYS: Final = tuple(KEY_PREFIX.values())


class Named(Protocol):
    """A body that may name the user that it is for: ``user``, or as OpenAI calls it now, ``safety_identifier``."""

    user: str | None
    safety_identifier: str | None


B = TypeVar("B", bound=Named)


async def asked(request: web.Request, body_type: type[B]) -> tuple[Caller, B]:
    """Prove who asks and read what; a token is proved before anything is read. Raises GatewayError."""
    credential = bearer(request)
    if not credential.startswith(KEYS):
        caller = await _prove(request, credential, None)
        return caller, await read_body(request, body_type)
    body = await read_body(request, body_type)
    return await _prove(request, credential, body.user or body.safety_identifier), body


async def caller_of(request: web.Request) -> Caller:
    """Prove who asks by a request without a body; with a secret key the user is named by ``x-user-id``."""
    return await _prove(request, bearer(request), None)


async def _prove(request: web.Request, credential: str, user: str | None) -> Caller:
    edge, origin = request.app[EDGE], origin_of(request)
    if credential.startswith(KEYS):
        caller = await edge.sessions.caller(credential, origin, user or request.headers.get(USER_HEADER) or None)
    else:
        caller = Caller(await edge.auth.principal(credential, origin), named=True)
    request[PRINCIPAL] = caller.principal
    return caller


def turn_headers(begun: Begun) -> dict[str, str]:
    """Name the turn and its conversation, by which the native door knows them."""
    return {"x-turn-id": begun.turn_id, "x-conversation-id": begun.conversation_id}


def answer(body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=encode_json(body),
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", **(headers or {})},
    )


def message_name(path: str) -> str:
    """Return what carries the user's message at a path."""
    return "messages" if path.startswith("/v1/chat/") else "input"


def refusal(request: web.BaseRequest, error: GatewayError, headers: Mapping[str, str]) -> web.Response:
    """Build the answer that tells an error in OpenAI's shape."""
    return web.Response(
        body=encode_json(error_body(error, message_name(request.path), request.get(REQUEST_ID))),
        status=form(error).status,
        content_type="application/json",
        headers={**headers, **error_headers(error)},
    )
