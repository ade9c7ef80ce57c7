"""A file of lines that several processes append to, and that may be moved away and begun anew meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path


class LineFile(logging.Handler):
    """Appends each record as one line, whole, by one write; readable by its owner and group only.

    A file that is moved or deleted (by logrotate) is noticed at the next line, which begins a new one.
    """

    def __init__(self, path: Path, otherwise: Callable[[logging.LogRecord], None]) -> None:
        """Raises OSError where it cannot be opened. ``otherwise`` takes the records that cannot be written later."""
        super().__init__()
        self._path = path
        self._otherwise = otherwise
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            self._follow()
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the line was written in part")
        except Exception:  # a full disk: it must not be lost for that
            self._otherwise(record)

    def _follow(self) -> None:
        """Open the file anew where the path leads elsewhere by now."""
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            fresh = self._open()
            os.close(self._descriptor)
            self._descriptor = fresh

    def close(self) -> None:
        self.acquire()
        try:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        finally:
            self.release()
        super().close()
