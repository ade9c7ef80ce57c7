"""What an open stream and an idle socket take of the gateway's memory, its connection and its turn included."""

from __future__ import annotations

import pytest

from tests.bench.phase import Work, hold_sockets, measure, wait_idle, warm_up
from tests.bench.stack import running

HELD = 400
STREAM_MAX_KIB = 36  # measured with 500 on CPython 3.11: 24 before the first token, 28 to 31 while it streams
SOCKET_MAX_KIB = 20  # measured: 17

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_open_stream_takes_little_memory() -> None:
    """A stream takes 36 KiB at most, both while it waits for its first token and while its answer comes."""
    work = Work(streams=HELD, rate_per_s=4, events_per_turn=None, seconds=2, starts_per_s=200)
    async with running(rate_per_s=work.rate_per_s, h2c=False, baseline=False) as stack:
        await warm_up(stack, "sse")
        memory = await wait_idle(stack, "sse", work)
        figures = await measure(stack, "sse", work)
    assert (figures.lost, figures.duplicated, figures.faults) == (0, 0, {})
    waiting_kib = (memory.waiting_kib - memory.idle_kib) / HELD
    streaming_kib = (figures.resident_kib["gateway"] - memory.idle_kib) / HELD
    print(f"{waiting_kib:.1f} KiB a stream that waits, {streaming_kib:.1f} KiB one that streams")
    assert 0 < waiting_kib <= STREAM_MAX_KIB
    assert 0 < streaming_kib <= STREAM_MAX_KIB


async def test_idle_socket_takes_little_memory() -> None:
    """A WebSocket on which nothing happens takes 20 KiB at most."""
    async with running(rate_per_s=4, h2c=False, baseline=False) as stack:
        await warm_up(stack, "ws")
        memory = await hold_sockets(stack, "ws", HELD)
    socket_kib = (memory.waiting_kib - memory.idle_kib) / HELD
    print(f"{socket_kib:.1f} KiB an idle socket")
    assert 0 < socket_kib <= SOCKET_MAX_KIB
