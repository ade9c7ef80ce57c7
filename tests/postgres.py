"""A PostgreSQL of the tests' own: started on a unix socket and a port of loopback, killed and started again at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

START_S: Final = 60.0
OWNER: Final = "owner"  # the superuser that initdb makes
PASSWORD: Final = "password-of-the-tests-that-no-log-may-show"
# No fsync: what PostgreSQL has said to be committed survives the death of its processes all the same.
OPTIONS: Final = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=40")


def binaries() -> Path:
    """Find the directory with initdb and postgres, or skip."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if all((place / name).exists() for name in ("initdb", "postgres")):
            return place
    pytest.skip("no PostgreSQL server on this machine (Debian: postgresql)")


class PostgresServer:
    """A cluster in a directory. ``open``, then URLs; ``aclose`` at the end."""

    def __init__(self, directory: Path) -> None:
        self._binaries = binaries()
        self._directory = directory
        self.port = 0
        self.options: list[str] = []  # of the next start, beside those that all have
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        # PostgreSQL refuses to run as root.
        user = next((name for name in ("postgres", "nobody") if os.geteuid() == 0 and _exists(name)), None)
        self._user: dict[str, Any] = (
            {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        )

    async def open(self) -> None:
        """Make the cluster and start it."""
        self._directory.mkdir(parents=True)
        if self._user:
            shutil.chown(self._directory, self._user["user"], self._user["group"])
        words = self._directory / "password"
        words.write_text(PASSWORD, "utf-8")
        command = (
            self._binaries / "initdb", "-D", self._directory / "data", "-U", OWNER, "--pwfile", words,
            "--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8", "--locale", "C",
        )  # fmt: skip

        def make() -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=START_S, **self._user)

        await asyncio.to_thread(make)
        self.port = _free_port()
        await self.start()

    async def start(self) -> None:
        """Start it, also after ``kill``, and wait until it answers."""
        options = [
            *OPTIONS,
            *self.options,
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            "unix_socket_directories=",
        ]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres", "-D", self._directory / "data",
                    *(part for option in options for part in ("-c", option)),
                ],
                stdout=log, stderr=log, cwd="/", start_new_session=True, **self._user,
            )  # fmt: skip
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection = await asyncpg.connect(self.url("postgres"))
                    await connection.close()
                    return
                assert self._process.poll() is None, (self._directory / "log").read_text("utf-8")[-2000:]
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """Kill it and all of its processes at once, as a machine that fails does."""
        assert self._process is not None
        children = self._children()
        self._process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """Stop all of its processes where they are: connections stay, nothing is answered."""
        assert self._process is not None
        self._paused = True
        for process in (self._process.pid, *self._children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._paused = False
        for process in (*self._children(), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self._process is not None
        if sys.platform != "linux":
            pytest.skip("finds the processes of PostgreSQL in /proc")
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]

    async def stop(self) -> None:
        """End it as its operator does: connections are cut, nothing is left to recover."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        await asyncio.to_thread(self._process.wait, START_S)

    def serve_tls(self, certificate: bytes, key: bytes) -> None:
        """Have the next start offer TLS."""
        for name, content in (("server.crt", certificate), ("server.key", key)):
            path = self._directory / "data" / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._user:
                shutil.chown(path, self._user["user"], self._user["group"])
        self.options.append("ssl=on")

    def make_standby(self) -> None:
        """Have the next start be that of a standby, which can be read only."""
        (self._directory / "data" / "standby.signal").touch()

    def url(self, database: str, *, user: str = OWNER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    async def database(self) -> str:
        """Make a database for one test, and return its name."""
        name = f"t_{uuid.uuid4().hex[:12]}"
        await self.execute("postgres", f'CREATE DATABASE "{name}"')
        return name

    async def execute(self, database: str, *statements: str) -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            for one in statements:
                await connection.execute(one)
        finally:
            await connection.close()

    async def fetch(self, database: str, query: str, *arguments: object) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.url(database))
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def aclose(self) -> None:
        if self._process is not None and self._process.poll() is None:
            if self._paused:
                self.resume()
            try:
                await self.stop()
            except subprocess.TimeoutExpired:
                self.kill()


@contextlib.asynccontextmanager
async def opened_postgres() -> AsyncIterator[PostgresServer]:
    """A server in a directory of its own, since pytest's are closed to the user that it runs as."""
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-", ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o711)
        server = PostgresServer(Path(root) / "cluster")
        try:
            await server.open()
            yield server
        finally:
            await server.aclose()


def _exists(user: str) -> bool:
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
