"""The share of its budgets that a running turn may use up, counted here and extended before it is used up.

A turn is admitted with a reservation. Its owner counts what the answer costs as it arrives, without asking anybody;
only when less than ``LOW_TOKENS`` are left does it ask for ``CHUNK_TOKENS`` more, in a task beside the stream: about
one call for a thousand tokens, and none for most answers. So budgets are charged before they are used, by however many
turns at once, and the store is exact about who gets the last token. Where it gives no more, the answer goes on to the
end of what is reserved and is cut off there; an answer to the last question may take ``SLACK_EVENTS`` to arrive.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.limits import Limiter
from gateway.core.turn import CHARS_PER_TOKEN, TurnId, Usage

CHUNK_TOKENS: Final = 1024
LOW_TOKENS: Final = 256
SLACK_EVENTS: Final = 12  # that an answer may run over while the store is asked for the last time


class Allowance:
    """One turn's reservation. ``close`` it when the answer has ended."""

    def __init__(
        self,
        limiter: Limiter,
        tenant: TenantId,
        turn_id: TurnId,
        *,
        tokens: int,
        prompt_tokens: int,
        goes_on_alone: bool,
    ) -> None:
        """``goes_on_alone``: an answer is not cut off because the store cannot be asked."""
        self._limiter = limiter
        self._tenant = tenant
        self._turn_id = turn_id
        self._granted = tokens
        self._prompt = prompt_tokens
        self._goes_on_alone = goes_on_alone
        self._chars = 0
        self._events = 0
        self._over = 0
        self._ask_at = tokens - LOW_TOKENS
        self._final = False  # the last answer was given when nothing was left, and gave nothing
        self._asking: asyncio.Task[None] | None = None

    def spend(self, chars: int) -> bool:
        """Count a piece of the answer; False when the turn must end now, because its budget is used up.

        A token is taken to be four characters, or one piece where pieces are shorter.
        """
        self._chars += chars
        self._events += 1
        used = self._used
        if used < self._ask_at:
            return True
        if self._asking is None and not self._final:
            self._asking = asyncio.get_running_loop().create_task(self._extend())
        if used <= self._granted:
            return True
        self._over += 1
        return not self._final and (self._goes_on_alone or self._over <= SLACK_EVENTS)

    def usage(self) -> Usage:
        """Return what has been counted, for a turn whose tokens nobody tells."""
        completion = self._used - self._prompt
        return Usage(self._prompt, completion, self._used, "estimated")

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    @property
    def _used(self) -> int:
        return self._prompt + max(-(-self._chars // CHARS_PER_TOKEN), self._events)

    async def _extend(self) -> None:
        used, had = self._used, self._granted
        wanted = max(had, used) + CHUNK_TOKENS
        try:
            granted = await self._limiter.extend(self._tenant, self._turn_id, wanted)
        except GatewayError:
            self._ask_at = max(used + LOW_TOKENS // 4, had)  # asked again soon, and with each piece when all is used
            return
        finally:
            self._asking = None
        self._granted = granted
        if granted >= self._used:
            self._over = 0
        # What is refused before all is used may be given then: others may have given something back.
        self._ask_at = granted - LOW_TOKENS if granted == wanted else granted
        self._final = granted <= had <= used
