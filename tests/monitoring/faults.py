"""What befalls a gateway, its users and its Redis while a context is open."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import ClientError

from gateway.store.redis import Redis
from tests.monitoring.prometheus import eventually
from tests.monitoring.traffic import Traffic, User

LATE_S: Final = 5.5  # before an answer begins: more than the objective wants


@asynccontextmanager
async def late_answers(users: Traffic, count: int) -> AsyncIterator[None]:
    """Have so many users at a time wait for longer than the objective wants until their answers begin."""
    carl = await User.of(users.site, users.keys["acme"], "carl")

    async def wait(number: int) -> None:
        user = copy.copy(carl)
        await asyncio.sleep(LATE_S * number / count)  # one after the other, not all at once again and again
        while True:
            with contextlib.suppress(ClientError, TimeoutError):
                if user.conversation or await user.converse() == 201:
                    await user.say(f"Slowly #tokens=2 #delay={LATE_S}")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait(number)) for number in range(count)]
        yield
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def conversations(users: Traffic, name: str) -> AsyncIterator[None]:
    """Have somebody open conversations all the time, whatever becomes of them."""

    async def open_one() -> None:
        with contextlib.suppress(ClientError, TimeoutError):
            await users.users[name].converse()

    async with asyncio.TaskGroup() as group:

        async def go_on() -> None:
            while True:
                group.create_task(open_one())
                await asyncio.sleep(0.5)

        going = group.create_task(go_on())
        yield
        going.cancel()


async def slow_turn(users: Traffic) -> None:
    """Have an answer that takes half a minute, which may well be lost."""
    user = await User.of(users.site, users.keys["acme"], "dora")
    await user.converse()
    await user.say("Long #tokens=600 #rate=20")


@asynccontextmanager
async def waiting(users: Traffic, name: str) -> AsyncIterator[None]:
    """Have calls wait for room under a plan limit that is used up."""

    async def wait() -> None:
        while True:
            with contextlib.suppress(ClientError, TimeoutError):
                await users.users[name].converse()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait()) for _ in range(4)]
        yield
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def few_files(pid: int) -> AsyncIterator[None]:
    """Let a process have hardly more files than it has open, once it opens and closes no more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held = 0

    async def settled() -> bool:
        nonlocal held
        last, held = held, len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return abs(held - last) < 5

    await eventually(settled, "its files do not settle")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(held / 0.87), before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def pauses(redis: Redis) -> AsyncIterator[None]:
    """Have Redis answer nobody for moments."""

    async def pause() -> None:
        while True:
            await redis.call("CLIENT", "PAUSE", 200, "ALL")
            await asyncio.sleep(0.4)

    task = asyncio.create_task(pause())
    yield
    task.cancel()


@asynccontextmanager
async def throttled(pid: int) -> AsyncIterator[None]:
    """Take the CPU from a process for more than half of the time, as a quota does."""

    async def throttle() -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.45)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.3)
        finally:
            os.kill(pid, signal.SIGCONT)

    task = asyncio.create_task(throttle())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
