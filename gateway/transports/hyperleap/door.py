"""What all of the drop-in's operations share: who asks, how it is refused, and where the paths lie.

Every path answers below ``/hyperleap`` and, as at the vendor, below ``/hyperleap/api`` and ``/hyperleap/app``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs, web

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Door, Principal
from gateway.core.operations import RunId
from gateway.protocol.hyperleap_door import error_body, status_of
from gateway.protocol.native import encode_json
from gateway.services.changes import Changes
from gateway.services.key_holders import KeyHolders, is_publishable
from gateway.services.moderations import Moderations
from gateway.services.prompt_runs import PromptRuns
from gateway.services.reports import Reports
from gateway.transports.edge import EDGE, PRINCIPAL, address_of, bearer, check_door, checked_uuid, origin_of

PREFIX: Final = "/hyperleap"
PATHS: Final = (f"{PREFIX}/",)
BASE: Final = PREFIX + "/{base:(?:(?:api|app)/)?}"
KEY_HEADER: Final = "x-hl-api-key"
DOOR: Final[Door] = "hyperleap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the operations call beside the services that every door has."""

    holders: KeyHolders
    changes: Changes
    moderations: Moderations
    prompt_runs: PromptRuns
    reports: Reports


SERVICES: Final = web.AppKey("hyperleap_services", Services)


def refusal(request: web.BaseRequest, error: GatewayError, headers: Mapping[str, str]) -> web.Response:
    """Build the answer that tells an error in the vendor's documented shape."""
    if isinstance(request, web.Request) and isinstance(request.match_info.http_exception, web.HTTPNotFound):
        error = GatewayError(Code.NOT_FOUND, "Hyperleap's API has no such operation.")
    return web.Response(
        body=encode_json(error_body(error)),
        status=status_of(error),
        content_type="application/json",
        headers=headers,
    )


def credential(request: web.Request) -> str:
    """Return the one credential, from the vendor's header or a bearer's; raises GatewayError."""
    shown = request.headers.getall(KEY_HEADER, [])
    if not shown:
        return bearer(request)
    if len(shown) > 1 or hdrs.AUTHORIZATION in request.headers:
        raise GatewayError(Code.CREDENTIAL_INVALID, f"Send one credential, in `{KEY_HEADER}` or as a bearer token.")
    if not shown[0].strip():
        raise GatewayError(Code.CREDENTIAL_MISSING, f"Send a session token or a publishable key as `{KEY_HEADER}`.")
    return shown[0].strip()


async def caller(
    request: web.Request, *, conversation: ConversationId | None = None, run: RunId | None = None
) -> Principal:
    """Prove who asks. Of who shows a publishable key, ``conversation`` or ``run`` says which visitor it is.

    Raises GatewayError, not_found too where the conversation is no visitor's of the key's tenant.
    """
    shown, origin = credential(request), origin_of(request)
    if not is_publishable(shown):
        principal = request[PRINCIPAL] = await request.app[EDGE].auth.principal(shown, origin)
        check_door(principal, DOOR)
        return principal
    holders = request.app[SERVICES].holders
    principal = request[PRINCIPAL] = await holders.visitor(shown, origin)
    check_door(principal, DOOR)
    if conversation is not None:
        principal = await holders.visitor_of(principal, conversation, address_of(request))
    elif run is not None:
        principal = await holders.visitor_of_run(principal, run)
    request[PRINCIPAL] = principal
    return principal


async def backend(request: web.Request) -> Principal:
    """Prove that a tenant's backend asks; raises GatewayError."""
    principal = request[PRINCIPAL] = await request.app[SERVICES].holders.backend(credential(request))
    check_door(principal, DOOR)
    return principal


def path_id(request: web.Request, name: str) -> str:
    """Return an id of the path in lower case; raises GatewayError(invalid_id)."""
    return checked_uuid(request.match_info[name], name)
