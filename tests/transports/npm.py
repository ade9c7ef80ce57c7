"""Clients for Node that no one here wrote, run against a gateway: what they make of its answers, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Running

FOLDER: Final = Path(__file__).parents[1] / "npm"
NODE: Final = shutil.which("node")


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """Return the marks of tests that need Node and these packages."""
    missing = [package for package in packages if not (FOLDER / "node_modules" / package).is_dir()]
    return [
        pytest.mark.skipif(NODE is None, reason="no Node: install Node.js 20 or later"),
        pytest.mark.skipif(bool(missing), reason="no npm packages: run `npm ci --prefix tests/npm`"),
    ]


async def play(script: str, scene: str, running: Running, *users: str, **environ: str) -> Any:
    """Run a scene of a script and return what it prints."""
    assert NODE is not None
    tokens = [await running.token(user) for user in users or ("u1",)]
    process = await asyncio.create_subprocess_exec(
        *(NODE, script, scene),
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], "GATEWAY_URL": running.url, "TOKENS": json.dumps(tokens), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
