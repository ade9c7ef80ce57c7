"""A command that somebody waits for, the batch that it goes in, and how he hears what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.store.patience import Patience

ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


class Call(NamedTuple):
    """A command on its way."""

    name: str | bytes | int | float
    key: bytes | None  # what decides its node in a Cluster; None: any will do, or there is only one
    packed: bytes
    future: asyncio.Future[Any]

    def answer(self, reply: Any) -> None:
        """Give the caller his reply, or the exception that it is; one who has left gets nothing."""
        if self.future.done():
            return
        if isinstance(reply, Exception):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)


class Batch:
    """Calls that go to one node together. It is over once: with a reply to each of them, or with a failure."""

    __slots__ = (
        *("asking", "began_s", "calls", "close", "deadline_s", "failure", "hops", "on_over", "over", "patience"),
        *("replies", "trial"),
    )

    def __init__(
        self,
        calls: Sequence[Call],
        deadline_s: float,
        on_over: Callable[[Batch], None],
        *,
        asking: bool = False,
        hops: int = 0,
        trial: bool = False,
    ) -> None:
        """``deadline_s`` is loop time; ``hops`` counts redirections so far; ``trial`` is as for the breaker.

        ``asking`` is for a node that is about to get a slot: it tells it to serve these calls all the same.
        """
        self.calls = calls
        self.deadline_s = deadline_s
        self.on_over = on_over
        self.asking = asking
        self.hops = hops
        self.trial = trial
        self.began_s = time.perf_counter()
        self.over = False
        self.close: Callable[[BaseException], None] | None = None  # closes the connection that it was sent over
        self.patience: Patience | None = None
        self.replies: Sequence[Any] = ()  # an error reply is a ResponseError among them
        self.failure: BaseException | None = None

    def packed(self) -> bytes:
        """Return what goes over the wire."""
        if self.asking:  # it counts for the next command only, so each of them needs its own
            return b"".join([ASKING + call.packed for call in self.calls])
        calls = self.calls
        return calls[0].packed if len(calls) == 1 else b"".join([call.packed for call in calls])

    def end(self, replies: Sequence[Any], failure: BaseException | None = None) -> None:
        """Say what became of it; only the first word counts."""
        if self.over:
            return
        self.over = True
        if self.patience is not None:
            self.patience.end()
        self.replies, self.failure = replies, failure
        self.on_over(self)


def refuse(calls: Iterable[Call], code: Code, cause: BaseException | None) -> None:
    """Give each caller an error of his own. The server's words stay behind it, as its cause; clients see the code's."""
    for call in calls:
        refusal = GatewayError(code)
        refusal.__cause__ = cause
        call.answer(refusal)
