"""Hyperleap's dialect: what its moderation of a text says.

The vendor publishes the request (OpenAiModerationsRequest) and no shape of the answer. Two are taken: OpenAI's, by
which the request is named, and the vendor's own of chats (GenAiContentModerationResult). Anything else is no judgement.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from gateway.core.errors import Code, GatewayError

CATEGORIES_MAX: Final = 32
_CATEGORY: Final = re.compile(r"[A-Za-z0-9 _/.-]{1,64}", re.ASCII)


class Judgement(NamedTuple):
    """Whether a text was flagged, and for which categories as the vendor names them; there may be none."""

    flagged: bool
    categories: tuple[str, ...] = ()


def read_judgement(answer: Any) -> Judgement:
    """Read a moderation's answer, the plain value of its JSON. Raises GatewayError(upstream_malformed)."""
    results = answer.get("results") if isinstance(answer, dict) and "results" in answer else [answer]
    if not isinstance(results, list) or not results:
        raise GatewayError(Code.UPSTREAM_MALFORMED)
    flagged = False
    categories: dict[str, None] = {}
    for result in results:
        if not isinstance(result, dict):
            raise GatewayError(Code.UPSTREAM_MALFORMED)
        if isinstance(result.get("flagged"), bool):
            said, named = result["flagged"], result.get("categories")
            found = [name for name, is_so in named.items() if is_so is True] if isinstance(named, dict) else []
        elif isinstance(result.get("categoryResults"), list):
            filtered = [one for one in result["categoryResults"] if isinstance(one, dict) and one.get("filtered")]
            said, found = bool(filtered), [one.get("category") for one in filtered]
        else:
            raise GatewayError(Code.UPSTREAM_MALFORMED)
        if said:
            flagged = True
            categories |= {name: None for name in found if isinstance(name, str) and _CATEGORY.fullmatch(name)}
    return Judgement(flagged, tuple(categories)[:CATEGORIES_MAX])
