"""The audit stream: told whatever the level, in a file of its own where it has one, and never flooded by strangers."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.options import LoggingSettings
from gateway.sections import Secret, SettingsError
from gateway.telemetry import audit
from gateway.telemetry.audit import BURST, KINDS_MAX, WINDOW_S, Flood
from gateway.telemetry.logging import AUDIT, conceal, configure


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The log, in which only errors are wanted."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure(LoggingSettings(level="error", format="json"), stream=stream)
    yield stream
    configure(LoggingSettings(), stream=io.StringIO())  # which closes the file
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_line_tells_who_did_what(stream: io.StringIO) -> None:
    """A change has its actor and outcome, whatever the log's level is; what is not known is left out."""
    with audit.acting("cli", name="ada"):
        audit.record("key.created", tenant="t", key_id="k", kind=None)
    logging.getLogger("gateway.other").warning("unheard")
    (line,) = lines(stream.getvalue())
    assert {name: line[name] for name in line if name not in ("ts", "level")} == {
        "logger": AUDIT,
        "event": "key.created",
        "outcome": "done",
        "actor": "cli",
        "actor_name": "ada",
        "tenant": "t",
        "key_id": "k",
    }


def test_change_that_the_store_did_not_answer_is_told_as_failed(stream: io.StringIO) -> None:
    """It may have been made. One that is refused changed nothing, and is not told."""
    for code in (Code.STORE_UNAVAILABLE, Code.NOT_FOUND):
        with pytest.raises(GatewayError), audit.change("key.revoked", tenant="t"):
            raise GatewayError(code)
    (line,) = lines(stream.getvalue())
    assert (line["event"], line["outcome"], line["code"]) == ("key.revoked", "failed", "store_unavailable")


def test_file_has_the_whole_stream_and_the_log_none_of_it(stream: io.StringIO, tmp_path: Path) -> None:
    """Two processes append to one file line by line; credentials are masked there too."""
    path = tmp_path / "audit.jsonl"
    for worker in ("0", "1"):
        configure(LoggingSettings(level="error", audit_file=path), stream=stream, worker=worker)
        conceal(Secret("hl-key-that-came-later"))
        audit.record("vendor_key.rotated", key="hl-key-that-came-later hgs_t.1.secret")
    told = lines(path.read_text("utf-8"))
    assert [(line["worker"], line["key"]) for line in told] == [
        ("0", "******** hgs_********"),
        ("1", "******** hgs_********"),
    ]
    assert stream.getvalue() == ""
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_file_that_is_moved_away_is_begun_anew(stream: io.StringIO, tmp_path: Path) -> None:
    """After logrotate has moved or deleted the file the next line is in a new one, and none is lost."""
    path = tmp_path / "audit.jsonl"
    configure(LoggingSettings(audit_file=path), stream=stream)
    audit.record("key.created", key_id="1")
    path.rename(tmp_path / "audit.jsonl.1")
    audit.record("key.created", key_id="2")
    path.unlink()
    audit.record("key.created", key_id="3")
    assert [line["key_id"] for line in lines((tmp_path / "audit.jsonl.1").read_text("utf-8"))] == ["1"]
    assert [line["key_id"] for line in lines(path.read_text("utf-8"))] == ["3"]


def test_line_that_cannot_be_written_to_the_file_is_in_the_log(stream: io.StringIO, tmp_path: Path) -> None:
    """A directory that is gone, as a disk that is full, loses no line."""
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    configure(LoggingSettings(format="json", audit_file=path), stream=stream)
    path.unlink()
    path.parent.rmdir()
    audit.record("key.created", key_id="1")
    assert [line["key_id"] for line in lines(stream.getvalue())] == ["1"]


def test_file_that_cannot_be_opened_is_named(stream: io.StringIO, tmp_path: Path) -> None:
    """A start with a file that cannot be is refused, by the variable's name."""
    with pytest.raises(SettingsError) as raised:
        configure(LoggingSettings(audit_file=tmp_path / "no" / "audit"), stream=stream)
    assert raised.value.key == "GATEWAY_AUDIT_LOG"


def test_flood_is_told_a_few_times_and_counted() -> None:
    """Of each kind the first few in a while pass; how many more there were is told when the next while begins."""
    now_s = 100.0
    told: list[tuple[tuple[str, ...], int]] = []
    flood = Flood(lambda kind, count: told.append((kind, count)), lambda: now_s)
    assert [flood.admit("refused", "t") for _ in range(BURST + 5)] == [True] * BURST + [False] * 5
    assert flood.admit("refused", "other")
    now_s += WINDOW_S
    assert flood.admit("refused", "t")
    assert told == [(("refused", "t"), 5)]
    for _ in range(BURST + 2):
        flood.admit("refused", "t")
    flood.flush()
    assert told[1:] == [(("refused", "t"), 3)]


def test_flood_of_many_kinds_cannot_grow_the_memory() -> None:
    """Kinds beyond a bound are forgotten, the oldest first, and what was held back of them is told."""
    told: list[int] = []
    flood = Flood(lambda _, count: told.append(count), lambda: 0.0)
    for _ in range(BURST + 7):
        flood.admit("first")
    for n in range(KINDS_MAX):
        flood.admit(str(n))
    assert told == [7]
    assert len(flood._seen) == KINDS_MAX


async def test_flood_is_told_when_it_is_over_though_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count does not wait for the next of its kind."""
    monkeypatch.setattr(audit, "WINDOW_S", 0.05)
    told: list[int] = []
    flood = Flood(lambda _, count: told.append(count))
    for _ in range(BURST + 4):
        flood.admit("refused")
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
    assert told == [4]
