"""Puts the doors' entries together into the OpenAPI document that ``/openapi.json`` answers.

Schemas come from the msgspec types of ``protocol`` and ``core``, paths from the doors' modules. That every registered
route has its entry and every entry its route, is tested, and so is that a running gateway answers what is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway import __version__
from gateway.core.errors import WIRE, Code
from gateway.protocol.native_answers import Problem
from gateway.transports.openapi.operation import (
    ANY,
    TEXT,
    UNREAD,
    Answer,
    Door,
    Events,
    Operation,
    Parameter,
    Refusals,
    Schema,
)
from gateway.transports.openapi.schemas import schema, schemas

SECURITY: Final[Mapping[str, Schema]] = {
    "session_token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "hgt_…, or a JWT of an issuer that the tenant names",
        "description": "A session token of `POST /v1/sessions`: one user of one tenant.",
    },
    "secret_key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "hgs_…",
        "description": "A tenant's secret key, for its backend alone.",
    },
    "publishable_key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "hgp_…",
        "description": "A tenant's publishable key, from an origin that the tenant lists.",
    },
    "hyperleap_header": {
        "type": "apiKey",
        "in": "header",
        "name": "x-hl-api-key",
        "description": "The drop-in takes what it takes as a bearer token here too, where Hyperleap's key was.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A ticket of `POST /v1/tickets` for this address, where no header can be set.",
    },
}

_SECONDS: Final[Schema] = {"type": "string", "pattern": "^[0-9]+s$"}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
HEADERS: Final[Mapping[str, Schema]] = {
    "x-request-id": {"description": "Names the request in the gateway's log.", "schema": TEXT},
    "traceparent": {"description": "The caller's trace, or one that begins here (W3C Trace Context).", "schema": TEXT},
    "Location": {
        "description": "Where what was made is read.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Preference-Applied": {"description": "`respond-async`.", "schema": {"const": "respond-async"}},
    "x-turn-id": {"description": "The turn.", "schema": {"type": "string", "format": "uuid"}},
    "x-next-cursor": {"description": "The cursor of the next page, if there is one.", "schema": TEXT},
    "x-conversation-id": {"description": "The conversation.", "schema": {"type": "string", "format": "uuid"}},
    "x-error-code": {"description": "The error's code.", "schema": {"enum": sorted(Code)}},
    "x-vercel-ai-ui-message-stream": {"description": "The protocol's version.", "schema": {"const": "v1"}},
    "x-should-retry": {
        "description": "`true` where the same request may succeed.",
        "schema": {"enum": ["true", "false"]},
    },
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "`Bearer`, with the code as its error.", "schema": TEXT},
    "Upgrade": {"description": "`websocket`.", "schema": {"const": "websocket"}},
    "RateLimit-Policy": {"description": "Every limit that was decided on: its name, quota and window.", "schema": TEXT},
    "RateLimit": {"description": "What is left of each, and the seconds until it is whole again.", "schema": TEXT},
} | {
    f"x-ratelimit-{word}-{subject}": {
        "description": f"Of the tightest limit of {subject}: {what}.",
        "schema": _SECONDS if word == "reset" else _WHOLE,
    }
    for subject in ("requests", "tokens")
    for word, what in (("limit", "its size"), ("remaining", "what is left"), ("reset", "when it is whole again"))
}
EVERY: Final = ("x-request-id", "traceparent")
LIMITS: Final = tuple(name for name in HEADERS if name.lower().startswith(("ratelimit", "x-ratelimit")))
ASKED: Final = (
    Parameter(
        "x-request-id",
        "header",
        "Your own name for the request, to be echoed: up to 64 of letters, digits and `._:-`. Any other is replaced.",
    ),
    Parameter("traceparent", "header", "The trace to continue (W3C Trace Context). One that is malformed is ignored."),
    Parameter("tracestate", "header", "What tracing systems keep of that trace (W3C Trace Context)."),
)

WHAT: Final = """\
One log of events a turn, read through any door. A door is another way to write the same: what one began, another reads,
stops and resumes.

What holds for all operations, and is not repeated with each:

- `GET` is answered to `HEAD` too, without the body, but for event streams and the WebSocket.
- A method that a path does not have is refused with 405 `method_not_allowed` and an `Allow` header, any other path with
  404 `not_found`.
- `OPTIONS` with `Access-Control-Request-Method` is a preflight: 204, for every path. Answers to listed origins, errors
  and streams included, carry CORS headers.
- What cannot be read as HTTP (`bad_request`, `expectation_failed`, `headers_too_large`) ends the connection.
- Bodies have a `Content-Length`. Unknown members are refused, so that a misspelt one is not passed over.
- Answers may get further members and headers: pass over what you do not know."""


def document(doors: Sequence[Door]) -> dict[str, Any]:
    """Return the document, as plain values of JSON."""
    components = schemas(
        (kind for door in doors for kind in _types(door)),
        (member for door in doors for member in door.members.items()),
    )
    paths: dict[str, dict[str, Any]] = {}
    for door in doors:
        for operation in door.operations:
            entry = paths.setdefault(operation.path, {})
            assert operation.method not in entry, f"{operation.method} {operation.path} is described twice"
            entry[operation.method] = _operation(door, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hyperleap-gateway",
            "version": __version__,
            "description": WHAT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "externalDocs": {"description": "Reference pages", "url": "/docs"},
        "tags": [{"name": door.name, "description": door.what} for door in doors],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": HEADERS,
            "parameters": {parameter.name: _parameter(parameter) for parameter in ASKED},
            "securitySchemes": SECURITY,
        },
    }


def _operation(door: Door, operation: Operation) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [door.name],
        "summary": operation.summary,
        "description": operation.detail or operation.summary + ".",
        "security": [
            *({credential: []} for credential in operation.credentials),
            *([{}] if operation.optional else []),
        ],
        "parameters": [
            *(_parameter(parameter) for parameter in operation.parameters),
            *({"$ref": f"#/components/parameters/{parameter.name}"} for parameter in ASKED),
        ],
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schema(operation.body)}}
        entry["requestBody"] = {"required": True, "content": content}
    limits = LIMITS if operation.limited else ()
    responses = {str(status): _answer(answer, limits) for status, answer in operation.answers.items()}
    for status, codes in _by_status(door.refusals, (*operation.errors, *ANY)):
        assert str(status) not in responses, f"{operation.id}: {status} is an answer and an error"
        responses[str(status)] = _refusal(door.refusals, status, codes, limits)
    if door.refusals.vendors:
        content = {door.refusals.content_type: {"schema": schema(door.refusals.types[0])}}
        told = {"description": "Hyperleap's own refusal.", "headers": _headers((*EVERY, *limits)), "content": content}
        responses |= {"4XX": told, "5XX": told}
    entry["responses"] = dict(sorted(responses.items()))
    return entry


def _parameter(parameter: Parameter) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.what,
        "schema": parameter.schema,
    }
    if parameter.where == "path":
        entry["required"] = True
    return entry


def _answer(answer: Answer, limits: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"description": answer.what, "headers": _headers((*answer.headers, *EVERY, *limits))}
    if answer.media:
        entry["content"] = {name: {"schema": schema(kind)} for name, kind in answer.media.items()}
    if answer.links:
        entry["links"] = {
            name: {"operationId": name, "parameters": dict(parameters)} for name, parameters in answer.links.items()
        }
    return entry


def _refusal(refusals: Refusals, status: int, codes: Sequence[Code], limits: Sequence[str]) -> dict[str, Any]:
    told = [*EVERY, *refusals.headers, *limits]
    if any(WIRE[code].retryable for code in codes):
        told.append("Retry-After")
    if status == 401:
        told.append("WWW-Authenticate")
    if Code.UPGRADE_REQUIRED in codes:
        told.append("Upgrade")
    words = "\n".join(f"- `{refusals.code(code)}`: {WIRE[code].title}" for code in codes)
    content = {refusals.content_type: {"schema": refusals.schema(codes)}}
    if refusals.content_type != PROBLEM.content_type:
        # Of what no door has seen, nobody knows how its door would tell it.
        problems = codes if refusals.problems else [code for code in codes if code in UNREAD]
        if problems:
            content[PROBLEM.content_type] = {"schema": PROBLEM.schema(problems)}
    return {"description": words, "headers": _headers(told), "content": content}


def _by_status(refusals: Refusals, codes: Iterable[Code]) -> list[tuple[int, list[Code]]]:
    found: dict[int, list[Code]] = {}
    for code in dict.fromkeys(codes):
        found.setdefault(refusals.status(code), []).append(code)
    return sorted(found.items())


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _types(door: Door) -> Iterator[Any]:
    yield from door.types
    yield from door.refusals.types
    for operation in door.operations:
        if operation.body is not None:
            yield operation.body
        for answer in operation.answers.values():
            for kind in answer.media.values():
                if isinstance(kind, Events):
                    yield from kind.kinds.values()
                elif not isinstance(kind, Mapping):
                    yield kind


def _problem(codes: Sequence[Code]) -> Schema:
    narrowed = {"properties": {"code": {"enum": sorted(codes)}, "status": {"const": WIRE[codes[0]].http}}}
    return {"allOf": [schema(Problem), narrowed]}


# How doors tell errors that have no other form for them, and whatever is refused before any door has seen it.
PROBLEM: Final = Refusals("application/problem+json", lambda code: WIRE[code].http, _problem, (Problem,))
