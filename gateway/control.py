"""The line between a supervisor and one worker: a socket pair with lines both ways, and listening sockets down.

| down | | up | |
| --- | --- | --- | --- |
| ``launch <json>`` | what to run, secrets included: never on a command line | ``prepared`` | all but the port is up |
| ``listen`` (with the slot's socket) | serve it | ``ready`` | the port is served |
| ``adopt`` (with a connection) | serve what waited for a worker that died | ``failed <json>`` | why it cannot start |
| ``replaced`` | another worker has the slot; SIGTERM follows | | |
| ``worker_lost <id>`` | that worker died in the middle of its turns | | |

Either end learns from the line's end that the other process is gone, however it went.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

READ_BYTES = 65_536
DESCRIPTORS_MAX = 64  # in one read; a line brings one, and Linux ends a read after such a line


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its start. The rest comes from its environment and from the files that are named."""

    slot: int
    worker_id: str
    config: str | None  # the TOML file, read anew by every worker
    overrides: dict[str, Any]  # settings by dotted key, as the command line gave them
    redis_url: str
    embedded: bool  # the store is the supervisor's own and ends with it
    made_secrets: bool
    url: str  # under which the public port answers
    internal_socket: str  # where to serve the internal application


class Control:
    """One end of the line. Not thread-safe; ``open`` on the event loop's thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._unread = b""
        self._descriptors: list[int] = []

    def open(self, on_line: Callable[[str, str], None], on_close: Callable[[], None]) -> None:
        """Call ``on_line(word, rest)`` for every line from now on, and ``on_close`` once when the other end is gone."""
        self._on_line, self._on_close = on_line, on_close
        self._loop.add_reader(self._end.fileno(), self._read)

    def tell(self, word: str, rest: str = "", *, descriptor: int | None = None) -> None:
        """Send a line, and a descriptor with it. A line to a process that is gone or stands still is dropped."""
        line = f"{word} {rest}".strip().encode() + b"\n"
        # The buffer holds far more than a worker is ever told, so a line is sent whole or not at all.
        with suppress(BlockingIOError, ConnectionError, OSError):
            if descriptor is None:
                self._end.send(line)
            else:
                socket.send_fds(self._end, [line], [descriptor])

    def descriptor(self) -> int:
        """Take the oldest descriptor that came; it was sent with a line, so it is here when the line is."""
        return self._descriptors.pop(0)

    def close(self) -> None:
        """Safe to repeat."""
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, READ_BYTES, DESCRIPTORS_MAX)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        if not data:
            self.close()
            self._on_close()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            self._on_line(word, rest)
