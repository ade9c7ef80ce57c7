"""Prompts: runs of a prompt that was written at the vendor, answered as chats are, and their scores.

The vendor has published no shape for the answers; here they are those of a chat in the same form. The words that the
answer is made of, directives included, are the values of the replacements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from gateway.simulator.allowance import Allowance
from gateway.simulator.answers import Json
from gateway.simulator.bill import ChatRun
from gateway.simulator.chats import Chats
from gateway.simulator.conversations import Conversation, Message, now_iso
from gateway.simulator.exchange import Exchange
from gateway.simulator.replies import ApiError, reply_json
from gateway.simulator.requests import RunPrompt, ScorePromptRun, decode, read_uuid
from gateway.simulator.script import Form

KEPT_RUNS = 20_000
_FORMS: dict[tuple[str, ...], Form | None] = {  # None: as the body's ``stream`` says
    ("prompt-runs", "async"): "array",
    ("prompt-runs", "run-sse"): "sse",
    ("prompt-runs", "run-sync"): "sync",
    ("prompt-runs", "run"): None,
    ("prompt-runs",): None,
    ("prompts",): None,
}


@dataclass(slots=True, kw_only=True)
class PromptRun:
    """Is one run; ``conversation`` holds what was asked and answered, and is in no list."""

    workspace: int
    prompt_id: str
    prompt_version_id: str | None
    replacements: Json
    record: ChatRun
    conversation: Conversation
    created_at: str = field(default_factory=now_iso)

    @property
    def answer(self) -> Message | None:
        """What the vendor has stored of the answer."""
        return next((message for message in self.conversation.messages if message.role == "assistant"), None)


class Prompts:
    """Runs prompts and keeps the last 20,000 runs by their ids."""

    def __init__(self, chats: Chats, known: frozenset[str], *, raw_utf8: bool) -> None:
        self.runs: dict[str, PromptRun] = {}
        self._chats = chats
        self._known = known
        self._raw_utf8 = raw_utf8

    def answer(self, exchange: Exchange, parts: list[str], allowance: Allowance, workspace: int) -> bool:
        """Answers a request; False for a path that the vendor does not have. Raises BadRequestError, ApiError."""
        match (exchange.method, parts):
            case ("POST", _) if tuple(parts) in _FORMS:
                self._run(exchange, _FORMS[tuple(parts)], allowance, workspace)
            case ("PATCH", ["prompt-runs", run_id, "set-score"]):
                run = self.find(run_id, workspace)
                self._score(run, bytes(exchange.body))
                reply_json(exchange, 200, run_json(run), allowance.headers(), raw=self._raw_utf8)
            case _:
                return False
        return True

    def find(self, run_id: str, workspace: int) -> PromptRun:
        """Finds a run of a workspace; raises ApiError."""
        run = self.runs.get(read_uuid(run_id))
        if run is None or run.workspace != workspace:
            raise ApiError(404, "not_found", "The prompt run was not found.")
        return run

    def _run(self, exchange: Exchange, form: Form | None, allowance: Allowance, workspace: int) -> None:
        body = decode(exchange.body, RunPrompt)
        prompt_id = str(body.prompt_id)
        if self._known and prompt_id not in self._known:
            raise ApiError(404, "not_found", "The prompt was not found.")
        replacements = body.replacements or {}
        words = " ".join(str(value) for value in replacements.values()) or prompt_id
        conversation = Conversation(ordinal=0, workspace=workspace)
        record = self._chats.say(exchange, conversation, words, form or ("array" if body.stream else "sync"), allowance)
        record.prompt_id = prompt_id
        self.runs[record.run_id] = PromptRun(
            workspace=workspace,
            prompt_id=prompt_id,
            prompt_version_id=str(body.prompt_version_id) if body.prompt_version_id else None,
            replacements=replacements,
            record=record,
            conversation=conversation,
        )
        if len(self.runs) > KEPT_RUNS:
            del self.runs[next(iter(self.runs))]

    def _score(self, run: PromptRun, data: bytes) -> None:
        body = decode(data, ScorePromptRun)
        answer = run.answer
        if answer is None:
            raise ApiError(409, "conflict", "The prompt run has no answer yet.")
        answer.put_feedback(
            {
                "feedbackId": str(body.feedback_id or uuid4()),
                "score": body.score,
                "comments": body.comments,
                "timestamp": now_iso(),
                "scoreConfidence": body.score_confidence,
            }
        )


def run_json(run: PromptRun) -> Json:
    """Returns a run as reports and scores show it."""
    answer, record = run.answer, run.record
    return {
        "promptRunId": record.run_id,
        "promptId": run.prompt_id,
        "promptVersionId": run.prompt_version_id,
        "replacements": run.replacements,
        "createdAt": run.created_at,
        "response": answer.content if answer is not None else None,
        "promptTokens": record.prompt_tokens,
        "completionTokens": record.completion_tokens,
        "totalTokens": record.prompt_tokens + record.completion_tokens,
        "feedbacks": list(answer.feedbacks) or None if answer is not None else None,
    }
