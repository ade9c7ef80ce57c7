"""One turn: takes the vendor's answer in as it arrives, gives it positions, and settles its ending.

The answer is driven by callbacks from the upstream connection: no task wakes for an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Ending,
    Entry,
    Event,
    Heading,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import Tenant
from gateway.core.turn import AnswerItem, Chat, StopReason, Usage
from gateway.core.vendor_keys import KeyLabel
from gateway.services.allowance import Allowance
from gateway.services.owned_turn import UNUSED, OwnedTurn, TurnPorts


class Turn(OwnedTurn):
    """One answer under way; a ChatReceiver. Created by ``Turns`` once the conversation is claimed."""

    def __init__(
        self, ports: TurnPorts, tenant: Tenant, heading: Heading, *, allowance: Allowance | None = None
    ) -> None:
        """``allowance`` is the turn's share of its budgets, where there are any."""
        started = Entry(1, TurnStarted(heading.turn_id, heading.conversation_id, heading.ordinal))
        super().__init__(ports, tenant, heading, [started], epoch=1, disconnect=tenant.disconnect)
        self._gaps = ports.metrics.gap_histogram(tenant.id, heading.persona)
        self._last_item_s = 0.0
        self._chat: Chat | None = None
        self._chars = 0
        self._capped = False
        self._allowance = allowance
        if allowance is not None:
            allowance.on_answer = self._extended
        self._waiting: list[AnswerItem] | None = None  # what came while the store was asked for more of a budget
        self._waited_end: tuple[GatewayError | None] | None = None
        self._announced = False
        self._again: asyncio.Future[KeyLabel] = asyncio.get_running_loop().create_future()  # what to send it again with

    # --- ChatReceiver: called from the upstream connection -------------------------------------------------------

    def chat_items(self, items: Sequence[AnswerItem], /) -> None:
        if self._over.done():
            return
        if self._waiting is not None:
            self._waiting += items
            return
        now_s = time.monotonic()
        if self._last_item_s:
            self._gaps.observe(now_s - self._last_item_s)
        self._last_item_s = now_s
        events: list[Event] = []
        for number, item in enumerate(items, 1):
            self._take(item, events)
            if self._capped:
                break
            if self._allowance is not None and item.text and not self._allowance.spend(len(item.text)):
                self._waiting = list(items[number:])
                break
        if events:
            self.live.add(events)
            self._ports.journal.touch(self._journal_entry)
        if self._capped:
            self._end_with(GatewayError(Code.ANSWER_TOO_LONG))

    def chat_ended(self, error: GatewayError | None, /) -> None:
        if self._waiting is not None:
            self._waited_end = (error,)
        elif self._over.done():
            return
        elif not self._again.done() and (other := self._ports.vendor.spare(self.tenant, error)) is not None:
            self._again.set_result(other)
        else:
            self._over.set_result(error)

    def _extended(self, goes_on: bool) -> None:
        """Take what has waited for more of the budget, or end where it is used up: before the next piece of text."""
        waiting, self._waiting = self._waiting or [], None
        over = [] if goes_on else list(dropwhile(lambda item: not item.text, waiting))
        self.chat_items(waiting[: len(waiting) - len(over)])
        if over or not (goes_on or self._waited_end or self._finish_reason):
            self.stop(StopReason.BUDGET)
        elif self._waited_end is not None:
            self.chat_ended(*self._waited_end)

    def _take(self, item: AnswerItem, events: list[Event]) -> None:
        text = item.text
        if item.message_id is not None and self._message_id is None:
            self._message_id = item.message_id
        if item.run_id is not None and self._run_id is None:
            self._run_id = item.run_id
        if item.index or item.role not in (None, "assistant"):
            events.append(MessageExtra(item.index, item.role, item.name, item.tool_call_id, text))
        else:
            if not self._announced:
                self._announced = True
                self._ports.metrics.first_token(
                    self.tenant.id, self.heading.persona, time.monotonic() - self.started_at_s
                )
                events.append(MessageStarted(self._message_id, self._run_id, "assistant"))
            if text and len(text) > (room := self._ports.rules.answer_max_chars - self._chars):
                text, self._capped = text[:room], True  # no reader ever gets further than recovery steps over
            if text:
                self._chars += len(text)
                events.append(TextDelta(text))
            if item.finish_reason is not None:
                self._finish_reason = item.finish_reason
        if item.moderation:
            events.append(MessageModerated(item.moderation))
        if item.citations:
            self._citations += item.citations
            events.append(MessageCitations(item.citations))
        if item.usage is not None:
            self._usage = Usage(*item.usage, "reported")

    # --- ending --------------------------------------------------------------------------------------------------

    def _end_with(self, error: GatewayError | None) -> None:
        """End now; the upstream stream is reset at once."""
        super()._end_with(error)
        if self._chat is not None:
            self._chat.cancel()

    async def run(self) -> None:
        """Send the message, wait for the answer's end and settle it. Only this task writes the ending."""
        await self._send(self._ports.vendor.key(self.tenant))
        first: set[asyncio.Future[Any]] = {self._again, self._over}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self._over.done():  # the key was refused before anything was taken in
            await self._send(self._again.result())
        error = await self._over
        if self._allowance is not None:
            self._allowance.close()
        if await self._close():
            await self._settle(self._ending(error))

    async def _send(self, key: KeyLabel) -> None:
        """Send the message and return once it is on its way, or the turn is over before."""
        opening = asyncio.ensure_future(
            self._ports.vendor.upstream.open_chat(
                self.heading.conversation_id, self.heading.message.content, self, key=key
            )
        )
        first: set[asyncio.Future[Any]] = {opening, self._over}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self._over.done() and not opening.done():
            opening.cancel()  # stopped while the message was waiting for a stream
        try:
            self._chat = await opening
        except GatewayError as refused:
            self._usage = UNUSED
            self.chat_ended(refused)
        except asyncio.CancelledError:
            if not self._over.done():
                raise
            self._usage = UNUSED
        if self._over.done() and self._chat is not None:
            self._chat.cancel()  # a stop that fell between the two; no effect on an answer that ended by itself

    def _ending(self, error: GatewayError | None) -> Ending:
        ids = (self._message_id, self._run_id)
        if error is not None and error.vendor_status is not None and self._usage is None:
            self._usage = UNUSED
        if self._stop is not None:
            return TurnStopped(*ids, self._stop, self.live.text(), self._tokens())
        if error is not None and self._finish_reason is not None and error.code is not Code.ANSWER_TOO_LONG:
            # The answer was complete before the stream broke; the oddity is counted, the answer stands.
            self._ports.metrics.upstream_oddity("broken_after_finish")
            return self._completed(self._finish_reason)
        if error is None and self._finish_reason is None:
            if not self._announced:
                error = GatewayError(Code.UPSTREAM_TRUNCATED, "Hyperleap ended the answer before it began.")
            else:
                self._ports.metrics.upstream_oddity("no_finish_reason")
                return self._completed("unknown")
        if error is not None:
            return self._failed(error)
        return self._completed(self._finish_reason or "unknown")

    def _tokens(self) -> Usage:
        if self._usage is None and self._allowance is not None:
            return self._allowance.usage()  # an estimate too, but the one that its budgets were charged by
        return super()._tokens()

    def _completed(self, finish_reason: str) -> TurnCompleted:
        return TurnCompleted(self._message_id, self._run_id, finish_reason, self.live.text(), self._tokens())
