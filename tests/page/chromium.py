"""Finds a Chromium to drive and starts it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from playwright.async_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium(playwright: Playwright) -> str | None:
    """Return the path of a Chromium: ``CHROMIUM_PATH``, one on PATH, or Playwright's own; None when there is none."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found:
        return found
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


async def launch(playwright: Playwright, path: str) -> Browser:
    return await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
