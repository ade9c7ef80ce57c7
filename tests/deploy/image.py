"""The image, built from the Dockerfile without Docker and run as a container runtime would: see ``test_image.py``."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = "python3-venv,ca-certificates"
BASE: Final = "localhost/base:1"
IMAGE: Final = "localhost/hyperleap-gateway:test"
BUILD_S: Final = 900.0
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> str | None:
    """Say what a build needs and this machine has not."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "building and mounting an image needs root on Linux"
    packages = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux"}
    lacking = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    return f"install {', '.join(lacking)} (Debian)" if lacking else None


class Builder:
    """buildah with a storage of its own, which is a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str) -> str:
        """Run one of its commands; returns what it prints, raises AssertionError with what went wrong."""
        storage = ("--storage-driver", "vfs", "--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run")
        told = subprocess.run(
            ["buildah", *storage, *arguments],
            env=os.environ | {"BUILDAH_ISOLATION": "chroot"},
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        assert told.returncode == 0, f"buildah {arguments[0]}: {told.stdout[-4000:]}{told.stderr[-4000:]}"
        return told.stdout.strip()

    def base(self) -> None:
        """Make an image of a small Debian with Python; IMAGE_BASE_TAR may name one that was made before."""
        ready = os.environ.get("IMAGE_BASE_TAR")
        tar = Path(ready) if ready else self.directory / "base.tar"
        if not ready:
            command = (
                "mmdebstrap",
                "--variant=minbase",
                "--include=python3-venv,ca-certificates",
                "bookworm",
                str(tar),
            )
            told = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
            assert told.returncode == 0, told.stderr[-4000:]
        empty = self.run("from", "scratch")
        self.run("add", empty, str(tar), "/")
        self.run("commit", "--rm", empty, BASE)

    def build(self, extras: str) -> dict[str, Any]:
        """Build our Dockerfile on that base; returns the image's configuration."""
        mounts = [argument for mount in self._registry_mounts() for argument in ("-v", mount)]
        arguments = ("--build-arg", f"BASE={BASE}", "--build-arg", f"EXTRAS={extras}", "--format", "docker")
        self.run("bud", "--network", "host", "--layers=false", *arguments, *mounts, "-t", IMAGE, str(ROOT))
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        return found

    @contextlib.contextmanager
    def mounted(self) -> Any:
        """Give the image's root file system as a directory."""
        container = self.run("from", IMAGE)
        try:
            yield Path(self.run("mount", container))
        finally:
            self.run("umount", container)
            self.run("rm", container)

    def _registry_mounts(self) -> list[str]:
        """What of this machine tells pip where packages are: its settings, directories they name, authorities."""
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
        )
        settings = configparser.RawConfigParser()
        settings.add_section("global")
        places: set[str] = set()
        for name, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", told.stdout, re.MULTILINE):
            settings.set("global", name, value)
            for word in value.split():
                path = urlsplit(word).path if word.startswith("file:") else word
                if path.startswith("/"):
                    place = Path("/", *Path(path).parts[1:3])
                    places.add(str(place if place.is_dir() else path))
        config = self.directory / "pip.conf"
        with config.open("w", encoding="utf-8") as file:
            settings.write(file)
        places |= {str(AUTHORITIES)}
        found = [f"{place}:{place}:ro" for place in sorted(places) if Path(place).exists()]
        return [f"{config}:/etc/pip.conf:ro", *found]


# What a runtime does for `docker run --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp`, in a
# mount namespace of its own: $1 is the root, $2 the user, $3 the directory of the volume, the rest the command.
_START: Final = """
set -e
root=$1 user=$2 volume=$3; shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/tmp"
mount -t tmpfs -o "mode=700,uid=${user%%:*},gid=${user##*:},size=64m" tmpfs "$root$volume"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
"""


@contextlib.asynccontextmanager
async def started(
    root: Path, config: Mapping[str, Any], environ: Mapping[str, str], log: Path, arguments: Sequence[str] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an image's command as its user on its root, which nobody can write to; killed when the context ends."""
    (volume,) = set(config["Volumes"]) - {"/tmp"}
    command = (*config["Entrypoint"], *(arguments or config["Cmd"]))
    own = dict(line.split("=", 1) for line in config["Env"])
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh"),
            *(str(root), config["User"], volume, *command),
            env={**own, **environ},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
