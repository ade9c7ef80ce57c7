"""The journal: saves on a common beat, keeps quiet turns' leases, sends again after an outage, obeys fence and stop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Append,
    Appended,
    Entry,
    Fenced,
    LogBehind,
    LogLost,
    MessageCitations,
    TextDelta,
    TurnStarted,
)
from gateway.core.identity import TenantId, WorkerId
from gateway.core.turn import StopReason, TurnId
from gateway.services.journal import TOGETHER_MAX, Journal, JournalEntry
from gateway.services.live_log import LiveLog
from gateway.store.event_log import RedisEventLog
from tests.services.stage import until
from tests.units import units

TENANT = TenantId("acme")


def started(turn_id: str) -> Entry:
    return Entry(1, TurnStarted(turn_id, "c", 1))


class PlayedLog(RedisEventLog):
    """The store's side of the port: keeps what is appended, and answers as the test says.

    A turn that is in ``lost`` has no record until its owner restores it.
    """

    def __init__(self) -> None:
        self.calls: list[list[TurnId]] = []
        self.appends: list[tuple[TurnId, int, list[Entry]]] = []
        self.stored: dict[TurnId, list[Entry]] = {}
        self.lost: set[TurnId] = set()
        self.failure: GatewayError | Fenced | None = None
        self.poison: set[TurnId] = set()
        self.stop: str | None = None
        self.followers: Sequence[WorkerId] = ()
        self.gate: asyncio.Event | None = None
        self.under_way: Counter[TurnId] = Counter()
        self.most_under_way = 0

    async def append(
        self, tenant: TenantId, appends: Sequence[Append]
    ) -> Sequence[Appended | Fenced | LogBehind | LogLost]:
        assert tenant == TENANT
        self.calls.append([append.turn_id for append in appends])
        self.appends += [(append.turn_id, append.epoch, list(append.entries)) for append in appends]
        turns = Counter(append.turn_id for append in appends)
        self.under_way += turns
        self.most_under_way = max(self.most_under_way, *self.under_way.values())
        try:
            if self.gate is not None:
                await self.gate.wait()
            if isinstance(self.failure, GatewayError) or self.poison & set(turns):
                raise self.failure or ValueError("a mistake of ours")
        finally:
            self.under_way -= turns
        return [self._append_one(append) for append in appends]

    def _append_one(self, append: Append) -> Appended | Fenced | LogBehind | LogLost:
        turn_id = append.turn_id
        if isinstance(self.failure, Fenced):
            return self.failure
        if turn_id in self.lost:
            return LogLost(turn_id)
        stored = self.stored.setdefault(turn_id, [started(turn_id)])
        last = stored[-1].position if stored else 0
        if append.entries and last < append.after:
            return LogBehind(turn_id, last)
        stored += [entry for entry in append.entries if entry.position > last]
        return Appended(StopReason(self.stop) if self.stop else None, self.followers)

    @property
    def text(self) -> str:
        events = (entry.event for stored in self.stored.values() for entry in stored)
        return "".join(event.text for event in events if isinstance(event, TextDelta))

    def appends_of(self, turn_id: str) -> list[list[Entry]]:
        return [entries for turn, _, entries in self.appends if turn == turn_id]


class Owner:
    """A turn's owner, as far as the journal sees it."""

    def __init__(self, journal: Journal, log: PlayedLog, name: str = "t1", epoch: int = 1) -> None:
        self.journal = journal
        self.stops: list[StopReason] = []
        self.followers: list[tuple[Sequence[WorkerId], float]] = []
        self.fenced = 0
        self.restores = 0
        self.refusal: GatewayError | None = None
        self.live = LiveLog(TurnId(name), ConversationId("c"), [started(name)])
        self._log = log
        self.entry: JournalEntry = journal.open(TENANT, self.live, epoch=epoch, owner=self)

    def stop(self, reason: StopReason, /) -> None:
        self.stops.append(reason)

    def followed(self, workers: Sequence[WorkerId], asked_at_s: float, /) -> None:
        self.followers.append((workers, asked_at_s))

    def let_go(self) -> None:
        self.fenced += 1

    async def restore(self) -> None:
        self.restores += 1
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self._log.lost.discard(self.live.turn_id)
        self._log.stored[self.live.turn_id] = []

    def say(self, text: str) -> None:
        self.live.add([TextDelta(text)])
        self.journal.touch(self.entry)

    def cite(self) -> None:
        """Add what readers wait for, so that it is saved at once."""
        self.live.add([MessageCitations([])])
        self.journal.touch(self.entry)


@pytest.fixture
def log() -> PlayedLog:
    return PlayedLog()


async def test_journal_saves_a_burst_in_one_append(log: PlayedLog) -> None:
    """Many deltas within an interval are one append with one merged entry."""
    owner = Owner(Journal(log, interval_s=0.04, heartbeat_s=30), log)
    for char in "Hello":
        owner.say(char)
    await until(lambda: log.text == "Hello")
    assert [entries for _, _, entries in log.appends] == [[Entry(6, TextDelta("Hello"))]]
    assert owner.live.unsaved() == []
    await owner.journal.close(owner.entry)


async def test_journal_saves_turns_of_one_interval_in_the_same_tick(log: PlayedLog) -> None:
    """Turns that are due within the same beat are saved together, so that the store's client can join them."""
    journal = Journal(log, interval_s=0.4, heartbeat_s=30)
    owners = [Owner(journal, log, f"t{number}") for number in range(20)]
    log.gate = asyncio.Event()
    for owner in owners:
        owner.say("x")
    await until(lambda: log.under_way.total() >= 1)
    assert log.under_way.total() >= 10  # all of them, or two groups when they fall on both sides of a beat
    log.gate.set()
    await until(lambda: len(log.appends) == 20)
    for owner in owners:
        await journal.close(owner.entry)


async def test_journal_saves_turns_of_a_tick_in_few_calls(log: PlayedLog) -> None:
    """Turns that are saved in one tick share calls, each of a bounded number of turns, and none is left out."""
    journal = Journal(log, interval_s=30, heartbeat_s=30)
    owners = [Owner(journal, log, f"t{number}") for number in range(2 * TOGETHER_MAX + 3)]
    for owner in owners:
        owner.cite()
    await until(lambda: not any(owner.live.holding for owner in owners))
    assert [len(call) for call in log.calls] == [TOGETHER_MAX, TOGETHER_MAX, 3]
    assert sorted(turn for call in log.calls for turn in call) == sorted(owner.live.turn_id for owner in owners)
    for owner in owners:
        await journal.close(owner.entry)


async def test_journal_saves_the_neighbours_of_a_turn_that_cannot_be_written(
    log: PlayedLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours about one turn keeps no other from being saved, and is in the log."""
    journal = Journal(log, interval_s=30, heartbeat_s=30)
    owners = [Owner(journal, log, f"t{number}") for number in range(3)]
    log.poison.add(owners[1].live.turn_id)
    with caplog.at_level(logging.ERROR):
        for owner in owners:
            owner.cite()
        await until(lambda: not (owners[0].live.holding or owners[2].live.holding))
    assert owners[1].live.holding
    assert any(record.msg == "append.crashed" for record in caplog.records)
    log.poison.clear()
    owners[1].cite()
    await until(lambda: not owners[1].live.holding)
    for owner in owners:
        await journal.close(owner.entry)


async def test_journal_saves_at_once_what_readers_wait_for(log: PlayedLog) -> None:
    """An event that may be shown only when stored does not wait for the beat."""
    owner = Owner(Journal(log, interval_s=30, heartbeat_s=30), log)
    owner.cite()
    await until(lambda: not owner.live.holding)
    assert log.stored[owner.live.turn_id][-1] == Entry(2, MessageCitations([]))
    await owner.journal.close(owner.entry)


async def test_journal_makes_one_append_a_turn_at_a_time(log: PlayedLog) -> None:
    """While an append is under way none other of the same turn starts; what came meanwhile is saved after it."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), log)
    log.gate = asyncio.Event()
    for char in "Hello":
        owner.say(char)
        await asyncio.sleep(0.01)
    assert log.under_way.total() == 1
    log.gate.set()
    owner.say("!")
    await until(lambda: log.text == "Hello!")
    assert log.most_under_way == 1
    await owner.journal.close(owner.entry)


async def test_journal_keeps_the_lease_of_a_quiet_turn(log: PlayedLog) -> None:
    """A turn that says nothing is appended to, empty, within each heartbeat and a bit."""
    loop = asyncio.get_running_loop()
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.06), log)
    begun_s = loop.time()
    await until(lambda: len(log.appends) >= 4)
    assert loop.time() - begun_s < 4 * 0.06 * 2.5
    assert all(entries == [] for _, _, entries in log.appends)
    await owner.journal.close(owner.entry)


async def test_journal_sends_again_after_an_outage(log: PlayedLog) -> None:
    """What the store did not take is kept and sent again, without anything new being said."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), log)
    log.failure = GatewayError(Code.STORE_UNAVAILABLE)
    owner.say("Hello")
    await until(lambda: len(log.appends) >= 3)
    log.failure = None
    await until(lambda: log.text == "Hello")
    await owner.journal.close(owner.entry)


async def test_journal_obeys_a_fence_once_and_writes_no_more(log: PlayedLog) -> None:
    """An owner that was fenced is told once; nothing of it is appended afterwards."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03), log)
    log.failure = Fenced("t1")
    owner.say("Hello")
    await until(lambda: owner.fenced == 1)
    log.failure = None
    count = len(log.appends_of("t1"))
    owner.say("zombie")
    other = Owner(owner.journal, log, "t2")
    other.say("alive")
    await until(lambda: "alive" in log.text)
    assert log.appends_of("t1")[count:] == []
    assert owner.fenced == 1
    await other.journal.close(other.entry)


async def test_journal_passes_on_the_stop_flag(log: PlayedLog) -> None:
    """A stop that was set elsewhere reaches the owner with the append's answer."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), log, epoch=3)
    log.stop = "admin"
    owner.say("Hello")
    await until(lambda: owner.stops != [])
    assert owner.stops[0] is StopReason.ADMIN
    assert log.appends[0][1] == 3
    await owner.journal.close(owner.entry)


async def test_journal_close_waits_for_the_append_under_way(log: PlayedLog) -> None:
    """When closing returns no append is on its way any more, and none follows."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03), log)
    log.gate = asyncio.Event()
    owner.say("Hello")
    await until(lambda: log.under_way.total() == 1)
    closing = asyncio.ensure_future(owner.journal.close(owner.entry))
    await asyncio.sleep(0)
    assert not closing.done()
    log.stop = "user"
    log.gate.set()
    await closing
    assert log.under_way.total() == 0
    assert owner.stops == []
    count = len(log.appends_of("t1"))
    owner.say("late")
    keeper = Owner(owner.journal, log, "t2")
    await until(lambda: any(turn == "t2" for turn, _, _ in log.appends))  # the heart has beaten since
    assert log.appends_of("t1")[count:] == []
    await keeper.journal.close(keeper.entry)


async def test_journal_passes_on_who_follows(log: PlayedLog) -> None:
    """The owner learns with every append which workers follow, none included, and when the store was asked."""
    loop = asyncio.get_running_loop()
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), log)
    for followers in ([WorkerId("w2"), WorkerId("w3")], []):
        log.followers, log.gate = followers, asyncio.Event()
        owner.say("x")
        before_s = loop.time()
        await until(lambda: log.under_way.total() == 1)
        asked_s = loop.time()
        log.gate.set()
        await until(lambda: owner.live.unsaved() == [])
        workers, asked_at_s = owner.followers[-1]
        assert workers == followers
        assert before_s <= asked_at_s <= asked_s
    await owner.journal.close(owner.entry)


# --- a store that has lost something ------------------------------------------------------------------------------


async def test_journal_sends_again_at_once_from_where_the_log_ends(log: PlayedLog) -> None:
    """An owner whose log is behind brings what the store has lost, without waiting for a beat or for more to say."""
    owner = Owner(Journal(log, interval_s=30, heartbeat_s=30), log)
    owner.live.add([TextDelta("Hello")])
    owner.cite()
    await until(lambda: not owner.live.holding)
    log.stored[owner.live.turn_id] = [started("t1"), Entry(3, TextDelta("He"))]
    owner.live.add([TextDelta(" world")])
    owner.cite()
    await until(lambda: not owner.live.holding)
    whole = [started("t1"), Entry(6, TextDelta("Hello")), Entry(7, MessageCitations([]))]
    whole += [Entry(13, TextDelta(" world")), Entry(14, MessageCitations([]))]
    assert units(log.stored[owner.live.turn_id]) == units(whole)
    assert len(log.appends) == 3
    assert owner.live.unsaved() == []
    assert owner.restores == 0
    await owner.journal.close(owner.entry)


async def test_journal_writes_a_lost_log_again_from_the_beginning(log: PlayedLog) -> None:
    """When the store has lost the turn, its owner restores it once, and the whole log follows at once."""
    owner = Owner(Journal(log, interval_s=30, heartbeat_s=30), log)
    owner.live.add([TextDelta("Hello")])
    owner.cite()
    await until(lambda: not owner.live.holding)
    log.lost.add(owner.live.turn_id)
    owner.cite()
    await until(lambda: not owner.live.holding)
    whole = [
        started("t1"),
        Entry(6, TextDelta("Hello")),
        Entry(7, MessageCitations([])),
        Entry(8, MessageCitations([])),
    ]
    assert log.stored[owner.live.turn_id] == whole
    assert (owner.restores, owner.fenced, len(log.appends)) == (1, 0, 3)
    await owner.journal.close(owner.entry)


async def test_journal_of_a_quiet_turn_restores_it_with_its_heartbeat(log: PlayedLog) -> None:
    """A turn that says nothing is found lost by its heartbeat, and is whole again before it has anything to say."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03), log)
    owner.say("Hello")
    await until(lambda: log.text == "Hello")
    log.lost.add(owner.live.turn_id)
    log.stored.clear()
    await until(lambda: log.text == "Hello")
    assert log.stored[owner.live.turn_id] == [started("t1"), Entry(6, TextDelta("Hello"))]
    assert owner.restores == 1
    await owner.journal.close(owner.entry)


async def test_journal_tries_again_to_restore_while_the_store_is_away(log: PlayedLog) -> None:
    """A restore that is refused is tried again, though nothing new is said; then nothing is missing."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=30), log)
    owner.refusal = GatewayError(Code.STORE_UNAVAILABLE)
    log.lost.add(owner.live.turn_id)
    owner.say("Hello")
    await until(lambda: owner.restores >= 3)
    assert owner.live.unsaved() == [Entry(6, TextDelta("Hello"))]
    owner.refusal = None
    await until(lambda: log.text == "Hello")
    assert log.stored[owner.live.turn_id] == [started("t1"), Entry(6, TextDelta("Hello"))]
    await owner.journal.close(owner.entry)


@pytest.mark.parametrize("loss", ["record", "end"])
async def test_journal_close_while_it_learns_of_a_loss_leaves_the_rest_to_the_ending(log: PlayedLog, loss: str) -> None:
    """Whoever closes writes the ending with all that is unsaved: the journal sends nothing more of its own."""
    owner = Owner(Journal(log, interval_s=0.01, heartbeat_s=0.03), log)
    owner.say("Hello")
    await until(lambda: log.text == "Hello")
    log.gate = asyncio.Event()
    owner.say(" world")
    await until(lambda: log.under_way.total() == 1)
    if loss == "record":
        log.lost.add(owner.live.turn_id)
    else:
        log.stored[owner.live.turn_id] = []
    count = len(log.appends)
    closing = asyncio.ensure_future(owner.journal.close(owner.entry))
    await asyncio.sleep(0)
    log.gate.set()
    await closing
    assert owner.live.saved_position == 0
    assert owner.live.unsaved() == [started("t1"), Entry(12, TextDelta("Hello world"))]
    keeper = Owner(owner.journal, log, "t2")
    await until(lambda: log.appends_of("t2") != [])  # the heart has beaten since
    assert log.appends_of("t1")[count:] == []
    await keeper.journal.close(keeper.entry)


async def test_journal_in_an_outage_sends_no_more_often_than_before(log: PlayedLog) -> None:
    """However long a talkative turn finds the store away, its tries do not multiply."""
    interval_s = 0.02
    loop = asyncio.get_running_loop()
    owner = Owner(Journal(log, interval_s=interval_s, heartbeat_s=0.03), log)
    log.failure = GatewayError(Code.STORE_UNAVAILABLE)
    begun_s, said = loop.time(), 0
    while loop.time() < begun_s + 30 * interval_s:
        owner.say("x")
        said += 1
        await asyncio.sleep(interval_s / 5)
    beats = (loop.time() - begun_s) / interval_s
    assert len(log.appends) < 4 * beats  # one try an interval, and the heart's three a heartbeat
    log.failure = None
    await until(lambda: log.text == "x" * said)
    await owner.journal.close(owner.entry)


async def test_journal_after_an_outage_takes_no_follower_for_gone(
    log: PlayedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who could not say that he reads, or whose word the store has lost, gets time to say it again."""
    monkeypatch.setattr("gateway.services.journal.DOUBT_S", 0.3)
    owner = Owner(Journal(log, interval_s=0.02, heartbeat_s=30), log)
    log.followers = [WorkerId("w2")]
    owner.say("a")
    await until(lambda: len(owner.followers) == 1)
    log.followers, log.failure = [], GatewayError(Code.STORE_UNAVAILABLE)
    owner.say("b")
    await until(lambda: len(log.appends) == 2)
    log.failure = None
    owner.say("c")
    await until(lambda: log.text == "abc")
    assert len(owner.followers) == 1
    log.followers = [WorkerId("w3")]
    owner.say("d")
    await until(lambda: [workers for workers, _ in owner.followers] == [["w2"], ["w3"]])
    log.followers = []

    def none_told() -> bool:
        owner.say("e")
        return list(owner.followers[-1][0]) == []

    await until(none_told)


async def test_journal_tells_how_long_the_oldest_event_waited(log: PlayedLog) -> None:
    """Each save is told once with the age of its oldest event; what comes meanwhile is younger."""
    saved: list[float] = []
    journal = Journal(log, interval_s=0.01, heartbeat_s=30, on_saved=saved.append)
    owner, loop = Owner(journal, log), asyncio.get_running_loop()
    log.gate = asyncio.Event()
    begun_s = loop.time()
    owner.say("a")
    await until(lambda: len(log.appends) == 1)
    asked_s = loop.time()
    owner.say("b")  # while the first is on its way
    assert owner.entry.unsaved_since_s is not None
    assert begun_s <= owner.entry.unsaved_since_s <= asked_s
    log.gate.set()
    await until(lambda: log.text == "ab")
    await until(lambda: owner.entry.unsaved_since_s is None)
    assert len(saved) == 2
    assert 0 < saved[0] <= loop.time() - begun_s
    await journal.close(owner.entry)


async def test_journal_whose_store_is_away_ages_until_it_is_back(log: PlayedLog) -> None:
    """An append that fails saves nothing: the oldest event keeps its age until one succeeds."""
    saved: list[float] = []
    journal = Journal(log, interval_s=0.01, heartbeat_s=30, on_saved=saved.append)
    owner, loop = Owner(journal, log), asyncio.get_running_loop()
    log.failure = GatewayError(Code.STORE_UNAVAILABLE)
    owner.say("a")
    since_s = owner.entry.unsaved_since_s
    assert since_s is not None
    await until(lambda: len(log.appends) > 3)
    owner.say("b")
    assert owner.entry.unsaved_since_s == since_s
    assert saved == []
    log.failure = None
    await until(lambda: log.text == "ab")
    await until(lambda: owner.entry.unsaved_since_s is None)
    assert 0.03 <= saved[0] <= loop.time() - since_s
    await journal.close(owner.entry)
