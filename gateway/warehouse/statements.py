"""The SQL of this room, as files: what it asks PostgreSQL for, and the numbered migrations that make its tables."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

MIGRATION: Final = re.compile(r"(\d{4})_(\w+)(?=\.sql)")


class Migration(NamedTuple):
    """One step of the schema; ``version`` counts from 1. A step that was released is never changed."""

    version: int
    name: str
    sql: str


def statement(name: str, schema: str, *, room: str = "sql") -> str:
    """Return a statement with the schema in it."""
    return _read(room, name).replace("{schema}", _quoted(schema))


def migrations(schema: str) -> list[Migration]:
    """Return every migration in its order."""
    files = resources.files("gateway.warehouse").joinpath("migrations").iterdir()
    found = [
        Migration(int(match[1]), match[2], statement(match[0], schema, room="migrations"))
        for file in files
        if (match := MIGRATION.match(file.name))
    ]
    found.sort()
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    return found


def script(schema: str) -> str:
    """Return all that an empty database needs, for a role that may make it, to be run as one transaction by psql."""
    parts = ["BEGIN;", f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)};", statement("versions", schema).strip() + ";"]
    applied = statement("applied", schema).strip()
    for step in migrations(schema):
        values = applied.replace("$1", str(step.version)).replace("$2", f"'{step.name}'")
        parts += [step.sql.strip(), f"{values};"]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def create_schema(schema: str) -> str:
    """Return the statement that makes the schema."""
    return f"CREATE SCHEMA {_quoted(schema)}"


def _quoted(schema: str) -> str:
    return f'"{schema}"'  # a plain name (the settings see to it), but it may be a word of SQL


@cache
def _read(room: str, name: str) -> str:
    return resources.files("gateway.warehouse").joinpath(room, f"{name}.sql").read_text("utf-8")
