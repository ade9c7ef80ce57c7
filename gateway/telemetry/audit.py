"""The audit stream: who was let in or turned away, and who changed what, one line each, whatever the log's level is.

Call sites say what was done or decided; who did it is said once, by the door it came through (``acting``). What
strangers can bring about as often as they like is told a few times in a while, and then counted: see ``flooded``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, Final, Literal, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.telemetry.logging import AUDIT, event

logger = logging.getLogger(AUDIT)

ActorKind = Literal["gateway", "start", "file", "cli", "admin", "key", "anybody"]
BURST: Final = 20  # of one kind within a while; enough to see from where
WINDOW_S: Final = 10.0
KINDS_MAX: Final = 1024  # that are counted at a time
# Refusals that say who may come in, not what may be asked.
REFUSALS: Final = frozenset(
    {
        Code.CREDENTIAL_MISSING,
        Code.CREDENTIAL_INVALID,
        Code.TOKEN_EXPIRED,
        Code.REVOKED,
        Code.CREDENTIAL_USED,
        Code.ORIGIN_NOT_ALLOWED,
        Code.ANONYMOUS_DISABLED,
        Code.DOOR_CLOSED,
        Code.FORBIDDEN,
    }
)


class Actor(NamedTuple):
    """On whose behalf something is done: ``admin``, ``key`` and ``anybody`` come over HTTP, ``cli`` is a shell."""

    kind: ActorKind
    name: str | None = None  # the operator's login
    address: str | None = None


_ACTOR: ContextVar[Actor] = ContextVar("actor", default=Actor("gateway"))  # noqa: B039 - immutable


@contextmanager
def acting(kind: ActorKind, *, name: str | None = None, address: str | None = None) -> Iterator[None]:
    """Say who does what is done inside, and in tasks started inside."""
    token = _ACTOR.set(Actor(kind, name, address))
    try:
        yield
    finally:
        _ACTOR.reset(token)


def record(action: str, /, *, outcome: Literal["done", "refused", "failed"] = "done", **facts: object) -> None:
    """Tell of something that was done or decided."""
    actor = _ACTOR.get()
    told: dict[str, Any] = {"actor": actor.kind, "actor_name": actor.name, "address": actor.address, **facts}
    event(
        logger, logging.INFO, action, outcome=outcome, **{name: fact for name, fact in told.items() if fact is not None}
    )


@contextmanager
def change(action: str, /, **facts: object) -> Iterator[dict[str, Any]]:
    """Tell of a change that is made inside; what is put into the dictionary is told too.

    One that fails in any other way than by being refused is told as ``failed``: it may have been made. One that is
    refused is not told.
    """
    told: dict[str, Any] = dict(facts)
    try:
        yield told
    except GatewayError as error:
        if error.wire.http >= 500:
            record(action, outcome="failed", code=error.code, **told)
        raise
    except BaseException:  # cancelled, or a fault of ours
        record(action, outcome="failed", **told)
        raise
    record(action, **told)


class Flood:
    """Lets the first few of a kind through in a while, and tells how many more there were when it is over."""

    def __init__(
        self, tell: Callable[[tuple[str, ...], int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``tell`` is called with a kind and how many of it were held back."""
        self._tell = tell
        self._clock = clock
        self._seen: dict[tuple[str, ...], list[float]] = {}  # since when, and how many; the latest begun last

    def admit(self, *kind: str) -> bool:
        """Whether this one may be told by itself."""
        now_s = self._clock()
        seen = self._seen.get(kind)
        if seen is None or now_s - seen[0] >= WINDOW_S:
            self._end(kind)
            self._seen[kind] = seen = [now_s, 0]
            if len(self._seen) > KINDS_MAX:
                self._end(next(iter(self._seen)))
        seen[1] += 1
        if seen[1] == BURST + 1:
            try:
                loop = asyncio.get_running_loop()
                loop.call_later(WINDOW_S, self._end_of, kind, seen, context=Context())  # nobody's request
            except RuntimeError:  # no loop: the next of its kind, or the end, tells it
                pass
        return seen[1] <= BURST

    def flush(self) -> None:
        """Tell what was held back so far."""
        for kind in tuple(self._seen):
            self._end(kind)

    def _end_of(self, kind: tuple[str, ...], seen: list[float]) -> None:
        if self._seen.get(kind) is seen:
            self._end(kind)

    def _end(self, kind: tuple[str, ...]) -> None:
        seen = self._seen.pop(kind, None)
        if seen is not None and seen[1] > BURST:
            Context().run(self._tell, kind, int(seen[1]) - BURST)


def _held_back(kind: tuple[str, ...], count: int) -> None:
    action, outcome, tenant, code = kind
    known: dict[str, Any] = {name: word for name, word in (("tenant", tenant), ("code", code)) if word}
    event(logger, logging.INFO, action, outcome=outcome, held_back=count, **known)


_flood = Flood(_held_back)


def flooded(
    action: str,
    /,
    *,
    outcome: Literal["done", "refused"] = "refused",
    tenant: str | None = None,
    code: Code | None = None,
    **facts: object,
) -> None:
    """Tell of something that strangers can bring about: the first of its action, tenant and code in a while.

    Those after them are counted, and told as one line's ``held_back`` when the while is over.
    """
    if _flood.admit(action, outcome, tenant or "", code or ""):
        record(action, outcome=outcome, tenant=tenant, code=code, **facts)


def flush() -> None:
    """Tell what was held back so far: the process ends."""
    _flood.flush()
