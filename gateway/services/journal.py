"""Saves the logs of this worker's running turns: in batches, on a common beat, one append a turn at a time.

Turns that are due within the same eighth of the append interval are saved together, so the store's client
joins them in one round trip; at 1,000 appends a second that is a quarter of the cost of saving each by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from gateway.core.errors import GatewayError
from gateway.core.events import EventLog, Fenced, LogBehind, LogLost
from gateway.core.identity import TenantId, WorkerId
from gateway.core.turn import StopReason
from gateway.services.live_log import LiveLog
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

BEATS_PER_INTERVAL: Final = 8
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


class JournalEntry:
    """One turn's place in the journal."""

    __slots__ = ("due", "epoch", "live", "owner", "saved_at_s", "saving", "tenant", "unsure_until_s")

    def __init__(self, tenant: TenantId, live: LiveLog, epoch: int, owner: Owner, now_s: float) -> None:
        self.tenant = tenant
        self.live = live
        self.epoch = epoch
        self.owner = owner
        self.due = False
        self.saving: asyncio.Task[None] | None = None
        self.saved_at_s = now_s
        self.unsure_until_s = now_s  # until then the store may have forgotten who follows


class Journal:
    """Appends live logs to the EventLog and keeps the leases of quiet turns alive."""

    def __init__(self, log: EventLog, *, interval_s: float, heartbeat_s: float) -> None:
        self._log = log
        self._interval_s = interval_s
        self._beat_s = interval_s / BEATS_PER_INTERVAL
        self._heartbeat_s = heartbeat_s
        self._entries: set[JournalEntry] = set()
        self._beats: dict[int, list[JournalEntry]] = {}
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
        if entry.live.holding:
            self._save(entry)
        else:
            self._save_on_beat(entry)

    async def close(self, entry: JournalEntry) -> None:
        """Let go of a turn, after an append under way has ended."""
        self._entries.discard(entry)
        if entry.saving is not None:
            await asyncio.wait([entry.saving])
        if not self._entries and self._heart is not None:
            self._heart.cancel()
            self._heart = None

    def _save_on_beat(self, entry: JournalEntry) -> None:
        """Save on the coming beat; once, however often this is said."""
        if entry.due or entry not in self._entries:
            return
        entry.due = True
        loop = self._loop
        beat = int((loop.time() + self._interval_s) / self._beat_s)
        if beat not in self._beats:
            self._beats[beat] = []
            loop.call_at(beat * self._beat_s, self._on_beat, beat)
        self._beats[beat].append(entry)

    def _on_beat(self, beat: int) -> None:
        for entry in self._beats.pop(beat):
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
        if entry.saving is None and entry in self._entries:
            entry.saving = self._loop.create_task(self._append(entry))

    async def _append(self, entry: JournalEntry) -> None:
        live, loop = entry.live, self._loop
        entries = live.unsaved()
        position, asked_at_s = live.position, loop.time()
        again = False
        try:
            told = await self._log.append(entry.tenant, live.turn_id, entry.epoch, live.saved_position, entries)
        except Fenced:
            self._entries.discard(entry)
            entry.owner.let_go()
            return
        except LogBehind as behind:
            self._doubt(entry)
            throttled(logger, "log.behind", turn_id=live.turn_id)
            live.saved_position = behind.position  # the store has lost the rest: the next append brings it again
            again = True
            return
        except LogLost:
            again = await self._restore(entry)
            return
        except GatewayError:
            # The store is away: what is unsaved stays, and the next beat sends it again.
            self._doubt(entry)
            self._save_on_beat(entry)
            return
        finally:
            entry.saving = None
            if again:
                self._save(entry)
        entry.saved_at_s = loop.time()
        live.saved(position)
        if entry in self._entries:
            if told.stop is not None:
                entry.owner.stop(told.stop)
            if told.followers or loop.time() >= entry.unsure_until_s:
                entry.owner.followed(told.followers, asked_at_s)
        if live.holding:
            self._save(entry)

    def _doubt(self, entry: JournalEntry) -> None:
        """Take nobody for gone who could not say that he is there, or whose word may be lost, until he can again."""
        entry.unsure_until_s = self._loop.time() + DOUBT_S

    async def _restore(self, entry: JournalEntry) -> bool:
        """Write a record again that the store has lost; the whole log follows."""
        self._doubt(entry)
        throttled(logger, "log.lost", turn_id=entry.live.turn_id)
        try:
            await entry.owner.restore()
        except GatewayError:
            self._save_on_beat(entry)
            return False
        entry.live.saved_position = 0
        return True
