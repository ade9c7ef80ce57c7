"""Schemas as Markdown: what a type is, and a table of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.transports.openapi.operation import Schema

WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "object", "null": "null"}


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; none where there are no rows."""
    if not rows:
        return []
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def members(schema: Schema) -> list[str]:
    """Return the lines of a table of an object's members."""
    required = schema.get("required", ())
    return table(
        ("member", "type", "", "meaning"),
        [
            (f"`{name}`", kind(member), "required" if name in required else _default(member), meaning(member))
            for name, member in schema.get("properties", {}).items()
        ],
    )


def kind(schema: Schema) -> str:
    """Return what kind of value a schema takes; a named type leads to its heading on the same page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(map(kind, schema[several]))
    if "allOf" in schema:
        return kind(schema["allOf"][0])
    if "enum" in schema or "const" in schema:
        values: Sequence[Any] = schema.get("enum", (schema.get("const"),))
        return " · ".join(f"`{_plain(value)}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if schema.get("format") in ("uuid", "date-time"):
        return {"uuid": "UUID", "date-time": "time (ISO 8601)"}[schema["format"]]
    return WORDS.get(schema.get("type", ""), "number" if schema.get("type") == "number" else "any value")


def meaning(schema: Schema) -> str:
    """Return what is said of a value, and its bounds."""
    words = [schema["description"]] if "description" in schema else []
    bounds = bounds_of(schema)
    return " ".join([*words, f"{bounds}." if bounds else ""]).strip()


def bounds_of(schema: Schema) -> str:
    """Return the bounds that a schema sets, in words."""
    for one in schema.get("anyOf", ()):
        if words := bounds_of(one):
            return words
    told: list[str] = []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ):
        if low in schema and high in schema:
            told.append(f"{_number(schema[low])} to {_number(schema[high])}{unit}")
        elif low in schema:
            told.append(f"at least {_number(schema[low])}{unit.replace('ies', 'y') if schema[low] == 1 else unit}")
        elif high in schema:
            told.append(f"at most {_number(schema[high])}{unit}")
    if "items" in schema and (of_each := bounds_of(schema["items"])):
        told.append(f"each of {of_each}")
    sentence = ", ".join(told).replace("at least 1 characters", "not empty")
    return sentence[:1].upper() + sentence[1:]


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return f"`{_plain(default)}`" if default not in (None, {}, []) else ""


def _plain(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _number(value: float) -> str:
    return f"{value:,}"


def named(schemas: Mapping[str, Schema], names: Sequence[str], level: int = 3) -> list[str]:
    """Return a section for each of some types."""
    lines: list[str] = []
    for name in names:
        schema = schemas[name]
        lines += [f"{'#' * level} {name}", ""]
        if "description" in schema:
            lines += [schema["description"], ""]
        lines += members(schema) if "properties" in schema else [kind(schema), ""]
    return lines
