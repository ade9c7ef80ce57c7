"""The common beat of open streams."""

from __future__ import annotations

import asyncio

from gateway.transports.pulse import BEATS_PER_PERIOD, Pulse


class Heart:
    """Counts its beats."""

    def __init__(self) -> None:
        self.beats = 0
        self.whole = asyncio.Event()

    def beat(self) -> None:
        self.beats += 1
        if self.beats == BEATS_PER_PERIOD:
            self.whole.set()


async def test_pulse_beats_so_often_in_a_period() -> None:
    """A stream that stays for a period is told of every beat of it, however many others come and go."""
    loop, pulse, stays = asyncio.get_running_loop(), Pulse(0.4), Heart()
    begun_s = loop.time()
    pulse.join(stays)
    for _ in range(100):
        passing = Heart()
        pulse.join(passing)
        pulse.leave(passing)
    await stays.whole.wait()
    assert loop.time() - begun_s >= 0.4 * (BEATS_PER_PERIOD - 1) / BEATS_PER_PERIOD
    pulse.leave(stays)


async def test_pulse_stops_with_the_last_stream() -> None:
    """Who has left hears no more, and without streams there is no timer; one that comes later is told again."""
    pulse, left, stays, later = Pulse(0.08), Heart(), Heart(), Heart()
    pulse.join(left)
    pulse.join(stays)
    pulse.leave(left)
    await stays.whole.wait()
    assert not left.beats
    pulse.leave(stays)
    pulse.leave(stays)
    assert pulse._timer is None
    pulse.join(later)
    await later.whole.wait()
    pulse.leave(later)
    assert stays.beats == BEATS_PER_PERIOD
