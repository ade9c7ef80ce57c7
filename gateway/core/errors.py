"""Every way a request, a frame or a turn can go wrong, and how each looks on the wire.

``Code`` is the public vocabulary: it appears in RFC 9457 problem documents, in WebSocket ``error`` frames
and in ``turn.failed`` events. ``WIRE`` is the one table from a code to HTTP status, WebSocket close code
and retryability; a test asserts that it covers every code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """A machine-readable reason. Codes are added, never renamed."""

    # who is asking
    CREDENTIAL_MISSING = "credential_missing"
    CREDENTIAL_INVALID = "credential_invalid"
    TOKEN_EXPIRED = "token_expired"
    REVOKED = "revoked"
    CREDENTIAL_USED = "credential_used"
    ISSUER_UNAVAILABLE = "issuer_unavailable"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    ANONYMOUS_DISABLED = "anonymous_disabled"
    DOOR_CLOSED = "door_closed"
    FORBIDDEN = "forbidden"
    # what was asked
    BAD_REQUEST = "bad_request"
    HEADERS_TOO_LARGE = "headers_too_large"
    MALFORMED_JSON = "malformed_json"
    UNKNOWN_FIELD = "unknown_field"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    INVALID_VALUE = "invalid_value"
    INVALID_ID = "invalid_id"
    INVALID_CURSOR = "invalid_cursor"
    MESSAGE_EMPTY = "message_empty"
    MESSAGE_TOO_LONG = "message_too_long"
    MESSAGE_FLAGGED = "message_flagged"
    PERSONA_UNKNOWN = "persona_unknown"
    PROMPT_UNKNOWN = "prompt_unknown"
    REPLACEMENT_NOT_ALLOWED = "replacement_not_allowed"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    LENGTH_REQUIRED = "length_required"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    EXPECTATION_FAILED = "expectation_failed"
    UPGRADE_REQUIRED = "upgrade_required"
    NOT_FOUND = "not_found"
    HISTORY_LOST = "history_lost"
    TURN_ACTIVE = "turn_active"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    IDEMPOTENCY_PENDING = "idempotency_pending"
    MODERATION_UNAVAILABLE = "moderation_unavailable"
    RATE_LIMITED = "rate_limited"
    # WebSocket frames
    FRAME_BINARY = "frame_binary"
    FRAME_TOO_LARGE = "frame_too_large"
    COMMAND_UNKNOWN = "command_unknown"
    COMMANDS_TOO_FAST = "commands_too_fast"
    SUBSCRIPTIONS_EXCEEDED = "subscriptions_exceeded"
    AUTH_TIMEOUT = "auth_timeout"
    # what an operator asked
    TENANT_FIXED = "tenant_fixed"
    # the gateway itself
    DRAINING = "draining"
    STORE_UNAVAILABLE = "store_unavailable"
    WORKER_LOST = "worker_lost"
    INTERNAL = "internal"
    # the vendor
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_OVERLOADED = "upstream_overloaded"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_UNAUTHORIZED = "upstream_unauthorized"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_MALFORMED = "upstream_malformed"
    UPSTREAM_RESET = "upstream_reset"
    ANSWER_TOO_LONG = "answer_too_long"


@dataclass(frozen=True, slots=True)
class Wire:
    """How one code looks outside: HTTP status, WebSocket close code (when it ends a socket), retryability, title."""

    http: int
    title: str
    retryable: bool = False
    ws_close: int = 4400


WIRE: dict[Code, Wire] = {
    Code.CREDENTIAL_MISSING: Wire(401, "A credential is required", ws_close=4503),
    Code.CREDENTIAL_INVALID: Wire(401, "The credential is not valid", ws_close=4503),
    Code.TOKEN_EXPIRED: Wire(401, "The session token has expired", retryable=True, ws_close=4401),
    Code.REVOKED: Wire(401, "The credential was revoked", ws_close=4503),
    Code.CREDENTIAL_USED: Wire(401, "The credential has had its one use", retryable=True, ws_close=4401),
    Code.ISSUER_UNAVAILABLE: Wire(503, "The keys of the token's issuer cannot be read", retryable=True, ws_close=1013),
    Code.ORIGIN_NOT_ALLOWED: Wire(403, "This origin may not use the gateway", ws_close=4504),
    Code.ANONYMOUS_DISABLED: Wire(403, "Anonymous sessions are switched off", ws_close=4504),
    Code.DOOR_CLOSED: Wire(403, "This door is closed to the tenant", ws_close=4504),
    Code.FORBIDDEN: Wire(403, "The credential does not allow this", ws_close=4504),
    Code.BAD_REQUEST: Wire(400, "The request cannot be read as HTTP"),
    Code.HEADERS_TOO_LARGE: Wire(431, "The headers are too large"),
    Code.MALFORMED_JSON: Wire(400, "The body is not valid JSON"),
    Code.UNKNOWN_FIELD: Wire(422, "Unknown field"),
    Code.MISSING_FIELD: Wire(422, "A field is missing"),
    Code.WRONG_TYPE: Wire(422, "A field has the wrong type"),
    Code.INVALID_VALUE: Wire(422, "A field has a value that is not allowed"),
    Code.INVALID_ID: Wire(400, "The id is not a UUID"),
    Code.INVALID_CURSOR: Wire(400, "The cursor is not valid"),
    Code.MESSAGE_EMPTY: Wire(422, "The message is empty"),
    Code.MESSAGE_TOO_LONG: Wire(413, "The message is too long"),
    Code.MESSAGE_FLAGGED: Wire(422, "The message was flagged by moderation"),
    Code.PERSONA_UNKNOWN: Wire(422, "Unknown persona"),
    Code.PROMPT_UNKNOWN: Wire(422, "Unknown prompt"),
    Code.REPLACEMENT_NOT_ALLOWED: Wire(422, "This replacement may not be set here"),
    Code.UNSUPPORTED_PARAMETER: Wire(400, "Hyperleap cannot do what a parameter asks for"),
    Code.LENGTH_REQUIRED: Wire(411, "The body has no length"),
    Code.BODY_TOO_LARGE: Wire(413, "The body is too large", ws_close=1009),
    Code.UNSUPPORTED_MEDIA_TYPE: Wire(415, "The body must be application/json"),
    Code.METHOD_NOT_ALLOWED: Wire(405, "Method not allowed"),
    Code.EXPECTATION_FAILED: Wire(417, "Unknown expectation"),
    Code.UPGRADE_REQUIRED: Wire(426, "This address speaks WebSocket only"),
    Code.NOT_FOUND: Wire(404, "Not found"),
    Code.HISTORY_LOST: Wire(410, "The event log is gone"),
    Code.TURN_ACTIVE: Wire(409, "The conversation has an active turn", retryable=True),
    Code.IDEMPOTENCY_MISMATCH: Wire(422, "The idempotency key was used with another body"),
    Code.IDEMPOTENCY_PENDING: Wire(409, "A request with this idempotency key is under way", retryable=True),
    Code.MODERATION_UNAVAILABLE: Wire(503, "The message cannot be judged now", retryable=True),
    Code.RATE_LIMITED: Wire(429, "Too many turns", retryable=True, ws_close=4429),
    Code.FRAME_BINARY: Wire(400, "Binary frames are not part of this protocol"),
    Code.FRAME_TOO_LARGE: Wire(413, "The frame is too large", ws_close=1009),
    Code.COMMAND_UNKNOWN: Wire(400, "Unknown command"),
    Code.COMMANDS_TOO_FAST: Wire(429, "Too many commands", retryable=True, ws_close=4429),
    Code.SUBSCRIPTIONS_EXCEEDED: Wire(429, "Too many subscriptions on this socket"),
    Code.AUTH_TIMEOUT: Wire(401, "No token came in time", retryable=True, ws_close=4401),
    Code.TENANT_FIXED: Wire(409, "The tenant is not kept in the store"),
    Code.DRAINING: Wire(503, "The gateway is restarting", retryable=True, ws_close=1012),
    Code.STORE_UNAVAILABLE: Wire(503, "The conversation store is unavailable", retryable=True, ws_close=1013),
    Code.WORKER_LOST: Wire(500, "The worker that made this answer was lost", retryable=True, ws_close=1011),
    Code.INTERNAL: Wire(500, "Internal error", ws_close=1011),
    Code.UPSTREAM_UNAVAILABLE: Wire(502, "Hyperleap cannot be reached", retryable=True),
    Code.UPSTREAM_OVERLOADED: Wire(503, "Hyperleap has no room for this now", retryable=True),
    Code.UPSTREAM_TIMEOUT: Wire(504, "Hyperleap did not answer in time", retryable=True),
    Code.UPSTREAM_ERROR: Wire(502, "Hyperleap answered with an error", retryable=True),
    Code.UPSTREAM_REJECTED: Wire(502, "Hyperleap refused the request"),
    Code.UPSTREAM_UNAUTHORIZED: Wire(502, "Hyperleap refused the gateway's key"),
    Code.UPSTREAM_RATE_LIMITED: Wire(503, "Hyperleap's plan limit is reached", retryable=True),
    Code.UPSTREAM_TRUNCATED: Wire(502, "The answer was cut off", retryable=True),
    Code.UPSTREAM_MALFORMED: Wire(502, "Hyperleap's answer could not be read", retryable=True),
    Code.UPSTREAM_RESET: Wire(502, "Hyperleap ended the stream early", retryable=True),
    Code.ANSWER_TOO_LONG: Wire(502, "The answer is longer than allowed"),
}


class GatewayError(Exception):
    """A refusal or failure that may be told to the client as it stands.

    ``detail`` is written for the client's developer and never holds a secret, a prompt, an answer or a
    vendor's body. ``retry_after_s`` becomes ``Retry-After``; ``extra`` members join the problem document.
    ``processed`` is False where it is certain that the vendor did not act on what it was asked.
    """

    def __init__(
        self,
        code: Code,
        detail: str | None = None,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        vendor_status: int | None = None,
        processed: bool = True,
        extra: dict[str, object] | None = None,
    ) -> None:
        self.code = code
        self.detail = detail or WIRE[code].title + "."
        self.field = field
        self.retry_after_s = retry_after_s
        self.vendor_status = vendor_status
        self.processed = processed
        self.extra = extra or {}
        super().__init__(f"{code}: {self.detail}")

    @property
    def wire(self) -> Wire:
        return WIRE[self.code]


def reference() -> str:
    """Return the page ``docs/errors.md``, generated from the table."""
    lines = [
        "# Errors",
        "",
        "Generated by `python -m gateway.core.errors`; do not edit.",
        "",
        "Over HTTP every error is an RFC 9457 problem document (`application/problem+json`) with the members `type`,",
        "`title`, `status`, `code`, `detail`, `request_id` and, where there is one, `field`, `retry_after_s` or",
        "`vendor_status`. On a stream that has begun it is an event `stream.error` without an id; on a WebSocket an",
        "`error` frame, and the close code below where it ends the socket. In `turn.failed` it is `error.code`.",
        "",
        "| code | HTTP | close code | try again | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for code, wire in WIRE.items():
        anchor = f'<a id="{code}"></a>`{code}`'
        again = "yes" if wire.retryable else "no"
        lines.append(f"| {anchor} | {wire.http} | {wire.ws_close} | {again} | {wire.title} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
