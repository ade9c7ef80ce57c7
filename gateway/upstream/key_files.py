"""Vendor keys as an operator gives them: a variable or a file for the default key, a directory of files for others.

A secret that Kubernetes mounts is a directory of symbolic links, ``acme -> ..data/acme``, which are swapped together.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gateway.core.identity import Tenant, TenantId
from gateway.core.vendor_keys import DEFAULT_KEY, KEY_LABEL, KeyLabel
from gateway.options import UpstreamSettings
from gateway.sections import Secret, SettingsError, reason

KEY_MAX_BYTES: Final = 4096  # a header must hold it


class Stamp(NamedTuple):
    """What tells one state of a file from the next."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class KeyFiles:
    """Finds keys by their labels. A label never leads out of the directory of keys, however its links point."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._literal = settings.api_key
        self._file = settings.api_key_file
        self._dir = settings.keys_dir

    def __repr__(self) -> str:
        return f"<KeyFiles {self._dir}>"

    def place(self, label: KeyLabel) -> str:
        """Say where a key is looked for, fit for printing."""
        if label == DEFAULT_KEY and self._literal is not None:
            return "HYPERLEAP_API_KEY"
        return str(self._path(label) or "HYPERLEAP_KEYS_DIR")

    def stamp(self, label: KeyLabel) -> Stamp | None:
        """Return the present state of a key's file; None where there is no file, or none that can be reached."""
        path = self._path(label)
        if path is None or (label == DEFAULT_KEY and self._literal is not None):
            return None
        try:
            real = os.path.realpath(path)
            status = os.stat(real)
        except OSError:
            return None
        return Stamp(real, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def read(self, label: KeyLabel) -> Secret:
        """Read a key, from its file each time. Raises SettingsError, which tells neither the key nor what was read."""
        if not KEY_LABEL.fullmatch(label):
            raise SettingsError("vendor_keys", f"a key's label must match {KEY_LABEL.pattern}")
        if label == DEFAULT_KEY and self._literal is not None:
            return _checked("HYPERLEAP_API_KEY", "the key", self._literal.reveal())
        path = self._path(label)
        if path is None and label == DEFAULT_KEY:
            raise SettingsError("HYPERLEAP_API_KEY", "give the vendor key, or HYPERLEAP_API_KEY_FILE with a file of it")
        if path is None:
            raise SettingsError("HYPERLEAP_KEYS_DIR", f"is not set, and the key {label} is looked for there")
        name = "HYPERLEAP_API_KEY_FILE" if path == self._file else "HYPERLEAP_KEYS_DIR"
        try:
            text = _text(path, within=self._dir if path != self._file else None)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(name, f"cannot read {path}: {reason(error)}") from None
        except ValueError as error:
            raise SettingsError(name, f"cannot read {path}: {error}") from None
        return _checked(name, str(path), text)

    def require(self, tenants: Mapping[TenantId, Tenant]) -> dict[KeyLabel, Secret]:
        """Read every key that a tenant asks with; raises SettingsError, which names the tenant and the field."""
        found: dict[KeyLabel, Secret] = {}
        for tenant in tenants.values():
            for label in tenant.vendor_keys:
                try:
                    found[label] = found.get(label) or self.read(label)
                except SettingsError as error:
                    if tenant.vendor_keys == (DEFAULT_KEY,):
                        raise
                    raise SettingsError(f"tenants.{tenant.id}.vendor_keys", f"key {label}: {error}") from None
        return found

    def _path(self, label: KeyLabel) -> Path | None:
        if label == DEFAULT_KEY and self._file is not None:
            return self._file
        return self._dir / label if self._dir is not None and KEY_LABEL.fullmatch(label) else None


def labels_of(tenants: Mapping[TenantId, Tenant]) -> list[KeyLabel]:
    """Return the labels of all keys that the tenants ask with, in the order in which they are written."""
    return list(dict.fromkeys(label for tenant in tenants.values() for label in tenant.vendor_keys))


def _text(path: Path, *, within: Path | None) -> str:
    """Read a small regular file; raises OSError, UnicodeDecodeError, and ValueError for what must not be read."""
    real = Path(os.path.realpath(path, strict=True))
    if within is not None and not real.is_relative_to(os.path.realpath(within)):
        raise ValueError("it leads out of that directory")
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold up the event loop
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        data = os.read(descriptor, KEY_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > KEY_MAX_BYTES:
        raise ValueError(f"it has more than {KEY_MAX_BYTES} bytes")
    return data.decode("utf-8")


def _checked(name: str, place: str, text: str) -> Secret:
    text = text.strip()
    if not text:
        raise SettingsError(name, f"{place} is empty")
    if not re.fullmatch(r"[!-~]+", text):  # a header's value: visible ASCII, and one line only
        raise SettingsError(name, f"{place} must be one line of visible ASCII characters")
    return Secret(text)
