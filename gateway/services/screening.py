"""Has messages judged before their turns, where the tenant wants that: what is flagged is not sent."""

from __future__ import annotations

import logging
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.protocol.hyperleap_moderation import read_judgement
from gateway.services.moderations import Moderations
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

VENDOR_FAILED: Final = "upstream_"  # how the codes begin that say that no judgement was to be had


class Screening:
    """Judges what is about to be sent; see ``core.identity.Moderation``."""

    def __init__(self, moderations: Moderations, metrics: Metrics) -> None:
        self._moderations = moderations
        self._metrics = metrics

    async def screen(self, principal: Principal, text: str, *, address: str, field: str) -> None:
        """Return where a text may be sent; ``field`` is what a refusal names.

        A moderation is metered and limited as one that a user asks for. The limits hold in any case: whoever could
        get round the judgement by asking too fast would. Safe to cancel: what was asked is settled.
        Raises GatewayError: message_flagged, moderation_unavailable, rate_limited, store_unavailable.
        """
        tenant = principal.tenant
        try:
            judgement = read_judgement(await self._moderations.moderate(principal, text, address=address))
        except GatewayError as error:
            if not error.code.startswith(VENDOR_FAILED):
                raise
            sends = tenant.moderation.open
            self._metrics.message_screened(tenant.id, "unjudged_sent" if sends else "unjudged_refused")
            throttled(logger, f"unjudged:{tenant.id}", "message.unjudged", tenant=tenant.id, error=error, sent=sends)
            if sends:
                return
            raise GatewayError(
                Code.MODERATION_UNAVAILABLE,
                "The message could not be judged, so it was not sent.",
                retry_after_s=error.retry_after_s,
                vendor_status=error.vendor_status,
                extra={"cause": error.code},
            ) from error
        self._metrics.message_screened(tenant.id, "flagged" if judgement.flagged else "passed")
        if judgement.flagged:
            log_event(logger, logging.INFO, "message.flagged", tenant=tenant.id, user=principal.user_hash)
            raise GatewayError(
                Code.MESSAGE_FLAGGED,
                "The message was flagged by moderation and not sent.",
                field=field,
                extra={"categories": list(judgement.categories)},
            )
