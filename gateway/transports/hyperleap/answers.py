"""A turn as the vendor answers it: an array written item by item, events, or whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiohttp import hdrs, web

from gateway.core.errors import Code, GatewayError
from gateway.core.events import TurnFailed
from gateway.core.identity import Principal
from gateway.core.turn import TurnId
from gateway.protocol.hyperleap_items import Form, ItemEncoder, whole_answer
from gateway.transports.edge import EDGE, json_answer
from gateway.transports.held_stream import HeldStream
from gateway.transports.hyperleap.door import DOOR
from gateway.transports.sse import KEEPALIVE

logger = logging.getLogger(__name__)


class Carried(NamedTuple):
    """How a form is carried: see ``HeldStream``."""

    transport: str
    headers: Mapping[str, str]
    keepalive: bytes


CARRIED: Final[Mapping[Form, Carried]] = {
    # Of an array even white space would be read as an item by what is deployed.
    "array": Carried("json", {hdrs.CONTENT_TYPE: "application/json; charset=utf-8"}, b""),
    "sse": Carried("sse", {}, KEEPALIVE),
}


async def answer(request: web.Request, principal: Principal, turn_id: TurnId, form: Form | None) -> web.StreamResponse:
    """Answer with a turn of the principal's from its beginning; without a form whole, when it is over.

    What fails before anything was said is refused; later it is cut off, as the vendor's are without their bracket.
    """
    subscription = await request.app[EDGE].subscriptions.open(principal, turn_id, None)
    assert subscription is not None, "only a cursor can be at the ending"
    headers = {"x-turn-id": turn_id}
    if form is None:
        whole = HeldStream(request, None, headers, door=DOOR)
        ending = await whole.deliver(subscription)
        if isinstance(ending, TurnFailed):
            raise ending.error.refusal()
        return json_answer(whole_answer(whole.events, ending, turn_id, int(time.time())), headers=headers)
    transport, more, keepalive = CARRIED[form]
    encoder = ItemEncoder(form)
    stream = HeldStream(request, encoder, {**more, **headers}, door=DOOR, transport=transport, keepalive=keepalive)
    last = b""
    try:
        ending = await stream.deliver(subscription)
        last = encoder(stream.last)
        if isinstance(ending, TurnFailed):
            raise ending.error.refusal()
    except ConnectionError:
        raise
    except Exception as raised:
        if not stream.begun:
            raise
        if not isinstance(raised, GatewayError):
            logger.exception("stream.crashed")
            raised = GatewayError(Code.INTERNAL)
        request.app[EDGE].metrics.error_sent(raised.code)
        return stream.cut(last)
    return await stream.finish(last)
