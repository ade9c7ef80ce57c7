"""What was found, to read on a terminal of 80 columns or in a pipeline."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, Protocol

import msgspec

from gateway.production.checklist import RULES, counted
from gateway.production.finding import Finding, Severity

WIDTH: Final = 80
INDENT: Final = " " * 9


class Check(Protocol):
    """Whether something works at all."""

    @property
    def subject(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def words(self) -> str: ...


def fails(checks: Iterable[Check], findings: Iterable[Finding]) -> bool:
    """Whether the command is to fail."""
    unsafe = any(finding.severity is Severity.UNSAFE for finding in findings)
    return unsafe or not all(check.ok for check in checks)


def as_text(checks: Sequence[Check], findings: Sequence[Finding]) -> str:
    """Return lines of 80 columns at most, but for words that are longer."""
    lines: list[str] = []
    for check in checks:
        lines += _entry("ok" if check.ok else "FAIL", f"{check.subject}: {check.words}")
    for (severity, subject, do), group in groupby(findings, key=lambda one: (one.severity, one.subject, one.do)):
        lines.append("")
        for number, finding in enumerate(group):
            lines += _entry("" if number else severity.upper(), f"{subject}: {finding.words}")
        lines += _wrapped(do, INDENT + "→ ", INDENT + "  ")
    holding = len(RULES) - len({finding.subject for finding in findings})
    lines += [
        "",
        *_wrapped(f"{counted(findings)}; {holding} of {len(RULES)} rules hold. Why: /docs/production", "", ""),
    ]
    return "\n".join(lines)


def as_json(checks: Sequence[Check], findings: Sequence[Finding]) -> str:
    """Return a document with ``ok``, ``checks`` and ``findings``."""
    document = {
        "ok": not fails(checks, findings),
        "checks": [{"subject": check.subject, "ok": check.ok, "words": check.words} for check in checks],
        "findings": list(findings),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _entry(label: str, words: str) -> Iterator[str]:
    return iter(_wrapped(words, f"{label:<{len(INDENT)}}", INDENT))


def _wrapped(words: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        words, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
