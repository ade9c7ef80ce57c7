"""Chat completions: the request, and an answer as one object or as chunks over server-sent events.

Sources: the API reference of ``POST /v1/chat/completions`` and the types of the ``openai`` packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.events import Ending, Entry, MessageStarted, TextDelta, TurnCompleted, TurnStopped
from gateway.core.turn import Usage
from gateway.protocol.openai.messages import Item
from gateway.protocol.piece import Piece
from gateway.protocol.sse import encode_event

DONE: Final = encode_event(b"[DONE]")
FINISHES: Final = frozenset({"stop", "length", "content_filter"})

_json: Final = msgspec.json.Encoder().encode


class StreamOptions(msgspec.Struct):
    """``include_usage`` asks for one more chunk with the tokens; what else there may be steers nothing here."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/chat/completions. ``replacements`` is the gateway's own: template variables of the persona."""

    model: str
    messages: list[Item]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    replacements: dict[str, str | int | float | bool | None] = {}
    # refused where they ask for more than Hyperleap can do
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    moderation: Any = None
    n: Any = None
    response_format: Any = None
    stop: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None
    # taken and ignored
    frequency_penalty: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    presence_penalty: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    seed: Any = None
    service_tier: Any = None
    store: Any = None
    temperature: Any = None
    top_p: Any = None
    verbosity: Any = None


def finish_reason(ending: Ending) -> str:
    """Return why an answer ended in the words that there are here: one that was cut short is ``length``."""
    if isinstance(ending, TurnCompleted):
        return ending.finish_reason if ending.finish_reason in FINISHES else "stop"
    assert isinstance(ending, TurnStopped), "a failure is told as an error"
    return "length"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tell tokens; ``source`` says whether they are Hyperleap's figures or an estimate."""
    return msgspec.structs.asdict(usage)


def cited(citations: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return Hyperleap's citations as citations of URLs. They are of the answer as a whole, so each spans it."""
    found = []
    for citation in citations:
        url = citation.get("sourceUrl") or citation.get("link")
        if url:
            title = str(citation.get("sourceName") or url)
            found.append({"url": str(url), "title": title, "start_index": 0, "end_index": len(text)})
    return found


class Completion(NamedTuple):
    """What is told of one answer with every piece of it. ``created_s`` is Unix time."""

    turn_id: str
    model: str
    created_s: int
    include_usage: bool = False

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.turn_id}"

    def whole(self, ending: Ending, citations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer as one object."""
        told = _nested(cited(citations, ending.text))
        message = {"role": "assistant", "content": ending.text, "refusal": None, "annotations": told}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(ending)}
        return self._object("chat.completion", [choice], usage=usage_body(ending.usage))

    def last(self, ending: Ending, citations: Sequence[dict[str, Any]]) -> bytes:
        """Encode the chunks that end a stream."""
        chunks = []
        if told := _nested(cited(citations, ending.text)):
            chunks.append(self.chunk({"annotations": told}))
        chunks.append(self.chunk({}, finish_reason(ending)))
        if self.include_usage:
            whole = self._object("chat.completion.chunk", [], usage=usage_body(ending.usage))
            chunks.append(encode_event(_json(whole)))
        return b"".join((*chunks, DONE))

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """Encode one chunk; where tokens come last, every other one says that they are to come."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        return encode_event(_json(self._object("chat.completion.chunk", [choice], **usage)))

    def _object(self, name: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
            **more,
        }


class ChunkEncoder:
    """Encodes a turn's entries as chunks, all but its ending; what of an answer is not its text is left out."""

    __slots__ = ("_begin", "_piece")

    def __init__(self, completion: Completion) -> None:
        mark = "\0"
        self._piece = Piece(*completion.chunk({"content": mark}).split(_json(mark)))
        self._begin = completion.chunk({"role": "assistant", "content": "", "refusal": None})

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        head, tail = self._piece.head, self._piece.tail
        parts: list[bytes] = []
        for entry in entries:
            event = entry.event
            if type(event) is TextDelta:
                parts += (head, _json(event.text), tail)
            elif type(event) is MessageStarted:
                parts.append(self._begin)
        return b"".join(parts)

    def piece(self, delta: Entry) -> Piece:
        """Return what encodes a delta that comes alone."""
        return self._piece


def _nested(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "url_citation", "url_citation": citation} for citation in found]
