"""Answers of turns as they stand: running, or ended, from the log or, when that is gone, from the transcript."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Ending,
    EventLog,
    MessageCitations,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnRecord,
    TurnStopped,
)
from gateway.core.identity import Principal
from gateway.core.threads import ThreadStore
from gateway.core.turn import StopReason, TurnId, TurnState, Usage
from gateway.services.conversations import Conversations

PAGE: Final = 256


class Answer(NamedTuple):
    """One turn's answer. ``ending`` is None while it runs; ``asked_at_s`` is Unix time, None where nobody knows."""

    turn_id: TurnId
    conversation_id: ConversationId
    persona: str
    asked_at_s: float | None
    ending: Ending | None
    citations: list[dict[str, Any]]


class Answers:
    """Finds answers, after checking that they belong to the principal."""

    def __init__(self, log: EventLog, conversations: Conversations, threads: ThreadStore) -> None:
        self._log = log
        self._conversations = conversations
        self._threads = threads

    async def find(self, principal: Principal, turn_id: TurnId) -> Answer:
        """Return a turn's answer; raises GatewayError: not_found; history_lost when nobody has it any more."""
        record = await self._record(principal, turn_id)
        ending, citations = await self._logged(principal, turn_id) if record.state.ended else (None, [])
        messages: list[Message] = []
        try:
            messages = (await self._conversations.get(principal, record.conversation_id)).messages
        except GatewayError as error:
            if error.code is Code.NOT_FOUND or (record.state.ended and ending is None):
                raise  # else only when it was asked is not known
        asked_at_s = next((_unix(one.created_at) for one in messages if one.turn_id == turn_id), None)
        if record.state.ended and ending is None:
            answers = [one for one in messages if one.role == "assistant"]
            answer = next((one for one in answers if one.turn_id == turn_id), None) or next(
                (one for one in answers if record.message_id and one.message_id == record.message_id), None
            )
            if answer is None:
                raise GatewayError(Code.HISTORY_LOST, "The turn ended too long ago for its answer to be known here.")
            ending, citations = _told(answer, record.state), answer.citations or []
        return Answer(turn_id, record.conversation_id, record.persona, asked_at_s, ending, citations)

    async def forget(self, principal: Principal, turn_id: TurnId) -> None:
        """Let an answer not be found here any more, nor be gone on from; the conversation stays as it is.

        Raises GatewayError: not_found; turn_active while it runs.
        """
        record = await self._record(principal, turn_id)
        if not record.state.ended:
            raise GatewayError(Code.TURN_ACTIVE, "The answer is under way; cancel it first.", retry_after_s=1.0)
        await self._threads.forget(principal.tenant.id, turn_id)

    async def _record(self, principal: Principal, turn_id: TurnId) -> TurnRecord:
        record = await self._log.record(principal.tenant.id, turn_id)
        if record is None or not principal.owns(record.owner, record.persona):
            raise GatewayError(Code.NOT_FOUND)
        if await self._threads.forgotten(principal.tenant.id, turn_id):
            raise GatewayError(Code.NOT_FOUND)
        return record

    async def _logged(self, principal: Principal, turn_id: TurnId) -> tuple[Ending | None, list[dict[str, Any]]]:
        """Read an ended turn's log through; no ending where the log is gone."""
        citations: list[dict[str, Any]] = []
        position = 0
        while page := await self._log.read(principal.tenant.id, turn_id, position, PAGE):
            for entry in page:
                if isinstance(entry.event, MessageCitations):
                    citations += entry.event.citations
            position, last = page[-1].position, page[-1].event
            if isinstance(last, TurnCompleted | TurnStopped | TurnFailed):
                return last, citations
        return None, []


def _told(answer: Message, state: TurnState) -> Ending:
    """Return the ending that a transcript's message was written from."""
    ids, text = (answer.message_id, answer.run_id), answer.content
    prompt, completion = answer.prompt_tokens or 0, answer.completion_tokens or 0
    usage = Usage(prompt, completion, answer.total_tokens or prompt + completion, "reported")
    if state is TurnState.STOPPED:
        return TurnStopped(*ids, StopReason(answer.reason or StopReason.USER), text, usage)
    if state is TurnState.FAILED:
        error = answer.error or {"code": Code.INTERNAL, "detail": "", "retryable": False}
        return TurnFailed(*ids, msgspec.convert(error, TurnError), text, usage)
    return TurnCompleted(*ids, answer.finish_reason or "unknown", text, usage)


def _unix(stamp: str | None) -> float | None:
    try:
        return datetime.fromisoformat(stamp or "").timestamp()
    except ValueError:
        return None
