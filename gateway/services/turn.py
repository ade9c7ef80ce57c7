"""One turn: takes the vendor's answer in as it arrives, gives it positions, and settles its ending.

The answer is driven by callbacks from the upstream connection: no task wakes for an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from itertools import dropwhile
from math import ceil
from typing import Any, Final, TypeVar

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
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import Tenant
from gateway.core.turn import CHARS_PER_TOKEN, AnswerItem, Chat, StopReason, Usage
from gateway.core.vendor_keys import KeyLabel
from gateway.services.allowance import Allowance
from gateway.services.owned_turn import UNUSED, OwnedTurn, TurnPorts
from gateway.services.passage import Passage
from gateway.services.vendor import UNAUTHENTICATED
from gateway.telemetry.spans import CURRENT, NOWHERE

T = TypeVar("T")

QUEUED_EVERY_S: Final = 2.0  # at most


class Turn(OwnedTurn):
    """One answer under way; a ChatReceiver. Created by ``Turns`` once the conversation is claimed."""

    __slots__ = (
        "_again",
        "_allowance",
        "_announced",
        "_bounded",
        "_call",
        "_capped",
        "_chat",
        "_gaps",
        "_last_item_s",
        "_passage",
        "_queued",
        "_queued_at_s",
        "_room",
        "_sent_at_s",
        "_waited_end",
        "_waiting",
    )

    def __init__(
        self,
        ports: TurnPorts,
        tenant: Tenant,
        heading: Heading,
        *,
        passage: Passage,
        allowance: Allowance | None = None,
        tokens_max: int | None = None,
    ) -> None:
        """``passage`` is its way to the vendor; ``allowance`` its share of its budgets, where there are any.

        ``tokens_max`` is what its client lets the answer have, by an estimate: beyond, it ends as by a budget.
        """
        started = Entry(1, TurnStarted(heading.turn_id, heading.conversation_id, heading.ordinal))
        super().__init__(ports, tenant, heading, [started], epoch=1, disconnect=tenant.disconnect)
        self._gaps = ports.metrics.gap_histogram(tenant.id, heading.persona)
        self._last_item_s = 0.0
        self._chat: Chat | None = None
        self._call = NOWHERE  # the span of the vendor's answer
        self._room = ports.rules.answer_max_chars  # for text that is yet to come
        self._bounded = tokens_max is not None and tokens_max * CHARS_PER_TOKEN < self._room
        if tokens_max is not None and self._bounded:
            self._room = tokens_max * CHARS_PER_TOKEN
        self._capped = False
        self._allowance = allowance
        if allowance is not None:
            allowance.on_answer = self._extended
        self._waiting: list[AnswerItem] | None = None  # what came while the store was asked for more of a budget
        self._waited_end: tuple[GatewayError | None] | None = None
        self._announced = False
        self._passage = passage
        self._sent_at_s = self.started_at_s
        self._queued: TurnQueued | None = None
        self._queued_at_s = float("-inf")
        # What to send it again with; None: the turn is over.
        self._again: asyncio.Future[KeyLabel | None] = asyncio.get_running_loop().create_future()

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
        else:
            self._passage.answered()
        self._last_item_s = now_s
        if len(items) == 1 and self._takes_plainly(item := items[0]):
            text = item.text or ""
            self._room -= len(text)
            self.live.add_text(text)
            self._ports.journal.touch(self._journal_entry)
            return
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
        if self._capped and self._bounded:
            self._ports.metrics.turns.cut_off(self.tenant.id, "tokens_max")
            self.stop(StopReason.BUDGET)
        elif self._capped:
            self._ports.metrics.turns.cut_off(self.tenant.id, "answer_cap")
            self._end_with(GatewayError(Code.ANSWER_TOO_LONG))

    def chat_ended(self, error: GatewayError | None, /) -> None:
        if error is None:
            self._passage.answered()
        else:
            self._passage.failed(error)
        if self._waiting is not None:
            self._waited_end = (error,)
        elif self._over.done():
            return
        elif not self._again.done() and (other := self._ports.vendor.spare(self.tenant, error)) is not None:
            self._again.set_result(other)
        else:
            self._over.set_result(error)
            self._never_again()

    def _extended(self, goes_on: bool) -> None:
        """Take what has waited for more of the budget, or end where it is used up: before the next piece of text."""
        waiting, self._waiting = self._waiting or [], None
        over = [] if goes_on else list(dropwhile(lambda item: not item.text, waiting))
        self.chat_items(waiting[: len(waiting) - len(over)])
        if over or not (goes_on or self._waited_end or self._finish_reason):
            if not self._over.done():
                self._ports.metrics.turns.cut_off(self.tenant.id, "budget")
            self.stop(StopReason.BUDGET)
        elif self._waited_end is not None:
            self.chat_ended(*self._waited_end)

    def _takes_plainly(self, item: AnswerItem) -> bool:
        """Whether an item is a piece of text in the middle of an answer and nothing else, as nearly all are."""
        text = item.text
        return (
            text is not None
            and 0 < len(text) <= self._room
            and self._first_text_s is not None  # and so it was announced
            and self._allowance is None
            and item.finish_reason is None
            and not item.index
            and (item.role is None or item.role == "assistant")
            and item.usage is None
            and item.citations is None
            and item.moderation is None
            and (item.message_id is None or self._message_id is not None)
            and (item.run_id is None or self._run_id is not None)
        )

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
                self._call.happened("first_token")
                seconds = time.monotonic() - self._sent_at_s
                self.first_token_s = round(seconds, 3)
                self._ports.metrics.first_token(self.tenant.id, self.heading.persona, seconds, self._example())
                events.append(MessageStarted(self._message_id, self._run_id, "assistant"))
            if text and len(text) > self._room:
                text, self._capped = text[: self._room], True  # no reader ever gets further than recovery steps over
            if text:
                if self._first_text_s is None:
                    self._first_text_s = time.monotonic()
                self._room -= len(text)
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
        self._never_again()
        if self._chat is not None:
            self._chat.cancel()

    def _never_again(self) -> None:
        if not self._again.done():
            self._again.set_result(None)

    def hand_over(self) -> None:
        """Leave the turn to another worker; one whose message was not sent has nothing that could be found there."""
        if self._chat is None:
            self.stop(StopReason.SHUTDOWN)
        else:
            super().hand_over()

    # --- the message's way to the vendor ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Send the message, wait for the answer's end and settle it. Only this task writes the ending."""
        try:
            await self._send()
            # One future, for ``asyncio.wait`` on two would take 1.6 KB of every turn under way.
            other = await self._again
            if other is not None and not self._over.done():  # the key was refused before anything was taken in
                await self._send_again(other)
            error = await self._over
            self._chat = None  # it is over; each would keep the other until the garbage collector comes by
            self._end_call(error)
        finally:
            self._call.end(Code.INTERNAL)  # where it did not come to its end
            self._passage.leave(unsent=False)
        if self._allowance is not None:
            self._allowance.close()
        if await self._close():
            await self._settle(self._ending(error))

    async def _send_again(self, key: KeyLabel) -> None:
        """Send the message once more; the vendor counts that too."""
        self._call.end(Code.UPSTREAM_UNAUTHORIZED, status=UNAUTHENTICATED)
        try:
            self._passage = await self._ports.vendor.gate.enter(self.tenant, f"{self.turn_id}.again", ring=(key,))
        except GatewayError as refused:
            self._usage = UNUSED
            self.chat_ended(refused)
        else:
            await self._send(resent=1)

    async def _send(self, *, resent: int | None = None) -> None:
        """Send the message and return once it is on its way, or the turn is over before."""
        passage = self._passage
        try:
            if not passage.passed:
                passage.on_place = self._tell_place
                self._tell_place()
                await self._before_end(passage.wait())
                self._sent_at_s = time.monotonic()
                self.queued_s = round(self._sent_at_s - self.started_at_s, 3)
                self.span.tell(queued_s=self.queued_s)
            self._begin_call(passage.key, resent)
            self._chat = await self._before_end(self._open(passage.key))
            self._vendor_key = passage.key
        except GatewayError as refused:
            passage.failed(refused, unsent=True)
            self._usage = UNUSED
            self.chat_ended(refused)
        except asyncio.CancelledError:
            passage.leave()
            if not self._over.done():
                raise
            self._usage = UNUSED
        if self._over.done() and self._chat is not None:
            self._chat.cancel()  # a stop that fell between the two; no effect on an answer that ended by itself

    def _begin_call(self, key: KeyLabel, resent: int | None) -> None:
        """Begin the span that whoever is asked for the answer belongs to."""
        heading = self.heading
        self._call = self.span.begin(
            "chat", persona=heading.persona, conversation_id=heading.conversation_id, key=key, resent=resent
        )
        if self._call is not self.span:
            CURRENT.set(self._call)

    def _end_call(self, error: GatewayError | None) -> None:
        usage = self._usage if self._usage is not None and self._usage.source == "reported" else None
        self._call.end(
            error.code if error is not None else None,
            status=error.vendor_status if error is not None else None,
            reason=self._stop,
            message_id=self._message_id,
            finish_reason=self._finish_reason,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
        )
        self._call = NOWHERE
        if self.span.sampled:
            CURRENT.set(self.span)

    def _open(self, key: KeyLabel) -> Coroutine[Any, Any, Chat]:
        """Ask the vendor; what it answers comes to this as a ChatReceiver."""
        heading = self.heading
        return self._ports.vendor.upstream.open_chat(heading.conversation_id, heading.message.content, self, key=key)

    async def _before_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something, unless the turn is over before: then it is cancelled, and so it raises."""
        task = asyncio.ensure_future(work)
        if self._over.done():
            task.cancel()
        self._over.add_done_callback(cancel := lambda _: task.cancel())
        try:
            return await task
        finally:
            self._over.remove_done_callback(cancel)

    def _tell_place(self) -> None:
        """Show where the turn stands in the vendor's queue, roughly, and only where that has changed."""
        position, wait_s = self._passage.place
        queued = TurnQueued(coarse(position), coarse_s(wait_s))
        now_s = time.monotonic()
        if queued != self._queued and now_s >= self._queued_at_s + QUEUED_EVERY_S and not self._over.done():
            self._queued, self._queued_at_s = queued, now_s
            self.live.add([queued])
            self._ports.journal.touch(self._journal_entry)

    def _ending(self, error: GatewayError | None) -> Ending:
        ids = (self._message_id, self._run_id)
        refused = error is not None and (error.vendor_status is not None or not error.processed)
        if refused and self._usage is None:
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


def coarse(number: int) -> int:
    """Round up to 1, 2, 5, 10, 20, 50 …: a place in a queue that others join and leave is no exact number."""
    step = 1
    while 5 * step < number:
        step *= 10
    return next((rounded for rounded in (step, 2 * step, 5 * step) if number <= rounded), 10 * step)


def coarse_s(seconds: float) -> float:
    """Round a wait up to 1, 2, 5 and 10 s, and to tens from there."""
    return float(coarse(ceil(seconds)) if seconds <= 10 else 10 * ceil(seconds / 10))
