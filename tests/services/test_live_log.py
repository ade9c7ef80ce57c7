"""The live log against a model: whoever reads, from wherever, pushed or pulled, sees each event once and in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.core.conversation import ConversationId
from gateway.core.events import (
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnStarted,
    after,
    merged,
)
from gateway.core.turn import TurnId, Usage
from gateway.services.live_log import SHOWN_EARLY, LiveLog
from gateway.services.window import PAGE, PAGE_CHARS, Batch
from tests.units import Unit, units

TURN, CONVERSATION = TurnId("turn"), ConversationId("conversation")
STARTED = Entry(1, TurnStarted(TURN, CONVERSATION, 1))
ENDING = TurnCompleted(None, None, "stop", "", Usage(0, 0, 0, "reported"))

EARLY = st.one_of(st.text(min_size=1, max_size=4).map(TextDelta), st.just(MessageStarted(None, None, "assistant")))
HELD = st.sampled_from([MessageCitations([]), MessageExtra(1, None, None, None, "x")])
ADDED = st.lists(st.one_of(EARLY, EARLY, EARLY, HELD), min_size=1, max_size=5)


def new_log() -> LiveLog:
    return LiveLog(TURN, CONVERSATION, [STARTED])


class Cursor:
    """A reader as a subscription is one: reads to the head, is pushed to, falls behind, reads again."""

    def __init__(self, live: LiveLog, position: int) -> None:
        self.live = live
        self.begun = self.position = position
        self.got: list[Unit] = []
        self.attached = False
        self.room = 0  # pushes that its connection takes before it lags
        self.released_times = 0

    def take(self, batch: Batch) -> None:
        assert batch.entries[0].position > self.position
        assert (batch.turn_id, batch.conversation_id) == (TURN, CONVERSATION)
        self.got += units(list(batch.entries))
        self.position = batch.entries[-1].position

    def pushed(self, batch: Batch, /) -> None:
        assert self.attached
        self.take(batch)
        self.room -= 1
        if self.room <= 0:
            self.attached = False
            self.live.detach(self)

    def released(self) -> None:
        self.released_times += 1

    def pull(self) -> bool:
        """Read one page; False at the head."""
        batch = self.live.read(self.position)
        if batch is None:
            return False
        assert sum(len(e.event.text) for e in batch.entries[:-1] if isinstance(e.event, TextDelta)) < PAGE_CHARS
        assert len(batch.entries) <= PAGE
        self.take(batch)
        return True


class LiveLogMachine(RuleBasedStateMachine):
    """Adds, saves, losses of the store and readers in any order."""

    @initialize()
    def begin(self) -> None:
        self.live = new_log()
        self.log: list[Entry] = [STARTED]
        self.stored = 1  # the position up to which the store has everything
        self.confirmed = 1  # and the furthest that it ever had: what readers were shown stays shown
        self.saving: int | None = None
        self.readers: list[Cursor] = []
        self.ended = False

    def visible(self) -> list[Entry]:
        """What the promise lets readers see: everything up to the first event that must be stored first and is not."""
        shown: list[Entry] = []
        for entry in self.log:
            if type(entry.event) not in SHOWN_EARLY and entry.position > self.confirmed:
                break
            shown.append(entry)
        return shown

    def add(self, events: list[Event]) -> None:
        self.live.add(events)
        position = self.log[-1].position
        for event in events:
            position += len(event.text) if isinstance(event, TextDelta) else 1
            self.log.append(Entry(position, event))

    @precondition(lambda self: not self.ended)
    @rule(events=ADDED)
    def events_arrive(self, events: list[Event]) -> None:
        self.add(events)

    @precondition(lambda self: not self.ended)
    @rule(text=st.text(min_size=1, max_size=4))
    def text_arrives(self, text: str) -> None:
        self.live.add_text(text)
        self.log.append(Entry(self.log[-1].position + len(text), TextDelta(text)))

    @precondition(lambda self: self.saving is None and not self.ended)
    @rule()
    def save_begins(self) -> None:
        assert self.live.unsaved() == merged(after(self.log, self.stored))
        self.saving = self.live.position

    @precondition(lambda self: self.saving is not None and not self.ended)
    @rule()
    def save_ends(self) -> None:
        assert self.saving is not None
        self.stored, self.saving = self.saving, None
        self.confirmed = max(self.confirmed, self.stored)
        self.live.saved(self.stored)

    @precondition(lambda self: self.saving is not None)
    @rule()
    def save_fails(self) -> None:
        self.saving = None

    @precondition(lambda self: not self.ended)
    @rule(data=st.data())
    def store_turns_out_to_be_behind(self, data: st.DataObject) -> None:
        self.saving = None
        self.stored = self.live.saved_position = data.draw(st.integers(0, self.stored))

    @precondition(lambda self: not self.ended)
    @rule(skip=st.integers(0, 3))
    def turn_ends(self, skip: int) -> None:
        self.log.append(Entry(self.log[-1].position + skip + 1, ENDING))
        self.stored = self.confirmed = self.log[-1].position
        self.saving, self.ended = None, True
        self.live.end(self.log[-1])

    @rule(data=st.data())
    def rest_is_asked_for(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, self.log[-1].position))
        rest = units(self.live.shown_after(position))
        assert rest == [unit for unit in units(self.visible()) if unit[0] > position]

    @rule(data=st.data())
    def reader_comes(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, self.visible()[-1].position))
        self.readers.append(Cursor(self.live, position))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def reader_pulls(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        if not reader.attached:
            reader.pull()

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), room=st.integers(1, 4))
    def reader_attaches(self, data: st.DataObject, room: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        if not reader.attached:
            while reader.pull():
                pass
            reader.room, reader.attached = room, True
            self.live.attach(reader)

    @precondition(lambda self: any(reader.attached for reader in self.readers))
    @rule(data=st.data())
    def reader_leaves(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from([reader for reader in self.readers if reader.attached]))
        self.live.detach(reader)
        self.readers.remove(reader)

    @invariant()
    def everyone_has_each_event_once(self) -> None:
        seen = units(self.visible())
        for reader in self.readers:
            upto = seen[-1][0] if reader.attached else reader.position
            assert reader.got == [unit for unit in seen if reader.begun < unit[0] <= upto]
        assert self.live.readers == sum(reader.attached for reader in self.readers)

    @invariant()
    def log_says_where_it_stands(self) -> None:
        assert self.live.position == self.log[-1].position
        assert self.live.holding == (len(self.visible()) < len(self.log))
        assert self.live.saved_position == self.stored
        assert self.live.head == self.visible()[-1].position
        assert self.live.text() == "".join(e.event.text for e in self.log if isinstance(e.event, TextDelta))
        assert self.live.ended == self.ended
        assert not self.live.closed

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        for reader in [*self.readers, Cursor(self.live, 0)]:
            while reader.pull():
                pass
            assert reader.got == [unit for unit in units(self.visible()) if unit[0] > reader.begun]


TestLiveLog = LiveLogMachine.TestCase
TestLiveLog.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_live_log_saved_deltas_are_merged_in_memory() -> None:
    """A long answer costs its text and an entry a save, not an entry a token."""
    live = new_log()
    for _ in range(50):
        for _ in range(200):
            live.add([TextDelta("x")])
        live.saved(live.position)
    assert live.unsaved() == []
    assert len(live._shown) <= 52
    reader = Cursor(live, 0)
    while reader.pull():
        pass
    assert reader.position == 10_001
    assert len(reader.got) == 10_001


def test_live_log_that_the_store_lost_is_whole_for_sending_again() -> None:
    """Though saved deltas have been merged, the log can be sent again from its beginning or from any character."""
    live = new_log()
    text = "".join(chr(ord("a") + number % 26) for number in range(10_000))
    for begin in range(0, len(text), 100):
        live.add([TextDelta(text[begin : begin + 100])])
        live.saved(live.position)
    for lost_from in (10_001, 10_000, 9_950, 4_321, 1):
        live.saved_position = lost_from
        rest = text[lost_from - 1 :]
        assert live.unsaved() == ([Entry(10_001, TextDelta(rest))] if rest else [])
    live.saved_position = 0
    assert live.unsaved() == [STARTED, Entry(10_001, TextDelta(text))]
    live.saved(live.position)
    assert live.unsaved() == []


def test_live_log_set_back_shows_nothing_twice() -> None:
    """What has been shown stays shown; only what waits goes on waiting, and is sent with the rest."""
    live = new_log()
    reader = Cursor(live, 1)
    reader.attached, reader.room = True, 100
    live.attach(reader)
    live.add([TextDelta("ab"), MessageCitations([])])
    live.saved(live.position)
    live.add([TextDelta("c"), MessageCitations([]), TextDelta("d")])
    live.saved_position = 2
    seen = [(2, "a"), (3, "b"), (4, MessageCitations([])), (5, "c")]
    assert reader.got == seen
    assert units(live.unsaved()) == [*seen[1:], (6, MessageCitations([])), (7, "d")]
    live.saved(live.position)
    assert reader.got == [*seen, (6, MessageCitations([])), (7, "d")]


def test_live_log_end_shows_what_waited_and_the_ending_last() -> None:
    """A store that did not take the last events in time holds up nobody's ending, and what it lacks is known."""
    live = new_log()
    reader = Cursor(live, 1)
    reader.attached, reader.room = True, 100
    live.attach(reader)
    live.add([TextDelta("a"), MessageCitations([]), TextDelta("b")])
    assert live.holding
    live.end(Entry(9, ENDING))  # with positions left out, for what readers may have been shown elsewhere
    assert reader.got == [(2, "a"), (3, MessageCitations([])), (4, "b"), (9, ENDING)]
    assert (live.ended, live.holding, live.head, live.position) == (True, False, 9, 9)
    late = Cursor(live, 2)
    while late.pull():
        pass
    assert late.got == reader.got[1:]


def test_live_log_of_a_turn_taken_over_goes_on_where_the_store_ends() -> None:
    """What the lost worker had stored is there for readers and is not sent again."""
    stored = [STARTED, Entry(4, TextDelta("abc")), Entry(5, MessageCitations([]))]
    live = LiveLog(TURN, CONVERSATION, stored)
    assert (live.position, live.saved_position, live.unsaved(), live.text()) == (5, 5, [], "abc")
    live.add([TextDelta("de")])
    assert live.unsaved() == [Entry(7, TextDelta("de"))]
    assert live.text() == "abcde"
    live.saved(7)
    assert units(live.shown_after(2)) == units(after([*stored, Entry(7, TextDelta("de"))], 2))


def test_live_log_batches_say_what_they_follow() -> None:
    """Whoever joins what it is pushed can tell a gap from none."""
    live = new_log()
    begins: list[int] = []

    class Noting(Cursor):
        def pushed(self, batch: Batch, /) -> None:
            assert batch.begins == self.position
            begins.append(batch.begins)
            super().pushed(batch)

    reader = Noting(live, 1)
    reader.attached, reader.room = True, 100
    live.attach(reader)
    live.add([MessageStarted(None, None, "assistant")])
    live.add([TextDelta("ab"), TextDelta("c")])
    live.add([MessageCitations([]), TextDelta("d")])
    live.saved(live.position)
    live.end(Entry(live.position + 1, ENDING))
    assert begins == [1, 2, 5, 7]


def test_live_log_holds_what_follows_a_held_event() -> None:
    """A delta behind citations that are not stored yet waits with them, so the order is one everywhere."""
    live = new_log()
    live.add([TextDelta("a"), MessageCitations([]), TextDelta("b")])
    reader = Cursor(live, 0)
    while reader.pull():
        pass
    assert reader.got == [(1, STARTED.event), (2, "a")]
    live.saved(live.position)
    while reader.pull():
        pass
    assert [position for position, _ in reader.got] == [1, 2, 3, 4]


def test_live_log_page_of_a_reader_behind_is_bounded() -> None:
    """A reader far behind is handed a page at a time, not the whole answer."""
    live = new_log()
    for _ in range(100):
        live.add([TextDelta("x" * 1000)])
    batch = live.read(0)
    assert batch is not None
    assert sum(len(e.event.text) for e in batch.entries if isinstance(e.event, TextDelta)) <= PAGE_CHARS + 1000


def test_live_log_batch_is_encoded_once_for_all_readers_of_a_dialect() -> None:
    """However many readers are pushed to, each dialect's encoder runs once an event."""
    live = new_log()
    calls: list[str] = []

    def encoder(turn_id: str, conversation_id: str, entries: object) -> bytes:
        calls.append(turn_id)
        return b"encoded"

    def other(turn_id: str, conversation_id: str, entries: object) -> bytes:
        return b"otherwise"

    class Encoding(Cursor):
        def pushed(self, batch: Batch, /) -> None:
            assert batch.encoded(encoder) == b"encoded"
            assert batch.encoded(other) == b"otherwise"
            super().pushed(batch)

    for _ in range(10):
        reader = Encoding(live, 1)
        reader.attached, reader.room = True, 10
        live.attach(reader)
    live.add([TextDelta("a")])
    assert calls == [TURN]


def test_live_log_abandoned_releases_every_reader_once() -> None:
    """When another worker owns the turn, each reader is sent to the store."""
    live = new_log()
    readers = [Cursor(live, 1) for _ in range(3)]
    for reader in readers:
        reader.attached, reader.room = True, 10
        live.attach(reader)
    live.abandon()
    assert live.abandoned
    assert [reader.released_times for reader in readers] == [1, 1, 1]


@given(
    steps=st.lists(st.one_of(ADDED, st.just("saved")), max_size=12),
    cuts=st.data(),
)
def test_live_log_is_the_same_however_its_events_came_together(
    steps: list[list[Event] | str], cuts: st.DataObject
) -> None:
    """Events given one at a time, as most come, get the positions and are shown as in any other grouping."""
    together, singly = new_log(), new_log()
    readers = [Cursor(together, 1), Cursor(singly, 1)]
    for live, reader in zip((together, singly), readers, strict=True):
        reader.attached, reader.room = True, 10**6
        live.attach(reader)
    for step in steps:
        if isinstance(step, str):
            position = cuts.draw(st.integers(together.saved_position, together.position))
            for live in (together, singly):
                live.saved(position)
        else:
            together.add(step)
            for event in step:
                if isinstance(event, TextDelta):
                    singly.add_text(event.text)
                else:
                    singly.add([event])
        assert (together.position, together.head, together.holding) == (singly.position, singly.head, singly.holding)
        assert units(together.unsaved()) == units(singly.unsaved())
    assert readers[0].got == readers[1].got == units(together.shown_after(1)) == units(singly.shown_after(1))
    assert together.text() == singly.text()
