"""What settings are made of: sections with checked fields, built from tables so that an error names the field."""

from __future__ import annotations

import difflib
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

MASK = "********"


class SettingsError(ValueError):
    """A setting that cannot be used. ``key`` is the name under which it was given, ``message`` says what to do."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        self.message = message
        super().__init__(f"{key}: {message}")


class Secret:
    """A string that shows itself only when asked: masked in every repr, str, format and log."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value:
            raise ValueError("must not be empty")
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def doc(text: str, **bounds: Any) -> msgspec.Meta:
    """Document a field, with bounds (``gt``, ``ge``, ``le``) that construction checks."""
    return msgspec.Meta(description=text, **bounds)


Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


@cache
def field_metas(kind: type[msgspec.Struct]) -> dict[str, tuple[msgspec.Meta, ...]]:
    """Return the documentation and bounds of every field of a section."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: getattr(hints[name], "__metadata__", ()) for name in kind.__struct_fields__}


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen part of the tree. Raises SettingsError, keyed by the field's name, when a value is nonsense."""

    def __post_init__(self) -> None:
        for name, metas in field_metas(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise SettingsError(name, "must be a finite number")
            for meta in metas:
                if meta.gt is not None and not value > meta.gt:
                    raise SettingsError(name, f"must be above {meta.gt:g}, not {value:g}")
                if meta.ge is not None and not value >= meta.ge:
                    raise SettingsError(name, f"must be at least {meta.ge}, not {value}")
                if meta.le is not None and not value <= meta.le:
                    raise SettingsError(name, f"must be at most {meta.le}, not {value}")


class Text(str):
    """A value written as text (environment, command line): numbers, booleans and lists are read out of it."""

    __slots__ = ()


S = TypeVar("S", bound=Section)
_hints = cache(get_type_hints)  # of a section: they take longer to find out than all the rest of building it


def build(kind: type[S], raw: object, at: str, base: Path, *, also_known: Iterable[str] = ()) -> S:
    """Build a section field by field, so that an error names the tenant, the alias and the field.

    ``at`` is the key of the section; paths are relative to ``base``. ``also_known`` are other names that a misspelt
    key may have meant. Raises SettingsError.
    """
    prefix = f"{at}." if at else ""
    if not isinstance(raw, Mapping):
        raise SettingsError(at, "must be a table")
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise unknown(key, [f"{prefix}{known}" for known in hints] + list(also_known))
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Section):
            values[name] = build(hint, value, key, base)
        elif get_origin(hint) is dict:
            if not isinstance(value, Mapping):
                raise SettingsError(key, "must be a table")
            values[name] = {
                item: build(get_args(hint)[1], table, f"{key}.{item}", base) for item, table in value.items()
            }
        else:
            values[name] = _convert(value, hint, key, base)
    for required in kind.__struct_fields__:
        if required not in values and default_of(kind, required) is msgspec.NODEFAULT:
            raise SettingsError(f"{prefix}{required}", "is required")
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{prefix}{error.key}", error.message) from None


def _convert(value: object, hint: Any, key: str, base: Path) -> object:
    text = isinstance(value, Text)
    if isinstance(value, Text):
        if get_origin(hint) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif hint is bool:
            value = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), str(value))
        base = Path()

    def custom(kind: type, item: object) -> object:
        if isinstance(item, kind):
            return item
        if not isinstance(item, str):
            raise ValueError(f"expected text, got {type(item).__name__}")
        if kind is Path:
            if not item:
                raise ValueError("must not be empty")
            return base / Path(item).expanduser()
        return kind(str(item))

    try:
        found = msgspec.convert(value, hint, strict=not text, dec_hook=custom)
    except (msgspec.ValidationError, RuntimeError) as error:
        message = re.sub(r" - at `.*`$", "", str(error))
        raise SettingsError(key, message[:1].lower() + message[1:]) from None
    return str(found) if isinstance(found, Text) else found  # encoders take no subclass of str


def unknown(name: str, known: Iterable[str]) -> SettingsError:
    """Return the error that refuses a name, and tells the nearest of those that there are."""
    nearest = difflib.get_close_matches(name, list(known), 1, cutoff=0.0)[0]
    return SettingsError(name, f"there is no such setting; the nearest is {nearest}")


@cache
def default_of(kind: type[msgspec.Struct], name: str) -> Any:
    """Return a field's default, the function that makes it, or ``msgspec.NODEFAULT``."""
    field = next(field for field in msgspec.structs.fields(kind) if field.name == name)
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory


def _unset(kind: type[msgspec.Struct], name: str) -> Any:
    default = default_of(kind, name)
    return default() if isinstance(default, type) else default


def plain(value: object) -> Any:
    """Return a value of a section for printing, secrets masked."""
    match value:
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case tuple():
            return [plain(item) for item in value]
        case Secret():
            return MASK
        case Path():
            return str(value)
        case _:
            return value


def written(section: Section) -> dict[str, Any]:
    """Return the table that makes a section: its fields as plain values, those left out that are as they are unset."""
    return {
        name: {item: written(part) for item, part in value.items()}
        if isinstance(value, dict)
        else (written(value) if isinstance(value, Section) else plain(value))
        for name in section.__struct_fields__
        if (value := getattr(section, name)) != _unset(type(section), name)
    }


def reason(error: Exception) -> str:
    """Say in the system's words why a file could not be read."""
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def normal_uuid(field: str, text: str) -> str:
    """Return a UUID in lower case; raises SettingsError by the field's name."""
    if not re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text):
        raise SettingsError(field, f"{text!r} is not a UUID")
    return str(uuid.UUID(text))


def web_url(field: str, text: str, schemes: tuple[str, ...]) -> str:
    """Return the URL without a slash at its end; raises SettingsError by the field's name."""
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(field, f"is not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise SettingsError(field, "must not hold a user or a password")
    if parts.scheme not in schemes or not parts.hostname:
        raise SettingsError(field, f"must be {wanted}host[:port], not {text!r}")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", text):
        raise SettingsError(field, "must hold no query, fragment or space")
    return text.rstrip("/")
