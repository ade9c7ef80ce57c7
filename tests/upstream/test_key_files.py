"""Files of vendor keys: read by their labels, from their directory and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.identity import Tenant, TenantId
from gateway.core.vendor_keys import DEFAULT_KEY, KeyLabel
from gateway.options import UpstreamSettings
from gateway.sections import Secret, SettingsError
from gateway.upstream.key_files import KEY_MAX_BYTES, KeyFiles, labels_of

ACME = KeyLabel("acme")


def tenant(name: str, *labels: str) -> dict[TenantId, Tenant]:
    keys = tuple(KeyLabel(label) for label in labels)
    return {TenantId(name): Tenant(id=TenantId(name), personas={}, vendor_keys=keys)}


def test_key_in_the_file_of_the_default_key_is_read_stripped(tmp_path: Path) -> None:
    """A mounted secret works with the newline that editors add, and is read again after a rotation."""
    path = tmp_path / "key"
    path.write_text("hl-key\n")
    files = KeyFiles(UpstreamSettings(api_key_file=path))
    assert files.read(DEFAULT_KEY).reveal() == "hl-key"
    path.write_text("hl-new")
    assert files.read(DEFAULT_KEY).reveal() == "hl-new"


def test_default_key_that_cannot_work_is_refused(tmp_path: Path) -> None:
    """A key that is missing, empty or no header value is refused with the variable's name."""
    path = tmp_path / "key"
    files = KeyFiles(UpstreamSettings(api_key_file=path))
    with pytest.raises(SettingsError, match="HYPERLEAP_API_KEY_FILE: cannot read"):
        files.read(DEFAULT_KEY)
    path.write_text(" \n")
    with pytest.raises(SettingsError, match="is empty"):
        files.read(DEFAULT_KEY)
    with pytest.raises(SettingsError, match="HYPERLEAP_API_KEY: give"):
        KeyFiles(UpstreamSettings()).read(DEFAULT_KEY)
    with pytest.raises(SettingsError, match="one line") as caught:
        KeyFiles(UpstreamSettings(api_key=Secret("hl-key\r\nx: y"))).read(DEFAULT_KEY)
    assert "hl-key" not in str(caught.value)


def test_key_of_the_directory_is_read_by_its_label(tmp_path: Path) -> None:
    """Each file of the directory holds one key; the default one too, where no variable gives it."""
    (tmp_path / "acme").write_text("key-of-acme\n")
    (tmp_path / "default").write_text("key-of-all")
    files = KeyFiles(UpstreamSettings(keys_dir=tmp_path))
    assert (files.read(ACME).reveal(), files.read(DEFAULT_KEY).reveal()) == ("key-of-acme", "key-of-all")
    given = KeyFiles(UpstreamSettings(keys_dir=tmp_path, api_key=Secret("given")))
    assert given.read(DEFAULT_KEY).reveal() == "given"
    with pytest.raises(SettingsError, match="HYPERLEAP_KEYS_DIR: is not set"):
        KeyFiles(UpstreamSettings()).read(ACME)


def test_key_mounted_by_kubernetes_is_read_through_its_links(tmp_path: Path) -> None:
    """A mounted secret is links into a directory that is swapped; its stamp changes with the swap."""
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "acme").write_text(f"key-{version}")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "acme").symlink_to("..data/acme")
    files = KeyFiles(UpstreamSettings(keys_dir=tmp_path))
    before = files.stamp(ACME)
    assert files.read(ACME).reveal() == "key-one"
    assert files.stamp(ACME) == before
    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert files.stamp(ACME) not in (None, before)
    assert files.read(ACME).reveal() == "key-two"


@pytest.mark.parametrize("label", ["../secret", "..", ".", "", "a/b", "/etc/passwd", "ACME", "a" * 33, "..data", "a\n"])
def test_label_that_is_none_reaches_no_file(tmp_path: Path, label: str) -> None:
    """No label leads out of the directory, to a hidden entry of it, or to the directory itself."""
    (tmp_path / "secret").write_text("not-a-key")
    (tmp_path / "keys").mkdir()
    files = KeyFiles(UpstreamSettings(keys_dir=tmp_path / "keys"))
    with pytest.raises(SettingsError, match="label must match"):
        files.read(KeyLabel(label))
    assert files.stamp(KeyLabel(label)) is None


def test_what_is_no_small_file_within_the_directory_is_refused_unread(tmp_path: Path) -> None:
    """Links that lead out, directories, pipes, huge and binary files are refused with the path and the reason."""
    (tmp_path / "elsewhere").write_text("words-of-elsewhere")
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "out").symlink_to(tmp_path / "elsewhere")
    (keys / "loop").symlink_to("loop")
    (keys / "dir").mkdir()
    (keys / "huge").write_text("x" * (KEY_MAX_BYTES + 1))
    (keys / "binary").write_bytes(b"\xff\xfe\x00")
    (keys / "lines").write_text("one\ntwo")
    os.mkfifo(keys / "pipe")
    files = KeyFiles(UpstreamSettings(keys_dir=keys))
    for label, words in {
        "out": "leads out",
        "loop": "cannot read",
        "dir": "not a regular file",
        "pipe": "not a regular file",
        "huge": "more than 4096 bytes",
        "binary": "not UTF-8",
        "lines": "one line",
        "missing": "No such file",
    }.items():
        with pytest.raises(SettingsError, match=words) as caught:
            files.read(KeyLabel(label))
        assert label in str(caught.value)
        for content in ("words-of-elsewhere", "xxx", "one\ntwo"):
            assert content not in str(caught.value)


def test_tenant_with_a_key_that_cannot_be_read_is_refused_by_tenant_and_field(tmp_path: Path) -> None:
    """The start says which tenant's which key it is; the default key is missed only by whoever uses it."""
    (tmp_path / "acme").write_text("key-of-acme")
    files = KeyFiles(UpstreamSettings(keys_dir=tmp_path))
    assert set(files.require(tenant("acme", "acme"))) == {ACME}
    with pytest.raises(SettingsError) as caught:
        files.require(tenant("acme", "acme") | tenant("umbrella", "acme", "umbrella-2"))
    assert caught.value.key == "tenants.umbrella.vendor_keys"
    assert "umbrella-2" in caught.value.message
    with pytest.raises(SettingsError, match="HYPERLEAP_API_KEY_FILE"):
        KeyFiles(UpstreamSettings(api_key_file=tmp_path / "none")).require(tenant("acme", "default"))


def test_labels_of_tenants_come_once_each_in_order() -> None:
    """A key that several tenants share is listed once."""
    assert labels_of(tenant("a", "one", "two") | tenant("b", "two", "default")) == ["one", "two", "default"]


def test_key_is_in_no_repr(tmp_path: Path) -> None:
    """What holds the files shows their place and no key."""
    files = KeyFiles(UpstreamSettings(api_key=Secret("hl-secret"), keys_dir=tmp_path))
    assert "hl-secret" not in f"{files!r} {files.place(DEFAULT_KEY)} {files.read(DEFAULT_KEY)!r}"
