"""Node with the client as the gateway serves it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

SCENES = Path(__file__).parent / "scenes.mjs"
NPM = Path(__file__).parents[1] / "npm"

Play = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("no Node: install Node.js 20 or later")
    return found


def npm(package: str) -> Path:
    """Return the folder of a package of ``tests/npm``."""
    folder = NPM / "node_modules" / package
    if not folder.is_dir():
        pytest.skip("no npm packages: run `npm ci --prefix tests/npm`")
    return folder


@pytest.fixture
def play(node: str, tmp_path: Path) -> Play:
    """Run a scene of ``scenes.mjs`` against a gateway and return what it prints."""

    async def run(scene: str, gateway_url: str, *, through: str | None = None, sockets: bool, **environ: str) -> Any:
        module = tmp_path / "client.mjs"
        async with ClientSession() as http, http.get(f"{gateway_url}/client.js") as response:
            assert response.status == 200
            module.write_bytes(await response.read())
        process = await asyncio.create_subprocess_exec(
            node,
            *(["--experimental-websocket"] if sockets else []),  # a global from Node 22 on
            *(str(SCENES), str(module), scene),
            env={"PATH": os.environ["PATH"], "NODE_NO_WARNINGS": "1", "URL": through or gateway_url, **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(45):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, errors.decode()
        return json.loads(output)

    return run
