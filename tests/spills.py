"""Secrets in what a run of the tests produced: every answer, frame, scrape, log record, output and file is searched.

``watch`` looks on at the borders that all of it crosses: what any server of this process writes to its connections,
what any HTTP or WebSocket client of this process receives (from gateways in processes of their own, too), what is
logged, and what child processes print. Files that were left, logs and the stores' data among them, are read at the end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.client_proto import ResponseHandler

PIECE_BYTES: Final = 16 * 1024 * 1024
SECRET_FILES: Final = ("pepper", "signing-key")  # that a gateway makes in its data directory


def forms(secret: bytes) -> set[bytes]:
    """Return how a secret may look in an answer or a log: itself, hex, base64 at any offset, and escaped."""
    shapes = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for offset in range(3):
        padded = b"\0" * offset + secret
        whole = len(padded) // 3 * 3  # only what depends on nothing that may follow …
        inner = base64.b64encode(padded[:whole])[4 if offset else 0 :]  # … or came before
        shapes |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    shapes |= {b"".join(b"%%%02X" % byte for byte in secret), b"".join(b"%%%02x" % byte for byte in secret)}
    shapes.add(b"".join(b"\\u%04x" % byte for byte in secret))
    return shapes


class Spills:
    """What was found: which secret, where, and in which test."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self.found: list[str] = []
        self._shapes = {shape: name for name, secret in secrets.items() for shape in forms(secret)}
        self._longest = max(map(len, self._shapes))
        self._printed: list[tuple[str, bytes]] = []  # by processes whose own secrets are not known yet

    def search(self, data: bytes, where: str) -> None:
        for shape, name in self._shapes.items():
            if shape in data:
                self._note(f"{name} in {where}, during {_test()}")

    def follow(self, where: str) -> Callable[[bytes], None]:
        """Return what searches a stream piece by piece: a secret may lie across two of them."""
        tail = b""

        def piece(data: bytes) -> None:
            nonlocal tail
            seen = tail + data
            self.search(seen, where)
            tail = seen[-self._longest :]

        return piece

    def watch(self) -> None:
        """Look on from now on, in this process, to its end."""
        serve, receive = web.RequestHandler.connection_made, ResponseHandler.data_received
        told = asyncio.subprocess.SubprocessStreamProtocol.pipe_data_received
        spills = self

        def connection_made(self: web.RequestHandler, transport: asyncio.BaseTransport) -> None:
            _tap(transport, spills.follow("an answer"))
            serve(self, transport)

        def data_received(self: ResponseHandler, data: bytes) -> None:
            search = self.__dict__.get("spills")
            if search is None:
                search = self.__dict__["spills"] = spills.follow("what a client received")
            search(data)
            receive(self, data)

        def pipe_data_received(self: asyncio.subprocess.SubprocessStreamProtocol, fd: int, data: bytes | str) -> None:
            assert isinstance(data, bytes)
            spills.search(data, "the output of a process")
            spills._printed.append((_test(), data))
            told(self, fd, data)

        for owner, method in (
            (web.RequestHandler, connection_made),
            (ResponseHandler, data_received),
            (asyncio.subprocess.SubprocessStreamProtocol, pipe_data_received),
        ):
            setattr(owner, method.__name__, method)
        logging.getLogger().addHandler(_Reader(self))

    def search_files(self, directory: Path) -> None:
        """Read what was left below a directory, for the secrets that gateways made there for themselves, too."""
        for part in directory.iterdir():
            if part.is_symlink():  # pytest's, to the latest
                continue
            made = {
                f"the {path.name} made in {path.parent}": path.read_bytes().strip()
                for name in SECRET_FILES
                for path in part.rglob(name)
                if path.is_file()
            }
            shapes = {shape: name for name, secret in made.items() if len(secret) >= 16 for shape in forms(secret)}
            for test, data in self._printed:
                for shape, name in shapes.items():
                    if shape in data:
                        self._note(f"{name} in the output of a process, during {test}")
            for path in [part, *part.rglob("*")]:
                if path.is_file() and not path.is_symlink():
                    self._search_file(path, self._shapes | shapes)

    def _search_file(self, path: Path, shapes: Mapping[bytes, str]) -> None:
        longest = max(map(len, shapes))
        with path.open("rb") as file:
            data = file.read(PIECE_BYTES)
            if data.strip() in shapes:
                return  # a secret's own file
            while data:
                for shape, name in shapes.items():
                    if shape in data:
                        self._note(f"{name} in {path}")
                more = file.read(PIECE_BYTES)
                data = data[-longest:] + more if more else b""

    def _note(self, finding: str) -> None:
        if finding not in self.found:
            self.found.append(finding)


def _test() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "no test")


class _Reader(logging.Handler):
    """Searches records as they were made, before any redaction: words, fields, and errors with their causes."""

    def __init__(self, spills: Spills) -> None:
        super().__init__(logging.NOTSET)
        self._spills = spills

    def emit(self, record: logging.LogRecord) -> None:
        said = [record.getMessage(), repr(getattr(record, "fields", ""))]
        if record.exc_info and record.exc_info[1] is not None:
            said += traceback.format_exception(record.exc_info[1])
        self._spills.search("\n".join(said).encode("utf-8", "backslashreplace"), "a log record")


def _tap(transport: Any, search: Callable[[bytes], None]) -> None:
    """Have all that is written to a connection searched first."""
    write, write_lines = transport.write, transport.writelines

    def searched_write(data: bytes) -> None:
        search(bytes(data))
        write(data)

    def searched_lines(lines: Iterable[bytes]) -> None:
        parts = list(lines)
        search(b"".join(parts))
        write_lines(parts)

    with contextlib.suppress(AttributeError):  # uvloop's take none; what the clients there receive is searched
        transport.write, transport.writelines = searched_write, searched_lines
