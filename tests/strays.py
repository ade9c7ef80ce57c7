"""Keys that no tenant and no reserved tag owns, among all that a run of the tests wrote, those long gone included.

Every server that the tests start with persistence (all that the gateway embeds do) keeps a log of its writes in its
directory: the commands as they took effect, scripts taken apart. They are read when the tests are over, so that
nothing has to be asked of a server that some test is breaking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

OWNED: Final = re.compile(rb"hg:\{(?:[a-z0-9-]{1,32}|_sys|_vendor\.[A-Za-z0-9_-]+)\}:.+", re.DOTALL)
TESTS_OWN: Final = b"test:"  # where a test writes a key for itself, it begins so
KEYLESS: Final = frozenset({b"SELECT", b"MULTI", b"EXEC", b"PUBLISH", b"SPUBLISH", b"FLUSHALL", b"FLUSHDB"})
ALL_KEYS: Final = frozenset({b"DEL", b"UNLINK"})  # of any other command the first argument is the key


def strays(directory: Path) -> dict[bytes, Path]:
    """Return the stray keys that were written below a directory, each with a log that has it."""
    found: dict[bytes, Path] = {}
    for log in sorted(directory.rglob("appendonlydir/*.aof")):
        for command in _commands(log.read_bytes()):
            for key in _keys(command):
                if OWNED.fullmatch(key) is None and not key.startswith(TESTS_OWN):
                    found.setdefault(key, log)
    return found


def _keys(command: list[bytes]) -> list[bytes]:
    name = command[0].upper()
    if name in KEYLESS:
        return []
    return command[1:] if name in ALL_KEYS else command[1:2]


def _commands(log: bytes) -> Iterator[list[bytes]]:
    """Read the commands of an append-only file; a last one that was cut short, as by a crash, is left out.

    Comments (``#TS:``) are passed over. What a file begins with in the binary form is of an earlier server's end.
    """
    at = 0
    while at < len(log):
        end = log.find(b"\r\n", at)
        if end < 0:
            return
        head = log[at:end]
        at = end + 2
        if head.startswith(b"#"):
            continue
        if not head.startswith(b"*"):
            return
        command = []
        for _ in range(int(head[1:])):
            end = log.find(b"\r\n", at)
            if end < 0:
                return
            size = int(log[at + 1 : end])
            command.append(log[end + 2 : end + 2 + size])
            at = end + 2 + size + 2
            if at > len(log):
                return
        yield command
