"""Saves the logs of this worker's running turns: in batches, on a common beat, one append a turn at a time.

Turns that have something to save since the same beat are saved together an append interval after it, ``TOGETHER_MAX``
of a tenant in one call: a command, a task and an answer cost the worker twice what a turn's entries do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from gateway.core.errors import GatewayError
from gateway.core.events import Append, Appended, EventLog, Fenced, LogBehind, LogLost
from gateway.core.identity import TenantId, WorkerId
from gateway.core.turn import StopReason
from gateway.services.live_log import LiveLog
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

BEATS_PER_INTERVAL: Final = 4  # the fewer, the more turns share what a call costs; the more, the fewer calls
TOGETHER_MAX: Final = 32  # turns a call: a quarter of a millisecond in which the store serves nobody else
DOUBT_S: Final = 5.0  # after an outage; followers look at their turns every 1.5 s


class Owner(Protocol):
    """Owns a turn, and is told what the store answers to its appends. Methods must not raise."""

    def stop(self, reason: StopReason, /) -> None: ...

    def followed(self, workers: Sequence[WorkerId], asked_at_s: float, /) -> None:
        """Take in which workers followed the turn when the store was asked, on the loop's clock, or just after."""

    def let_go(self) -> None:
        """Another worker owns the turn."""

    async def restore(self) -> None:
        """Write the turn's record again; raises GatewayError."""


class _Nobody:
    """Owns what was closed."""

    def stop(self, reason: StopReason, /) -> None:
        pass

    def followed(self, workers: Sequence[WorkerId], asked_at_s: float, /) -> None:
        pass

    def let_go(self) -> None:
        pass

    async def restore(self) -> None:
        pass


NOBODY: Final = _Nobody()


def _unheard(_: float) -> None:
    pass


class JournalEntry:
    """One turn's place in the journal."""

    __slots__ = (
        *("due", "epoch", "live", "open", "owner", "saved_at_s", "saving", "tenant", "unsaved_since_s"),
        *("unsure_until_s", "waiting"),
    )

    def __init__(self, tenant: TenantId, live: LiveLog, epoch: int, owner: Owner, now_s: float) -> None:
        self.tenant = tenant
        self.live = live
        self.epoch = epoch
        self.owner = owner
        self.open = True
        self.due = False  # on a coming beat
        self.waiting = False  # for the next call
        self.saving: asyncio.Task[None] | None = None
        self.saved_at_s = now_s
        self.unsaved_since_s: float | None = None  # when the oldest event came that the store does not have
        self.unsure_until_s = now_s  # until then the store may have forgotten who follows


class Journal:
    """Appends live logs to the EventLog and keeps the leases of quiet turns alive."""

    def __init__(
        self, log: EventLog, *, interval_s: float, heartbeat_s: float, on_saved: Callable[[float], None] = _unheard
    ) -> None:
        """``on_saved`` is told of each save of a turn, for how long the oldest event of it had waited. Seconds."""
        self._log = log
        self._on_saved = on_saved
        self._interval_s = interval_s
        self._beat_s = interval_s / BEATS_PER_INTERVAL
        self._heartbeat_s = heartbeat_s
        self._entries: set[JournalEntry] = set()
        self._new: list[JournalEntry] = []  # due since the last beat
        self._due: deque[list[JournalEntry]] = deque([[] for _ in range(BEATS_PER_INTERVAL - 1)])  # a list a beat
        self._next_beat: int | None = None  # since the loop's clock began; None while nothing is due
        self._waiting: dict[TenantId, list[JournalEntry]] = {}
        self._heart: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    def open(self, tenant: TenantId, live: LiveLog, *, epoch: int, owner: Owner) -> JournalEntry:
        """Take a turn into the journal; the caller must ``close`` it before it finishes the log."""
        self._loop = loop = asyncio.get_running_loop()  # kept: asking for it is a system call on Python 3.11
        entry = JournalEntry(tenant, live, epoch, owner, loop.time())
        self._entries.add(entry)
        if self._heart is None:
            self._heart = loop.call_later(self._heartbeat_s / 3, self._renew)
        return entry

    def touch(self, entry: JournalEntry) -> None:
        """Note that a turn has entries to save: at once where readers wait for them, else on the coming beat."""
        if entry.unsaved_since_s is None:
            entry.unsaved_since_s = self._loop.time()
        if entry.live.holding:
            self._save(entry)
        elif not entry.due:
            self._save_on_beat(entry)

    async def close(self, entry: JournalEntry) -> None:
        """Let go of a turn, after an append under way has ended."""
        self._let_go(entry)
        while entry.saving is not None:
            await asyncio.wait([entry.saving])
        if not self._entries and self._heart is not None:
            self._heart.cancel()
            self._heart = None
        entry.owner = NOBODY  # else each would keep the other until the garbage collector comes by

    def _let_go(self, entry: JournalEntry) -> None:
        entry.open = False
        self._entries.discard(entry)

    def _save_on_beat(self, entry: JournalEntry) -> None:
        """Save an interval after the last beat; once, however often this is said."""
        if entry.due or not entry.open:
            return
        entry.due = True
        self._new.append(entry)
        if self._next_beat is None:
            self._beat_at(int(self._loop.time() / self._beat_s) + 1)

    def _beat_at(self, beat: int) -> None:
        self._next_beat = beat
        self._loop.call_at(beat * self._beat_s, self._on_beat)

    def _on_beat(self) -> None:
        self._due.append(self._new)
        self._new = []
        now_due = self._due.popleft()
        beat, self._next_beat = self._next_beat, None
        assert beat is not None
        if any(self._due):
            # A loop that stood still makes up for the beats for which something was due then, not for all.
            self._beat_at(max(beat + 1, int(self._loop.time() / self._beat_s) - BEATS_PER_INTERVAL))
        for entry in now_due:
            entry.due = False
            self._save(entry)

    def _renew(self) -> None:
        loop = self._loop
        self._heart = loop.call_later(self._heartbeat_s / 3, self._renew)
        quiet_since_s = loop.time() - self._heartbeat_s
        for entry in self._entries:
            if entry.saved_at_s <= quiet_since_s:
                self._save(entry)

    def _save(self, entry: JournalEntry) -> None:
        """Save in this tick of the loop, with whatever else is to be saved in it."""
        if entry.saving is not None or entry.waiting or not entry.open:
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        entry.waiting = True
        self._waiting.setdefault(entry.tenant, []).append(entry)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for tenant, entries in waiting.items():
            for entry in entries:
                entry.waiting = False
            open_ = [entry for entry in entries if entry.open]
            for first in range(0, len(open_), TOGETHER_MAX):
                together = open_[first : first + TOGETHER_MAX]
                self._spawn(together, self._append(tenant, together))

    def _spawn(self, entries: Sequence[JournalEntry], saving: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(saving)
        for entry in entries:
            entry.saving = task

    async def _append(self, tenant: TenantId, entries: Sequence[JournalEntry]) -> None:
        """Append what some turns of a tenant have unsaved, and act on what became of each."""
        asked_at_s = self._loop.time()
        positions = [entry.live.position for entry in entries]
        answers: Sequence[Appended | Fenced | LogBehind | LogLost] = ()
        alone: Sequence[JournalEntry] = ()
        try:
            answers = await self._log.append(
                tenant,
                [
                    Append(entry.live.turn_id, entry.epoch, entry.live.saved_position, entry.live.unsaved())
                    for entry in entries
                ],
            )
        except GatewayError:
            # The store is away: what is unsaved stays, and the next beat sends it again.
            for entry in entries:
                self._doubt(entry)
                self._save_on_beat(entry)
        except Exception:  # a mistake of ours about one turn must not keep the others from being saved
            logger.exception("append.crashed")
            alone = entries if len(entries) > 1 else ()
        finally:
            for entry in entries:
                entry.saving = None
        for entry in alone:
            self._spawn([entry], self._append(tenant, [entry]))
        now_s = self._loop.time()
        for entry, position, answer in zip(entries, positions, answers, strict=False):  # none where it failed
            if isinstance(answer, Appended):
                live = entry.live
                live.saved(position)
                entry.saved_at_s = now_s
                if entry.unsaved_since_s is not None:
                    self._on_saved(now_s - entry.unsaved_since_s)
                    # What came meanwhile came after it was asked to: so long at most it has waited.
                    entry.unsaved_since_s = asked_at_s if live.position > position else None
                if entry.open:
                    if answer.stop is not None:
                        entry.owner.stop(answer.stop)
                    if answer.followers or now_s >= entry.unsure_until_s:
                        entry.owner.followed(answer.followers, asked_at_s)
                if live.holding:
                    self._save(entry)
            else:
                self._refused(entry, answer)

    def _refused(self, entry: JournalEntry, answer: Fenced | LogBehind | LogLost) -> None:
        live = entry.live
        match answer:
            case Fenced():
                self._let_go(entry)
                entry.owner.let_go()
            case LogBehind():
                self._doubt(entry)
                throttled(logger, "log.behind", turn_id=live.turn_id)
                live.saved_position = answer.position  # the store has lost the rest: the next append brings it again
                self._save(entry)
            case LogLost():
                if entry.open:
                    self._spawn([entry], self._restore(entry))
                else:
                    live.saved_position = 0  # the ending will find it lost, and bring all of it

    def _doubt(self, entry: JournalEntry) -> None:
        """Take nobody for gone who could not say that he is there, or whose word may be lost, until he can again.

        What the store may have lost is unsaved from now on.
        """
        now_s = self._loop.time()
        entry.unsure_until_s = now_s + DOUBT_S
        if entry.unsaved_since_s is None:
            entry.unsaved_since_s = now_s

    async def _restore(self, entry: JournalEntry) -> None:
        """Write a record again that the store has lost; the whole log follows."""
        self._doubt(entry)
        throttled(logger, "log.lost", turn_id=entry.live.turn_id)
        try:
            await entry.owner.restore()
        except GatewayError:
            self._save_on_beat(entry)
            return
        finally:
            entry.saving = None
        entry.live.saved_position = 0
        self._save(entry)
