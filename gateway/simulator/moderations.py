"""Moderations: a judgement of a text. The vendor has published no shape for the answer; this is the usual one."""

from __future__ import annotations

import zlib
from typing import Final
from uuid import uuid4

from gateway.simulator.answers import Json
from gateway.simulator.requests import Moderate, decode

_SIGNS: Final = {"hate": ("hate",), "self-harm": ("suicide",), "sexual": ("nude",), "violence": ("kill", "bomb")}


def judged(body: bytes) -> Json:
    """Judges a text by a few words, the same text always alike; raises BadRequestError."""
    words = (decode(body, Moderate).input or "").lower().split()
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
