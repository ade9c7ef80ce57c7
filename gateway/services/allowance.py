"""The share of its budgets that a running turn may use up, counted here and extended before it is used up.

A turn is admitted with a reservation. Its owner counts what the answer costs as it arrives, without asking anybody;
only when less than ``LOW_TOKENS`` are left does it ask for ``CHUNK_TOKENS`` more, in a task beside the stream: about
one call for a thousand tokens, and none for most answers. So budgets are charged before they are used, by however many
turns at once, and the store is exact about who gets the last token. Where it gave no more, the answer goes on to the
end of what is reserved, which is one event beyond it at most; then it waits while the store is asked once more (others
may have given something back by then, and a vendor that sends all at once must not be cut off for being fast).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.identity import TenantId
from gateway.core.limits import Limiter
from gateway.core.turn import CHARS_PER_TOKEN, TurnId, Usage

CHUNK_TOKENS: Final = 1024
LOW_TOKENS: Final = 256


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
        self._ask_at = tokens - LOW_TOKENS
        self._waiting = False
        self._asking: asyncio.Task[None] | None = None
        self.on_answer: Callable[[bool], None] = lambda _: None  # whether what waits may go on; called from the loop

    def spend(self, chars: int) -> bool:
        """Count a piece of the answer; False when nothing may follow it until ``on_answer`` is called.

        A token is taken to be four characters, or one piece where pieces are shorter.
        """
        self._chars += chars
        self._events += 1
        used = self._used
        if used < self._ask_at:
            return True
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._extend())
        self._waiting = used >= self._granted
        return not self._waiting

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
        """Ask for more; again where all was used up meanwhile and the answer is older than that."""
        final = False
        while not final:
            final = self._waiting
            wanted = max(self._granted, self._used) + CHUNK_TOKENS
            try:
                self._granted = await self._limiter.extend(self._tenant, self._turn_id, wanted)
                self._ask_at = self._granted - LOW_TOKENS if self._granted == wanted else self._granted
            except GatewayError:
                if self._goes_on_alone:
                    self._granted = wanted
                self._ask_at = min(self._granted, self._used + LOW_TOKENS // 4)
            final = final or self._used < self._granted
        self._asking = None
        if self._waiting:
            self._waiting = False
            self.on_answer(self._used < self._granted)
