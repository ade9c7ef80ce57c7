"""What an entry says of one operation: who may ask, what is asked, and everything that may be answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gateway.core.errors import Code

Schema = Mapping[str, Any]
Credential = Literal["session_token", "secret_key", "publishable_key", "ticket", "hyperleap_header"]
Where = Literal["path", "query", "header"]

TEXT: Final[Schema] = {"type": "string"}
UUID: Final[Schema] = {"type": "string", "format": "uuid"}

# What any operation may meet: a head that cannot be read, and a fault of the gateway's own.
UNREAD: Final = (Code.BAD_REQUEST, Code.HEADERS_TOO_LARGE, Code.EXPECTATION_FAILED)
ANY: Final = (*UNREAD, Code.INTERNAL)
TOKEN: Final = (
    Code.CREDENTIAL_MISSING,
    Code.CREDENTIAL_INVALID,
    Code.TOKEN_EXPIRED,
    Code.REVOKED,
    Code.CREDENTIAL_USED,
    Code.ISSUER_UNAVAILABLE,
    Code.ORIGIN_NOT_ALLOWED,
    Code.FORBIDDEN,
    Code.STORE_UNAVAILABLE,
)
BODY: Final = (
    Code.LENGTH_REQUIRED,
    Code.BODY_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.MALFORMED_JSON,
    Code.UNKNOWN_FIELD,
    Code.MISSING_FIELD,
    Code.WRONG_TYPE,
)
VENDOR: Final = (
    Code.RATE_LIMITED,
    Code.UPSTREAM_UNAVAILABLE,
    Code.UPSTREAM_OVERLOADED,
    Code.UPSTREAM_TIMEOUT,
    Code.UPSTREAM_ERROR,
    Code.UPSTREAM_REJECTED,
    Code.UPSTREAM_UNAUTHORIZED,
    Code.UPSTREAM_RATE_LIMITED,
    Code.UPSTREAM_MALFORMED,
    Code.UPSTREAM_RESET,
)
SCREENED: Final = (Code.MESSAGE_FLAGGED, Code.MODERATION_UNAVAILABLE)  # of tenants that have messages judged
# How a turn fails that was begun: what waits for it is told with the error's own status.
FAILURES: Final = (
    *VENDOR[1:],
    Code.UPSTREAM_TRUNCATED,
    Code.ANSWER_TOO_LONG,
    Code.WORKER_LOST,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of an address, or a header."""

    name: str
    where: Where
    what: str
    schema: Schema = field(default_factory=lambda: TEXT)


@dataclass(frozen=True, slots=True)
class Events:
    """The body of a stream of server-sent events: the type of each event's JSON data, by the event's name."""

    what: str
    kinds: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is no error. ``media`` has the type, schema or Events of the body by its content type."""

    what: str
    media: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[str] = ()  # names of ``document.HEADERS``, beside those that every answer has
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # operation's id → its parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. ``credentials`` are alternatives; without any, everybody may ask."""

    method: Literal["get", "post", "put", "patch", "delete"]
    path: str
    id: str
    summary: str
    detail: str = ""
    credentials: Sequence[Credential] = ()
    optional: bool = False  # a credential may be shown in another way than these
    parameters: Sequence[Parameter] = ()
    body: Any = None  # a type
    answers: Mapping[int, Answer]
    errors: Collection[Code] = ()
    limited: bool = False  # its answers tell where limits stand
    route: str | None = None  # the path as it is registered, where that is written in another way


@dataclass(frozen=True, slots=True)
class Refusals:
    """How a door tells errors: their content type, the status of each, and the schema of one that may be any of some.

    ``types`` are those that the schema refers to, ``headers`` those of every error, beside what every answer has.
    ``code`` is how the door writes a code. ``vendors`` says that it tells Hyperleap's own statuses, whatever they are,
    ``problems`` that whoever accepts JSON by name is told a problem document instead.
    """

    content_type: str
    status: Callable[[Code], int]
    schema: Callable[[Sequence[Code]], Schema]
    types: Sequence[Any] = ()
    headers: Sequence[str] = ()
    code: Callable[[Code], str] = str
    vendors: bool = False
    problems: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One door's entries. ``members`` says more of some types' members than the types do: by type, then member.

    Bounds that services keep are said there: a type that kept them would refuse in words of its own.
    """

    name: str
    what: str
    operations: Sequence[Operation]
    refusals: Refusals
    members: Mapping[Any, Mapping[str, Schema]] = field(default_factory=dict)
    types: Sequence[Any] = ()  # that are told beside those of bodies and answers
