"""``deploy/systemd``: a unit that systemd takes and finds tight, whose command line serves with its settings."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession

from gateway.lifecycle import drain_longest_s
from gateway.settings import load
from gateway.simulator.server import Simulator, SimulatorSettings
from tests.conftest import VENDOR_KEY
from tests.test_commands import chat
from tests.transports.client import eventually

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SHIPPED / "hyperleap-gateway.service"
WITHIN_S = 60.0
LONG = "Hello #tokens=2 " + "and more " * 5
EXPOSURE_MAX = 1.5  # of 10, by systemd's own count

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt install systemd"
)


def unit() -> dict[str, list[str]]:
    """The lines of ``[Service]`` by their names, of which some stand more than once."""
    section = UNIT.read_text("utf-8").partition("\n[Service]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def written() -> dict[str, str]:
    """The variables of the environment file."""
    lines = (SHIPPED / "hyperleap-gateway.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(credentials: Path, state: Path, etc: Path) -> dict[str, str]:
    """What systemd gives the process: the unit's variables with their directories put in; the file's win over them."""
    found = {}
    for line in unit()["Environment"]:
        name, value = line.split("=", 1)
        found[name] = value.replace("%d", str(credentials)).replace("%S", str(state)).replace("%E", str(etc))
    return found | written() | {"CREDENTIALS_DIRECTORY": str(credentials)}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """Files in /etc, credentials as LoadCredential mounts them, one for each line of the unit, and the variables."""
    credentials, state, etc = tmp_path / "credentials", tmp_path / "state", tmp_path / "etc"
    for directory in (credentials, state, etc):
        directory.mkdir(mode=0o700)
    (configured,) = unit()["ConfigurationDirectory"]
    (etc / configured).mkdir()
    for name in ("gateway.toml", "tenants.toml"):
        shutil.copy(SHIPPED / name, etc / configured)
    for line in unit()["LoadCredential"]:
        name, source = line.split(":")
        assert source == f"/etc/{configured}/secrets/{name}"
        path = credentials / name
        path.write_text(VENDOR_KEY if name == "hyperleap-api-key" else secrets.token_hex(32))
        path.chmod(0o400)
    return environment(credentials, state, etc)


@needs_systemd
def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """systemd knows every line; only the program is put where there is one."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/opt/hyperleap-gateway/bin/hyperleap-gateway", "/bin/true"))
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


@needs_systemd
def test_unit_is_tight() -> None:
    """By systemd's own count what the service could do beyond its work is nearly nothing."""
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", told.stdout)
    assert found is not None, told.stderr
    assert float(found[1]) <= EXPOSURE_MAX, told.stdout


def test_service_has_time_to_drain(given: dict[str, str]) -> None:
    """The settings hold, and systemd kills nothing before the gateway would have ended itself."""
    settings = load(None, {name: value for name, value in given.items() if name != "CREDENTIALS_DIRECTORY"})
    service = unit()
    assert float(service["TimeoutStopSec"][0]) > drain_longest_s(settings)
    assert service["KillMode"] == ["mixed"]
    assert settings.server.workers is not None  # or a reload would have nobody to replace
    assert str(settings.server.data_dir).endswith(f"/{service['StateDirectory'][0]}")


def test_reload_is_what_changes_the_settings() -> None:
    """Nothing but paths is in the service's environment, which a reload cannot change and which wins over the TOML."""
    assert written() == {}
    ours = [line for line in unit()["Environment"] if line.startswith(("GATEWAY_", "HYPERLEAP_"))]
    assert ours == unit()["Environment"]
    assert all(re.search(r"_(FILE|DIR|CONFIG)=%[dSE]/", line) for line in ours)
    assert unit()["ConfigurationDirectoryMode"] == ["0755"]  # the service's user must read it at every reload


async def too_long(facts: dict[str, str], message: str) -> bool:
    """Whether a message is refused for its length."""
    async with ClientSession(facts["GATEWAY_URL"]) as http:
        bearer = {"Authorization": f"Bearer {facts['GATEWAY_SECRET_KEY']}"}
        async with http.post("/v1/sessions", json={"user_id": "ada"}, headers=bearer) as response:
            bearer = {"Authorization": f"Bearer {(await response.json())['token']}"}
        async with http.post("/v1/conversations", json={}, headers=bearer) as response:
            turns = f"/v1/conversations/{(await response.json())['id']}/turns"
        async with http.post(turns, json={"message": message}, headers=bearer) as response:
            assert response.status in (200, 400, 413, 422), await response.text()
            return response.status != 200


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_command_line_serves_reloads_and_drains(given: dict[str, str], tmp_path: Path) -> None:
    """ExecStart with what systemd gives it serves, a reload puts a changed TOML setting in force, SIGTERM ends well."""
    words = shlex.split(unit()["ExecStart"][0])
    assert words[0] == "/opt/hyperleap-gateway/bin/hyperleap-gateway"
    assert unit()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    env_file = tmp_path / "gateway.env"
    arguments = ("--port", "0", "--internal-port", "0", "--env-file", str(env_file))
    async with Simulator(SimulatorSettings(h2c=True, api_key=VENDOR_KEY)) as simulator:
        path = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", *words[1:], *arguments),
                env=given | path | {"HYPERLEAP_BASE_URL": simulator.url, "GATEWAY_DRAIN_NOTICE_S": "0"},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.umask(int(unit()["UMask"][0], 8)),
            )
        try:

            def ready() -> bool:
                assert process.returncode is None, (tmp_path / "log").read_text("utf-8", "replace")
                return env_file.exists()

            await eventually(ready, "the service to be ready", within_s=WITHIN_S)
            facts = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
            assert (await chat(facts, "Hello #tokens=2"))["finish_reason"] == "stop"
            assert not await too_long(facts, LONG)
            config = Path(given["GATEWAY_CONFIG"])
            changed = f"{config.read_text('utf-8')}\n[turns]\nmessage_max_chars = {len(LONG) - 1}\n"
            config.write_text(changed, "utf-8")
            process.send_signal(signal.SIGHUP)

            async def rolled() -> bool:
                async with ClientSession() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/metrics") as response:
                    return 'gateway_worker_rolls_total{outcome="done"} 1.0' in await response.text()

            await eventually(rolled, "the workers to be replaced", within_s=WITHIN_S)
            assert await too_long(facts, LONG)
            assert (await chat(facts, "Hello #tokens=2"))["finish_reason"] == "stop"
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WITHIN_S):
                assert await process.wait() == 0, (tmp_path / "log").read_text("utf-8", "replace")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
