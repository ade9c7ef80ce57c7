"""Follows the tenants file: a new version that can be used is put in force as a whole, any other changes nothing.

Its content is what is looked at, not its date: a mounted ConfigMap swaps a symbolic link above the file, and may give
the new one the old one's time and size. A version is taken once two looks in a row have seen the same, so that a
writer who is in the middle of it takes no tenant away.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.sections import SettingsError
from gateway.telemetry import audit
from gateway.telemetry.logging import throttled
from gateway.telemetry.metrics import Metrics
from gateway.tenant_tables import TENANTS_FILE_MAX_BYTES, TenantTables, read_tenants

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # between looks
SETTLE_S: Final = 0.25  # between two looks at a new version
SETTLE_MAX: Final = 8  # looks at a file that does not stop changing, before it is left for later
FIELD_MAX_CHARS: Final = 160  # of what a log line says


class TenantsFile:
    """One file and who is told of it. ``open`` it once, ``aclose`` it at the end."""

    def __init__(
        self, path: Path, on_change: Callable[[TenantTables], None], metrics: Metrics, *, look_s: float = LOOK_S
    ) -> None:
        self._path = path
        self._on_change = on_change
        self._metrics = metrics
        self._look_s = look_s
        self._seen: bytes | None = None  # the version that was judged last; none at first, so that it is read again
        self._fault: SettingsError | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look, in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:  # a mistake of ours must not leave the worker with old tenants for ever
                logger.exception("tenants_file.crashed")
            await asyncio.sleep(self._look_s)

    async def _look(self) -> None:
        version = await asyncio.to_thread(_version, self._path)
        if version != self._seen and (settled := await self._settled(version)) is not None:
            await self._judge(settled)
        if self._fault is not None:
            # By its name only: the words may repeat a value, and nobody knows what was written where.
            field = self._fault.key[:FIELD_MAX_CHARS]
            throttled(
                logger, f"refused:{field}", "tenants_file.refused", level=logging.ERROR, every_s=60.0, field=field
            )

    async def _settled(self, version: bytes) -> bytes | None:
        """Return the version that two looks in a row have seen; None for a file that goes on changing."""
        for _ in range(SETTLE_MAX):
            await asyncio.sleep(min(SETTLE_S, self._look_s))
            before, version = version, await asyncio.to_thread(_version, self._path)
            if version == before:
                return version
        return None

    async def _judge(self, version: bytes) -> None:
        """Read the version and put it in force, or say what is wrong with it."""
        tables: TenantTables | None = None
        fault: SettingsError | None = None
        try:
            tables = await asyncio.to_thread(read_tenants, self._path)
        except SettingsError as error:
            fault = error
        if await asyncio.to_thread(_version, self._path) != version:
            return  # another one by now: the next look judges it
        self._seen, self._fault = version, fault
        self._metrics.tenants_file_read(valid=fault is None)
        if tables is not None:
            self._on_change(tables)
        elif fault is not None:
            with audit.acting("file"):
                audit.record("tenants_file.refused", outcome="refused", field=fault.key[:FIELD_MAX_CHARS])


def _version(path: Path) -> bytes:
    """Return what tells this version of the file from others, also where there is none or none to be read."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(TENANTS_FILE_MAX_BYTES + 1)).digest()
    except OSError as error:
        return f"unreadable {error.errno}".encode()
