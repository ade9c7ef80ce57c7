"""Runs ``hyperleap-gateway demo`` as a process of its own, as a newcomer would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 40.0
STOP_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the env file says of a running demo."""

    url: str
    internal_url: str
    publishable_key: str
    secret_key: str

    @property
    def entrance(self) -> str:
        """The link that the demo prints: the key is in the fragment, which is never sent."""
        return f"{self.url}/#key={self.publishable_key}"


@contextmanager
def running_demo(folder: Path, **settings: str) -> Iterator[Demo]:
    """Start the demo, with settings by their names and everything it keeps under ``folder``; end it with SIGTERM."""
    env_file, log = folder / "demo.env", folder / "demo.log"
    ports = ("--port", "0", "--internal-port", "0")
    command = [sys.executable, "-m", "gateway", "demo", *ports, "--env-file", str(env_file)]
    foreign = ("GATEWAY_", "HYPERLEAP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"GATEWAY_DATA_DIR": str(folder / "data"), **settings}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            yield _wait_for(env_file, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _wait_for(env_file: Path, process: subprocess.Popen[bytes], log: Path) -> Demo:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the demo ended with {process.returncode}:\n{_tail(log)}")
        if env_file.exists():
            facts = _read(env_file.read_text())
            if "GATEWAY_PUBLISHABLE_KEY" in facts:
                return Demo(
                    url=facts["GATEWAY_URL"],
                    internal_url=facts["GATEWAY_INTERNAL_URL"],
                    publishable_key=facts["GATEWAY_PUBLISHABLE_KEY"],
                    secret_key=facts["GATEWAY_SECRET_KEY"],
                )
        time.sleep(0.05)
    raise AssertionError(f"no env file after {START_S} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _read(text: str) -> dict[str, str]:
    """Read shell assignments, with or without ``export`` and quotes."""
    words = shlex.split(text, comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)
