"""What a gateway of the tests has logged, line by line."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

from gateway.options import LoggingSettings
from gateway.telemetry import audit
from gateway.telemetry.logging import QUIET, configure

Line = dict[str, Any]


class Log:
    """What was logged, in all and by event."""

    def __init__(self, stream: io.StringIO) -> None:
        self.stream = stream

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.text.splitlines()]

    def named(self, event: str, **facts: object) -> list[Line]:
        """Return the lines of an event that have these fields."""
        return [line for line in self.lines if line["event"] == event and facts.items() <= line.items()]

    def one(self, event: str) -> Line:
        """Return the only line of an event."""
        (line,) = self.named(event)
        return line


@contextlib.contextmanager
def listening() -> Iterator[Log]:
    """Listen as a gateway's own log does, from here on."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in QUIET}
    stream = io.StringIO()
    configure(LoggingSettings(format="json"), stream=stream)
    audit.flush()  # of what tests before this one brought about
    stream.truncate(stream.seek(0))
    try:
        yield Log(stream)
    finally:
        configure(LoggingSettings(), stream=io.StringIO())
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
