"""A profile of the gateway by py-spy, and its costliest lines."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Final

SAMPLES_PER_S: Final = 250
_LINE_NUMBER: Final = re.compile(r":\d+\)$")
FORMATS: Final = {".svg": "flamegraph", ".json": "speedscope", ".txt": "raw"}


def command(pid: int, seconds: float, path: Path) -> list[str]:
    """The command that samples a process; raises FileNotFoundError without py-spy, ValueError for a strange suffix."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise FileNotFoundError("py-spy is not installed (it is in the extra `dev`)")
    if path.suffix not in FORMATS:
        raise ValueError(f"a profile ends in one of {', '.join(FORMATS)}")
    options = [
        "--threads",
        "--format",
        FORMATS[path.suffix],
        "--rate",
        str(SAMPLES_PER_S),
        "--duration",
        f"{max(1, round(seconds))}",
    ]
    return [program, "record", "--pid", str(pid), *options, "--output", str(path)]


def top(path: Path, count: int = 25) -> str:
    """The functions that a raw profile shows most: alone, and with what they call."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in path.read_text("utf-8").splitlines():
        stack, _, samples = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if not thread.endswith("MainThread"):
            continue  # the others wait for the store's process and for work; py-spy takes some of that for work
        names = [_LINE_NUMBER.sub(")", frame) for frame in frames]
        total += int(samples)
        own[names[-1]] += int(samples)
        whole.update(dict.fromkeys(names, int(samples)))
    lines = ["  self  total  function"]
    lines += [
        f"{100 * alone / total:5.1f}%  {100 * whole[name] / total:4.1f}%  {name}"
        for name, alone in own.most_common(count)
    ]
    return "\n".join(lines)
