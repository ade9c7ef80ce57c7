"""Logs: one event a line with its facts and ids, and no credential whatever is logged."""

from __future__ import annotations

import asyncio
import enum
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.options import LoggingSettings
from gateway.sections import Secret
from gateway.telemetry import logging as logging_module
from gateway.telemetry import redaction
from gateway.telemetry.logging import (
    CONCEALED_MAX,
    QUIET,
    bound,
    conceal,
    configure,
    event,
    throttled,
)
from gateway.telemetry.redaction import Redactor
from gateway.telemetry.throttle import Throttle

logger = logging.getLogger("gateway.test")
GATHERED = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")  # what configure sets


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging_module, "_throttle", Throttle())
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    gathered = {name: getattr(logging, name) for name in GATHERED if hasattr(logging, name)}
    levels = {name: logging.getLogger(name).level for name in QUIET}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    for name, kept in gathered.items():
        setattr(logging, name, kept)


@pytest.fixture(params=["alone", "among others"])
def stream(request: pytest.FixtureRequest) -> io.StringIO:
    """Where our lines go, written without a record where nobody else listens, and from one where pytest does."""
    stream = io.StringIO()
    if request.param == "alone":
        logging.getLogger().handlers.clear()
    configure(LoggingSettings(level="info"), secrets=[Secret("hl-vendor-key")], stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_json_line(stream: io.StringIO) -> None:
    """An event has time in UTC, level, name and its fields, all on one line."""
    event(logger, logging.INFO, "turn.ended", tenant="acme", duration_s=1.5, text="a\nb", tags={"x"}, level="high")
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "logger": "gateway.test",
        "event": "turn.ended",
        "tenant": "acme",
        "duration_s": 1.5,
        "text": "a\nb",
        "tags": ["x"],
        "level_": "high",
    }


def test_event_below_the_level_is_not_logged(stream: io.StringIO) -> None:
    """The level of the settings holds, and chatty libraries need a warning to be heard."""
    event(logger, logging.DEBUG, "turn.ended")
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("httpx").warning("odd")
    assert [line["event"] for line in lines(stream)] == ["odd"]


def test_configure_twice_logs_once(stream: io.StringIO) -> None:
    """A second configuration replaces the first."""
    other = io.StringIO()
    configure(LoggingSettings(), stream=other)
    event(logger, logging.INFO, "turn.ended")
    assert stream.getvalue() == ""
    assert len(lines(other)) == 1


async def test_ids_are_attached_to_everything_inside(stream: io.StringIO) -> None:
    """Request and turn ids follow into tasks started inside, do not mix, and end with the block."""

    async def work(request_id: str) -> None:
        with bound(request_id=request_id):
            await asyncio.sleep(0)
            with bound(turn_id=f"turn-of-{request_id}"):
                await asyncio.create_task(log())
            event(logger, logging.INFO, "after", of=request_id)

    async def log() -> None:
        event(logger, logging.INFO, "inside")

    await asyncio.gather(work("r1"), work("r2"))
    event(logger, logging.INFO, "outside")
    seen = lines(stream)
    assert {(line["request_id"], line["turn_id"]) for line in seen if line["event"] == "inside"} == {
        ("r1", "turn-of-r1"),
        ("r2", "turn-of-r2"),
    }
    assert all(line["request_id"] == line["of"] and "turn_id" not in line for line in seen if line["event"] == "after")
    assert "request_id" not in seen[-1]


@pytest.mark.parametrize(
    "text",
    [
        "bad token hgt_eyJhbGciOi.SECRET.x-_y=",
        "hgs_acme.k1.SECRET",
        "hgp_acme.k1.SECRET and hgv_SECRET",
        "X-HL-API-Key: SECRET",
        "{'x-hl-api-key': 'SECRET'}",
        '{"x-hl-api-key": "SECRET"}',
        "[(b'x-hl-api-key', b'SECRET')]",
        "Authorization: Bearer SECRET",
        "{'Authorization': 'Bearer SECRET'}",
        "authorization=Basic SECRET==",
        "sent bearer SECRETSECRET",
        "redis://user:SECRET@host:6379/0",
        "rediss://:SECRET@host",
        "GET /v1/turns/1/events?ticket=SECRET&x=1",
        "key is hl-vendor-key",
    ],
)
def test_credentials_are_masked_in_any_place(stream: io.StringIO, text: str) -> None:
    """A credential shows up neither as message, field, key nor in an exception, its cause or its group."""
    cause = ValueError(text)
    error = RuntimeError(text)
    error.__cause__ = ExceptionGroup(text, [cause])
    logger.error(text)
    logger.error("%s", text, exc_info=error)
    event(
        logger,
        logging.ERROR,
        "upstream.failed",
        error=error,
        detail=text,
        nested={text: [text, (cause, text.encode())]},
    )
    with bound(request_id=text):
        throttled(logger, text, "upstream.failed", detail=text)
    out = stream.getvalue()
    assert len(out.splitlines()) == 4
    assert "SECRET" not in out
    assert "hl-vendor-key" not in out
    assert "********" in out


def test_innocent_text_is_left_alone() -> None:
    """Ordinary events keep their words: ids, URLs, addresses and the names of our settings."""
    redactor = Redactor()
    for text in (
        "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab.17",
        "https://api.hyperleapai.com/conversations?x=1",
        "http://[::1]:8080/v1/ws and me@example.com at 10:30:12",
        "bearer of bad news",
        "unix:///tmp/valkey.sock",
    ):
        assert redactor.text(text) == text


CREDENTIALS = st.one_of(
    st.from_regex(redaction._CREDENTIALS),
    st.sampled_from(
        ["hl-vendor-key", "HGT_x", "Cookie: x", "a://b:c@", "&Token=x", "ba\u017fic SECRETSECRET", "\u212aey"]
    ),
)


@given(st.lists(st.one_of(CREDENTIALS, st.text(max_size=8), st.uuids().map(str)), max_size=5))
def test_texts_said_to_have_no_credential_have_none(texts: list[str]) -> None:
    """What is looked through at once is found clean only if each text by itself would be logged as it is."""
    redactor = Redactor([Secret("hl-vendor-key")])
    if redactor.has_none(texts):
        assert [redactor.text(text) for text in texts] == texts


def test_ordinary_event_is_found_clean_at_once() -> None:
    """The words of everyday events do not need the search that a suspect text does; a credential among them does."""
    everyday = ["turn.ended", "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab", "/v1/conversations/{conversation_id}/turns"]
    redactor = Redactor([Secret("hl-vendor-key")])
    assert redactor.has_none(everyday)
    assert not redactor.has_none([*everyday, "hl-vendor-key"])
    redactor.learn(["everyday-secret"])
    assert not redactor.has_none(["an everyday-secret", *everyday])


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.recursive(LEAF, lambda inner: st.dictionaries(st.text(), inner)))
def test_any_value_becomes_one_valid_line(value: object) -> None:
    """Whatever is logged, the line stays one line of JSON."""
    stream = io.StringIO()
    configure(LoggingSettings(), stream=stream)
    event(logger, logging.ERROR, "odd", value=value, other=object)
    (line,) = stream.getvalue().split("\n")[:-1]
    assert json.loads(line)["event"] == "odd"


class Word(enum.StrEnum):
    PLAIN = "stop"
    SECRET = "hgs_SECRET"


TOLD = st.one_of(
    CREDENTIALS,
    LEAF,
    st.sampled_from(Word),
    st.lists(st.one_of(CREDENTIALS, st.integers())),
    st.text().map(ValueError),
    st.text().map(str.encode),
)
NAMES = st.sampled_from(["ts", "level", "logger", "event", "error_", "worker", "request_id", "turn_id", "tenant", "n"])


@given(st.dictionaries(NAMES, TOLD), st.sampled_from(["turn.ended", "hl-vendor-key"]))
def test_event_is_the_same_line_whoever_listens(fields: dict[str, Any], name: str) -> None:
    """What is written without a record is what its record would be written as, to the letter."""
    told: list[str] = []
    for others in ([], [logging.NullHandler()]):
        stream = io.StringIO()
        logging.getLogger().handlers[:] = others
        configure(LoggingSettings(), secrets=[Secret("hl-vendor-key")], stream=stream, worker="3")
        with bound(request_id="r-1", turn_id="t-1"):
            event(logger, logging.INFO, name, **fields)
        (line,) = stream.getvalue().split("\n")[:-1]
        told.append(re.sub(r'^{"ts":"[^"]*"', "{", line))
    assert told[0] == told[1]


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{record.getMessage()} {record.__dict__['fields']}")


@pytest.mark.parametrize("where", ["", "gateway", "gateway.test"])
def test_handler_of_another_gets_records(where: str) -> None:
    """Whoever listens to a logger or above it is given the record of an event, and our own line stays one."""
    stream, listener = io.StringIO(), Listener()
    logging.getLogger().handlers.clear()
    configure(LoggingSettings(), stream=stream)
    other = logging.getLogger(where)
    event(logger, logging.INFO, "before")
    other.addHandler(listener)
    try:
        event(logger, logging.INFO, "turn.ended", n=1)
    finally:
        other.removeHandler(listener)
    event(logger, logging.INFO, "after")
    assert listener.heard == ["turn.ended {'n': 1}"]
    assert [line["event"] for line in lines(stream)] == ["before", "turn.ended", "after"]


def test_filter_and_propagation_are_heeded(stream: io.StringIO) -> None:
    """A logger whose events are filtered, or go no further, is silent as the standard library would have it."""
    quiet = logging.getLogger("gateway.test.quiet")
    quiet.addFilter(lambda record: record.getMessage() != "secret")
    event(quiet, logging.INFO, "secret")
    event(quiet, logging.INFO, "open")
    quiet.propagate = False
    try:
        event(quiet, logging.INFO, "kept")
    finally:
        quiet.propagate = True
        quiet.filters.clear()
    assert [line["event"] for line in lines(stream)] == ["open"]


def test_value_that_cannot_be_told_harms_nobody(stream: io.StringIO) -> None:
    """An event with a value that fails to become words is dropped; its caller goes on."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("broken")

    event(logger, logging.INFO, "odd", value=Broken())
    event(logger, logging.INFO, "turn.ended")
    assert [line["event"] for line in lines(stream)] == ["turn.ended"]


def test_lone_surrogates_do_not_lose_the_line(stream: io.StringIO) -> None:
    """Text that is no Unicode (from a path or a header) is still logged."""
    event(logger, logging.ERROR, "odd", value="a\udcffb")
    assert len(lines(stream)) == 1


def test_exception_is_logged_with_type_and_places(stream: io.StringIO) -> None:
    """An exception has its type, its shortened words, where it happened and its cause, but no source text."""
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("x" * 5000) from inner
    except ValueError as error:
        event(logger, logging.ERROR, "turn.broken", error=error)
    (line,) = lines(stream)
    shown = line["error"]
    assert shown["type"] == "ValueError"
    assert len(shown["message"]) == 500
    assert re.search(r"test_logging\.py:\d+ in test_exception_is_logged", shown["at"][0])
    assert shown["cause"]["type"] == "KeyError"
    assert "raise ValueError" not in stream.getvalue()


def test_endless_causes_are_cut(stream: io.StringIO) -> None:
    """A cycle or a long chain of causes does not hang the log."""
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    event(logger, logging.ERROR, "turn.broken", error=first)
    assert len(lines(stream)) == 1


def test_broken_message_or_stream_never_raises(capsys: pytest.CaptureFixture[str]) -> None:
    """A message with the wrong arguments is kept, a record that cannot be written is dropped, and nothing is dumped."""
    stream = io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own, which raise
    configure(LoggingSettings(), stream=stream)
    logger.error("%d", "hgs_SECRET")
    assert [line["event"] for line in lines(stream)] == ["%d"]
    stream.close()
    logger.error("hgs_SECRET")
    assert capsys.readouterr() == ("", "")


def test_console_is_for_terminals() -> None:
    """A terminal gets short coloured lines; newlines and control codes in values cannot fake an event."""
    stream = Terminal()
    configure(LoggingSettings(), stream=stream)
    try:
        raise ValueError("hgs_SECRET")
    except ValueError as error:
        event(logger, logging.WARNING, "turn.ended", error=error, note="a\nb\x1b[2J", n=3)
    first, second, third = stream.getvalue().splitlines()
    assert "\x1b[33mWARNING\x1b[0m turn.ended note=a\\nb\\x1b[2J n=3" in first
    assert second == "    ValueError: hgs_********"
    assert "test_console_is_for_terminals" in third


def test_format_can_be_forced() -> None:
    """JSON on a terminal and console in a file, when the settings say so."""
    terminal, file = Terminal(), io.StringIO()
    configure(LoggingSettings(format="json"), stream=terminal)
    event(logger, logging.INFO, "turn.ended")
    assert len(lines(terminal)) == 1
    configure(LoggingSettings(format="console"), stream=file)
    event(logger, logging.INFO, "turn.ended")
    assert file.getvalue().endswith("INFO    turn.ended\n")


def test_throttle_lets_one_through_and_counts_the_rest() -> None:
    """Of a storm one event in ten seconds passes, and the next one tells how many were held back."""
    now_s = 100.0
    throttle = Throttle(lambda: now_s)
    assert [throttle.admit("l", "k", 10) for _ in range(4)] == [0, None, None, None]
    assert throttle.admit("l", "other", 10) == 0
    now_s = 110.0
    assert [throttle.admit("l", "k", 10) for _ in range(2)] == [3, None]


def test_concealed_secret_is_masked_from_then_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that comes after the start is masked as those of the start are, also once logs go elsewhere."""
    monkeypatch.setattr(logging_module, "_concealed", {})
    conceal(Secret("hl-rotated-1"))
    conceal(Secret("hl-rotated-1-longer"))
    logger.warning("hl-vendor-key hl-rotated-1 hl-rotated-1-longer hl-rotated-2")
    later = io.StringIO()
    configure(LoggingSettings(level="info"), stream=later)
    logger.warning("hl-rotated-1")
    assert lines(stream)[0]["event"] == "******** ******** ******** hl-rotated-2"
    assert lines(later)[0]["event"] == "********"


def test_concealed_secrets_cannot_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is rotated for years keeps the latest of its states masked."""
    kept: dict[str, None] = {}
    monkeypatch.setattr(logging_module, "_concealed", kept)
    for n in range(CONCEALED_MAX + 100):
        conceal(Secret(f"hl-{n}"))
    assert len(kept) == CONCEALED_MAX
    assert f"hl-{CONCEALED_MAX + 99}" in kept


def test_throttle_forgets_the_oldest_keys() -> None:
    """Keys that come from outside cannot grow the memory."""
    throttle = Throttle(lambda: 0.0)
    for n in range(5000):
        throttle.admit("l", str(n), 10)
    assert len(throttle._held) == 1024


def test_throttled_logs_once_at_its_level(stream: io.StringIO) -> None:
    """Repeated warnings of one key become one line."""
    for _ in range(5):
        throttled(logger, "redis.down/test", "redis.down", level=logging.ERROR, host="h")
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["host"]) == ("error", "redis.down", "h")
