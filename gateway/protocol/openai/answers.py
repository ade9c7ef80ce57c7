"""OpenAI's answers as types: what the API's description tells of them. They are written elsewhere, as plain values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core.turn import Usage


class OpenAIErrorBody(msgspec.Struct):
    """What went wrong. ``code`` is OpenAI's where clients look for that, else the gateway's own."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str | UnsetType = UNSET
    categories: (
        Annotated[list[str], Meta(description="With `message_flagged`: as Hyperleap names them.")] | UnsetType
    ) = UNSET


class OpenAIError(msgspec.Struct):
    """An error, in OpenAI's shape."""

    error: OpenAIErrorBody


class Model(msgspec.Struct):
    """A persona's alias."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    """All that one may ask."""

    object: Literal["list"]
    data: list[Model]


class UrlCitation(msgspec.Struct):
    """What the answer as a whole cites."""

    url: str
    title: str
    start_index: int
    end_index: int


class ChatAnnotation(msgspec.Struct):
    """A citation of a chat completion's."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class ChatMessage(msgspec.Struct):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[ChatAnnotation]


class ChatChoice(msgspec.Struct):
    """The one choice. An answer that was cut short has the ``finish_reason`` ``length``."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter"]


class ChatCompletion(msgspec.Struct):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(msgspec.Struct):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    annotations: list[ChatAnnotation] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """The one choice."""

    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class ChatCompletionChunk(msgspec.Struct):
    """A piece of an answer. The last has no choices and the tokens, where ``include_usage`` asks for them."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class ResponseAnnotation(UrlCitation, kw_only=True):
    """A citation of a response's."""

    type: Literal["url_citation"]


class OutputText(msgspec.Struct):
    """The text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[ResponseAnnotation]
    logprobs: list[Any]


class OutputMessage(msgspec.Struct):
    """The one item of a response's output."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class InputTokensDetails(msgspec.Struct):
    """Hyperleap tells nothing of caches."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """Hyperleap tells nothing of reasoning."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens of a response; ``source`` says whether they are Hyperleap's figures or an estimate."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    source: Literal["reported", "estimated"]


class ResponseErrorBody(msgspec.Struct):
    """Why a response failed. ``type`` is the gateway's code."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str
    type: str


class ResponseConversation(msgspec.Struct):
    """The conversation, by which the native door knows it."""

    id: str


class IncompleteDetails(msgspec.Struct):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(msgspec.Struct):
    """A response as it stands. What OpenAI has and Hyperleap does not is told as switched off."""

    id: str
    object: Literal["response"]
    created_at: float
    status: Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
    background: bool
    conversation: ResponseConversation
    error: ResponseErrorBody | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: None
    text: dict[str, Any]
    tool_choice: str
    tools: list[Any]
    top_logprobs: int
    top_p: None
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class ResponseDeleted(msgspec.Struct):
    """A response that is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseEvent(msgspec.Struct):
    """How a response stands. Sequence numbers grow, and leave some out."""

    type: str
    response: ResponseObject
    sequence_number: int


class OutputItemEvent(msgspec.Struct):
    """The message begins, or is done."""

    type: str
    output_index: int
    item: OutputMessage
    sequence_number: int


class _Placed(msgspec.Struct):
    type: str
    item_id: str
    output_index: int
    content_index: int
    sequence_number: int


class ContentPartEvent(_Placed, kw_only=True):
    """The text begins, or is done."""

    part: OutputText


class OutputTextDeltaEvent(_Placed, kw_only=True):
    """What comes next of the text."""

    delta: str
    logprobs: list[Any]


class OutputTextDoneEvent(_Placed, kw_only=True):
    """The whole text."""

    text: str
    logprobs: list[Any]


class AnnotationEvent(_Placed, kw_only=True):
    """A citation."""

    annotation_index: int
    annotation: ResponseAnnotation


class StreamErrorEvent(msgspec.Struct):
    """An error of the stream itself."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None
    sequence_number: int


RESPONSE_EVENTS: dict[str, type[msgspec.Struct]] = {
    **{f"response.{state}": ResponseEvent for state in ("created", "in_progress", "completed", "incomplete", "failed")},
    "response.output_item.added": OutputItemEvent,
    "response.content_part.added": ContentPartEvent,
    "response.output_text.delta": OutputTextDeltaEvent,
    "response.output_text.annotation.added": AnnotationEvent,
    "response.output_text.done": OutputTextDoneEvent,
    "response.content_part.done": ContentPartEvent,
    "response.output_item.done": OutputItemEvent,
    "error": StreamErrorEvent,
}
