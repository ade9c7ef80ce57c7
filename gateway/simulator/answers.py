"""Answers: what the simulator says to a message, always the same to the same words.

`answer(message)` is the whole truth about an answer's text, deltas, token counts and citations; a test calls it to know
what must arrive. The directives that a message may carry are listed in `gateway.simulator.directives`.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gateway.simulator.directives import Directives, read_directives
from gateway.simulator.phrases import BLOCKS, CLOSINGS, OPENINGS, SOURCES

# A token is a short word or piece of one, or a few signs, with the blank before it; every character belongs to one.
_TOKEN = re.compile(r"\s?\w{1,7}|\s?[^\w\s]{1,2}|\s+")
_ASKS_FOR_SOURCES = re.compile(
    r"\b(documents?|polic(?:y|ies)|refunds?|sources?|handbook|manual|cit(?:e|ations?))\b", re.I
)
PROMPT_OVERHEAD_TOKENS = 8  # what the stand-in counts for the chat's frame around the user's words
CACHED_TOKENS = 4_000  # longer answers are made anew each time, to keep the cache small
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Is one answer. ``deltas`` are the items' contents in order (some empty or None) and join to ``text``."""

    text: str
    deltas: tuple[str | None, ...]
    prompt_tokens: int
    completion_tokens: int
    citations: tuple[Json, ...]
    reports_moderation: bool
    directives: Directives

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


def tokens(text: str) -> list[str]:
    """Splits a text into the simulator's tokens; they join to the text again."""
    return _TOKEN.findall(text)


def answer(message: str) -> Answer:
    """Returns the answer to a message; raises ValueError when a directive in it has a bad value."""
    directives = read_directives(message)
    make = _answer if len(message) + (directives.tokens or 0) <= CACHED_TOKENS else _answer.__wrapped__
    return make(message, directives)


@lru_cache(maxsize=512)
def _answer(message: str, directives: Directives) -> Answer:
    seed = directives.seed if directives.seed is not None else zlib.crc32(directives.text.encode("utf-8", "replace"))
    dice = random.Random(seed)
    words = tokens(directives.text if directives.echo else _compose(directives.text, dice))
    if directives.tokens is not None:
        words = _resize(words, directives.tokens, dice)
    text = "".join(words)
    return Answer(
        text=text,
        deltas=tuple(words) if directives.clock else _deltas(words, dice),
        prompt_tokens=PROMPT_OVERHEAD_TOKENS + len(tokens(message)),
        completion_tokens=len(words),
        citations=_citations(directives, dice),
        reports_moderation=dice.random() < 0.25,
        directives=directives,
    )


def _compose(text: str, dice: random.Random) -> str:
    topic = " ".join(text.split())[:60].strip() or "your message"
    blocks = dice.sample(BLOCKS, k=dice.choice((1, 2, 2, 3, 3, 4, 7)))
    return dice.choice(OPENINGS).replace("{topic}", topic) + "".join(blocks) + dice.choice(CLOSINGS)


def _resize(words: list[str], count: int, dice: random.Random) -> list[str]:
    sized = list(words)
    while len(sized) < count:
        sized += tokens("\n\n" + dice.choice(BLOCKS).strip())
    return sized[:count]


def _deltas(words: list[str], dice: random.Random) -> tuple[str | None, ...]:
    # The contract lets a content be empty or null on any item; the first is empty as with most models.
    deltas: list[str | None] = [""]
    for word in words:
        if dice.random() < 0.02:
            deltas.append(dice.choice((None, "")))
        deltas.append(word)
    return tuple(deltas)


def _citations(directives: Directives, dice: random.Random) -> tuple[Json, ...]:
    count = directives.citations
    if count is None:
        count = dice.choice((1, 2, 3)) if _ASKS_FOR_SOURCES.search(directives.text) else 0
    return tuple(_citation(index, dice) for index in range(1, count + 1))


def _citation(index: int, dice: random.Random) -> Json:
    name, content_type, url, text = SOURCES[(index - 1) % len(SOURCES)]
    return {
        "link": f"{url}#page={index}",
        "index": str(index),
        "documentId": f"{dice.getrandbits(128):032x}",
        "fileId": f"{dice.getrandbits(128):032x}",
        "sourceContentType": content_type,
        "sourceName": name,
        "sourceUrl": url,
        "partitions": [
            {
                "text": text,
                "relevance": round(0.99 - 0.07 * number - 0.01 * index, 2),
                "partitionNumber": number,
                "sectionNumber": dice.randrange(9),
                "lastUpdate": "2026-05-04T09:30:00Z",
                "tags": {"lang": ["en"], "kind": ["public"]},
            }
            for number in range(dice.choice((1, 2)))
        ],
    }
