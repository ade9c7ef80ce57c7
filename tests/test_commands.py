"""The commands, as a newcomer runs them: real processes, real signals, real ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.simulator.server import Simulator, SimulatorSettings
from gateway.store.embedded import find_servers
from tests.conftest import PERSONA_ID, VENDOR_KEY

STEP_S = 20.0  # far beyond what any step takes; only a hang reaches it


class Command:
    """A running ``hyperleap-gateway`` with its output."""

    def __init__(self, process: asyncio.subprocess.Process, env_file: Path) -> None:
        self.process = process
        self._env_file = env_file

    async def facts(self) -> dict[str, str]:
        """Wait for the env file and read it as a shell would."""
        async with asyncio.timeout(STEP_S):
            while not self._env_file.exists():
                if self.process.returncode is not None:
                    raise AssertionError((await self.finish())[1])
                await asyncio.sleep(0.02)
        words = shlex.split(self._env_file.read_text("utf-8"))
        return dict(word.split("=", 1) for word in words)

    async def shown(self) -> str:
        """Wait for all that a demo prints at its start."""
        assert self.process.stdout is not None
        text = b""
        async with asyncio.timeout(STEP_S):
            while b"Metrics" not in text:
                text += await self.process.stdout.readline()
        return text.decode()

    async def finish(self) -> tuple[str, str]:
        async with asyncio.timeout(STEP_S):
            out, err = await self.process.communicate()
        return out.decode(), err.decode()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        self.process.send_signal(number)
        return await self.finish()


@contextlib.asynccontextmanager
async def run(tmp_path: Path, *arguments: str, **environ: str) -> AsyncIterator[Command]:
    env_file = tmp_path / "gateway.env"
    env_file.unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "HYPERLEAP_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        env=clean | {"GATEWAY_DATA_DIR": str(tmp_path / "data")} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Command(process, env_file)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def ports(tmp_path: Path) -> tuple[str, ...]:
    return ("--port", "0", "--internal-port", "0", "--env-file", str(tmp_path / "gateway.env"))


def descendants(pid: int) -> set[int]:
    """The living processes below one, read off /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent == pid or parent in found} - found:
        found |= more
    return found


async def gone(pids: set[int]) -> None:
    """Wait until none of these processes runs."""

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    async with asyncio.timeout(STEP_S):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)


async def chat(facts: dict[str, str], message: str, user: str = "ada") -> dict[str, Any]:
    """Do what a client does: open a session with the secret key, a conversation, and one turn; return its ending."""
    url = facts["GATEWAY_URL"]
    async with ClientSession() as http:
        headers = {"Authorization": f"Bearer {facts['GATEWAY_SECRET_KEY']}"}
        async with http.post(f"{url}/v1/sessions", json={"user_id": user}, headers=headers) as response:
            assert response.status == 201, await response.text()
            token = (await response.json())["token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with http.post(f"{url}/v1/conversations", json={}, headers=headers) as response:
            conversation = (await response.json())["id"]
        async with http.post(
            f"{url}/v1/conversations/{conversation}/turns", json={"message": message}, headers=headers
        ) as response:
            assert response.status == 200, await response.text()
            ending: dict[str, Any] = await response.json()
        return ending | {"token": token, "conversation": conversation}


def store_pid(tmp_path: Path) -> int:
    """The process of a demo's embedded server."""
    return int(json.loads((tmp_path / "data" / "demo" / "valkey.json").read_bytes())["pid"])


async def kill_store(tmp_path: Path) -> None:
    """``kill -9`` the embedded server, and wait for the next one to answer."""
    killed = store_pid(tmp_path)
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(STEP_S):
        while store_pid(tmp_path) == killed:
            await asyncio.sleep(0.01)


async def checks(facts: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Return what ``/readyz`` tells; whether workers hear each other again is waited for elsewhere."""
    async with ClientSession() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/readyz") as response:
        told: dict[str, str] = (await response.json())["checks"]
        assert told.pop("peers") in ("ok", "deaf")
        return response.status, told


async def turn_runs(facts: dict[str, str]) -> None:
    """Wait until a turn is being answered."""
    async with asyncio.timeout(STEP_S), ClientSession() as http:
        text = ""
        while not re.search(r"^gateway_turns_live\{.*\} 1", text, re.MULTILINE):
            async with http.get(f"{facts['GATEWAY_INTERNAL_URL']}/metrics") as response:
                text = await response.text()


async def replay(facts: dict[str, str], ending: dict[str, Any]) -> dict[str, Any]:
    """Read a turn's log from its beginning to its ending, and return that."""
    headers = {"Authorization": f"Bearer {ending['token']}"}
    async with (
        ClientSession() as http,
        http.get(f"{facts['GATEWAY_URL']}/v1/turns/{ending['turn_id']}/events", headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        body = (await response.read()).decode()
    assert body.count("event: turn.completed") == 1
    last: dict[str, Any] = json.loads(body.strip().rpartition("data: ")[2])
    return last


async def transcript(facts: dict[str, str], ending: dict[str, Any]) -> list[str]:
    """Read what was said in a conversation."""
    headers = {"Authorization": f"Bearer {ending['token']}"}
    async with (
        ClientSession() as http,
        http.get(f"{facts['GATEWAY_URL']}/v1/conversations/{ending['conversation']}", headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        return [message["content"] for message in (await response.json())["messages"]]


def logged(err: str, *names: str) -> list[dict[str, Any]]:
    """The events of these names on standard error, in order."""
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return [event for event in events if event["event"] in names]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_demo_ended_by_a_signal_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """The demo answers a chat, prints what to paste, and ends every child on Ctrl-C and on SIGTERM."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0") as command:
        facts = await command.facts()
        assert set(facts) == {
            "GATEWAY_URL",
            "GATEWAY_INTERNAL_URL",
            "GATEWAY_SECRET_KEY",
            "GATEWAY_PUBLISHABLE_KEY",
            "GATEWAY_REDIS_URL",
            "SIMULATOR_URL",
            "SIMULATOR_CA",
        }
        assert (await chat(facts, "Hello"))["event"] == "turn.completed"
        children = descendants(command.process.pid)
        assert len(children) >= 2  # the simulator and the store
        out, err = await command.end(number)
        assert command.process.returncode == 0, err
        await gone(children)
        assert f"{facts['GATEWAY_URL']}/#key={facts['GATEWAY_PUBLISHABLE_KEY']}" in out
        assert "curl -N" in out
        assert "websocat" in out


async def test_demo_killed_outright_leaves_no_process(tmp_path: Path) -> None:
    """Even SIGKILL of the demo leaves neither the store nor the stand-in behind."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        await command.facts()
        children = descendants(command.process.pid)
        command.process.kill()
        await command.process.wait()
        await gone(children)


async def test_demo_pasted_curl_line_streams_an_answer(tmp_path: Path) -> None:
    """The curl line that the demo prints works as it stands."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0") as command:
        await command.facts()
        line = re.search(r"curl -N .*?'\{.*?\}'", await command.shown(), re.DOTALL)
        assert line is not None
        words = shlex.split(line[0].replace("\\\n", " "))
        url = next(word for word in words if word.startswith("http"))
        headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
        async with ClientSession() as http, http.post(url, data=words[-1].encode(), headers=headers) as response:
            assert response.status == 200
            assert b"event: turn.completed" in await response.read()


async def test_env_file_is_private_and_replaces_its_keys_at_each_start(tmp_path: Path) -> None:
    """The env file is readable by its owner only; the next start's keys work and the former ones do not."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        first = await command.facts()
        assert stat.S_IMODE((tmp_path / "gateway.env").stat().st_mode) == 0o600
        await command.end()
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        second = await command.facts()
        assert second["GATEWAY_SECRET_KEY"] != first["GATEWAY_SECRET_KEY"]
        async with ClientSession() as http:
            for key, status in ((first["GATEWAY_SECRET_KEY"], 401), (second["GATEWAY_SECRET_KEY"], 201)):
                async with http.post(
                    f"{second['GATEWAY_URL']}/v1/sessions",
                    json={"user_id": "ada"},
                    headers={"Authorization": f"Bearer {key}"},
                ) as response:
                    assert response.status == status


async def test_start_from_a_shell_that_sourced_the_env_file_is_like_any_other(tmp_path: Path) -> None:
    """The facts of an earlier start in the environment do not keep the next one from its own store."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0") as command:
        first = await command.facts()
        await command.end()
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0", **first) as command:
        assert (await chat(await command.facts(), "Hello"))["event"] == "turn.completed"
        await command.end()


async def test_finished_answer_after_a_restart_is_replayed(tmp_path: Path) -> None:
    """A turn that ended before the gateway was stopped is replayed by the next one, from the same store."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0") as command:
        first = await command.facts()
        ending = await chat(first, "Hello")
        await command.end()
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        assert (await replay(await command.facts(), ending))["text"] == ending["text"]


async def test_serve_first_start_prints_keys_once(tmp_path: Path) -> None:
    """``serve`` against an upstream chats with its default persona; the keys are shown by the first start alone."""
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY, rate_per_s=0)) as upstream:
        environ = {
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "HYPERLEAP_PERSONA_ID": PERSONA_ID,
            "HYPERLEAP_BASE_URL": upstream.url,
            "HYPERLEAP_CA_FILE": str(upstream.ca_file),
        }
        outputs = []
        for _ in range(2):
            async with run(tmp_path, "serve", "--port", "0", "--internal-port", "0", **environ) as command:
                assert command.process.stdout is not None
                async with asyncio.timeout(STEP_S):
                    line = (await command.process.stdout.readline()).decode()
                out, err = await command.end()
                assert command.process.returncode == 0, err
                assert VENDOR_KEY not in line + out + err
                outputs.append(line + out)
        first, second = outputs
        key = re.search(r"hgs_default\.\S+", first)
        assert key is not None
        assert "hgp_default." in first
        assert "hgs_" not in second
        async with run(tmp_path, "serve", *ports(tmp_path), **environ) as command:
            facts = await command.facts()
            for secret_key in (key[0], facts["GATEWAY_SECRET_KEY"]):
                ending = await chat(facts | {"GATEWAY_SECRET_KEY": secret_key}, "Hello")
                assert ending["event"] == "turn.completed"
            await command.end()


async def test_serve_key_from_a_mounted_file_over_h2c_chats(tmp_path: Path) -> None:
    """The vendor key may come from a file, and the upstream may be cleartext HTTP/2 by prior knowledge."""
    (tmp_path / "key").write_text(VENDOR_KEY + "\n", "utf-8")
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY, rate_per_s=0, h2c=True)) as upstream:
        environ = {
            "HYPERLEAP_API_KEY_FILE": str(tmp_path / "key"),
            "HYPERLEAP_PERSONA_ID": PERSONA_ID,
            "HYPERLEAP_BASE_URL": upstream.url,
        }
        async with run(tmp_path, "serve", *ports(tmp_path), **environ) as command:
            assert (await chat(await command.facts(), "Hello"))["event"] == "turn.completed"
            await command.end()


async def test_serve_with_a_redis_of_ones_own_needs_pepper_and_signing_key(tmp_path: Path, store_url: str) -> None:
    """With a shared Redis the secrets must be given, and the start says which and how to make one."""
    environ = {"HYPERLEAP_API_KEY": VENDOR_KEY, "HYPERLEAP_PERSONA_ID": PERSONA_ID, "GATEWAY_REDIS_URL": store_url}
    async with run(tmp_path, "serve", "--port", "0", "--internal-port", "0", **environ) as command:
        _, err = await command.finish()
        assert command.process.returncode == 1
        assert "GATEWAY_PEPPER_FILE" in err
        assert "openssl rand" in err


async def test_turn_in_flight_at_sigterm_ends_honestly_within_the_drain(tmp_path: Path) -> None:
    """A turn that outlasts the drain is stopped with reason ``shutdown``, and its reader is told."""
    async with (
        run(tmp_path, "demo", *ports(tmp_path), "--rate", "20", GATEWAY_DRAIN_S="0.5") as command,
        ClientSession() as http,
    ):
        facts = await command.facts()
        ending = await chat(facts, "Hello #rate=0")
        headers = {"Authorization": f"Bearer {ending['token']}", "Accept": "text/event-stream"}
        async with http.post(
            f"{facts['GATEWAY_URL']}/v1/conversations/{ending['conversation']}/turns",
            json={"message": "Long #tokens=2000"},
            headers=headers,
        ) as response:
            body = await response.content.readuntil(b"event: message.delta")
            command.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STEP_S):
                body += await response.content.read()
        await command.finish()
        assert command.process.returncode == 0
        last = body.decode().strip().split("\n\n")[-1]
        assert "event: turn.stopped" in last
        assert '"reason":"shutdown"' in last


async def test_check_unreachable_upstream_fails_without_showing_the_key(tmp_path: Path) -> None:
    """``check`` prints the effective settings with secrets masked, and its status says whether all can be reached."""
    environ = {"HYPERLEAP_API_KEY": VENDOR_KEY, "HYPERLEAP_PERSONA_ID": PERSONA_ID}
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY)) as upstream:
        good = environ | {"HYPERLEAP_BASE_URL": upstream.url, "HYPERLEAP_CA_FILE": str(upstream.ca_file)}
        async with run(tmp_path, "check", **good) as command:
            out, err = await command.finish()
            assert command.process.returncode == 0, out + err
            assert "ALPN h2" in out
            assert "upstream.base_url" in out
            assert "redis.timeout_s" not in out
        async with run(tmp_path, "check", "--all", **good) as command:
            assert "redis.timeout_s" in (await command.finish())[0]
        assert upstream.bill.runs == []
    async with run(tmp_path, "check", **environ, HYPERLEAP_BASE_URL="https://127.0.0.1:9") as command:
        out, err = await command.finish()
        assert command.process.returncode == 1
        assert "upstream" in out
        assert VENDOR_KEY not in out + err


async def test_check_shows_each_vendor_key_by_its_label_and_never_the_key(tmp_path: Path) -> None:
    """``check`` says of every key that a tenant uses where it is and whether it can be read, and fails where not."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "acme").write_text(VENDOR_KEY)
    config = tmp_path / "gateway.toml"
    config.write_text(
        f"""
[vendor_keys.acme]
plan_limit = "1,000/h"
[tenants.acme]
vendor_keys = ["acme", "acme-2"]
personas.default.persona_id = "{PERSONA_ID}"
[tenants.umbrella]
vendor_keys = ["acme"]
personas.default.persona_id = "{PERSONA_ID}"
""",
        "utf-8",
    )
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY, h2c=True)) as upstream:
        environ = {"HYPERLEAP_KEYS_DIR": str(keys), "HYPERLEAP_BASE_URL": upstream.url}
        async with run(tmp_path, "check", "--config", str(config), **environ) as command:
            out, err = await command.finish()
        assert command.process.returncode == 1
        assert f"ok    vendor key acme: {keys / 'acme'} can be read, plan limit 1000/h (tenants: acme, umbrella)" in out
        assert "FAIL  vendor key acme-2: HYPERLEAP_KEYS_DIR: cannot read" in out
        assert VENDOR_KEY not in out + err
        async with run(tmp_path, "serve", "--config", str(config), "--port", "0", **environ) as command:
            out, err = await command.finish()
        assert command.process.returncode == 1
        assert "tenants.acme.vendor_keys: key acme-2" in err
        (keys / "acme-2").write_text("another-vendor-key\n")
        async with run(tmp_path, "check", "--config", str(config), **environ) as command:
            out, err = await command.finish()
        assert command.process.returncode == 0, out + err
        assert "vendor key default" not in out
        assert VENDOR_KEY not in out + err


async def test_check_bad_tenants_file_fails_by_tenant_and_field(tmp_path: Path) -> None:
    """``check`` and a start name what is wrong with a tenants file; ``check`` lists the tenants of a good one."""
    path = tmp_path / "tenants.toml"
    environ = {
        "HYPERLEAP_API_KEY": VENDOR_KEY,
        "HYPERLEAP_BASE_URL": "https://127.0.0.1:9",
        "GATEWAY_TENANTS_FILE": str(path),
    }
    path.write_text(f"[tenants.acme.personas.default]\npersona_id = '{PERSONA_ID}'\n")
    async with run(tmp_path, "check", **environ) as command:
        out, _ = await command.finish()
        assert "ok    tenants: acme" in out
    path.write_text("[tenants.acme.personas.default]\npersona_id = 'nonsense'\n")
    for words in (("check",), ("serve", *ports(tmp_path)), ("serve", "--workers", "1", *ports(tmp_path))):
        async with run(tmp_path, *words, **environ) as command:
            out, err = await command.finish()
            assert command.process.returncode == 1
            assert "tenants.toml: tenants.acme.personas.default.persona_id: 'nonsense' is not a UUID" in out + err


async def test_start_with_a_weak_admin_token_is_refused(tmp_path: Path) -> None:
    """An admin token that could be guessed, or a file that is not there, is no admin token."""
    environ = {"HYPERLEAP_API_KEY": VENDOR_KEY, "GATEWAY_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
    for content in (None, "short", "a" * 64):
        if content is not None:
            (tmp_path / "token").write_text(content)
        async with run(tmp_path, "serve", *ports(tmp_path), **environ) as command:
            _, err = await command.finish()
            assert command.process.returncode == 1
            assert "GATEWAY_ADMIN_TOKEN_FILE" in err


async def test_settings_with_a_typo_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """A misspelt variable stops the start and names the one that was meant."""
    async with run(tmp_path, "check", HYPERLEAP_API_KEY=VENDOR_KEY, GATEWAY_PROT="1") as command:
        _, err = await command.finish()
        assert command.process.returncode == 1
        assert "GATEWAY_PROT" in err
        assert "GATEWAY_PORT" in err


async def test_second_gateway_in_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    """Two gateways never share one embedded store: the second says why it does not start."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as first:
        await first.facts()
        async with run(tmp_path / ".." / tmp_path.name, "demo", "--port", "0", "--internal-port", "0") as second:
            _, err = await second.finish()
            assert second.process.returncode == 1
            assert "in use" in err
        await first.end()


# --- the embedded store dies --------------------------------------------------------------------------------------


async def test_store_killed_is_restarted_and_nothing_is_lost(tmp_path: Path) -> None:
    """``kill -9`` of the embedded server: turns in flight go on, what was said stays, new turns work."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "0") as command:
        facts = await command.facts()
        await command.shown()
        done = await chat(facts, "Hello")
        said = await transcript(facts, done)
        in_flight = asyncio.create_task(chat(facts, "Tell me #tokens=120 #rate=60", user="bob"))
        await turn_runs(facts)
        await kill_store(tmp_path)
        assert not in_flight.done()
        assert await checks(facts) == (200, {"worker": "ok", "store": "ok"})
        assert (await replay(facts, done))["text"] == done["text"]
        assert await transcript(facts, done) == said
        went_on = await in_flight
        assert went_on["event"] == "turn.completed"
        assert (await replay(facts, went_on))["text"] == went_on["text"]
        assert (await transcript(facts, went_on))[1] == went_on["text"]
        assert (await chat(facts, "Hello again"))["event"] == "turn.completed"
        children = descendants(command.process.pid)
        _, err = await command.end()
        assert command.process.returncode == 0, err
        await gone(children)
    died, restarted = logged(err, "store.died", "store.restarted", "store.lost")
    assert "status -9" in died["reason"]
    assert 0 < restarted["duration_s"] < STEP_S


async def test_store_restarted_does_not_outlive_a_gateway_that_is_killed(tmp_path: Path) -> None:
    """The second server is as bound to its gateway as the first."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        await command.facts()
        await command.shown()
        await kill_store(tmp_path)
        children = descendants(command.process.pid)
        assert store_pid(tmp_path) in children
        command.process.kill()
        await command.process.wait()
        await gone(children)


async def test_store_that_is_long_in_coming_back_shows_in_readiness(tmp_path: Path) -> None:
    """While the next server loads, the gateway lives and is not ready; told to end meanwhile, it leaves no process."""
    slow = tmp_path / "slow"
    server = tmp_path / "bin" / "valkey-server"
    server.parent.mkdir()
    real = shlex.quote(str(find_servers()[0].path))
    server.write_text(f'#!/bin/sh\nwhile [ -e {shlex.quote(str(slow))} ]; do sleep 0.02; done\nexec {real} "$@"\n')
    server.chmod(0o755)
    path = f"{server.parent}{os.pathsep}{os.environ['PATH']}"
    async with run(tmp_path, "demo", *ports(tmp_path), PATH=path) as command:
        facts = await command.facts()
        await command.shown()
        for _ in range(2):
            slow.touch()
            killed = store_pid(tmp_path)
            os.kill(killed, signal.SIGKILL)
            await gone({killed})
            assert await checks(facts) == (503, {"worker": "ok", "store": "store_unavailable"})
            async with ClientSession() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/livez") as response:
                assert response.status == 200
            slow.unlink()
            async with asyncio.timeout(STEP_S):
                while (await checks(facts))[0] != 200:
                    await asyncio.sleep(0.02)
        slow.touch()
        os.kill(store_pid(tmp_path), signal.SIGKILL)
        await asyncio.sleep(0.1)
        children = descendants(command.process.pid)
        _, err = await command.end()
        assert command.process.returncode == 0, err
        await gone(children)


@pytest.mark.slow
async def test_store_killed_again_and_again_ends_the_gateway(tmp_path: Path) -> None:
    """After five restarts within a minute the next death ends the gateway, which says so and leaves no process."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        await command.facts()
        await command.shown()
        for _ in range(5):
            await kill_store(tmp_path)
        children = descendants(command.process.pid)
        os.kill(store_pid(tmp_path), signal.SIGKILL)
        _, err = await command.finish()
        assert command.process.returncode == 1
        await gone(children)
    assert re.search(r"^Error: gave up after 5 restarts: the embedded Valkey exited with status -9", err, re.MULTILINE)
    assert [event["event"] for event in logged(err, "store.died", "store.restarted", "store.lost")] == [
        *("store.died", "store.restarted") * 5,
        "store.died",
        "store.lost",
    ]


@pytest.mark.slow
async def test_store_that_cannot_load_its_data_ends_the_gateway(tmp_path: Path) -> None:
    """When the data is broken beyond what a crash does, the gateway ends with the server's own words."""
    async with run(tmp_path, "demo", *ports(tmp_path)) as command:
        await command.facts()
        await command.shown()
        (manifest,) = (tmp_path / "data" / "demo" / "valkey" / "appendonlydir").glob("*.manifest")
        manifest.write_text("nonsense\n")
        os.kill(store_pid(tmp_path), signal.SIGKILL)
        _, err = await command.finish()
        assert command.process.returncode == 1
    assert re.search(r"(?i)^Error: gave up after 5 restarts: .*did not start: .*manifest", err, re.MULTILINE)
