"""Processes of a benchmark: started, watched and ended by their own pids, and what Linux tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
STOP_S: Final = 15.0  # for a process that was asked to end
_LINE_LIMIT_BYTES: Final = 64 * 1024 * 1024  # a result line carries every delay that was measured


class ProcessDied(Exception):
    """A process of the benchmark ended, or fell silent, when it should not have."""


class Child:
    """One process. Use as an async context manager: leaving it ends the process, whatever happened inside."""

    def __init__(self, name: str, command: list[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environ = environ
        self._process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environ,
                limit=_LINE_LIMIT_BYTES,
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then ends them in order
            )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        process = self._process
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def line(self, *, within_s: float) -> bytes:
        """Return the next line of its standard output; raises ProcessDied with the end of its log."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ProcessDied(f"{self.name} said nothing for {within_s:g} s\n{self._log_tail()}") from None
        if not line:
            raise ProcessDied(f"{self.name} ended\n{self._log_tail()}")
        return line

    def tell(self, word: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")

    async def ended(self, *, within_s: float) -> None:
        """Wait until it ends by itself."""
        async with asyncio.timeout(within_s):
            await self._process.wait()

    def _log_tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory of loops, as the gateway uses it, or asyncio's where there is none."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def cpu_s(pid: int) -> float:
    """CPU time that a process and its ended threads have used, user and system, in steps of 10 ms (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cpu_clock_s(pid: int) -> float:
    """The same in steps of a nanosecond, for windows in which 10 ms count (the clock of clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def children(pid: int) -> list[int]:
    """Pids of the processes below one, at any depth."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    level = {pid}
    while level:
        level = {one for one, parent in parents.items() if parent in level}
        found += level
    return found


def machine_busy_s() -> float:
    """CPU time that the whole machine has spent on anything but idling."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
