"""What a server says of itself, and whether that will do."""

from __future__ import annotations

from typing import Final

VERSION_FLOORS: Final = {"Redis": (7, 0), "Valkey": (7, 2)}


def store_name(facts: dict[str, str]) -> str:
    """Name the server that ``INFO`` describes, with its version."""
    valkey = facts.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {facts.get('redis_version', '?')}"


def store_fault(facts: dict[str, str]) -> str | None:
    """Say why a server cannot be used (too old, a Sentinel instead of what it watches), or None."""
    if facts.get("redis_mode") == "sentinel":
        return "this is a Sentinel; name it and its service as redis+sentinel://host:port/<service>"
    name, _, version = store_name(facts).partition(" ")
    floor = VERSION_FLOORS[name]
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return None if known >= floor else f"{name} {version} is too old; {floor[0]}.{floor[1]} is needed"
