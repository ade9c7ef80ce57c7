"""Errors as OpenAI's clients know them: ``{"error": {message, type, param, code}}``, with its statuses and codes.

Where OpenAI has a code of its own that clients look for, that one is told; all others are the gateway's
(``core.errors``). What cannot be understood is 400 there, where it is 422 elsewhere in the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.core.events import Ending, TurnCompleted, TurnFailed, TurnStopped
from gateway.core.turn import StopReason

INVALID: Final = "invalid_request_error"


class Form(NamedTuple):
    """How an error looks: its status, its type and its code."""

    status: int
    type: str
    code: str


KNOWN: Final = {
    Code.CREDENTIAL_MISSING: Form(401, INVALID, "invalid_api_key"),
    Code.CREDENTIAL_INVALID: Form(401, INVALID, "invalid_api_key"),
    Code.PERSONA_UNKNOWN: Form(404, INVALID, "model_not_found"),
    Code.MESSAGE_TOO_LONG: Form(400, INVALID, "context_length_exceeded"),
    Code.UNKNOWN_FIELD: Form(400, INVALID, "unknown_parameter"),
    Code.MISSING_FIELD: Form(400, INVALID, "missing_required_parameter"),
    Code.WRONG_TYPE: Form(400, INVALID, "invalid_type"),
    Code.UPSTREAM_RATE_LIMITED: Form(429, "requests", "upstream_rate_limited"),
    Code.MALFORMED_JSON: Form(400, INVALID, "invalid_json"),
}
TYPES: Final = {403: "permission_error", 429: "requests"}
PARAMS: Final = {"persona": "model", "user_id": "user", "visitor_id": "user", "turn_id": "response_id"}
STOPPED: Final = {  # as what a reader is told of a stop that nobody who asks could have wanted
    StopReason.REVOKED: Code.REVOKED,
    StopReason.SHUTDOWN: Code.DRAINING,
    StopReason.ADMIN: Code.INTERNAL,
}


def form(error: GatewayError) -> Form:
    """Return how an error looks here."""
    known = KNOWN.get(error.code)
    if known is not None:
        return known
    status = 400 if error.wire.http == 422 else error.wire.http
    if error.code is Code.RATE_LIMITED:
        limit = str(error.extra.get("limit", ""))
        if limit.endswith(("_per_day", "_per_month")):
            return Form(status, "insufficient_quota", "insufficient_quota")
        return Form(status, "tokens" if "tokens" in limit else "requests", "rate_limit_exceeded")
    return Form(status, TYPES.get(status, "server_error" if status >= 500 else INVALID), str(error.code))


def param(error: GatewayError, message: str) -> str | None:
    """Return the parameter that an error is about; ``message`` is what the gateway's own field of that name is here."""
    field = error.field
    if field is None:
        return "model" if error.code is Code.PERSONA_UNKNOWN else None
    return message if field == "message" else PARAMS.get(field, field)


def error_body(error: GatewayError, message: str, request_id: str | None = None) -> dict[str, Any]:
    """Build the body of an error's answer, or the data of the event that ends a stream with it."""
    told = form(error)
    body: dict[str, Any] = {
        "message": error.detail,
        "type": told.type,
        "param": param(error, message),
        "code": told.code,
    }
    if error.code is Code.MESSAGE_FLAGGED and "categories" in error.extra:
        body["categories"] = error.extra["categories"]
    if request_id is not None:
        body["request_id"] = request_id
    return {"error": body}


def error_headers(error: GatewayError) -> Mapping[str, str]:
    """Return what tells clients whether to try again by themselves; they follow it before the status."""
    again = error.wire.retryable and error.wire.http != 401  # who brings the same token again is refused again
    return {"x-should-retry": "true" if again else "false"}


def failure(ending: Ending) -> GatewayError | None:
    """Return the error that an ending is; None for a whole answer, and for one cut short on purpose."""
    match ending:
        case TurnFailed():
            return ending.error.refusal()
        case TurnStopped():
            code = STOPPED.get(ending.reason)
            return GatewayError(code) if code is not None else None
        case TurnCompleted():
            return None
