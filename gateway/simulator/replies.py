"""Replies: whole answers in the vendor's shapes, JSON and each kind of error, and the headers that all carry."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

from gateway.simulator.allowance import Allowance
from gateway.simulator.exchange import Exchange
from gateway.simulator.wire import dumps

HeaderList = list[tuple[str, str]]


class ApiError(Exception):
    """Is an answer in the documented error shape."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def common_headers() -> HeaderList:
    """Returns what every answer carries, errors included."""
    return [("date", formatdate(usegmt=True)), ("server", "Kestrel")]


def reply_json(exchange: Exchange, status: int, value: Any, headers: HeaderList | None = None, *, raw: bool) -> None:
    """Answers with a JSON value."""
    kind = ("content-type", "application/json; charset=utf-8")
    exchange.respond(status, dumps(value, raw=raw), [kind, *common_headers(), *(headers or [])])


def reply_error(exchange: Exchange, error: ApiError, headers: HeaderList | None = None) -> None:
    """Answers with ``{"error": {code, message, details}}``."""
    body = {"error": {"code": error.code, "message": error.message, "details": []}}
    reply_json(exchange, error.status, body, headers, raw=False)


def reply_bad_request(exchange: Exchange, message: str) -> None:
    """Answers 400 in the other shape, an array of ``{exception, errorMessage}``."""
    reply_json(exchange, 400, [{"exception": {}, "errorMessage": message}], raw=False)


def reply_too_many(exchange: Exchange, wait_s: float, allowance: Allowance) -> None:
    """Answers 429 with Retry-After."""
    error = ApiError(429, "too_many_requests", "The limit of requests is reached.")
    reply_error(exchange, error, allowance.headers(refused_for_s=wait_s))


def reply_unsupported(exchange: Exchange) -> None:
    """Answers 415 as ASP.NET's ProblemDetails."""
    kind = "https://tools.ietf.org/html/rfc9110#section-15.5.16"
    body = dumps({"type": kind, "title": "Unsupported Media Type", "status": 415})
    exchange.respond(415, body, [("content-type", "application/problem+json; charset=utf-8"), *common_headers()])


def reply_empty(exchange: Exchange, status: int) -> None:
    """Answers with a status and no body."""
    exchange.respond(status, b"", common_headers())
