"""Requests: the bodies that the vendor accepts, decoded as strictly as ASP.NET does; unknown fields are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1)]


class Body(msgspec.Struct, rename="camel", kw_only=True):
    """Is any request body."""


class CreateGeneral(Body):
    """Creates a conversation with a model of the caller's choice."""

    ai_system: Annotated[int, msgspec.Meta(ge=0, le=6)]
    model: Name
    system_message: str | None = None
    configuration: dict[str, Any] | None = None
    replacements: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    external_user_id: str | None = None
    dataspace_ids: list[UUID] | None = None


class CreatePersona(Body):
    """Creates a conversation with a persona."""

    persona_id: UUID
    persona_version_id: UUID | None = None
    replacements: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    stream: bool = False
    external_user_id: str | None = None


class UserMessage(Body):
    """Is the user's side of a turn."""

    message: Name


class SetActive(Body):
    """Opens or closes a conversation."""

    conversation_id: UUID | None = None
    is_active: bool = False


class SetMetadata(Body):
    """Replaces the metadata."""

    conversation_id: UUID | None = None
    metadata: dict[str, Any] | None = None


class SetName(Body):
    """Names a conversation."""

    conversation_id: UUID | None = None
    conversation_name: str | None = None


class SetStatus(Body):
    """Sets the status."""

    conversation_id: UUID | None = None
    conversation_status: str | None = None


class SetConversationScore(Body):
    """Scores a whole conversation."""

    conversation_id: UUID | None = None
    score: int | None = None
    score_text: str | None = None
    score_tags: str | None = None


class SetMessageScore(Body):
    """Scores one message; the same ``feedbackId`` again replaces that feedback."""

    message_id: UUID | None = None
    feedback_id: UUID | None = None
    score: Annotated[int, msgspec.Meta(ge=-10, le=10)] = 0
    comments: str | None = None
    tags: list[str] | None = None
    score_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class RunPrompt(Body):
    """Runs a prompt; ``stream`` decides the form only on the older paths, which have no other way to say it."""

    prompt_id: UUID
    prompt_version_id: UUID | None = None
    replacements: dict[str, Any] | None = None
    stream: bool = False


class ScorePromptRun(Body):
    """Scores a prompt run; the same ``feedbackId`` again replaces that feedback."""

    feedback_id: UUID | None = None
    score: int = 0
    comments: str | None = None
    score_confidence: float | None = None


class Moderate(Body):
    """Asks for a judgement of a text."""

    input: str | None = None


class Report(Body):
    """Asks for a page of a report; the fields of both kinds of report that the stand-in heeds."""

    caller_id: UUID | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    page_size: Annotated[int, msgspec.Meta(ge=1, le=20)] = 20
    prompt_id: UUID | None = None
    prompt_run_id: UUID | None = None
    conversation_id: UUID | None = None
    conversation_run_id: UUID | None = None
    continuation_token: str | None = None


class FeedbackReport(Report):
    """Asks for a page of a feedback report."""

    caller_id: UUID
    start_date: datetime
    end_date: datetime


class BadRequestError(Exception):
    """Says why a request is refused with 400."""


B = TypeVar("B", bound=Body)


def decode(body: bytes | bytearray, kind: type[B]) -> B:
    """Decodes a request body; raises BadRequestError with a text for people."""
    if not body:
        raise BadRequestError("A non-empty request body is required.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise BadRequestError(str(error)) from None


def read_uuid(text: str) -> str:
    """Returns a UUID in its usual spelling; raises BadRequestError for anything else."""
    try:
        return str(UUID(text))
    except ValueError:
        raise BadRequestError(f"The value '{text[:80]}' is not valid.") from None
