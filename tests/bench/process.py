"""Processes of a benchmark: started, watched and ended by their own pids, and what Linux tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
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

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        *,
        directory: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environ = environ
        self._directory = directory
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
                cwd=self._directory,
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

    def expect_alive(self) -> None:
        """Raise ProcessDied with the end of its log if it has ended."""
        if self._process.returncode is not None:
            raise ProcessDied(f"{self.name} ended\n{self._log_tail()}")

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


def cpu_clock_s(pid: int) -> float:
    """CPU time that a process and its ended threads have used, user and system (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def cpu_of_all_s(pids: Iterable[int]) -> float:
    """The same of several processes, with what their ended children had used (in ticks, proc(5)).

    A process that has ended since it was found counts with its parent, which has waited for it.
    """
    used = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += cpu_clock_s(pid) + (int(fields[13]) + int(fields[14])) / TICKS_PER_S
    return used


def resident_bytes(pid: int) -> int:
    """Memory of a process; none of one that has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return 0


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


def tree(pid: int) -> list[int]:
    """A process and every one below it."""
    return [pid, *children(pid)]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, for programs that must be told theirs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine_busy_s() -> float:
    """CPU time that the whole machine has spent on anything but idling."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
