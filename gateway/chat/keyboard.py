"""What is typed, line by line, whatever standard input is: a terminal, a pipe or a file."""

from __future__ import annotations

import asyncio
import codecs
import os
import threading
from collections.abc import Callable


class Keyboard:
    """Reads a file descriptor in a thread, since a loop cannot wait for all kinds of them.

    The thread reads from the system itself, not through Python's buffers: it may be left waiting when the process
    ends, and a buffer that it held would have the interpreter abort.
    """

    def __init__(self, fd: int, on_line: Callable[[str | None], None]) -> None:
        """``on_line`` is called in the loop with each line, without its end; with None, once, when there is no more."""
        self._fd = fd
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        while data := self._next():
            *lines, rest = (rest + decoder.decode(data)).split("\n")
            for line in lines:
                self._tell(line.removesuffix("\r"))
        if rest:
            self._tell(rest)
        self._tell(None)

    def _next(self) -> bytes:
        try:
            return os.read(self._fd, 65_536)
        except OSError:  # a terminal that has hung up
            return b""

    def _tell(self, line: str | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._on_line, line)
        except RuntimeError:  # the loop has ended, and the process is about to
            return
