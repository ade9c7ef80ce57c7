"""The description as a page to read: each door's operations, then the types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.transports.openapi.operation import Schema
from gateway.transports.openapi.tables import kind, meaning, named, table

CREDENTIALS: Final = {
    "session_token": "a session token",
    "secret_key": "a secret key",
    "publishable_key": "a publishable key",
    "ticket": "a ticket in the query",
    "hyperleap_header": "`x-hl-api-key`",
}


def http_page(document: Mapping[str, Any]) -> str:
    """Return the page, as Markdown."""
    lines = [
        "# HTTP",
        "",
        "Made from the gateway's own description, [`/openapi.json`](/openapi.json) (OpenAPI 3.1).",
        "",
        document["info"]["description"],
        "",
    ]
    for tag in document["tags"]:
        lines += [f"## Door: {tag['name']}", "", tag["description"], ""]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    lines += _operation(f"{method.upper()} {path}", operation)
    schemas = document["components"]["schemas"]
    lines += ["## Types", "", *named(schemas, list(schemas)), "## Headers", ""]
    told = document["components"]["headers"].items()
    lines += table(
        ("header", "type", "meaning"),
        [(f"`{name}`", kind(header["schema"]), header["description"]) for name, header in told],
    )
    return "\n".join(lines).rstrip() + "\n"


def _operation(title: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"### {title}", "", f"**{operation['summary']}.** " + _more(operation), ""]
    credentials = [CREDENTIALS[name] for one in operation["security"] for name in one]
    lines += [f"Credential: {' or '.join(credentials)}." if credentials else "Credential: none.", ""]
    lines += table(
        ("parameter", "in", "type", "meaning"),
        [
            (
                f"`{one['name']}`",
                one["in"],
                kind(one["schema"]),
                meaning({**one["schema"], "description": one["description"]}),
            )
            for one in operation["parameters"]
            if "$ref" not in one
        ],
    )
    if "requestBody" in operation:
        lines += [f"Body: {_media(operation['requestBody']['content'])}.", ""]
    rows = []
    for status, response in operation["responses"].items():
        if not status.startswith(("4", "5")):
            content = response.get("content", {})
            rows.append((status, _media(content) if content else "", response["description"]))
        else:
            rows.append((status, "error", response["description"].replace("- ", "").replace("\n", "<br>")))
    return lines + table(("status", "body", "meaning"), rows)


def _more(operation: Mapping[str, Any]) -> str:
    return "" if operation["description"] == operation["summary"] + "." else str(operation["description"])


def _media(content: Mapping[str, Mapping[str, Schema]]) -> str:
    told = []
    for name, media in content.items():
        schema = media["schema"]
        if "oneOf" in schema:
            told.append(f"`{name}`: {_events(schema)}")
        else:
            plain = schema.get("type") == "string" or kind(schema) in ("object", "any value")
            told.append(f"`{name}`" if plain else f"`{name}`: {kind(schema)}")
    return "; ".join(told)


def _events(schema: Schema) -> str:
    names = [(one["properties"]["event"]["const"], one["properties"]["data"]) for one in schema["oneOf"]]
    return ", ".join(f"`{name}` ({kind(data['contentSchema'])})" for name, data in names)
