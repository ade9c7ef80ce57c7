"""Models: the personas that whoever asks may ask."""

from __future__ import annotations

from aiohttp import web

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.protocol.openai.models import model_body, models_body
from gateway.transports.openai.door import answer, caller_of

routes = web.RouteTableDef()


def check_model(principal: Principal, alias: str) -> None:
    """Raise GatewayError(persona_unknown) for a model that the principal cannot ask."""
    if alias not in _aliases(principal):
        raise GatewayError(
            Code.PERSONA_UNKNOWN, "There is no such model; `GET /v1/models` lists them.", field="persona"
        )


@routes.get("/v1/models")
async def list_(request: web.Request) -> web.Response:
    caller = await caller_of(request)
    return answer(models_body(_aliases(caller.principal)))


@routes.get("/v1/models/{model}")
async def get(request: web.Request) -> web.Response:
    caller = await caller_of(request)
    alias = request.match_info["model"]
    check_model(caller.principal, alias)
    return answer(model_body(alias))


def _aliases(principal: Principal) -> set[str]:
    return {alias for alias in principal.tenant.personas if principal.personas is None or alias in principal.personas}
