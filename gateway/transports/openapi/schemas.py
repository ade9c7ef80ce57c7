"""Schemas of the types that the gateway reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from gateway.transports.openapi.operation import TEXT, Events, Schema

REFERENCE: Final = "#/components/schemas/{name}"


def schema(kind: Any) -> Schema:
    """Return the schema of a type, by reference where it is a named one; a schema is returned as it is."""
    if isinstance(kind, Events):
        return _events(kind)
    return kind if isinstance(kind, Mapping) else _schema_of(kind)


@cache
def _schema_of(kind: Any) -> Schema:
    (found,), _ = msgspec.json.schema_components([kind], ref_template=REFERENCE)
    return found


def schemas(types: Iterable[Any], members: Iterable[tuple[Any, Mapping[str, Schema]]]) -> dict[str, Any]:
    """Return the schemas of types and of all that they are made of, by name; ``members`` says more of their members.

    Raises KeyError for a member that a type does not have.
    """
    _, found = msgspec.json.schema_components(list(types), ref_template=REFERENCE)
    for kind, more in members:
        properties = found[kind.__name__]["properties"]
        for name, told in more.items():
            properties[name] = _told(properties[name], told)
    for one in found.values():
        if "description" in one:
            one["description"] = one["description"].replace("``", "`")
    return dict(sorted(found.items()))


def _told(member: dict[str, Any], more: Schema) -> dict[str, Any]:
    """Say more of a member; bounds of one that may be null too are its other alternative's."""
    alternatives = member.get("anyOf")
    about = {name: value for name, value in more.items() if name in ("description", "examples")}
    bounds = {name: value for name, value in more.items() if name not in about}
    if alternatives is None:
        return {**member, **more}
    return {
        **member,
        **about,
        "anyOf": [one if one.get("type") == "null" else {**one, **bounds} for one in alternatives],
    }


def _events(events: Events) -> Schema:
    """Return the schema of one event of a stream.

    OpenAPI 3.1 has no word for the items of a stream; tools read the schema of its media type as that of each event.
    """
    return {
        "description": events.what,
        "type": "object",
        "properties": {"id": TEXT, "event": TEXT, "data": TEXT, "retry": {"type": "integer"}},
        "required": ["event", "data"],
        "oneOf": [
            {
                "properties": {
                    "event": {"const": name},
                    "data": {"contentMediaType": "application/json", "contentSchema": schema(kind)},
                }
            }
            for name, kind in events.kinds.items()
        ],
    }
