"""The tenants file: whatever is done to it, what is in force is a version that was whole, and at last the last one."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.services import tenants_file as tenants_file_module
from gateway.services.tenants_file import TenantsFile
from gateway.telemetry.metrics import Metrics
from gateway.tenant_tables import TENANTS_FILE_MAX_BYTES, TenantTables
from tests.transports.client import eventually

PERSONA = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
LOOK_S = 0.02
Watch = Callable[[Path], "Watched"]


class Watched:
    """A file that is followed, and every version of it that was put in force."""

    def __init__(self, path: Path) -> None:
        self.taken: list[TenantTables] = []
        self.metrics = Metrics({})
        self.file = TenantsFile(path, self.taken.append, self.metrics, look_s=LOOK_S)

    @property
    def names(self) -> list[str]:
        return sorted(self.taken[-1].tenants) if self.taken else []

    async def valid(self) -> bool:
        body = await (await self.metrics.scrape("")).whole()
        return b"\ngateway_tenants_file_valid 1.0\n" in body


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    opened: list[TenantsFile] = []

    def begin(path: Path) -> Watched:
        watched = Watched(path)
        watched.file.open()
        opened.append(watched.file)
        return watched

    yield begin
    for file in opened:
        await file.aclose()


def text(*names: str) -> str:
    return "".join(f'[tenants.{name}]\npersonas.default.persona_id = "{PERSONA}"\n' for name in names)


def swap(directory: Path, content: str | None) -> None:
    """Do what a kubelet does: write a new directory, and swap the link to it in one step."""
    number = len(list(directory.iterdir()))
    version = directory / f"..v{number}"
    version.mkdir()
    if content is not None:
        (version / "tenants.toml").write_text(content, "utf-8")
    (directory / "..next").symlink_to(version.name)
    (directory / "..next").replace(directory / "..data")
    link = directory / "tenants.toml"
    if not link.is_symlink():
        link.symlink_to("..data/tenants.toml")


async def test_file_written_anew_is_taken(tmp_path: Path, watch: Watch) -> None:
    """A new version is put in force as a whole, and the same again is nothing new."""
    path = tmp_path / "tenants.toml"
    path.write_text(text("a", "b"))
    watched = watch(path)
    await eventually(lambda: watched.names == ["a", "b"], "the first version")
    path.write_text(text("b", "c"))
    await eventually(lambda: watched.names == ["b", "c"], "the second version")
    path.write_text(text("b", "c"))
    assert await watched.valid()
    assert len(watched.taken) == 2


async def test_link_swapped_above_the_file_is_followed(tmp_path: Path, watch: Watch) -> None:
    """A ConfigMap's update changes neither the file's name nor, perhaps, its time and size."""
    swap(tmp_path, text("a"))
    watched = watch(tmp_path / "tenants.toml")
    await eventually(lambda: watched.names == ["a"], "the first version")
    swap(tmp_path, text("b"))
    old, new = sorted(tmp_path.glob("..v*/tenants.toml"))
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    assert old.stat().st_size == new.stat().st_size
    await eventually(lambda: watched.names == ["b"], "the swapped version")


async def test_content_changed_under_the_same_time_and_size_is_seen(tmp_path: Path, watch: Watch) -> None:
    """What counts is what the file says."""
    path = tmp_path / "tenants.toml"
    path.write_text(text("a"))
    watched = watch(path)
    await eventually(lambda: watched.names == ["a"], "the first version")
    before = path.stat()
    path.write_text(text("b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await eventually(lambda: watched.names == ["b"], "the second version")


BAD = {
    "gone": None,
    "empty": "",
    "comments": "# nothing yet\n",
    "torn": text("a")[:-20],
    "no tenants": "[plans.gold]\nuser.requests_per_min = 1\n",
    "bad field": text("a") + '[tenants.b]\npersonas.default.persona_id = "pasted-secret"\n',
    "unknown table": text("a") + "[server]\nport = 1\n",
    "plan of nowhere": text("a") + "plan = 'gold'\n",
    "not text": "\udcff",
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_version_changes_nothing_and_is_told(
    tmp_path: Path, watch: Watch, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The old tenants stay, a metric says that the file is bad, the log names the field and no value."""
    caplog.set_level(logging.INFO)
    path = tmp_path / f"{bad}.toml"
    path.write_text(text("a", "b"))
    watched = watch(path)
    await eventually(lambda: watched.names == ["a", "b"], "the first version")
    content = BAD[bad]
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8", "surrogateescape")

    async def invalid() -> bool:
        return not await watched.valid()

    await eventually(invalid, "the metric")
    assert len(watched.taken) == 1
    told = [getattr(record, "fields", {}).get("field", "") for record in caplog.records]
    assert any(field.startswith(path.name) for field in told)
    assert "pasted-secret" not in caplog.text + repr([vars(record) for record in caplog.records])
    if bad == "bad field":
        assert f"{path.name}: tenants.b.personas.default.persona_id" in told
    path.write_text(text("c"))
    await eventually(lambda: watched.names == ["c"], "the mended version")
    assert await watched.valid()


async def test_file_that_is_too_large_is_refused(tmp_path: Path, watch: Watch) -> None:
    """A file is read up to a bound, whatever is mounted there."""
    path = tmp_path / "tenants.toml"
    path.write_text(text("a") + "#" * TENANTS_FILE_MAX_BYTES)
    watched = watch(path)

    async def invalid() -> bool:
        return not await watched.valid()

    await eventually(invalid, "the metric")
    assert watched.taken == []


async def test_half_a_file_that_could_be_read_is_not_taken(tmp_path: Path, watch: Watch) -> None:
    """A writer who is seen between two tables takes no tenant away: a version must be seen twice."""
    path = tmp_path / "tenants.toml"
    path.write_text(text("a", "b", "c"))
    watched = watch(path)
    await eventually(lambda: watched.names == ["a", "b", "c"], "the first version")
    done = asyncio.get_running_loop().time() + 20 * LOOK_S
    with path.open("w") as file:
        while asyncio.get_running_loop().time() < done:  # a table at a time, sooner than two looks are apart
            file.write(text(f"x{random.getrandbits(64):x}"))
            file.flush()
            await asyncio.sleep(LOOK_S / 10)
            assert watched.names == ["a", "b", "c"]
    path.write_text(text("a", "b"))
    await eventually(lambda: watched.names == ["a", "b"], "the last version")


@pytest.mark.parametrize("seed", range(6))
async def test_storm_of_versions_never_loses_a_tenant_and_ends_in_the_last(
    tmp_path: Path, watch: Watch, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions good, bad, torn and swapped, as fast as they come: what was taken held the steady tenant, always."""
    monkeypatch.setattr(tenants_file_module, "SETTLE_S", 0.002)
    dice = random.Random(seed)
    swap(tmp_path, text("steady"))
    watched = watch(tmp_path / "tenants.toml")
    await eventually(lambda: watched.names == ["steady"], "the first version")
    good: set[tuple[str, ...]] = {("steady",)}
    for number in range(60):
        names = ("steady", *(f"t{dice.randrange(9)}-{number}" for _ in range(dice.randrange(4))))
        whole = text(*names)
        match dice.randrange(5):
            case 0:
                swap(tmp_path, whole)
                good.add(tuple(sorted(names)))
            case 1:
                swap(tmp_path, None)  # the file is gone
            case 2:
                swap(tmp_path, whole[: dice.randrange(len(text("steady")) - 5)])
            case 3:
                (tmp_path / "tenants.toml").write_text(whole)
                good.add(tuple(sorted(names)))
            case _:
                (tmp_path / "tenants.toml").write_text(
                    dice.choice([t for t in BAD.values() if t and "\udcff" not in t])
                )
        await asyncio.sleep(dice.choice([0, 0, 0.001, LOOK_S]))
    swap(tmp_path, text("steady", "last"))
    await eventually(lambda: watched.names == ["last", "steady"], "the last version")
    assert {tuple(sorted(tables.tenants)) for tables in watched.taken} <= good | {("last", "steady")}
    assert await watched.valid()
