"""Responses: the request, and the object that tells a turn's answer.

A response's id is its turn's: ``resp_<turn>``. Of what a request said nothing is kept but what Hyperleap keeps, so one
that is read later has no ``instructions``, ``metadata`` or ``previous_response_id``.
Sources: the API reference of ``POST /v1/responses`` and the types of the ``openai`` packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.errors import Code, GatewayError
from gateway.core.events import Ending, TurnCompleted, TurnFailed, TurnStopped
from gateway.core.turn import StopReason, Usage
from gateway.protocol.openai.chat import cited
from gateway.protocol.openai.errors import failure
from gateway.protocol.openai.messages import Item

RESPONSE_PREFIX: Final = "resp_"
CONVERSATION_PREFIX: Final = "conv_"
ITEM_PREFIX: Final = "msg_"
REFERENCE: Final = "item_reference"
INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Named(msgspec.Struct):
    """A conversation by its id."""

    id: str


class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/responses. ``replacements`` is the gateway's own: template variables of the persona."""

    model: str
    input: str | list[Item]
    stream: bool | None = None
    background: bool | None = None
    conversation: str | Named | None = None
    previous_response_id: str | None = None
    instructions: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    replacements: dict[str, str | int | float | bool | None] = {}
    # refused where they ask for more than Hyperleap can do
    image: Any = None
    include: Any = None
    moderation: Any = None
    prompt: Any = None
    text: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    # taken and ignored
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    max_tool_calls: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning: Any = None
    service_tier: Any = None
    store: Any = None
    stream_options: Any = None
    temperature: Any = None
    top_p: Any = None
    truncation: Any = None


class Response(NamedTuple):
    """What is told of one response beside its answer. ``created_s`` is Unix time."""

    turn_id: str
    conversation_id: str
    model: str
    created_s: float
    background: bool = False
    instructions: str | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012 - of a tuple, never written to
    previous_response_id: str | None = None
    user: str | None = None
    max_output_tokens: int | None = None

    @property
    def id(self) -> str:
        return RESPONSE_PREFIX + self.turn_id

    @property
    def item_id(self) -> str:
        """The id of the one message that a response has."""
        return ITEM_PREFIX + self.turn_id

    def body(self, ending: Ending | None = None, citations: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return the response as it stands: under way, or with its answer."""
        error = failure(ending) if ending is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status(ending),
            "background": self.background,
            "conversation": {"id": self.conversation_id},
            "error": error_of(error) if error is not None else None,
            "incomplete_details": _incomplete(ending),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata,
            "model": self.model,
            "output": [self.item(ending, citations)] if ending is not None and ending.text else [],
            "parallel_tool_calls": False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": 0,
            "top_p": None,
            "truncation": "disabled",
            "usage": usage_body(ending.usage) if ending is not None else None,
            "user": self.user,
        }

    def item(self, ending: Ending | None, citations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the message that is the output: empty while it is under way."""
        state = "in_progress" if ending is None else "completed" if status(ending) == "completed" else "incomplete"
        content = [part(ending.text, citations)] if ending is not None else []
        return {"id": self.item_id, "type": "message", "status": state, "role": "assistant", "content": content}


def part(text: str, citations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the text of a message with what it cites."""
    told = [{"type": "url_citation", **citation} for citation in cited(citations, text)]
    return {"type": "output_text", "text": text, "annotations": told, "logprobs": []}


def status(ending: Ending | None) -> str:
    """Return how a response stands."""
    match ending:
        case None:
            return "in_progress"
        case TurnCompleted():
            return "incomplete" if ending.finish_reason in INCOMPLETE else "completed"
        case TurnFailed():
            return "failed"
        case TurnStopped():
            if failure(ending) is not None:
                return "failed"
            return "incomplete" if ending.reason is StopReason.BUDGET else "cancelled"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tell tokens; ``source`` says whether they are Hyperleap's figures or an estimate."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
        "source": usage.source,
    }


def error_of(error: GatewayError) -> dict[str, Any]:
    """Return what a failed response tells of its error. There ``code`` is one of few; the gateway's is its ``type``."""
    limited = error.code in (Code.RATE_LIMITED, Code.UPSTREAM_RATE_LIMITED)
    code = "rate_limit_exceeded" if limited else "server_error"
    return {"code": code, "message": error.detail, "type": str(error.code)}


def _incomplete(ending: Ending | None) -> dict[str, str] | None:
    if status(ending) != "incomplete":
        return None
    reason = ending.finish_reason if isinstance(ending, TurnCompleted) else "length"
    return {"reason": INCOMPLETE[reason]}
