"""A turn whose worker is gone, brought to its end from the vendor's copy of the conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.conversation import Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Ending,
    Entry,
    Event,
    Heading,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnStopped,
)
from gateway.core.identity import Disconnect, DisconnectPolicy, Tenant
from gateway.services.owned_turn import UNUSED, OwnedTurn, TurnPorts
from gateway.services.vendor_copy import AfterLoss, Asked, VendorCopies, copied_usage
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

LOOK_TIMEOUT_S: Final = 5.0  # of one look; the vendor may be as busy as it was when the worker was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueRules:
    """How long a lost turn's answer is looked for. Seconds.

    The first look comes after ``settle_s``: by then a vendor that stores what it had when the connection broke has
    stored it. The waits between the looks double, the last look is at ``timeout_s``.
    """

    timeout_s: float = 60.0
    reads_max: int = 6
    settle_s: float = 2.0

    def looks_s(self) -> list[float]:
        """Return when to look, counted from the beginning of the rescue."""
        first = min(self.settle_s, self.timeout_s)
        if self.reads_max == 1:
            return [self.timeout_s]
        span = self.timeout_s - first
        whole = 2 ** (self.reads_max - 1) - 1
        return [first + span * (2**look - 1) / whole for look in range(self.reads_max)]


class Rescue(OwnedTurn):
    """One lost turn, owned under a new epoch; local readers hang on its log as on any other.

    What the vendor has beyond the log is appended as soon as it is seen, at the positions that the lost worker would
    have given it, so a reader that was shown more than the log holds goes on exactly where it stopped.
    """

    __slots__ = (
        "_after_loss",
        "_announced",
        "_asked",
        "_copies",
        "_looks_s",
        "_process_died",
        "_seen",
        "_whole",
    )

    def __init__(
        self,
        ports: TurnPorts,
        tenant: Tenant,
        heading: Heading,
        stored: Sequence[Entry],
        *,
        epoch: int,
        asked: Asked,
        copies: VendorCopies,
        after_loss: AfterLoss,
        looks_s: Sequence[float],
        process_died: bool,
    ) -> None:
        """``process_died``: the owner's connections ended with it, just now; a lost host's may look open for long."""
        stays = Disconnect(policy=DisconnectPolicy.DRAIN)
        super().__init__(ports, tenant, heading, stored, epoch=epoch, disconnect=stays)
        self._asked = asked
        self._copies = copies
        self._after_loss = after_loss
        self._looks_s = looks_s
        self._process_died = process_died
        self._seen = False
        self._whole = False
        # By which of several keys the lost worker sent it, nobody knows.
        self._vendor_key = tenant.vendor_keys[0] if len(tenant.vendor_keys) == 1 else None
        started = next((e.event for e in stored if isinstance(e.event, MessageStarted)), None)
        self._announced = started is not None
        if started is not None:
            self._message_id, self._run_id = started.message_id, started.run_id

    async def run(self) -> None:
        """Look for the answer until it is whole, the time is up, somebody stops it or another worker has it."""
        begun_s = asyncio.get_running_loop().time()
        absent = False
        unsent = not self._announced and await self._was_never_sent()
        for look_s in () if unsent else self._looks_s:
            if await self._over_by(begun_s + look_s):
                break
            try:
                copy = await self._look()
            except (GatewayError, TimeoutError):
                continue
            if self._over.done():
                break
            if copy is None:
                absent = True
                continue
            if not self._take(copy):
                break
            if absent and self._process_died:
                await self._after_loss.saw_finish()
            if await self._is_whole():
                self._whole = True
                break
            if self._after_loss.drops:
                break  # no reader need wait for more
        if self._seen and not self._whole and not self._over.done():
            self._whole = await self._is_whole()  # another turn may have taught it meanwhile
        if not self._over.done():
            self._over.set_result(None)
        if not await self._close():
            return
        ending = self._ending()
        # A failure lies after whatever any reader may have been shown beyond the log: one answer cap further on.
        skip = 0 if isinstance(ending, TurnCompleted) else self._ports.rules.answer_max_chars - 1
        await self._settle(ending, skip=skip)
        self._ports.metrics.turn_recovered(self.tenant.id, completed=self._whole)

    async def _was_never_sent(self) -> bool:
        """Whether the message was still waiting for room when its worker was lost: then it cost nothing."""
        try:
            unsent = await self._ports.vendor.gate.never_sent(self.tenant, self.turn_id)
        except GatewayError:
            return False
        if unsent:
            self._usage, self._vendor_key = UNUSED, None
        return unsent

    async def _look(self) -> Message | None:
        """Ask the vendor once, no longer than until the turn is over; raises GatewayError, TimeoutError."""
        asked = self._asked._replace(message_id=self._message_id)
        look = asyncio.ensure_future(self._copies.answer(self.tenant, self.heading.conversation_id, asked))
        try:
            first: set[asyncio.Future[Any]] = {look, self._over}
            await asyncio.wait(first, timeout=LOOK_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if look.done():
                return look.result()
        finally:
            look.cancel()
        raise TimeoutError

    async def _over_by(self, until_s: float) -> bool:
        """Wait until a time on the loop's clock, or shorter when the turn is over before."""
        wait_s = until_s - asyncio.get_running_loop().time()
        await asyncio.wait([self._over], timeout=max(0.0, wait_s))
        return self._over.done()

    def _take(self, copy: Message) -> bool:
        """Append what the copy has beyond the log; False when it is not the same answer."""
        text = self.live.text()
        room = self._ports.rules.answer_max_chars
        if not copy.content.startswith(text) or len(copy.content) > room:
            throttled(logger, "rescue.mismatch", turn_id=self.turn_id, tenant=self.tenant.id)
            return False
        self._seen = True
        self._usage = copied_usage(copy)
        events: list[Event] = []
        if not self._announced:
            self._announced = True
            self._message_id, self._run_id = copy.message_id, copy.run_id
            events.append(MessageStarted(copy.message_id, copy.run_id, "assistant"))
        if len(copy.content) > len(text):
            events.append(TextDelta(copy.content[len(text) :]))
        if events:
            self.live.add(events)
            self._ports.journal.touch(self._journal_entry)
        return True

    async def _is_whole(self) -> bool:
        """Whether the vendor finishes what nobody reads, and this is finished: its tokens are counted at the end."""
        return self._usage is not None and await self._after_loss.finishes()

    def _ending(self) -> Ending:
        if self._whole:
            return TurnCompleted(self._message_id, self._run_id, "unknown", self.live.text(), self._tokens())
        if self._stop is not None:
            return TurnStopped(self._message_id, self._run_id, self._stop, self.live.text(), self._tokens())
        return self._failed(GatewayError(Code.WORKER_LOST))
