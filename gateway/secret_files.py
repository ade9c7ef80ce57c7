"""The gateway's own secrets, kept in files: the pepper behind hashes of keys and users, and the keys that sign tokens.

A secret is the file's content without white space at its ends, taken as it is; ``openssl rand -hex 32`` makes one.
"""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.options import ServerSettings, SessionSettings
from gateway.sections import MASK, SettingsError, reason

logger = logging.getLogger(__name__)

SECRET_BYTES = 32
VARIETY_MIN = 8  # distinct bytes; a random secret has far more, a file of zeros or a repeated word has not
PEPPER, SIGNING_KEY = "pepper", "signing-key"  # names of the files that are made in the data directory


class Places(Protocol):
    """What of the settings says where secrets are."""

    @property
    def server(self) -> ServerSettings: ...
    @property
    def sessions(self) -> SessionSettings: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKeys:
    """The secrets of every worker. They must be the same on all of them and survive restarts."""

    pepper: bytes
    signing_key: bytes
    previous_signing_key: bytes | None = None

    def __repr__(self) -> str:
        return f"SecretKeys({MASK})"


def load(settings: Places, *, embedded: bool) -> SecretKeys:
    """Read the secrets; with the embedded Valkey (``embedded``) those that are not given are made once.

    With a Redis of one's own several gateways share what is hashed and signed, so the files must be given.
    Raises SettingsError that names what to set. Reads and writes files.
    """
    sessions, data_dir = settings.sessions, settings.server.data_dir
    keys = SecretKeys(
        pepper=_given_or_made("GATEWAY_PEPPER_FILE", sessions.pepper_file, data_dir / PEPPER, embedded),
        signing_key=_given_or_made(
            "GATEWAY_SIGNING_KEY_FILE", sessions.signing_key_file, data_dir / SIGNING_KEY, embedded
        ),
        previous_signing_key=read(sessions.previous_signing_key_file, "GATEWAY_PREVIOUS_SIGNING_KEY_FILE")
        if sessions.previous_signing_key_file
        else None,
    )
    if keys.pepper == keys.signing_key:
        raise SettingsError("GATEWAY_SIGNING_KEY_FILE", "must hold another secret than GATEWAY_PEPPER_FILE")
    return keys


def find(settings: Places, *, embedded: bool) -> SecretKeys:
    """Read the secrets of the gateways on a store, and make none: from where the settings say.

    Those that a gateway has made in the data directory are its own, so they are taken for the Valkey that it keeps
    there (``embedded``) alone. Raises SettingsError that names what to set, for another store as a start there does.
    """
    if not embedded:
        return load(settings, embedded=False)
    sessions, data_dir = settings.sessions, settings.server.data_dir
    found: dict[str, bytes] = {}
    for key, given, name in (
        ("GATEWAY_PEPPER_FILE", sessions.pepper_file, PEPPER),
        ("GATEWAY_SIGNING_KEY_FILE", sessions.signing_key_file, SIGNING_KEY),
    ):
        made = data_dir / name
        if given is None and not made.exists():
            raise SettingsError(key, f"must name the gateway's file: none was made in {data_dir} (GATEWAY_DATA_DIR)")
        found[name] = read(given or made, key)
    previous = sessions.previous_signing_key_file
    return SecretKeys(
        pepper=found[PEPPER],
        signing_key=found[SIGNING_KEY],
        previous_signing_key=read(previous, "GATEWAY_PREVIOUS_SIGNING_KEY_FILE") if previous is not None else None,
    )


def read(path: Path, key: str | None = None) -> bytes:
    """Return the secret in a file; ``key`` is the setting that an error names. Raises SettingsError."""
    key = key or str(path)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(65_536).strip()
    except OSError as error:
        raise SettingsError(key, f"cannot read {path}: {reason(error)}") from None
    if len(secret) < SECRET_BYTES or len(set(secret)) < VARIETY_MIN:
        advice = f"make one with: openssl rand -hex {SECRET_BYTES}"
        raise SettingsError(key, f"{path} must hold at least {SECRET_BYTES} random bytes; {advice}")
    if mode & 0o077:
        # Not refused: a secret mounted by Kubernetes is 0644 unless one asks for less.
        logger.warning("secret.exposed", extra={"fields": {"path": str(path), "mode": oct(mode & 0o777)}})
    return secret


def read_or_make(path: Path, key: str | None = None) -> bytes:
    """Return the secret in a file, making it first when there is no file.

    The file appears whole or not at all, so neither a crash nor a second process can leave a half secret or two.
    """
    key = key or str(path)
    if not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(path)
        except OSError as error:
            raise SettingsError(key, f"cannot make {path}: {reason(error)}") from None
    return read(path, key)


def _make(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(draft, path)  # unlike a rename this fails when somebody else was first
        except FileExistsError:
            return
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _given_or_made(key: str, given: Path | None, made: Path, embedded: bool) -> bytes:
    if given is not None:
        return read(given, key)
    if embedded:
        return read_or_make(made, key)
    advice = f"openssl rand -hex {SECRET_BYTES}"
    raise SettingsError(key, f"must name a file when the gateway has a Redis of your own; make it once with: {advice}")
