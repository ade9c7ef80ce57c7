"""What no log may hold: masks whatever looks like a credential, and the secrets that it was told."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from gateway.sections import MASK, Secret

TEXT_MAX_CHARS = 500  # of an exception's words, which may quote what made it fail
CAUSES_MAX = 5
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
