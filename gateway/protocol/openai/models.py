"""Models: a tenant's personas by their aliases, as OpenAI lists what can be asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def model_body(alias: str) -> dict[str, Any]:
    """Return one model. Since when a persona has its alias is not known: ``created`` is 0."""
    return {"id": alias, "object": "model", "created": 0, "owned_by": "hyperleap"}


def models_body(aliases: Iterable[str]) -> dict[str, Any]:
    return {"object": "list", "data": [model_body(alias) for alias in sorted(aliases)]}
