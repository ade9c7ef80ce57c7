"""The page of logs tells what the code logs: every event, with its level and its fields, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gateway
from gateway.telemetry import catalogue
from gateway.telemetry.catalogue import ANY, AUDIT_ANY, AUDIT_TABLE, EVENTS

PACKAGE = Path(gateway.__file__).parent
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
NOT_FIELDS = frozenset({"error", "level", "every_s", "exc_info", "extra"})
DYNAMIC = {
    "request.ended": {"code", "vendor_status"},
    "secret.exposed": {"path", "mode"},
}  # told by ``**`` or ``extra``
LEVELS = {"exception": "error"}


class Call(NamedTuple):
    """One place that logs an event."""

    name: str
    level: str
    fields: frozenset[str]
    where: str
    audit: bool


def calls() -> Iterator[Call]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        told = {
            id(item.context_expr): _put_in(block)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            for item in block.items
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from _calls(node, f"{path.relative_to(PACKAGE)}:{node.lineno}", told.get(id(node), set()))


def _put_in(block: ast.With) -> set[str]:
    """Return what a block puts into the dictionary ``told`` that it was given."""
    return {
        str(node.slice.value)
        for node in ast.walk(block)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "told"
        and isinstance(node.slice, ast.Constant)
    }


def _calls(node: ast.Call, where: str, told: set[str]) -> Iterator[Call]:
    name, arguments = ast.unparse(node.func), node.args
    level = next((ast.unparse(word.value) for word in node.keywords if word.arg == "level"), "logging.WARNING")
    if name in ("log_event", "event"):
        level, named = ast.unparse(arguments[1]), arguments[2]
    elif name == "throttled":
        named = arguments[2] if len(arguments) > 2 else arguments[1]
    elif name in ("log_started", "started"):
        level, named = "INFO", arguments[1]
    elif name in ("audit.record", "audit.change", "audit.flooded"):
        level, named = "INFO", arguments[0]
    elif re.fullmatch(r"(logger|_log)\.(debug|info|warning|error|exception)", name):
        level, named = name.partition(".")[2], arguments[0]
    else:
        return
    fields = {word.arg for word in node.keywords if word.arg is not None} - NOT_FIELDS
    audit = name.startswith("audit.")
    if audit:
        fields = (fields | told) - {"outcome"}
    for word in [named.body, named.orelse] if isinstance(named, ast.IfExp) else [named]:
        if isinstance(word, ast.Constant) and EVENT.fullmatch(str(word.value)):
            yield Call(str(word.value), level, frozenset(fields), where, audit)


def test_every_event_of_the_code_is_listed_with_its_fields() -> None:
    """Nothing is logged that the page does not tell, under that name, with those fields and at that level."""
    fields: dict[tuple[str, bool], set[str]] = defaultdict(set)
    problems = []
    for call in calls():
        table = AUDIT_TABLE if call.audit else EVENTS | AUDIT_TABLE
        known = table.get(call.name)
        if known is None:
            problems.append(f"{call.where}: {call.name} is not listed")
            continue
        level = LEVELS.get(call.level, call.level.rpartition(".")[2].lower())
        if " if " not in call.level and level not in known.level.split():
            problems.append(f"{call.where}: {call.name} is logged at {level}")
        missing = call.fields - set(known.fields.split()) - set(ANY)
        if missing:
            problems.append(f"{call.where}: {call.name} also has {sorted(missing)}")
        fields[call.name, call.audit] |= call.fields
    assert problems == []
    assert len(fields) > 80


def test_every_event_and_field_that_is_listed_is_logged() -> None:
    """The page tells of nothing that is never logged."""
    told: dict[str, set[str]] = defaultdict(set)
    for call in calls():
        told[call.name] |= call.fields
    assert sorted((EVENTS.keys() | AUDIT_TABLE.keys()) - told.keys()) == []
    # What a session's line tells is put together in one place for two callers.
    whole = {"session.opened"}
    extra = {
        name: sorted(unused)
        for name, known in (EVENTS | AUDIT_TABLE).items()
        if name not in whole and (unused := set(known.fields.split()) - told[name] - DYNAMIC.get(name, set()))
    }
    assert extra == {}


def test_page_is_fresh() -> None:
    """``gateway/docs/logs.md`` is what the catalogue generates."""
    assert (PACKAGE / "docs" / "logs.md").read_text("utf-8") == catalogue.reference()


def test_fields_of_any_line_are_explained() -> None:
    """Every field that comes with all lines, or with all of the audit stream, has its row."""
    page = catalogue.reference()
    assert [field for field in (*ANY, *AUDIT_ANY) if f"`{field}`" not in page] == []
