"""`simulate` as a child process, as a parent would run it."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gateway.simulator.command import simulate
from gateway.simulator.faults import FaultName


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_simulate_prints_ready_and_stops_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    """The child says where it listens, on its output and in the file, serves, and ends cleanly on either signal."""
    ca_file, ready_file = tmp_path / "ca.pem", tmp_path / "ready"
    options = [
        "--port",
        "0",
        "--api-key",
        "k1",
        "--rate",
        "0",
        "--fault",
        "500@1000",
        "--data-dir",
        str(tmp_path / "d"),
    ]
    options += ["--ca-file", str(ca_file), "--ready-file", str(ready_file)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.simulator.command", *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = ""
    async with asyncio.timeout(20):
        while not url:
            line = (await process.stdout.readline()).decode()
            assert line, "the child ended early"
            if line.startswith("ready "):
                url = line.split()[1]
    assert ready_file.read_text() == f"{url}\n"
    verify = ssl.create_default_context(cafile=str(ca_file))
    async with httpx.AsyncClient(http2=True, verify=verify, headers={"x-hl-api-key": "k1"}) as http:
        assert (await http.get(f"{url}/conversations")).json() == {"data": [], "continuationToken": None}
    process.send_signal(number)
    async with asyncio.timeout(10):
        assert await process.wait() == 0


def test_simulate_list_faults_names_all() -> None:
    """Every fault is explained on the command line."""
    result = CliRunner().invoke(simulate, ["--list-faults"])
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.output.splitlines()} == set(FaultName)


@pytest.mark.parametrize(
    "options", [["--fault", "nope"], ["--fault", "stall:x"], ["--rate", "-1"], ["--api-key", ""], ["--port", "70000"]]
)
def test_simulate_bad_option_is_a_usage_error(options: list[str]) -> None:
    """What cannot be is refused before anything starts, in words."""
    result = CliRunner().invoke(simulate, options)
    assert result.exit_code == 2
    assert "Error" in result.output


def test_simulate_port_taken_is_a_clear_error() -> None:
    """A port in use ends the command with a sentence, not a traceback."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(simulate, ["--port", str(taken.getsockname()[1]), "--h2c"])
    assert result.exit_code == 1
    assert "cannot listen on 127.0.0.1" in result.output
