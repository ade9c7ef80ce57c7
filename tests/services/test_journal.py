"""The journal: saves on a common beat, keeps quiet turns' leases, sends again after an outage, obeys fence and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Appended, Entry, Fenced, MessageCitations, TextDelta, TurnStarted
from gateway.core.identity import TenantId
from gateway.core.turn import StopReason, TurnId
from gateway.services.journal import Journal, JournalEntry
from gateway.services.live_log import LiveLog
from gateway.store.event_log import RedisEventLog
from tests.services.stage import until

TENANT = TenantId("acme")


class PlayedLog(RedisEventLog):
    """The store's side of the port: keeps what is appended, and answers as the test says."""

    def __init__(self) -> None:
        self.appends: list[tuple[TurnId, int, list[Entry]]] = []
        self.stored: dict[int, Entry] = {}
        self.failure: Exception | None = None
        self.stop: str | None = None
        self.followers = 0
        self.gate: asyncio.Event | None = None
        self.under_way = 0
        self.most_under_way = 0

    async def append(self, tenant: TenantId, turn_id: TurnId, epoch: int, entries: Sequence[Entry]) -> Appended:
        assert tenant == TENANT
        self.appends.append((turn_id, epoch, list(entries)))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self.under_way -= 1
        self.stored |= {entry.position: entry for entry in entries}
        return Appended(StopReason(self.stop) if self.stop else None, self.followers)

    @property
    def text(self) -> str:
        events = (entry.event for _, entry in sorted(self.stored.items()))
        return "".join(event.text for event in events if isinstance(event, TextDelta))


class Owner:
    """A turn's owner, as far as the journal sees it."""

    def __init__(self, journal: Journal, name: str = "t1", epoch: int = 1) -> None:
        self.journal = journal
        self.stops: list[StopReason] = []
        self.followers: list[int] = []
        self.fenced = 0
        started = Entry(1, TurnStarted(name, "c", 1))
        self.live = LiveLog(TurnId(name), ConversationId("c"), started)
        self.entry: JournalEntry = journal.open(
            TENANT,
            self.live,
            epoch=epoch,
            on_stop=self.stops.append,
            on_followers=self.followers.append,
            on_fenced=self._on_fenced,
        )

    def _on_fenced(self) -> None:
        self.fenced += 1

    def say(self, text: str) -> None:
        self.live.add([TextDelta(text)])
        self.journal.touch(self.entry)


@pytest.fixture
def log() -> PlayedLog:
    return PlayedLog()


async def test_journal_saves_a_burst_in_one_append(log: PlayedLog) -> None:
    """Many deltas within an interval are one append with one merged entry."""
    owner = Owner(Journal(log, interval_s=0.04, heartbeat_s=30))
    for char in "Hello":
        owner.say(char)
    await until(lambda: log.text == "Hello")
    assert [entries for _, _, entries in log.appends] == [[Entry(6, TextDelta("Hello"))]]
    assert owner.live.unsaved() == []
    await owner.journal.close(owner.entry)


async def test_journal_saves_turns_of_one_interval_in_the_same_tick(log: PlayedLog) -> None:
    """Turns that are due within the same beat are saved together, so that the store's client can join them."""
    journal = Journal(log, interval_s=0.4, heartbeat_s=30)
    owners = [Owner(journal, f"t{number}") for number in range(20)]
    log.gate = asyncio.Event()
    for owner in owners:
        owner.say("x")
    await until(lambda: log.under_way >= 1)
    assert log.under_way >= 10  # all of them, or two groups when they fall on both sides of a beat
    log.gate.set()
    await until(lambda: len(log.appends) == 20)
    for owner in owners:
        await journal.close(owner.entry)


async def test_journal_saves_at_once_what_readers_wait_for(log: PlayedLog) -> None:
    """An event that may be shown only when stored does not wait for the beat."""
    owner = Owner(Journal(log, interval_s=30, heartbeat_s=30))
    owner.live.add([MessageCitations([])])
    owner.journal.touch(owner.entry)
    await until(lambda: not owner.live.holding)
    assert 2 in log.stored
    await owner.journal.close(owner.entry)


async def test_journal_makes_one_append_a_turn_at_a_time(log: PlayedLog) -> None:
    """While an append is under way none other of the same turn starts; what came meanwhile is saved after it."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30))
    log.gate = asyncio.Event()
    for char in "Hello":
        owner.say(char)
        await asyncio.sleep(0.01)
    assert log.under_way == 1
    log.gate.set()
    owner.say("!")
    await until(lambda: log.text == "Hello!")
    assert log.most_under_way == 1
    await owner.journal.close(owner.entry)


async def test_journal_keeps_the_lease_of_a_quiet_turn(log: PlayedLog) -> None:
    """A turn that says nothing is appended to, empty, within each heartbeat and a bit."""
    loop = asyncio.get_running_loop()
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.06))
    begun_s = loop.time()
    await until(lambda: len(log.appends) >= 4)
    assert loop.time() - begun_s < 4 * 0.06 * 2.5
    assert all(entries == [] for _, _, entries in log.appends)
    await owner.journal.close(owner.entry)


async def test_journal_sends_again_after_an_outage(log: PlayedLog) -> None:
    """What the store did not take is kept and sent again, without anything new being said."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30))
    log.failure = GatewayError(Code.STORE_UNAVAILABLE)
    owner.say("Hello")
    await until(lambda: len(log.appends) >= 3)
    log.failure = None
    await until(lambda: log.text == "Hello")
    await owner.journal.close(owner.entry)


async def test_journal_obeys_a_fence_once_and_writes_no_more(log: PlayedLog) -> None:
    """An owner that was fenced is told once; nothing of it is appended afterwards."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03))
    log.failure = Fenced("t1")
    owner.say("Hello")
    await until(lambda: owner.fenced == 1)
    log.failure = None
    count = len(log.appends)
    owner.say("zombie")
    other = Owner(owner.journal, "t2")
    other.say("alive")
    await until(lambda: "alive" in log.text)
    assert [turn for turn, _, _ in log.appends[count:] if turn == "t1"] == []
    assert owner.fenced == 1
    await other.journal.close(other.entry)


async def test_journal_passes_on_the_stop_flag(log: PlayedLog) -> None:
    """A stop that was set elsewhere reaches the owner with the append's answer."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), epoch=3)
    log.stop = "admin"
    owner.say("Hello")
    await until(lambda: owner.stops != [])
    assert owner.stops[0] is StopReason.ADMIN
    assert log.appends[0][1] == 3
    await owner.journal.close(owner.entry)


async def test_journal_close_waits_for_the_append_under_way(log: PlayedLog) -> None:
    """When closing returns no append is on its way any more, and none follows."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03))
    log.gate = asyncio.Event()
    owner.say("Hello")
    await until(lambda: log.under_way == 1)
    closing = asyncio.ensure_future(owner.journal.close(owner.entry))
    await asyncio.sleep(0)
    assert not closing.done()
    log.stop = "user"
    log.gate.set()
    await closing
    assert log.under_way == 0
    assert owner.stops == []
    count = len(log.appends)
    owner.say("late")
    keeper = Owner(owner.journal, "t2")
    await until(lambda: any(turn == "t2" for turn, _, _ in log.appends))  # the heart has beaten since
    assert [turn for turn, _, _ in log.appends[count:] if turn == "t1"] == []
    await keeper.journal.close(keeper.entry)
