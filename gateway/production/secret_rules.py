"""Where secrets are, who can read them, and what is written beside them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.core.vendor_keys import DEFAULT_KEY
from gateway.ledger_url import LedgerUrl
from gateway.production.finding import Rule, Scene, Severity
from gateway.secret_files import PEPPER, SIGNING_KEY
from gateway.store_url import StoreUrl
from gateway.upstream.key_files import KeyFiles, labels_of


def _environment(scene: Scene) -> Iterator[str]:
    if scene.settings.upstream.api_key is not None:
        yield "HYPERLEAP_API_KEY holds the vendor key itself"
    ledger = scene.settings.ledger.url
    if ledger is not None and LedgerUrl.parse(ledger.reveal()).password:
        yield "GATEWAY_LEDGER_URL holds the password of the ledger's database"


def _files(scene: Scene) -> Iterator[Path]:
    """Give every file with a secret in it, whether or not it is there."""
    settings = scene.settings
    sessions, server = settings.sessions, settings.server
    made = settings.redis.url is None
    named = (
        sessions.pepper_file or (server.data_dir / PEPPER if made else None),
        sessions.signing_key_file or (server.data_dir / SIGNING_KEY if made else None),
        sessions.previous_signing_key_file,
        server.admin_token_file,
        settings.ledger.url_file,
        settings.redis.url_file,
    )
    yield from (path for path in named if path is not None)
    keys = KeyFiles(settings.upstream)
    for label in labels_of(scene.tenants) or [DEFAULT_KEY]:
        if (stamp := keys.stamp(label)) is not None:
            yield Path(stamp.path)
    if scene.config is not None and (settings.upstream.api_key is not None or _has_password(scene)):
        yield scene.config


def _has_password(scene: Scene) -> bool:
    """Whether the URL with its password is written where the settings are."""
    url = scene.settings.redis.url if scene.settings.redis.url_file is None else None
    return url is not None and StoreUrl.parse(url.reveal()).password is not None


def _readable(scene: Scene) -> Iterator[str]:
    for path in dict.fromkeys(_files(scene)):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # whoever needs it says so
        if mode & stat.S_IROTH:
            yield f"{path} can be read by everybody ({mode & 0o777:04o})"


def _given(scene: Scene) -> Iterator[str]:
    sessions = scene.settings.sessions
    if scene.settings.redis.url is not None:
        for name, path in (
            ("GATEWAY_PEPPER_FILE", sessions.pepper_file),
            ("GATEWAY_SIGNING_KEY_FILE", sessions.signing_key_file),
        ):
            if path is None:
                yield f"{name} is not set"


def _rotated(scene: Scene) -> Iterator[str]:
    path = scene.settings.sessions.previous_signing_key_file
    current = scene.settings.sessions.signing_key_file
    if path is None or current is None:
        return
    try:
        age_s = time.time() - os.stat(current).st_mtime
    except OSError:
        return
    if age_s > scene.settings.sessions.ttl_max_s:
        yield f"{path} is still accepted, though every token that it signed has ended"


def _admin(scene: Scene) -> Iterator[str]:
    if scene.settings.server.admin_token_file is None:
        yield "there is no admin API"


def _debug(scene: Scene) -> Iterator[str]:
    if scene.settings.logging.level == "debug":
        yield "everything is logged"


SECRET_RULES: Final = (
    Rule(
        name="key-in-environment",
        severity=Severity.UNSAFE,
        why="An environment is shown by `docker inspect`, in /proc and in reports of crashes, and children inherit it.",
        do="Mount it as a file and set HYPERLEAP_API_KEY_FILE, HYPERLEAP_KEYS_DIR or GATEWAY_LEDGER_URL_FILE instead.",
        look=_environment,
    ),
    Rule(
        name="secret-readable",
        severity=Severity.UNSAFE,
        why="Every account and every process of the machine or the container has the secret.",
        do="chmod 0400, or `defaultMode: 0440` with an `fsGroup` in Kubernetes.",
        look=_readable,
    ),
    Rule(
        name="no-pepper",
        severity=Severity.UNSAFE,
        why="Keys and users are hashed and tokens signed with secrets that all gateways on one Redis share.",
        do="Make one for each with `openssl rand -hex 32` and set GATEWAY_PEPPER_FILE and GATEWAY_SIGNING_KEY_FILE.",
        look=_given,
    ),
    Rule(
        name="old-signing-key",
        severity=Severity.ADVICE,
        why="A rotation is over when nothing that the old key signed can live any more; who has it could sign still.",
        do="Take GATEWAY_PREVIOUS_SIGNING_KEY_FILE away.",
        look=_rotated,
    ),
    Rule(
        name="no-admin-token",
        severity=Severity.ADVICE,
        why="A key, a user or a tenant is then shut out at a shell with the pepper only.",
        do="Make a token with `openssl rand -hex 32` and set GATEWAY_ADMIN_TOKEN_FILE.",
        look=_admin,
    ),
    Rule(
        name="debug-log",
        severity=Severity.ADVICE,
        why="No message and no secret is logged at any level, but much is that costs time and room.",
        do="Set GATEWAY_LOG_LEVEL=info.",
        look=_debug,
    ),
)
