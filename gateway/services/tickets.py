"""Tickets: what stands in a URL where no header can be set, for one path, one user and a bounded time.

``EventSource`` and a browser's WebSocket cannot send ``Authorization``, and a token in a URL ends up in logs and
histories (RFC 9700 section 4.3.2). A ticket (``hgk_``, a JWT of the gateway's own) opens one address only. It holds no
user id. For a stream it can be used again, since an EventSource comes back with the same URL by itself; for a socket it
opens one connection.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jwt

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, TenantId
from gateway.core.uses import Uses
from gateway.services.clock import iso
from gateway.services.tokens import LEEWAY_S, Signer, limit_claim

TICKET_PREFIX: Final = "hgk_"
TICKET_AUDIENCE: Final = "hyperleap-gateway-ticket"
TICKET_MAX_CHARS: Final = 6144  # with the address it must fit into the 8,190 bytes of a request line

_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_STREAM: Final = re.compile(rf"/v1/(?:turns|conversations)/{_UUID}/events", re.ASCII)
_SOCKET: Final = "/v1/ws"


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRules:
    """How long tickets live. A stream's is good for as long as the log that it is about can be."""

    socket_life_s: float = 30.0
    stream_life_s: float = 4200.0


class Ticket(NamedTuple):
    """What is told of a new ticket."""

    ticket: str
    expires_at: str


class Tickets:
    """Makes and reads tickets. Who may do what a ticket is for is decided when it is shown, as with a token."""

    def __init__(self, signer: Signer, uses: Uses, rules: TicketRules) -> None:
        self._signer = signer
        self._uses = uses
        self._rules = rules

    def mint(self, principal: Principal, path: str) -> Ticket:
        """Make a ticket for a path; raises GatewayError(invalid_value) where none can be."""
        path = path.lower()
        socket = path == _SOCKET
        if not socket and _STREAM.fullmatch(path) is None:
            raise GatewayError(
                Code.INVALID_VALUE,
                "A ticket is for /v1/ws, /v1/turns/<id>/events or /v1/conversations/<id>/events.",
                field="path",
            )
        rules, now_s = self._rules, time.time()
        ends_s = int(now_s + (rules.socket_life_s if socket else rules.stream_life_s))
        claims: dict[str, Any] = {
            "aud": TICKET_AUDIENCE,
            "jti": secrets.token_urlsafe(12),
            "iat": now_s,
            "exp": ends_s,
            "path": path,
            "ten": principal.tenant.id,
            "sub": principal.user_hash,
            "sexp": principal.expires_at_s,
            "siat": principal.issued_at_s,
        }
        optional = {
            "sjti": principal.token_id,
            "key": principal.key_id,
            "per": sorted(principal.personas) if principal.personas is not None else None,
            "org": sorted(principal.origins) if principal.origins is not None else None,
            "anon": principal.anonymous or None,
            "app": principal.app or None,
            "lim": limit_claim(principal.limits),
        }
        claims |= {name: value for name, value in optional.items() if value is not None}
        ticket = TICKET_PREFIX + self._signer.sign(claims)
        if len(ticket) > TICKET_MAX_CHARS:
            raise GatewayError(Code.INVALID_VALUE, "The session names too many personas or origins for a ticket.")
        return Ticket(ticket, iso(ends_s))

    def read(self, ticket: str, path: str) -> dict[str, Any]:
        """Return a ticket's claims; raises GatewayError: credential_invalid (also for another path), token_expired."""
        if len(ticket) > TICKET_MAX_CHARS or not ticket.startswith(TICKET_PREFIX) or not ticket.isascii():
            raise GatewayError(Code.CREDENTIAL_INVALID, "This is not a ticket.")
        try:
            claims = self._signer.read(ticket.removeprefix(TICKET_PREFIX), TICKET_AUDIENCE)
        except jwt.ExpiredSignatureError:
            raise GatewayError(Code.TOKEN_EXPIRED, "The ticket has expired.") from None
        except jwt.PyJWTError:
            raise GatewayError(Code.CREDENTIAL_INVALID, "This is not a ticket.") from None
        if claims["path"] != path.lower():
            raise GatewayError(Code.CREDENTIAL_INVALID, "The ticket is for another path.")
        return claims

    async def use(self, claims: dict[str, Any]) -> None:
        """Use a socket's ticket up; raises GatewayError: credential_used, store_unavailable."""
        if claims["path"] != _SOCKET:
            return
        life_s = claims["exp"] - time.time() + LEEWAY_S
        if not await self._uses.claim(TenantId(claims["ten"]), claims["jti"], life_s):
            raise GatewayError(Code.CREDENTIAL_USED, "The ticket was used already; get another.")
