"""Moderations: a judgement of a text. The vendor has published no shape for the answer; this is the usual one.

A word ``#moderation=503`` in the text makes the judgement fail with that status, ``#moderation=odd`` makes it one that
nobody can read; to a chat both are plain words.
"""

from __future__ import annotations

import re
import zlib
from typing import Final
from uuid import uuid4

from gateway.simulator.answers import Json
from gateway.simulator.replies import ApiError
from gateway.simulator.requests import Moderate, decode

_SIGNS: Final = {"hate": ("hate",), "self-harm": ("suicide",), "sexual": ("nude",), "violence": ("kill", "bomb")}

_FAULT: Final = re.compile(r"(?<!\S)#moderation=(odd|[45][0-9][0-9])(?!\S)")


def judged(body: bytes) -> Json:
    """Judges a text by a few words, the same text always alike; raises BadRequestError, ApiError."""
    text = decode(body, Moderate).input or ""
    fault = _FAULT.search(text)
    if fault is not None and fault[1] != "odd":
        raise ApiError(int(fault[1]), "internal_server_error", "The text could not be judged.")
    if fault is not None:
        return {"id": f"modr-{uuid4().hex}", "results": []}
    words = text.lower().split()
    categories = {category: any(sign in words for sign in signs) for category, signs in _SIGNS.items()}
    noise = zlib.crc32(" ".join(words).encode("utf-8", "replace")) % 100 / 10_000
    return {
        "id": f"modr-{uuid4().hex}",
        "model": "text-moderation-007",
        "results": [
            {
                "flagged": any(categories.values()),
                "categories": categories,
                "category_scores": {name: 0.97 if found else noise for name, found in categories.items()},
            }
        ],
    }
