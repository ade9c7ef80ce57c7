"""Rules of a sound deployment, and what is found where one does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gateway.core.identity import Tenant, TenantId
from gateway.settings import Settings
from gateway.store.examination import StoreState
from gateway.upstream.greeting import Greeting


class Severity(StrEnum):
    """How much it matters; only what is unsafe makes the command fail."""

    UNSAFE = "unsafe"  # somebody can read, spend or lose what he should not
    MISSING = "missing"  # it works until the first fault, or the first bill
    ADVICE = "advice"  # worth a thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that rules look at."""

    settings: Settings
    tenants: Mapping[TenantId, Tenant]
    config: Path | None  # the settings' own file
    store: StoreState | None  # None: it is embedded, or could not be asked
    upstream: Greeting | None  # None: it could not be asked
    streams: int  # that a worker is to hold at a time
    open_files: int  # that a process may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that must hold. ``look`` tells what does not, in words for each instance; nothing where it holds."""

    name: str
    severity: Severity
    why: str  # what may happen, for the page
    do: str  # what to do about it, with the setting's name
    look: Callable[[Scene], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that does not hold."""

    subject: str
    severity: Severity
    words: str
    do: str
