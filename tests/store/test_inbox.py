"""The inbox: everything said to a worker arrives, nothing said badly harms it, and deafness is noticed and mended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code
from gateway.core.events import (
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    Shown,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.turn import StopReason, TurnId, Usage
from gateway.store.embedded import EmbeddedValkey
from gateway.store.inbox import RETRY_MAX_S, SHOWN, Inbox, decode_shown, encode_shown
from gateway.store.redis import INBOX, Redis
from gateway.telemetry.families import Families
from gateway.telemetry.store import StoreMetrics
from tests.store.conftest import OpenRedis
from tests.store.log_bench import COMPLETED, OWNER, PATIENCE_S, Bench, new_turn, new_worker
from tests.store.relay import Relay

OwnServer = Callable[[], Awaitable[EmbeddedValkey]]
PROBE_S = 0.2
MARGIN_S = 0.4  # for a machine that is busy with other things
PROMPT_S = 0.5
STUCK_S = 30.0  # a client's timeout that nobody may wait for


class Heard:
    """A Hearer that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.again = 0

    def stop_asked(self, turn_id: TurnId, reason: StopReason, /) -> None:
        self.said.append(("stop", turn_id, reason))

    def followers_changed(self, turn_id: TurnId, workers: Sequence[WorkerId], /) -> None:
        self.said.append(("followers", turn_id, workers))

    def shown(self, shown: Shown, /) -> None:
        self.said.append(shown)

    def turn_began(
        self, tenant: TenantId, conversation_id: ConversationId, turn_id: TurnId, owner: UserHash, /
    ) -> None:
        self.said.append(("began", tenant, conversation_id, turn_id, owner))

    def heard_again(self) -> None:
        self.again += 1


OpenInbox = Callable[..., tuple[Inbox, Heard]]


@pytest.fixture
async def open_inbox() -> AsyncIterator[OpenInbox]:
    """Open inboxes over a client, each with its own hearer; all are closed after the test."""
    async with AsyncExitStack() as stack:

        def open_one(
            store: Redis, worker: WorkerId, probe_s: float = PROBE_S, heard: Heard | None = None
        ) -> tuple[Inbox, Heard]:
            inbox, heard = Inbox(store, worker, probe_s=probe_s), heard or Heard()
            stack.push_async_callback(inbox.aclose)
            inbox.open(heard)
            return inbox, heard

        yield open_one


async def until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait until a condition of this process is true."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


async def arrives(store: Redis, worker: WorkerId, heard: Heard) -> None:
    """Say something to a worker, which must come next."""
    turn, before = new_turn(), len(heard.said)
    assert await store.call("PUBLISH", INBOX + worker, b'["stop","%b","user"]' % turn.encode()) == 1
    await until(lambda: len(heard.said) > before)
    assert heard.said[before:] == [("stop", turn, StopReason.USER)]


@contextmanager
def paused(server: EmbeddedValkey) -> Iterator[None]:
    """Make a server hang for a while: it keeps its connections and says nothing."""
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server._process.pid, signal.SIGCONT)


# --- what arrives -------------------------------------------------------------------------------------------------


async def test_inbox_hears_messages_of_every_kind(bench: Bench, open_inbox: OpenInbox) -> None:
    """What workers tell each other through the log arrives at the hearer, in order and with all that it says."""
    other = bench.log_of(new_worker())
    inbox, heard = open_inbox(bench.store, bench.worker)
    await until(lambda: inbox.hears)
    await bench.log.watch(bench.tenant, bench.conversation, 60)
    heading = bench.heading()
    await other.claim(bench.tenant, heading)
    turn = heading.turn_id
    await bench.log.take_over(bench.tenant, turn, other.worker)
    await other.follow(bench.tenant, turn, 60)
    await other.request_stop(bench.tenant, turn, StopReason.USER)
    shown = [Shown(turn, 1, [Entry(3, TextDelta("ab"))]), Shown(new_turn(), 4, [Entry(5, COMPLETED)])]
    await other.show(bench.worker, shown)
    await other.follow(bench.tenant, turn, 0)
    await until(lambda: len(heard.said) == 6)
    assert heard.said == [
        ("began", bench.tenant, bench.conversation, turn, OWNER),
        ("followers", turn, [other.worker]),
        ("stop", turn, StopReason.USER),
        *shown,
        ("followers", turn, []),
    ]
    assert heard.again == 0


async def test_inbox_hears_nothing_that_is_said_to_others(store: Redis, open_inbox: OpenInbox) -> None:
    """Each worker has a channel of its own."""
    mine, theirs = new_worker(), new_worker()
    inbox, heard = open_inbox(store, mine)
    other_inbox, other_heard = open_inbox(store, theirs)
    await until(lambda: inbox.hears and other_inbox.hears)
    await arrives(store, theirs, other_heard)
    await arrives(store, mine, heard)
    assert (len(heard.said), len(other_heard.said)) == (1, 1)


TEXTS = st.text(max_size=8)
MAYBE = st.none() | TEXTS
WORDS = st.dictionaries(TEXTS, TEXTS | st.integers(-9, 9) | st.none() | st.booleans(), max_size=3)
USAGES = st.builds(
    Usage,
    *(st.integers(0, 2**53),) * 3,
    st.sampled_from(["reported", "estimated"]),
)
ERRORS = st.builds(
    TurnError,
    st.sampled_from(Code),
    TEXTS,
    st.booleans(),
    st.none() | st.integers(100, 599),
    st.none() | st.floats(0, 1e6),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.text(min_size=1, max_size=40).map(TextDelta),
    st.builds(TurnStarted, TEXTS, TEXTS, st.integers(1, 9)),
    st.builds(TurnQueued, st.integers(0, 99), st.floats(0, 1e6)),
    st.builds(MessageStarted, MAYBE, MAYBE, TEXTS),
    st.builds(MessageExtra, st.integers(-9, 9), MAYBE, MAYBE, MAYBE, MAYBE),
    st.lists(WORDS, max_size=3).map(MessageCitations),
    st.lists(WORDS, max_size=3).map(MessageModerated),
    st.builds(TurnCompleted, MAYBE, MAYBE, TEXTS, TEXTS, USAGES),
    st.builds(TurnStopped, MAYBE, MAYBE, st.sampled_from(StopReason), TEXTS, USAGES),
    st.builds(TurnFailed, MAYBE, MAYBE, ERRORS, TEXTS, USAGES),
)
ENTRIES = st.lists(st.builds(Entry, st.integers(1, 10**15), EVENTS), max_size=4)


@given(st.lists(st.builds(Shown, TEXTS.map(TurnId), st.integers(0, 10**15), ENTRIES), max_size=4))
def test_shown_events_come_back_the_same(shown: list[Shown]) -> None:
    """Encoding and decoding change no event, position or text."""
    message = encode_shown(shown)
    assert decode_shown(message) == shown
    assert message.startswith(SHOWN)
    assert msgspec.json.decode(message)[0] == "shown"


# --- what is said badly -------------------------------------------------------------------------------------------

WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["probe", "stop", "followers", "began", "shown", "unheard-of"])
GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(lambda end: SHOWN + end),
    WILD.map(msgspec.json.encode),
    st.tuples(KINDS, WILD).map(msgspec.json.encode),
    st.tuples(KINDS, WILD, WILD).map(msgspec.json.encode),
    st.tuples(st.just("shown"), st.lists(st.tuples(TEXTS, st.integers(), st.lists(WILD)))).map(msgspec.json.encode),
)


def test_inbox_is_not_harmed_by_garbage(any_store_url: str) -> None:
    """Whatever comes over the channel, it stays subscribed and hears what comes next."""

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
    @given(st.lists(GARBAGE, min_size=1, max_size=12))
    def check(garbage: list[bytes]) -> None:
        async def play() -> None:
            worker, heard = new_worker(), Heard()
            async with (
                aclosing(Redis(any_store_url, timeout_s=2.0, connections=2)) as store,
                aclosing(Inbox(store, worker, probe_s=STUCK_S)) as inbox,
            ):
                inbox.open(heard)
                await until(lambda: inbox.hears)
                last = new_turn()
                told = ("stop", last, StopReason.ADMIN)
                for message in (*garbage, b'["stop","%b","admin"]' % last.encode()):
                    await store.call("PUBLISH", INBOX + worker, message)
                await until(lambda: told in heard.said or heard.again > 0)
                assert heard.again == 0
                assert inbox.hears

        asyncio.run(play())

    check()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'["probe",5]',
        b'["probe","somebody else\'s"]',
        b'["stop","t","for-no-reason-known-here"]',
        b'["stop","t",["user"]]',
        b'["followers","t",null]',
        b'["began","t","c"]',
        b'["began",1,2,3,4]',
        b"[" * 10_000,
        b'["came-with-a-later-version",1,2]',
        b'["shown",',
        b'["shown",[["t",1,[[2,"no.such.event",{}]]]]]',
        b'["shown",[["t",1,[[2,"message.delta",{"text":5}]]]]]',
    ],
)
async def test_inbox_passes_over_what_it_does_not_understand(
    store: Redis, open_inbox: OpenInbox, message: bytes
) -> None:
    """Another version's word costs no more than itself."""
    worker = new_worker()
    inbox, heard = open_inbox(store, worker)
    await until(lambda: inbox.hears)
    await store.call("PUBLISH", INBOX + worker, message)
    await arrives(store, worker, heard)
    assert inbox.hears
    assert heard.again == 0


# --- deaf, cut, away ----------------------------------------------------------------------------------------------


async def test_inbox_notices_that_it_is_deaf_and_hears_again(
    own_server: OwnServer, open_redis: OpenRedis, open_inbox: OpenInbox
) -> None:
    """A connection over which nothing comes any more is given up within two probes, and what is said then arrives."""
    worker = new_worker()
    async with Relay((await own_server()).url) as relay:
        store = open_redis(relay.url)
        inbox, heard = open_inbox(store, worker)
        await until(lambda: inbox.hears)
        await arrives(store, worker, heard)
        for deafened in (1, 2):
            relay.deafen()
            await until(lambda: not inbox.hears, within_s=2 * PROBE_S + MARGIN_S)
            await until(lambda: inbox.hears)
            await until(lambda: heard.again == deafened)  # noqa: B023 - awaited in this round
            assert relay.subscribers == 1 + deafened
            await arrives(store, worker, heard)
        assert heard.again == 2


async def test_probes_are_told_with_what_became_of_each(own_server: OwnServer, open_redis: OpenRedis) -> None:
    """A probe that comes back is delivered, and timed; one that does not is lost; one that is not taken is unsent."""
    families = Families()
    metrics = StoreMetrics(families)

    async def told() -> dict[str, float]:
        lines = (await families.scrape("").whole()).decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    async def reaches(name: str, least: float) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await told()).get(name, 0) < least:
                await asyncio.sleep(0.002)

    counter = "gateway_delivery_probes_total"
    server = await own_server()
    async with (
        Relay(server.url) as relay,
        aclosing(Inbox(open_redis(relay.url), new_worker(), probe_s=0.05, metrics=metrics)) as inbox,
    ):
        inbox.open(Heard())
        await reaches(f'{counter}{{outcome="delivered"}}', 3)
        assert (await told())["gateway_delivery_ok"] == 1
        relay.deafen()
        await reaches(f'{counter}{{outcome="lost"}}', 1)
        await reaches("gateway_delivery_ok", 1)
    async with aclosing(Inbox(open_redis(server.url), new_worker(), probe_s=0.05, metrics=metrics)) as inbox:
        inbox.open(Heard())
        await until(lambda: inbox.hears)
        with paused(server):
            await reaches(f'{counter}{{outcome="unsent"}}', 1)
    seen = await told()
    assert seen["gateway_delivery_probe_seconds_count"] == seen[f'{counter}{{outcome="delivered"}}']
    assert 0 < seen["gateway_delivery_probe_seconds_sum"] < PATIENCE_S


async def test_inbox_that_hears_is_left_alone(
    own_server: OwnServer, open_redis: OpenRedis, open_inbox: OpenInbox
) -> None:
    """Probes that come back change nothing: one subscription, however many probes."""
    worker = new_worker()
    async with Relay((await own_server()).url) as relay:
        store = open_redis(relay.url)
        inbox, heard = open_inbox(store, worker, 0.05)
        await until(lambda: inbox.hears)
        async with asyncio.timeout(PATIENCE_S):
            while int((await commands_of(store))["publish"]) < 20:
                assert inbox.hears
        assert (relay.subscribers, heard.again, heard.said) == (1, 0, [])


async def test_inbox_that_is_behind_is_not_deaf(store: Redis, open_inbox: OpenInbox) -> None:
    """A worker that is too busy to read for some probes reads all that waits for it before it judges."""

    class Slow(Heard):
        def stop_asked(self, turn_id: TurnId, reason: StopReason, /) -> None:
            super().stop_asked(turn_id, reason)
            time.sleep(0.08)

    worker, heard = new_worker(), Slow()
    inbox, _ = open_inbox(store, worker, 0.05, heard)
    await until(lambda: inbox.hears)
    turns = [new_turn() for _ in range(6)]
    await asyncio.gather(
        *(store.call("PUBLISH", INBOX + worker, b'["stop","%b","user"]' % turn.encode()) for turn in turns)
    )
    await until(lambda: len(heard.said) == len(turns) or heard.again > 0)
    assert heard.said == [("stop", turn, StopReason.USER) for turn in turns]
    await arrives(store, worker, heard)
    assert (inbox.hears, heard.again) == (True, 0)


async def commands_of(store: Redis) -> dict[str, int]:
    """Return how often the server was sent each command."""
    lines = (await store.call("EVAL", "return redis.call('INFO', 'commandstats')", 0)).decode().splitlines()
    counted = (line.removeprefix("cmdstat_").partition(":calls=") for line in lines if ":calls=" in line)
    return {name: int(rest.partition(",")[0]) for name, _, rest in counted}


async def test_inbox_cut_by_the_server_hears_again(store: Redis, open_inbox: OpenInbox) -> None:
    """However often its connection is cut, it subscribes anew at once, and says once each time that it was away."""
    worker = new_worker()
    inbox, heard = open_inbox(store, worker, STUCK_S)
    await until(lambda: inbox.hears)
    for cuts in (1, 2, 3):
        assert await store.call("CLIENT", "KILL", "TYPE", "pubsub") >= 1
        await until(lambda: heard.again == cuts)  # noqa: B023 - awaited in this round
        assert inbox.hears
        await arrives(store, worker, heard)
    assert heard.again == 3


async def test_inbox_hears_again_after_a_crash_of_the_server(own_server: OwnServer, open_inbox: OpenInbox) -> None:
    """A server that comes back is subscribed to anew, and the hearer is told once that something may be lost."""
    server, worker = await own_server(), new_worker()
    async with aclosing(Redis(server.url, timeout_s=0.3, connections=2)) as store:
        inbox, heard = open_inbox(store, worker, STUCK_S)
        await until(lambda: inbox.hears)
        assert server._process is not None
        server._process.kill()
        await asyncio.wait_for(asyncio.shield(server.died), PATIENCE_S)
        await until(lambda: not inbox.hears)
        assert store.healthy_s() < PATIENCE_S  # a lost subscriber counts as an outage
        await server.restart()
        await until(lambda: inbox.hears)
        assert heard.again == 1
        await arrives(store, worker, heard)
        await inbox.aclose()


async def test_inbox_opened_before_the_server_hears_once_it_is_there(
    own_server: OwnServer, open_inbox: OpenInbox
) -> None:
    """A server that is away at the start is waited for; nothing was lost, for nothing was heard before."""
    server, worker = await own_server(), new_worker()
    await server.aclose()
    async with aclosing(Redis(server.url, timeout_s=0.3, connections=2)) as store:
        inbox, heard = open_inbox(store, worker)
        await asyncio.sleep(0)
        assert not inbox.hears
        await server.open()
        await until(lambda: inbox.hears, within_s=PATIENCE_S + RETRY_MAX_S)
        assert heard.again == 0
        await inbox.aclose()


async def test_inbox_does_not_judge_by_a_probe_that_was_not_taken(own_server: OwnServer, open_inbox: OpenInbox) -> None:
    """While the store takes no commands, a connection that lives is not thrown away: it goes on where it was."""
    server, worker = await own_server(), new_worker()
    async with Relay(server.url) as relay, aclosing(Redis(relay.url, timeout_s=0.1, connections=2)) as store:
        failures = 0

        def observe(seconds: float, commands: int, failed: bool) -> None:
            nonlocal failures
            failures += failed

        store._observer = observe
        inbox, heard = open_inbox(store, worker, 0.05)
        await until(lambda: inbox.hears)
        with paused(server):
            await until(lambda: failures >= 3)
        async with asyncio.timeout(PATIENCE_S):
            while not store.healthy_s():
                await asyncio.sleep(0.01)
        await arrives(store, worker, heard)
        assert (inbox.hears, heard.again, relay.subscribers) == (True, 0, 1)
        await inbox.aclose()


# --- the end ------------------------------------------------------------------------------------------------------


async def closes_promptly(inbox: Inbox) -> None:
    """Close, twice: neither waits for any server."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await inbox.aclose()
    await inbox.aclose()
    assert loop.time() - begun_s < PROMPT_S


async def test_aclose_ends_the_subscription(store: Redis, open_inbox: OpenInbox) -> None:
    """After closing the server has no subscriber of this channel left, and nothing is heard any more."""
    worker = new_worker()
    inbox, heard = open_inbox(store, worker)
    await until(lambda: inbox.hears)
    await closes_promptly(inbox)
    assert not inbox.hears
    async with asyncio.timeout(PATIENCE_S):
        while await store.call("PUBLISH", INBOX + worker, b'["stop","t","user"]'):
            await asyncio.sleep(0.005)
    assert (heard.said, heard.again) == ([], 0)


async def test_aclose_before_open_or_at_once_after_it_is_prompt(store: Redis) -> None:
    """There is no state in which closing fails."""
    await closes_promptly(Inbox(store, new_worker(), probe_s=STUCK_S))
    inbox = Inbox(store, new_worker(), probe_s=STUCK_S)
    inbox.open(Heard())
    await closes_promptly(inbox)


@pytest.mark.parametrize("probe_s", [STUCK_S, 0.01], ids=["reading", "probing"])
async def test_aclose_is_prompt_while_the_server_hangs(
    own_server: OwnServer, open_inbox: OpenInbox, probe_s: float
) -> None:
    """A server that says nothing holds up no worker's end: neither while it is listened to nor while it is asked."""
    server = await own_server()
    store = Redis(server.url, timeout_s=STUCK_S, connections=2)
    inbox, _ = open_inbox(store, new_worker(), probe_s)
    await until(lambda: inbox.hears)
    with paused(server):
        if probe_s < STUCK_S:
            await until(lambda: bool(store._under_way))  # a probe is on its way and gets no answer
        await closes_promptly(inbox)
    await store.aclose()


async def test_aclose_is_prompt_while_it_connects_to_a_server_that_hangs(
    own_server: OwnServer, open_inbox: OpenInbox
) -> None:
    """A subscription that does not come about is given up."""
    server = await own_server()
    store = Redis(server.url, timeout_s=STUCK_S, connections=2)
    with paused(server):
        inbox, _ = open_inbox(store, new_worker())
        for _ in range(5):
            await asyncio.sleep(0)  # it is on its way
        await closes_promptly(inbox)
    await store.aclose()


async def test_aclose_is_prompt_between_two_tries(own_server: OwnServer, open_inbox: OpenInbox) -> None:
    """Waiting for a server that is gone ends with the worker."""
    server = await own_server()
    await server.aclose()
    store = Redis(server.url, timeout_s=STUCK_S, connections=2)
    inbox, _ = open_inbox(store, new_worker())
    await until(lambda: store.healthy_s() < STUCK_S)  # the first try has failed
    await closes_promptly(inbox)
    await store.aclose()
