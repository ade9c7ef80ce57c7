"""``python -m tests.bench layouts``: what an append, a publish and a replay cost, for several layouts of the log."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Final

import msgspec
import redis

from gateway.core.events import Entry, MessageStarted, TextDelta, TurnCompleted
from gateway.core.turn import TurnId, Usage
from gateway.services.journal import BEATS_PER_INTERVAL
from gateway.store.facts import store_name
from tests.bench.layouts_report import Appends, Kept, Layouts, Phase, Publishes, Replays
from tests.bench.log_layouts import LAYOUTS, Due, Layout, StreamsByBeat
from tests.bench.phase import spread
from tests.bench.publishing import measure_publish
from tests.bench.server import Mark, Server, running

RATE_PER_S: Final = 20  # events of a live turn
INTERVAL_S: Final = 0.2  # between a turn's appends, as the gateway comes
EVENTS_PER_APPEND: Final = int(RATE_PER_S * INTERVAL_S)
UNBATCHED: Final = "append an event"  # today's layout without the beat, for reference
UNBATCHED_BEATS: Final = 50  # of 1 ms: events of so many turns come together, and share a round trip at that
ANSWER_EVENTS: Final = 2_000  # of the answer that is replayed
REPLAY_S: Final = 0.4  # for the replays from one position
FOLLOWED: Final = 5  # one live turn in so many is followed on another worker
SAMPLED: Final = 20  # live turns whose memory is read
SETTLE_S: Final = 0.3
WORDS: Final = ("You ", "can ", "reset ", "your ", "password ", "in ", "the ", "account ", "settings. ")


class Work(msgspec.Struct, kw_only=True, frozen=True):
    """What every phase of a run has in common."""

    turns: int
    seconds: float
    rounds: int


@dataclass(slots=True)
class LiveTurn:
    """A turn that streams; ``texts`` never end."""

    turn_id: TurnId
    position: int
    texts: itertools.cycle[str]


@dataclass(slots=True)
class Counts:
    """What was appended in a window; latencies are of beats, and so of each append on them."""

    appends: int = 0
    events: int = 0
    latencies_ns: list[int] = field(default_factory=list)


async def run(work: Work) -> Layouts:
    """Measure every layout ``work.rounds`` times, in turn."""
    followed = max(1, work.turns // FOLLOWED)
    phases: list[Phase] = []
    publishes: list[Publishes] = []
    async with running() as server:
        facts = await server.redis.server_facts()
        for _ in range(work.rounds):
            for name in (*LAYOUTS, UNBATCHED):
                phases.append(await measure(server, name, work))
                await server.redis.call("FLUSHALL")
            publishes += [
                await measure_publish(server, followed, RATE_PER_S, work.seconds, joined=joined)
                for joined in (True, False)
            ]
    return Layouts(
        turns=work.turns,
        rate_per_s=RATE_PER_S,
        seconds=work.seconds,
        rounds=work.rounds,
        cores=os.cpu_count() or 1,
        versions=f"Python {platform.python_version()}, redis-py {redis.__version__}, {store_name(facts)}",
        phases=phases,
        publishes=publishes,
    )


async def measure(server: Server, name: str, work: Work) -> Phase:
    """Stream turns into one layout, then replay a finished answer where it is stored as in no other."""
    unbatched = name == UNBATCHED
    layout = LAYOUTS["stream" if unbatched else name](server.redis)
    turns = [await _open(layout, number) for number in range(work.turns)]
    appends = await _stream(server, layout, turns, work.seconds, unbatched=unbatched)
    if unbatched or isinstance(layout, StreamsByBeat):
        return Phase(layout=name, appends=appends)
    live = mean([await server.held_bytes(layout.keys(turn.turn_id)) for turn in turns[:SAMPLED]])
    turn_id, end = await _answer(layout)
    seconds = min(REPLAY_S, work.seconds)
    kept = Kept(
        live_bytes=live,
        finished_bytes=await server.held_bytes(layout.keys(turn_id)),
        from_start=await _replay(server, layout, turn_id, 0, seconds),
        from_middle=await _replay(server, layout, turn_id, end // 2, seconds),
    )
    return Phase(layout=name, appends=appends, kept=kept)


async def _open(layout: Layout, number: int) -> LiveTurn:
    turn_id = TurnId(str(uuid.uuid4()))
    await layout.open(turn_id)
    await layout.append(turn_id, [Entry(2, MessageStarted(turn_id, turn_id, "assistant"))])
    texts = itertools.cycle(WORDS[number % len(WORDS) :] + WORDS[: number % len(WORDS)])
    return LiveTurn(turn_id, 2, texts)


async def _stream(
    server: Server, layout: Layout, turns: Sequence[LiveTurn], seconds: float, *, unbatched: bool
) -> Appends:
    """Let all turns stream, each on its beat, and measure a window of that."""
    beats = UNBATCHED_BEATS if unbatched else BEATS_PER_INTERVAL
    events = 1 if unbatched else EVENTS_PER_APPEND
    interval_s = events / RATE_PER_S
    counts = Counts()
    begin_s = time.monotonic()
    streams = [
        asyncio.create_task(_beat(layout, turns[beat::beats], events, begin_s + interval_s * beat / beats, counts))
        for beat in range(beats)
    ]
    try:
        await asyncio.sleep(SETTLE_S)
        written = await server.written_bytes()
        before = counts.appends, counts.events
        counts.latencies_ns.clear()
        begin = Mark(server)
        while counts.events == before[1]:  # on a busy machine a short window may see none
            await asyncio.sleep(seconds)
        end = Mark(server)
        appended, told = counts.appends - before[0], counts.events - before[1]
        latency = spread(counts.latencies_ns)
        written = await server.written_bytes() - written
    finally:
        for stream in streams:
            stream.cancel()
        failures = [error for error in await asyncio.gather(*streams, return_exceptions=True) if error is not None]
    if broken := [error for error in failures if not isinstance(error, asyncio.CancelledError)]:
        raise broken[0]
    window_s = end.at_s - begin.at_s
    client_s, server_s = end.client_s - begin.client_s, end.server_s - begin.server_s
    return Appends(
        appends=appended,
        events=told,
        kept_up=told / (window_s * RATE_PER_S * len(turns)),
        client_us=client_s * 1e6 / told,
        server_us=server_s * 1e6 / told,
        round_trips=(end.round_trips - begin.round_trips) / told,
        written_bytes=written / told,
        latency_ms=latency,
        others_cores=max(0.0, (end.busy_s - begin.busy_s - client_s - server_s) / window_s),
    )


async def _beat(layout: Layout, turns: Sequence[LiveTurn], events: int, due_s: float, counts: Counts) -> None:
    """Append what these turns have, again and again; one that comes late does not catch up."""
    interval_s = events / RATE_PER_S
    while turns:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due_s = max(due_s + interval_s, time.monotonic())
        due = [_grow(turn, events) for turn in turns]
        started_ns = time.perf_counter_ns()
        told = await layout.append_due(due)
        took_ns = time.perf_counter_ns() - started_ns
        for one in told:
            if isinstance(one, BaseException):
                raise one
        counts.appends += len(due)
        counts.events += len(due) * events
        counts.latencies_ns += itertools.repeat(took_ns, len(due))


def _grow(turn: LiveTurn, events: int) -> Due:
    """Merge so many deltas, as LiveLog hands them to the journal."""
    text = "".join(itertools.islice(turn.texts, events))
    turn.position += len(text)
    return Due(turn.turn_id, [Entry(turn.position, TextDelta(text))])


async def _answer(layout: Layout) -> tuple[TurnId, int]:
    """Write a whole answer, and return its turn and the position of the ending."""
    turn = await _open(layout, 0)
    texts: list[str] = []
    for _ in range(ANSWER_EVENTS // EVENTS_PER_APPEND):
        turn_id, entries = _grow(turn, EVENTS_PER_APPEND)
        await layout.append(turn_id, entries)
        texts += [entry.event.text for entry in entries if isinstance(entry.event, TextDelta)]
    turn.position += 1
    ending = TurnCompleted(turn.turn_id, turn.turn_id, "stop", "".join(texts), Usage(12, 2_000, 2_012, "reported"))
    await layout.append(turn.turn_id, [Entry(turn.position, ending)])
    return turn.turn_id, turn.position


async def _replay(server: Server, layout: Layout, turn_id: TurnId, position: int, seconds: float) -> Replays:
    """Read the answer over and over, one reader at a time."""
    sent = await server.sent_bytes()
    begin = Mark(server)
    latencies_ns: list[int] = []
    while time.monotonic() < begin.at_s + seconds:
        started_ns = time.perf_counter_ns()
        entries = await layout.read(turn_id, position)
        latencies_ns.append(time.perf_counter_ns() - started_ns)
        assert isinstance(entries[-1].event, TurnCompleted)
    end = Mark(server)
    count = len(latencies_ns)
    return Replays(
        count=count,
        client_us=(end.client_s - begin.client_s) * 1e6 / count,
        server_us=(end.server_s - begin.server_s) * 1e6 / count,
        round_trips=(end.round_trips - begin.round_trips) / count,
        sent_bytes=(await server.sent_bytes() - sent) / count,
        latency_ms=spread(latencies_ns),
    )
