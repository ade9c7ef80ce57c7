"""Runs: one chat from its request to its last byte, on the beat of the pace, and what is stored and billed for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

from h2.errors import ErrorCodes

from gateway.simulator.bill import ChatRun, State
from gateway.simulator.conversations import Conversation, Message
from gateway.simulator.exchange import Exchange
from gateway.simulator.pace import Pace
from gateway.simulator.script import Act, Form, Script, Step

OnDisconnect = Literal["finish", "drop"]
_BURST_ITEMS = 64  # most that one stream sends in a row when it has no rate, so that it starves no other
_DROP_AFTER_S = 0.005
_LATE_S = 1.0  # a stream that is later than this starts a new beat instead of catching up

CONTENT_TYPES: dict[Form, str] = {
    "array": "application/json; charset=utf-8",
    "sse": "text/event-stream",
    "sync": "application/json; charset=utf-8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """Says how fast a run goes; a rate of 0 means as fast as flow control allows."""

    rate_per_s: float
    first_token_s: float
    headers_s: float

    @property
    def interval_s(self) -> float:
        """Seconds between two items."""
        return 1 / self.rate_per_s if self.rate_per_s > 0 else 0.0


class Run:
    """Drives one chat. `begin` starts it; it ends by itself, also when the client leaves."""

    def __init__(
        self,
        exchange: Exchange,
        conversation: Conversation,
        script: Script,
        form: Form,
        tempo: Tempo,
        record: ChatRun,
        *,
        pace: Pace,
        state: State,
        on_disconnect: OnDisconnect,
        headers: list[tuple[str, str]],
    ) -> None:
        self._exchange = exchange
        self._conversation = conversation
        self._script = script
        self._form: Form = form
        self._interval_s = 0.0 if form == "sync" else tempo.interval_s
        self._tempo = tempo
        self._record = record
        self._pace = pace
        self._state = state
        self._on_disconnect = on_disconnect
        self._headers = headers
        self._steps: Iterator[Step | Act] = script.steps(form)
        self._due_s = 0.0
        self._waiting = False  # for the client's credit
        self._over = False
        self._sent_text: list[str] = []
        self._sent_tokens = 0

    def begin(self) -> None:
        """Stores the user's message and sets the run going."""
        answer, record = self._script.answer, self._record
        self._conversation.messages.append(
            Message(role="user", content=record.message, run_id=record.run_id, prompt_tokens=0)
        )
        record.prompt_tokens = answer.prompt_tokens
        self._exchange.on_gone = self._leave
        self._exchange.on_writable = self._resume
        wait_s = self._tempo.headers_s
        if self._form == "sync":  # the whole answer comes when a streamed one would have ended
            wait_s += self._tempo.first_token_s + self._script.items * self._tempo.interval_s
        self._due_s = self._pace.now_s() + wait_s
        if wait_s:
            self._pace.at(self._due_s, self._start)
        else:
            self._start()

    def _start(self) -> None:
        if self._over:
            return
        self._exchange.start(200, [("content-type", CONTENT_TYPES[self._form]), *self._headers])
        if self._form != "sync":
            self._due_s += self._tempo.first_token_s
        self._pace.at(self._due_s, self._beat)

    def _beat(self) -> None:
        exchange, state = self._exchange, self._state
        budget = _BURST_ITEMS
        while not self._over:
            step = next(self._steps)
            if isinstance(step, Act):
                self._perform(step)
                continue
            for frame in step.frames:
                exchange.write(frame)
            self._sent_text.append(step.text)
            self._sent_tokens += step.tokens
            self._record.items_sent += step.items
            state.items_sent += step.items
            budget -= step.items
            if exchange.blocked:
                self._waiting = True
                self._due_s += self._interval_s
                return
            if self._interval_s:
                self._due_s += self._interval_s
                now_s = self._pace.now_s()
                if now_s - self._due_s > _LATE_S:
                    self._due_s = now_s
                self._pace.at(self._due_s, self._beat)
                return
            if budget <= 0:
                self._pace.at(self._pace.now_s(), self._beat)
                return

    def _resume(self) -> None:
        if self._over or not self._waiting:
            return
        self._waiting = False
        self._due_s = max(self._due_s, self._pace.now_s())
        self._pace.at(self._due_s, self._beat)

    def _perform(self, act: Act) -> None:
        exchange = self._exchange
        match act:
            case Act.END:
                self._store("".join(self._sent_text), self._script.completion_tokens)
                self._end("finished")
                exchange.end()
            case Act.END_SHORT:
                self._end("failed")
                exchange.end()
            case Act.RESET:
                self._end("failed")
                exchange.reset(ErrorCodes.INTERNAL_ERROR)
            case Act.STALL:
                self._over = True  # nothing more is sent; the record stays open until the client leaves
            case Act.GOAWAY:
                exchange.connection.goaway()
            case Act.DROP:
                self._over = True  # the cut comes a moment later, when what was written is on the wire
                self._pace.at(self._pace.now_s() + _DROP_AFTER_S, exchange.connection.abort)
            case Act.DEAF:
                self._over = True
                exchange.connection.deafen()
            case _:
                assert_never(act)

    def _end(self, outcome: Literal["finished", "failed", "cancelled"]) -> None:
        self._over = True
        self._exchange.on_gone = None
        record = self._record
        record.outcome = outcome
        record.ended_at_s = time.time()
        if outcome != "finished":
            record.completion_tokens = self._sent_tokens

    def _store(self, text: str, completion_tokens: int) -> None:
        record = self._record
        record.completion_tokens = completion_tokens
        record.stored = True
        self._conversation.messages.append(
            Message(
                role="assistant",
                content=text,
                message_id=record.message_id,
                run_id=record.run_id,
                prompt_tokens=record.prompt_tokens,
                completion_tokens=completion_tokens,
            )
        )

    def _leave(self, code: int | None) -> None:
        self._end("cancelled")
        record = self._record
        if code is not None:
            record.reset_code, record.reset_at_s = code, time.time()
        if self._on_disconnect == "drop":
            if self._sent_tokens:
                self._store("".join(self._sent_text), self._sent_tokens)
            return
        items_left = max(0, self._script.items - record.items_sent)
        self._pace.at(self._pace.now_s() + items_left * self._tempo.interval_s, self._finish_unseen)

    def _finish_unseen(self) -> None:
        self._store(self._script.text, self._script.completion_tokens)
        self._record.ended_at_s = time.time()
