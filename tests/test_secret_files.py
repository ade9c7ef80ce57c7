"""Secret files: made once, whole and private; refused when they are no secret."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway import secret_files
from gateway.options import ServerSettings, SessionSettings
from gateway.secret_files import SecretKeys, load, read, read_or_make
from gateway.sections import SettingsError
from gateway.settings import Settings

STRONG = "0123456789abcdef" * 4


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def settings_with(data_dir: Path, **files: Any) -> Settings:
    return Settings(server=ServerSettings(data_dir=data_dir), sessions=SessionSettings(**files))


def make_and_report(path: Path, answers: multiprocessing.SimpleQueue[bytes]) -> None:
    answers.put(read_or_make(path))


def test_read_or_make_makes_once_and_private(tmp_path: Path) -> None:
    """A missing secret is made with mode 0600 in a directory of mode 0700, and stays the same ever after."""
    path = tmp_path / "state" / "pepper"
    made = read_or_make(path)
    assert len(bytes.fromhex(made.decode())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_or_make(path) == made
    assert os.listdir(path.parent) == ["pepper"]


def test_read_or_make_in_a_race_agrees_on_one(tmp_path: Path) -> None:
    """Processes that start together end up with one secret."""
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.SimpleQueue[bytes] = context.SimpleQueue()
    workers = [context.Process(target=make_and_report, args=(tmp_path / "pepper", answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = {answers.get() for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1


def test_make_when_another_was_first_keeps_theirs(tmp_path: Path) -> None:
    """Losing the race leaves the winner's file and no draft behind."""
    path = private(tmp_path / "pepper", STRONG)
    secret_files._make(path)
    assert path.read_text() == STRONG
    assert os.listdir(tmp_path) == ["pepper"]


def test_read_takes_content_without_outer_white_space(tmp_path: Path) -> None:
    """The newline that editors and `openssl` add is no part of the secret."""
    assert read(private(tmp_path / "key", f"{STRONG}\n")) == STRONG.encode()


@pytest.mark.parametrize("text", ["", "short", "a" * 64, "\n" * 64, "abc" * 30])
def test_read_of_a_weak_secret_is_refused(tmp_path: Path, text: str) -> None:
    """A short or monotonous file is refused with the command that makes a good one."""
    with pytest.raises(SettingsError, match="openssl rand -hex 32") as caught:
        read(private(tmp_path / "key", text), "GATEWAY_PEPPER_FILE")
    assert caught.value.key == "GATEWAY_PEPPER_FILE"


def test_read_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there, or is a directory, is refused by name."""
    with pytest.raises(SettingsError, match="No such file"):
        read(tmp_path / "key")
    with pytest.raises(SettingsError, match="Is a directory"):
        read(tmp_path)


def test_read_of_an_exposed_file_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A secret that others on the machine can read works, but is complained about without being shown."""
    path = private(tmp_path / "key", STRONG)
    with caplog.at_level(logging.WARNING):
        read(path)
        assert not caplog.records
        path.chmod(0o644)
        read(path)
    assert [record.message for record in caplog.records] == ["secret.exposed"]


def test_read_or_make_in_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A data directory that cannot be made is an error that names the path."""
    blocked = private(tmp_path / "file", "x")
    with pytest.raises(SettingsError, match="cannot make"):
        read_or_make(blocked / "sub" / "pepper")


def test_load_embedded_makes_both_once(tmp_path: Path) -> None:
    """With the embedded Valkey nothing has to be given, and a restart finds the same secrets."""
    keys = load(settings_with(tmp_path), embedded=True)
    assert keys.pepper != keys.signing_key
    assert keys.previous_signing_key is None
    assert load(settings_with(tmp_path), embedded=True) == keys


def test_load_with_own_redis_needs_the_files(tmp_path: Path) -> None:
    """With a Redis of one's own every gateway must have the same secrets, so none is made."""
    pepper = private(tmp_path / "p", STRONG)
    with pytest.raises(SettingsError, match="GATEWAY_PEPPER_FILE: must name a file"):
        load(settings_with(tmp_path), embedded=False)
    with pytest.raises(SettingsError, match="GATEWAY_SIGNING_KEY_FILE: must name a file"):
        load(settings_with(tmp_path, pepper_file=pepper), embedded=False)
    assert os.listdir(tmp_path) == ["p"]


def test_load_given_files_are_used(tmp_path: Path) -> None:
    """Given files win over made ones, and a rotation has its previous key."""
    files = {name: private(tmp_path / name, f"{name:_<16}" + STRONG) for name in ("p", "s", "o")}
    settings = settings_with(
        tmp_path, pepper_file=files["p"], signing_key_file=files["s"], previous_signing_key_file=files["o"]
    )
    for embedded in (True, False):
        keys = load(settings, embedded=embedded)
        assert (keys.pepper[:1], keys.signing_key[:1]) == (b"p", b"s")
        assert keys.previous_signing_key is not None
        assert keys.previous_signing_key[:1] == b"o"


def test_load_one_secret_for_both_is_refused(tmp_path: Path) -> None:
    """The pepper and the signing key must differ, so that one leak is not two."""
    path = private(tmp_path / "both", STRONG)
    with pytest.raises(SettingsError, match="another secret"):
        load(settings_with(tmp_path, pepper_file=path, signing_key_file=path), embedded=True)


def test_secret_keys_are_masked() -> None:
    """The secrets show in no repr."""
    shown = repr(SecretKeys(pepper=b"pepper-bytes", signing_key=b"signing-bytes", previous_signing_key=b"old-bytes"))
    assert "bytes" not in shown
