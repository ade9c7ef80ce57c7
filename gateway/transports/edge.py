"""What every door shares: the services behind it, and how a request is read and refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from aiohttp import hdrs, web

from gateway.core.addresses import Network, client_address
from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventId
from gateway.core.identity import Door, Principal
from gateway.core.turn import TurnId
from gateway.protocol.native import decode_body, encode_json
from gateway.services.answers import Answers
from gateway.services.auth import Auth
from gateway.services.changes import Changes
from gateway.services.chats import Chats
from gateway.services.conversations import Conversations
from gateway.services.feedback import FeedbackService
from gateway.services.sessions import Sessions
from gateway.services.subscriptions import Subscriptions
from gateway.services.threads import Threads
from gateway.services.turns import Turns
from gateway.services.usage import UsageService
from gateway.services.watches import Watches
from gateway.telemetry import audit
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.spans import Span
from gateway.telemetry.tracing import OFF, Tracing
from gateway.transports.pulse import Pulse

T = TypeVar("T")

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
PRINCIPAL: Final = web.RequestKey("principal", Principal)
REQUEST_ID: Final = web.RequestKey("request_id", str)
SPAN: Final[web.RequestKey[Span]] = web.RequestKey("span", Span)  # the request's
ADDRESS: Final = web.RequestKey("address", str)  # the client's; set before, where the connection does not tell it
DECLARED_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRules:
    """Bounds that the doors keep."""

    body_max_bytes: int = 1_048_576
    body_timeout_s: float = 30.0
    keepalive_s: float = 15.0
    reader_lag_s: float = 30.0
    reader_lag_bytes: int = 1_048_576
    retry_ms: int = 2000
    subscriptions_max: int = 64
    commands_per_s: float = 20.0
    frame_max_bytes: int = 262_144
    auth_timeout_s: float = 10.0
    trusted_proxies: tuple[Network, ...] = ()


class Closable(Protocol):
    """An open connection of readers."""

    async def leave(self) -> None:
        """Send the client away to reconnect, losing nothing; another worker serves it from its cursors."""
        ...

    async def shut(self) -> None:
        """End the connection when the gateway shuts down."""
        ...

    @property
    def principal(self) -> Principal | None:
        """Whose connection it is; None before that is known."""
        ...

    @property
    def origin(self) -> str | None:
        """The origin of the page that opened it, if it was a page."""
        ...

    @property
    def door(self) -> Door | None:
        """The door that it came in by, where a tenant may close that."""
        ...

    def revoke(self, error: GatewayError) -> None:
        """Tell the client why it may not go on, and end the connection soon. Safe to repeat."""
        ...


@dataclass(slots=True, kw_only=True)
class Edge:
    """The services that doors call, one call each, and the connections that are open."""

    auth: Auth
    sessions: Sessions
    conversations: Conversations
    changes: Changes
    feedback: FeedbackService
    turns: Turns
    subscriptions: Subscriptions
    threads: Threads
    answers: Answers
    chats: Chats
    watches: Watches
    usage: UsageService
    metrics: Metrics
    rules: EdgeRules
    tracing: Tracing = OFF
    open: set[Closable] = field(default_factory=set)
    pulse: Pulse = field(init=False)
    draining: bool = False  # answers close their connections, so that clients move on

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.rules.keepalive_s)

    def end_lost(self) -> None:
        """End the connections of those who have lost access, or whose tenant lets them in no longer as they came."""
        for connection in tuple(self.open):
            principal = connection.principal
            if principal is not None:
                error = self.auth.lost(principal, connection.origin, connection.door)
                if error is not None:
                    audit.flooded(
                        "access.ended",
                        outcome="done",
                        tenant=principal.tenant.id,
                        code=error.code,
                        user=principal.user_hash,
                    )
                    connection.revoke(error)


def check_door(principal: Principal, door: Door) -> None:
    """Raise GatewayError(door_closed) where the tenant's users may not come in by a door."""
    if door not in principal.tenant.doors:
        raise GatewayError(Code.DOOR_CLOSED)


REVOKED_S: Final = 1.0  # a client that does not take in that it was revoked is cut off after this

EDGE: Final = web.AppKey("edge", Edge)


_IN_URL: Final = frozenset({"ticket", "token", "access_token", "key", "api_key"})


def bearer(request: web.Request) -> str:
    """Return the one bearer credential; raises GatewayError(credential_missing | credential_invalid)."""
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not values:
        if not _IN_URL.isdisjoint(request.query):
            raise GatewayError(
                Code.CREDENTIAL_MISSING, "No token is taken from a URL; where no header can be set, POST /v1/tickets."
            )
        raise GatewayError(Code.CREDENTIAL_MISSING, "Send `Authorization: Bearer <token>`.")
    scheme, _, credential = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not credential.strip():
        raise GatewayError(Code.CREDENTIAL_INVALID, "Send one `Authorization: Bearer <token>` header.")
    return credential.strip()


def origin_of(request: web.Request) -> str | None:
    """Return the origin as it was sent; of two nobody can say which is meant, so together they are nobody's."""
    origins = request.headers.getall(hdrs.ORIGIN, None)
    return ", ".join(origins) if origins else None


async def principal_of(request: web.Request, *, ticket: bool = False) -> Principal:
    """Prove who asks; what answers may show follows from it (CORS). Raises GatewayError.

    ``ticket``: the address takes a ticket in its query in a token's place.
    """
    auth, origin = request.app[EDGE].auth, origin_of(request)
    shown = ticket_of(request) if ticket else None
    if shown is not None:
        principal = await auth.ticket_holder(shown, request.path, origin)
    else:
        principal = await auth.principal(bearer(request), origin)
    request[PRINCIPAL] = principal
    return principal


def ticket_of(request: web.Request) -> str | None:
    """Return the one ticket of a request's query; raises GatewayError(credential_invalid) beside another credential."""
    tickets = request.query.getall("ticket", [])
    if not tickets:
        return None
    if len(tickets) > 1 or hdrs.AUTHORIZATION in request.headers:  # RFC 6750 section 2: one method a request
        raise GatewayError(Code.CREDENTIAL_INVALID, "Send one credential: a ticket, or a token in a header.")
    return tickets[0]


def address_of(request: web.Request) -> str:
    """Return the client's address: the peer's, or what trusted proxies say it is."""
    known: str | None = request.get(ADDRESS)
    if known is not None:
        return known
    proxies = request.app[EDGE].rules.trusted_proxies
    forwarded = request.headers.getall(hdrs.X_FORWARDED_FOR, []) if proxies else ()
    request[ADDRESS] = address = client_address(request.remote, forwarded, proxies)
    return address


async def read_body(request: web.Request, body_type: type[T]) -> T:
    """Read a JSON body of a declared, bounded length.

    Raises GatewayError: unsupported_media_type, length_required, body_too_large, malformed_json and the
    codes of a body that does not fit.
    """
    rules = request.app[EDGE].rules
    content_type = request.content_type
    if request.headers.get(hdrs.CONTENT_TYPE) and not (
        content_type in ("application/json", "text/json") or content_type.endswith("+json")
    ):
        raise GatewayError(Code.UNSUPPORTED_MEDIA_TYPE)
    if request.content_length is None:
        raise GatewayError(Code.LENGTH_REQUIRED, "Send a Content-Length header.")
    if request.content_length > rules.body_max_bytes:
        raise GatewayError(Code.BODY_TOO_LARGE, f"A body may have {rules.body_max_bytes} bytes.")
    if request.content.is_eof():  # most bodies come with their headers, and their reading does not wait
        return decode_body(await request.read(), body_type)
    try:
        async with asyncio.timeout(rules.body_timeout_s):
            data = await request.read()
    except TimeoutError:
        raise GatewayError(Code.MALFORMED_JSON, "The body did not arrive in time.") from None
    return decode_body(data, body_type)


def conversation_id_of(request: web.Request) -> ConversationId:
    return ConversationId(checked_uuid(request.match_info["conversation_id"], "conversation_id"))


def turn_id_of(request: web.Request) -> TurnId:
    return TurnId(checked_uuid(request.match_info["turn_id"], "turn_id"))


def message_id_of(request: web.Request) -> str:
    return checked_uuid(request.match_info["message_id"], "message_id")


def checked_uuid(value: str, name: str) -> str:
    """Check an id from a path or a frame, and return it in lower case; raises GatewayError(invalid_id)."""
    value = value.lower()
    if UUID.fullmatch(value) is None:
        raise GatewayError(Code.INVALID_ID, field=name)
    return value


def cursor_of(request: web.Request) -> EventId | None:
    """Return the cursor: ``Last-Event-ID`` first (a reconnecting EventSource repeats its URL), else ``?after=``."""
    header = request.headers.get("Last-Event-ID")
    if header:
        return EventId.parse(header, field="Last-Event-ID")
    query = request.query.get("after")
    return EventId.parse(query, field="after") if query else None


def json_answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer JSON that no cache keeps."""
    return web.Response(
        body=encode_json(body),
        status=status,
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", **(headers or {})},
    )
