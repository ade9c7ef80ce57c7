"""What a reader must know of the machine to read the figures."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("aiohttp", "uvloop", "h2", "msgspec", "redis")


def machine() -> str:
    """Tell processor, cores, memory, kernel, Python and the libraries that carry the events."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gib = int(memory[1]) / 2**20 if memory else 0.0
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpu[1] if cpu else platform.machine()}, {cores} cores, {gib:.0f} GiB, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, {_packages()}"
    )


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)
