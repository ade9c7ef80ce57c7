"""Script: a chat run's answer as a sequence of steps, each what goes out in one beat of the pace; faults write into it.

The sequence is made lazily, so an answer that nobody reads costs one step of memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Literal, NamedTuple

from gateway.simulator.answers import CACHED_TOKENS, Answer, Json
from gateway.simulator.faults import Fault, FaultName
from gateway.simulator.wire import DELTA_HEAD, delta_tail, dumps, item, pieces, quote

Form = Literal["array", "sse", "sync"]
_SEVERITIES = (("hate", "safe"), ("self_harm", "safe"), ("sexual", "safe"), ("violence", "low"))
_POSITIONED = (
    FaultName.STALL,
    FaultName.CUT,
    FaultName.RESET,
    FaultName.GOAWAY,
    FaultName.DROP,
    FaultName.DEAF,
    FaultName.GARBAGE,
)
_BROKEN = b'{"choice":{"finish_reason":nul,"index":0]}<html><h1>502 Bad Gateway</h1></html>'


class Act(Enum):
    """Names what a script does to its stream besides sending bytes."""

    END = auto()  # the whole answer is out
    END_SHORT = auto()  # END_STREAM too early
    STALL = auto()
    RESET = auto()
    GOAWAY = auto()  # and goes on
    DROP = auto()
    DEAF = auto()


_ACTS = {
    FaultName.STALL: Act.STALL,
    FaultName.CUT: Act.END_SHORT,
    FaultName.GARBAGE: Act.END_SHORT,
    FaultName.RESET: Act.RESET,
    FaultName.GOAWAY: Act.GOAWAY,
    FaultName.DROP: Act.DROP,
    FaultName.DEAF: Act.DEAF,
}


class Step(NamedTuple):
    """Is one beat: DATA frames, and what of the answer they carry."""

    frames: tuple[bytes, ...]
    text: str
    tokens: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Is the plan of one run, after its faults have changed what is said."""

    message_id: str
    run_id: str
    answer: Answer
    deltas: tuple[str | None, ...]
    encoded: tuple[bytes, ...]  # the deltas as JSON strings
    text: str
    completion_tokens: int
    finish_reason: str
    moderation: Json | None
    usage: dict[str, int] | None
    faults: dict[FaultName, Fault]
    raw_utf8: bool
    sse_done: bool

    @property
    def items(self) -> int:
        """How many items the answer has, the last one included."""
        return len(self.deltas) + 1

    def steps(self, form: Form) -> Iterator[Step | Act]:
        """Yields the beats and acts; ends with exactly one act that ends the run (any but GOAWAY)."""
        if form == "sync":
            return self._whole()
        striking = sorted((self.faults[name].position(self.items), name) for name in _POSITIONED if name in self.faults)
        batch = self.faults.get(FaultName.BATCH)
        split = self.faults.get(FaultName.SPLIT)
        beats = self._framed(form, [at for at, _ in striking], int(batch.value) if batch else 1)
        return self._struck(_split(beats, int(split.value)) if split else beats, striking, form)

    def _struck(self, beats: Iterator[Step], striking: list[tuple[int, FaultName]], form: Form) -> Iterator[Step | Act]:
        sent = 0
        for beat in beats:
            while striking and sent >= striking[0][0]:
                name = striking.pop(0)[1]
                if name is FaultName.GARBAGE:
                    yield Step((_frame(_BROKEN, form, first=sent == 0, last=False),), "", 0, 0)
                yield _ACTS[name]
                if _ACTS[name] is not Act.GOAWAY:
                    return
            yield beat
            sent += beat.items
        yield Act.END

    def _framed(self, form: Form, borders: list[int], batch: int) -> Iterator[Step]:
        """Puts items into frames: one each, or `batch` of them, but never over a place where a fault strikes."""
        held: list[bytes] = []
        text, tokens, sent = "", 0, 0
        closing = form == "array" and FaultName.CUT_AFTER_FINISH not in self.faults
        for number, (data, delta, last) in enumerate(self._items()):
            first = number == 0
            if batch == 1 and not last:
                yield Step((_frame(data, form, first=first, last=False),), delta, 1 if delta else 0, 1)
                sent += 1
                continue
            held.append(_frame(data, form, first=first, last=last and closing))
            if delta:
                text, tokens = text + delta, tokens + 1
            if last and form == "sse" and self.sse_done and FaultName.CUT_AFTER_FINISH not in self.faults:
                held.append(b"data: [DONE]\n\n")
            items = number + 1 - sent
            if last or items >= batch or number + 1 in borders:
                yield Step((b"".join(held),), text, tokens, items)
                sent += items
                held, text, tokens = [], "", 0

    def _items(self) -> Iterator[tuple[bytes, str, bool]]:
        """Yields each item, what of the answer's text it carries, and whether it is the last."""
        tail = delta_tail(self.message_id, self.run_id)
        extra = self.faults.get(FaultName.EXTRA_ROLE)
        extra_at = extra.position(self.items) if extra else -1
        clock = self.answer.directives.clock
        for number, (encoded, delta) in enumerate(zip(self.encoded, self.deltas, strict=True)):
            if number == extra_at:
                yield from self._extras()
            if clock:  # made when the run asks for the step, just before it writes it
                delta = f"{number}@{time.monotonic_ns()} "
                encoded = b'"%b"' % delta.encode()
            yield DELTA_HEAD + encoded + tail, delta or "", False
        if extra_at == len(self.deltas):
            yield from self._extras()
        last = item(
            self.message_id,
            self.run_id,
            finish_reason=self.finish_reason,
            moderation=self.moderation,
            usage=self.usage,
            citations=list(self.answer.citations) or None,
            raw=self.raw_utf8,
        )
        yield last, "", True

    def _extras(self) -> Iterator[tuple[bytes, str, bool]]:
        ids = (self.message_id, self.run_id)
        yield item(*ids, role="tool", content='{"found":3}', tool_call_id="call_1", name="search_documents"), "", False
        yield item(*ids, index=1, content="another choice"), "", False

    def _whole(self) -> Iterator[Step | Act]:
        body = self.sync_body()
        for name in (name for name in _POSITIONED if name in self.faults):
            if name is FaultName.GOAWAY:
                yield Act.GOAWAY
                continue
            broken = _BROKEN if name is FaultName.GARBAGE else b""
            yield Step((body[: len(body) // 2] + broken,), "", 0, 0)
            yield _ACTS[name]
            return
        if FaultName.CUT_AFTER_FINISH in self.faults:
            body = body[:-1]
        yield Step((body,), self.text, self.completion_tokens, 1)
        yield Act.END

    def sync_body(self) -> bytes:
        """Returns the vendor's GenAiChatResponse."""
        message = {"role": "assistant", "content": self.text, "toolCallId": None, "name": None}
        choice = {
            "finish_reason": self.finish_reason,
            "index": 0,
            "message": message,
            "moderation_results": self.moderation,
        }
        response = {
            "id": f"chatcmpl-{self.run_id}",
            "object": "chat.completion",
            "usage": self.usage,
            "created": int(time.time()),
            "choices": [choice],
            "messageId": self.message_id,
            "runId": self.run_id,
            "httpRequestId": self.run_id,
            "citations": list(self.answer.citations) or None,
            "prompt_moderations": None,
        }
        return dumps(response, raw=self.raw_utf8)


def write_script(
    answer: Answer, message_id: str, run_id: str, faults: dict[FaultName, Fault], *, raw_utf8: bool, sse_done: bool
) -> Script:
    """Lets the faults that change what is said change it, and returns the plan of the run."""
    deltas, text, count = answer.deltas, answer.text, answer.completion_tokens
    finish_reason = "stop"
    moderation = _moderation(filtered=False) if answer.reports_moderation else None
    encode = _encoded if len(deltas) <= CACHED_TOKENS else _encoded.__wrapped__
    encoded = encode(deltas, raw_utf8)
    if moderated := faults.get(FaultName.MODERATED):
        deltas = deltas[: max(1, moderated.position(len(deltas) + 1))]
        finish_reason, moderation = "content_filter", _moderation(filtered=True)
    if huge := faults.get(FaultName.HUGE_ITEM):
        middle = len(deltas) // 2
        deltas = (*deltas[:middle], "x" * int(huge.value), *deltas[middle:])
    if deltas is not answer.deltas:
        text, count = "".join(delta or "" for delta in deltas), sum(1 for delta in deltas if delta)
        encoded = _encoded.__wrapped__(deltas, raw_utf8)
    usage: dict[str, int] | None = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": answer.prompt_tokens + count,
    }
    if FaultName.ZERO_USAGE in faults:
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    if FaultName.NO_USAGE in faults:
        usage = None
    return Script(
        message_id=message_id,
        run_id=run_id,
        answer=answer,
        deltas=deltas,
        encoded=encoded,
        text=text,
        completion_tokens=count,
        finish_reason=finish_reason,
        moderation=moderation,
        usage=usage,
        faults=faults,
        raw_utf8=raw_utf8,
        sse_done=sse_done,
    )


@lru_cache(maxsize=512)
def _encoded(deltas: tuple[str | None, ...], raw: bool) -> tuple[bytes, ...]:
    return tuple(quote(delta, raw=raw) for delta in deltas)


def _moderation(*, filtered: bool) -> Json:
    results = [{"category": name, "filtered": False, "severity": severity} for name, severity in _SEVERITIES]
    if filtered:
        results[-1] |= {"filtered": True, "severity": "high"}
    return {"categoryResults": results}


def _frame(data: bytes, form: Form, *, first: bool, last: bool) -> bytes:
    if form == "sse":
        return b"data: " + data + b"\n\n"
    return (b"[" if first else b",") + data + (b"]" if last else b"")


def _split(beats: Iterator[Step], most_bytes: int) -> Iterator[Step]:
    """Cuts the frames at random, also so that one holds the end of an item and the start of the next."""
    dice = random.Random(most_bytes)
    rest = b""
    held: Step | None = None
    for beat in beats:
        if held is not None:
            *cut, rest = pieces(rest + held.frames[0], most_bytes, dice)
            yield held._replace(frames=tuple(cut))
        held = beat
    if held is not None:
        yield held._replace(frames=tuple(pieces(rest + held.frames[0], most_bytes, dice)))
