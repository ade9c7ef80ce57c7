"""The deadlines of all chats under one timer."""

from __future__ import annotations

import asyncio

from gateway.upstream.clocks import BEAT_MIN_S, BEATS_PER_TIMEOUT, Clocks
from gateway.upstream.rules import UpstreamRules

TIMEOUT_S = 1.2
BEAT_S = TIMEOUT_S / BEATS_PER_TIMEOUT


class Alarm:
    """Notes when it rings, and stops itself and another."""

    def __init__(self, clocks: Clocks, due_s: float, other: Alarm | None = None) -> None:
        self._clocks = clocks
        self.due_s = due_s
        self.other = other
        self.rung_s: list[float] = []
        self.rung = asyncio.Event()

    def ring(self) -> None:
        self.rung_s.append(asyncio.get_running_loop().time())
        self.rung.set()
        for one in (self, self.other):
            if one is not None:
                self._clocks.stop(one)


def clocks(timeout_s: float = TIMEOUT_S) -> Clocks:
    return Clocks(UpstreamRules(base_url="http://127.0.0.1", between_tokens_timeout_s=timeout_s))


async def test_clock_rings_once_it_is_due_and_never_early() -> None:
    """Who is due is rung at the next look and not before; who was put off in time waits for the later time."""
    ours, now_s = clocks(), asyncio.get_running_loop().time()
    soon, put_off = Alarm(ours, now_s + 3.5 * BEAT_S), Alarm(ours, now_s + 3.5 * BEAT_S)
    ours.wind(soon)
    ours.wind(put_off)
    put_off.due_s = now_s + 7.5 * BEAT_S
    await put_off.rung.wait()
    for alarm in (soon, put_off):
        assert len(alarm.rung_s) == 1
        assert alarm.rung_s[0] >= alarm.due_s
    assert soon.rung_s[0] < put_off.rung_s[0]


async def test_clock_that_is_stopped_does_not_ring() -> None:
    """Neither who was stopped before, nor who is stopped by another that is due at the same look; then all is still."""
    ours, now_s = clocks(), asyncio.get_running_loop().time()
    stopped = Alarm(ours, now_s)
    one, other = Alarm(ours, now_s), Alarm(ours, now_s)
    one.other, other.other = other, one
    for alarm in (stopped, one, other):
        ours.wind(alarm)
    ours.stop(stopped)
    ours.stop(stopped)
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(alarm.rung.wait()) for alarm in (one, other)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    assert len(one.rung_s) + len(other.rung_s) == 1
    assert not stopped.rung_s
    assert ours._timer is None


def test_beat_is_a_small_share_of_the_shortest_timeout() -> None:
    """A second at the default of a minute; never so short that looking is all there is to do."""
    assert clocks(60.0)._beat_s == 1.0
    assert clocks(0.001)._beat_s == BEAT_MIN_S
