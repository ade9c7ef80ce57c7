"""Logs: one structured event a line, as JSON or for a terminal, with the request's and the turn's id, without secrets.

Call sites never log a key, a token, a prompt or an answer. The redaction here is only the belt to that: it masks
whatever looks like one of our credentials, and the secrets that ``configure`` was told, wherever it would appear.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO

import msgspec

from gateway.options import LoggingSettings
from gateway.sections import Secret, SettingsError, reason
from gateway.telemetry.line_file import LineFile
from gateway.telemetry.redaction import Redactor
from gateway.telemetry.spans import CURRENT
from gateway.telemetry.throttle import Throttle

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
TURN_ID: ContextVar[str | None] = ContextVar("turn_id", default=None)

AUDIT = "gateway.audit"  # the logger of the audit stream
# Libraries that say at INFO what our own events say better, or at DEBUG what nobody may read (headers, bodies)
QUIET = ("aiohttp", "asyncio", "h2", "hpack", "httpcore", "httpx", "redis", "requests", "urllib3")
COLOURS = {"debug": "2", "info": "36", "warning": "33", "error": "31", "critical": "31"}
CONCEALED_MAX = 1024  # keys and their rotations over a process's life
OURS = frozenset({"ts", "level", "logger", "event", "error"})  # a field of one of these names is told with a ``_``


class _Formatter(logging.Formatter):
    def __init__(self, redactor: Redactor, *, worker: str | None = None) -> None:
        super().__init__()
        self.redactor = redactor
        self._worker = worker

    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the record as a flat table, redacted: ts, level, logger, event, ids, fields, error."""
        facts = _head(record.created, record.levelname, record.name)
        fields: dict[str, object] = getattr(record, "fields", {})
        told: dict[str, object] = {"event": _message(record), **self._bound(fields)}
        told |= {f"{name}_" if name in OURS else name: value for name, value in fields.items()}
        clean = self.redactor.has_none([value for value in told.values() if type(value) is str])
        for name, value in told.items():
            facts[name] = value if clean and type(value) is str else self.redactor.value(value)
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = self.redactor.error(record.exc_info[1])
        return facts

    def _bound(self, fields: Mapping[str, object]) -> dict[str, str]:
        """Return what is told with every event: the worker, and the ids that the fields do not have themselves."""
        told = {} if self._worker is None else {"worker": self._worker}
        request_id, turn_id = REQUEST_ID.get(), TURN_ID.get()
        if request_id is not None and "request_id" not in fields:
            told["request_id"] = request_id
        if turn_id is not None and "turn_id" not in fields:
            told["turn_id"] = turn_id
        if trace_id := CURRENT.get().trace_id:
            told["trace_id"] = trace_id
        return told


def _head(at_s: float, level: str, logger: str) -> dict[str, Any]:
    second, ms = divmod(int(at_s * 1000), 1000)
    return {"ts": f"{_date(second)}.{ms:03}Z", "level": level.lower(), "logger": logger}


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

    def line(self, logger: str, level: int, name: str, fields: Mapping[str, object]) -> str | None:
        """Return what ``format`` makes of such an event's record; None where that needs a closer look.

        It takes 8 µs with the write where a record takes 15 (an event of nine fields, CPython 3.11).
        """
        facts = _head(time.time(), logging.getLevelName(level), logger)
        facts["event"] = name
        facts |= self._bound(fields)
        texts = [*facts.values()]
        for field, value in fields.items():
            if isinstance(value, str):  # or an enum's word
                value = str(value)
                texts.append(value)
            elif value is not None:
                value = self.redactor.value(value)
            facts[f"{field}_" if field in OURS else field] = value
        return _encode(facts) if self.redactor.has_none(texts) else None


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

    def tell(self, logger: logging.Logger, level: int, name: str, fields: Mapping[str, object]) -> bool:
        """Write an event without a record; False where that would keep it from somebody, or it is not plain."""
        if type(self.formatter) is not JsonFormatter or not self._alone(logger):
            return False
        try:
            line = self.formatter.line(logger.name, level, name, fields)
        except Exception:  # a value that cannot be told; its record will not be, either
            return False
        if line is None:
            return False
        self.acquire()
        try:
            self._write(line)
        finally:
            self.release()
        return True

    def _alone(self, logger: logging.Logger) -> bool:
        """Whether nobody but this handler listens to a logger, and nobody decides what it may hear."""
        if self.level or self.filters or logger.filters:
            return False
        while logger.parent is not None:
            if logger.handlers or not logger.propagate:
                return False
            logger = logger.parent
        return len(logger.handlers) == 1 and logger.handlers[0] is self

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self._write(line)

    def _write(self, line: str) -> None:
        with suppress(Exception):
            self.stream.write(line + "\n")
            self.stream.flush()

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

    The audit stream has one of its own where it has a file. ``worker`` is the slot of a supervised worker; it is told
    with every event. Raises SettingsError for an audit file that cannot be opened.
    """
    global _ours, _starts
    stream = stream if stream is not None else sys.stderr
    redactor = Redactor(secrets)
    redactor.learn(_concealed)
    handler = _Handler(stream)
    terminal = stream.isatty()
    if settings.format == "console" or (settings.format == "auto" and terminal):
        handler.setFormatter(ConsoleFormatter(redactor, colour=terminal, worker=worker))
    else:
        handler.setFormatter(JsonFormatter(redactor, worker=worker))
    _ours, _starts = handler, settings.starts
    _configure_audit(settings, redactor, worker)
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


def _configure_audit(settings: LoggingSettings, redactor: Redactor, worker: str | None) -> None:
    """Let the audit stream through whatever the log's level is, and to its file where it has one."""
    audit = logging.getLogger(AUDIT)
    for old in [old for old in audit.handlers if isinstance(old, LineFile)]:
        audit.removeHandler(old)
        old.close()
    audit.setLevel(logging.INFO)
    audit.propagate = settings.audit_file is None
    if settings.audit_file is not None:
        try:
            file = LineFile(settings.audit_file, _handle_otherwise)
        except OSError as error:
            raise SettingsError("GATEWAY_AUDIT_LOG", f"cannot be opened: {reason(error)}") from None
        file.setFormatter(JsonFormatter(redactor, worker=worker))
        audit.addHandler(file)


def _handle_otherwise(record: logging.LogRecord) -> None:
    if _ours is not None:
        _ours.handle(record)


def started(logger: logging.Logger, name: str, /, **fields: Any) -> None:
    """Log that something began whose end will be logged too, unless beginnings are not wanted."""
    if _starts:
        event(logger, logging.INFO, name, **fields)


_ours: _Handler | None = None  # what ``configure`` made last
_starts = True
_concealed: dict[str, None] = {}  # the latest last


def conceal(secret: Secret) -> None:
    """Mask a secret from now on, also after another ``configure``: one that came after the start, by a rotation."""
    _concealed.pop(secret.reveal(), None)
    _concealed[secret.reveal()] = None
    if len(_concealed) > CONCEALED_MAX:
        del _concealed[next(iter(_concealed))]
    for handler in (*logging.getLogger().handlers, *logging.getLogger(AUDIT).handlers):
        if isinstance(handler, _Handler | LineFile) and isinstance(handler.formatter, _Formatter):
            handler.formatter.redactor.learn(_concealed)


def event(
    logger: logging.Logger, level: int, name: str, /, *, error: BaseException | None = None, **fields: object
) -> None:
    """Log that something happened, named in the past participle (``turn.ended``), with its facts."""
    if not logger.isEnabledFor(level):
        return
    if error is not None or _ours is None or not _ours.tell(logger, level, name, fields):
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
