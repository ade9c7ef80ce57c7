"""Logs: one structured event a line, as JSON or for a terminal, with the request's and the turn's id, without secrets.

Call sites never log a key, a token, a prompt or an answer. The redaction here is only the belt to that: it masks
whatever looks like one of our credentials, and the secrets that ``configure`` was told, wherever it would appear.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO

import msgspec

from gateway.options import LoggingSettings
from gateway.sections import MASK, Secret

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
TURN_ID: ContextVar[str | None] = ContextVar("turn_id", default=None)

# Libraries that say at INFO what our own events say better, or at DEBUG what nobody may read (headers, bodies)
QUIET = ("aiohttp", "asyncio", "h2", "hpack", "httpcore", "httpx", "redis")
COLOURS = {"debug": "2", "info": "36", "warning": "33", "error": "31", "critical": "31"}
TEXT_MAX_CHARS = 500  # of an exception's words, which may quote what made it fail
CAUSES_MAX = 5
THROTTLED_MAX = 1024
CONCEALED_MAX = 1024  # keys and their rotations over a process's life
# Exceptions whose words are what a stranger sent; they are told to the sender, and their words kept out of the log
STRANGERS_WORDS = ("aiohttp.http_exceptions",)

_CREDENTIALS = re.compile(
    r"""
    (?P<token>\bhg[spvtk]_)[A-Za-z0-9._~+/=-]+              # our own keys, tokens, visitor ids, tickets
    | (?P<header>(?:x-hl-api-key|(?:proxy-)?authorization|sec-websocket-protocol|(?:set-)?cookie)
        [\\"']{0,2}\s*[:=,]\s*(?:b(?=["'\\]))?[\\"']{0,2}(?:(?:bearer|basic)\s+)?)[^\s"',;)}\]\\]+
    | (?P<scheme>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}
    | (?P<url>\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@"']{0,128}:)[^\s/@"']{1,512}(?=@)
    | (?P<query>[?&](?:ticket|token|password|api_key)=)[^\s&"'\\]+
    """,
    re.IGNORECASE | re.VERBOSE,
)
# One of these is in every ASCII text, in lower case, that the expression above finds anything in (a test draws from it)
_HINTS = (
    *("hgs_", "hgp_", "hgv_", "hgt_", "hgk_"),
    *("x-hl-api-key", "authorization", "sec-websocket-protocol", "cookie", "bearer", "basic", "://"),
    *("ticket=", "token=", "password=", "api_key="),
)


class Redactor:
    """Masks what looks like a credential, and the given secrets literally."""

    def __init__(self, secrets: Collection[Secret] = ()) -> None:
        self._words = {secret.reveal() for secret in secrets}
        self._secrets: re.Pattern[str] | None = None
        self._compile()

    def has_none(self, texts: Collection[str]) -> bool:
        """Whether ``text`` would return each of these as it is; where it would not, or that is not plain, False.

        All are looked through at once for what must stand in a text to be masked, by searches for plain words: they
        take 1 µs an event of six texts where the expressions take 21 (CPython 3.11).
        """
        joined = "\n".join(texts)
        if not joined.isascii():  # more letters than the ASCII ones are equal to an ASCII one but for their case
            return False
        lower = joined.lower()
        for hint in _HINTS:
            if hint in lower:
                return False
        for word in self._words:  # noqa: SIM110 - a generator would cost as much as the searches
            if word in joined:
                return False
        return True

    def learn(self, words: Collection[str]) -> None:
        """Mask these words too, from now on."""
        if not self._words.issuperset(words):
            self._words.update(words)
            self._compile()

    def _compile(self) -> None:
        longest_first = sorted(self._words, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """Return text without secrets, fit for UTF-8."""
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates, from a path or a header
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
        return _CREDENTIALS.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + MASK, text)

    def value(self, value: object) -> Any:
        """Return a value that JSON can hold, redacted throughout."""
        match value:
            case None | bool():
                return value
            case int():
                return int(value) if abs(value) < 2**63 else str(value)
            case float():
                return value if value - value == 0 else str(value)  # JSON has no infinity
            case str():
                return self.text(str(value))
            case Mapping():
                return {self.text(str(key)): self.value(item) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.value(item) for item in value]
            case BaseException():
                return self.error(value)
            case _:
                return self.text(str(value))

    def error(self, error: BaseException, causes: int = CAUSES_MAX) -> dict[str, Any]:
        """Return type, redacted words and the places of the traceback; never source text or values of variables."""
        kind = type(error)
        shown: dict[str, Any] = {
            "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
            "message": "" if kind.__module__ in STRANGERS_WORDS else self.text(str(error))[:TEXT_MAX_CHARS],
            "at": [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in _frames(error)],
        }
        if causes:
            if isinstance(error, BaseExceptionGroup):
                shown["errors"] = [self.error(inner, causes - 1) for inner in error.exceptions[:CAUSES_MAX]]
            cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            if cause is not None:
                shown["cause"] = self.error(cause, causes - 1)
        return shown


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False))


class _Formatter(logging.Formatter):
    def __init__(self, redactor: Redactor, *, worker: str | None = None) -> None:
        super().__init__()
        self.redactor = redactor
        self._worker = worker

    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the record as a flat table, redacted: ts, level, logger, event, ids, fields, error."""
        second, ms = divmod(int(record.created * 1000), 1000)
        facts: dict[str, Any] = {
            "ts": f"{_date(second)}.{ms:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        told: dict[str, object] = {"event": _message(record)}
        if self._worker is not None:
            told["worker"] = self._worker
        fields: dict[str, object] = getattr(record, "fields", {})
        bound_ids = ("request_id", REQUEST_ID.get()), ("turn_id", TURN_ID.get())
        told |= {name: bound_id for name, bound_id in bound_ids if bound_id is not None and name not in fields}
        told |= {
            f"{name}_" if name in ("ts", "level", "logger", "event", "error") else name: value
            for name, value in fields.items()
        }
        clean = self.redactor.has_none([value for value in told.values() if type(value) is str])
        for name, value in told.items():
            facts[name] = value if clean and type(value) is str else self.redactor.value(value)
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = self.redactor.error(record.exc_info[1])
        return facts


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit the format
        return str(record.msg)


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return _encode(self.facts(record))


class ConsoleFormatter(_Formatter):
    """One line for a human; the places of an exception follow, indented."""

    def __init__(self, redactor: Redactor, *, colour: bool, worker: str | None = None) -> None:
        super().__init__(redactor, worker=worker)
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        facts = self.facts(record)
        when, level, _, event = (facts.pop(name) for name in ("ts", "level", "logger", "event"))
        error = facts.pop("error", None)
        mark = level.upper().ljust(7)
        if self._colour:
            mark = f"\x1b[{COLOURS.get(level, '0')}m{mark}\x1b[0m"
        words = [when[11:23], mark, _one_line(event)]
        words += [
            f"{name}={_one_line(value if isinstance(value, str) else _encode(value))}" for name, value in facts.items()
        ]
        lines = [" ".join(words)]
        while error is not None:
            lines.append(f"    {error['type']}: {_one_line(error['message'])}")
            lines += [f"      {place}" for place in error["at"]]
            error = error.get("cause") or next(iter(error.get("errors", ())), None)
        return "\n".join(lines)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error; a record that cannot be written is dropped, never dumped unredacted."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def configure(
    settings: LoggingSettings,
    *,
    secrets: Collection[Secret] = (),
    stream: TextIO | None = None,
    worker: str | None = None,
) -> None:
    """Send every logger's events through one handler, replacing the one of an earlier call.

    ``worker`` is the slot of a supervised worker; it is told with every event.
    """
    stream = stream if stream is not None else sys.stderr
    redactor = Redactor(secrets)
    redactor.learn(_concealed)
    handler = _Handler(stream)
    terminal = stream.isatty()
    if settings.format == "console" or (settings.format == "auto" and terminal):
        handler.setFormatter(ConsoleFormatter(redactor, colour=terminal, worker=worker))
    else:
        handler.setFormatter(JsonFormatter(redactor, worker=worker))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # No formatter of ours tells who logged in which thread; to find it out is a quarter of a line's time.
    logging._srcfile = None  # the switch that the standard library's logging HOWTO names, under "Optimization"
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False


_concealed: dict[str, None] = {}  # the latest last


def conceal(secret: Secret) -> None:
    """Mask a secret from now on, also after another ``configure``: one that came after the start, by a rotation."""
    _concealed.pop(secret.reveal(), None)
    _concealed[secret.reveal()] = None
    if len(_concealed) > CONCEALED_MAX:
        del _concealed[next(iter(_concealed))]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler) and isinstance(handler.formatter, _Formatter):
            handler.formatter.redactor.learn(_concealed)


def event(
    logger: logging.Logger, level: int, name: str, /, *, error: BaseException | None = None, **fields: object
) -> None:
    """Log that something happened, named in the past participle (``turn.ended``), with its facts."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", name, extra={"fields": fields}, exc_info=error)


@contextmanager
def bound(*, request_id: str | None = None, turn_id: str | None = None) -> Iterator[None]:
    """Attach ids to every event logged inside, by tasks started inside as well."""
    request = REQUEST_ID.set(request_id) if request_id is not None else None
    turn = TURN_ID.set(turn_id) if turn_id is not None else None
    try:
        yield
    finally:
        if turn is not None:
            TURN_ID.reset(turn)
        if request is not None:
            REQUEST_ID.reset(request)


class Throttle:
    """Lets one event of a key through in ``every_s`` and counts those that it holds back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], tuple[float, int]] = {}  # when the last one passed, how many were held since

    def admit(self, logger: str, key: str, every_s: float) -> int | None:
        """Return how many were held back before this one, or None when this one is held back too."""
        now_s = self._clock()
        last_s, held = self._held.pop((logger, key), (now_s - every_s, 0))
        passes = now_s - last_s >= every_s
        self._held[logger, key] = (now_s, 0) if passes else (last_s, held + 1)
        if len(self._held) > THROTTLED_MAX:
            del self._held[next(iter(self._held))]  # the one untouched for longest
        return held if passes else None


_throttle = Throttle()


def throttled(
    logger: logging.Logger,
    key: str,
    name: str | None = None,
    /,
    *,
    level: int = logging.WARNING,
    every_s: float = 10.0,
    error: BaseException | None = None,
    **fields: object,
) -> None:
    """Log an event (``name``, or the key itself) at most once in ``every_s`` for its key.

    The next one that is logged says how many were ``suppressed`` in between.
    """
    held = _throttle.admit(logger.name, key, every_s)
    if held is not None:
        event(logger, level, name or key, error=error, **({"suppressed": held} if held else {}), **fields)


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _one_line(text: str) -> str:
    """Escape what would start a new line or steer a terminal, so that no logged value can fake an event."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
