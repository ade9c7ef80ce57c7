"""A terminal with ``hyperleap-gateway chat`` in it, and a way to the gateway that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import sys
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

PATIENCE_S = 10.0
CTRL_C, CTRL_D = "\x03", "\x04"
_STYLE = re.compile(r"\x1b\[\d*m")


class Terminal:
    """A pseudo-terminal whose one process is the command."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self._process = process
        self._stirred = asyncio.Event()
        self.raw = b""
        self._seen = 0  # up to where `until` has looked
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # how Linux tells that the other end is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.raw += data
        self._stirred.set()

    @property
    def text(self) -> str:
        """All that was shown, without styles and with plain line ends."""
        return _STYLE.sub("", self.raw.decode("utf-8", "replace")).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def until(self, words: str) -> str:
        """Wait for words after those that were waited for before; return what came up to them."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (at := self.text.find(words, self._seen)) < 0:
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            raise AssertionError(f"{words!r} did not come; there is {self.text!r}") from None
        came = self.text[self._seen : at]
        self._seen = at + len(words)
        return came

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without what a gateway or a terminal would take from it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "HYPERLEAP_"))}
    return {**kept, "TERM": "xterm", **environ}


@contextlib.asynccontextmanager
async def terminal(*arguments: str, **environ: str) -> AsyncIterator[Terminal]:
    """Run ``chat`` in a terminal of its own; it ends with the context."""
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "chat", *arguments),
        env=environment(environ),
        preexec_fn=lambda: os.login_tty(slave),
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


class Way:
    """Passes bytes to a gateway, and can be cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.passes = True
        self.bytes_down = 0

    async def __aenter__(self) -> Way:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Abort every connection, in both directions."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.passes:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(*self._to)
        self._writers |= {writer, back}
        loop = asyncio.get_running_loop()
        for one in (self._pass(reader, back, down=False), self._pass(there, writer, down=True)):
            task = loop.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                self.bytes_down += down * len(data)
                await writer.drain()
        writer.transport.abort()
