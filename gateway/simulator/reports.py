"""Reports: what a workspace has asked and how it was rated, in pages. The vendor has published no shape for them.

An item here names what it is of (``conversationId`` and ``externalUserId``, or ``promptRunId``), as an operator needs.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.simulator.answers import Json
from gateway.simulator.conversations import Conversation, Conversations, Message
from gateway.simulator.prompts import PromptRun, Prompts, run_json
from gateway.simulator.replies import ApiError
from gateway.simulator.requests import BadRequestError, FeedbackReport, Report, decode, read_uuid


class Reports:
    """Makes reports of everything that is kept, the newest first."""

    def __init__(self, conversations: Conversations, prompts: Prompts) -> None:
        self._conversations = conversations
        self._prompts = prompts

    def of(self, method: str, parts: list[str], body: bytes, workspace: int) -> Json | None:
        """Returns what a path answers; None for one that the vendor does not have. Raises BadRequestError, ApiError."""
        match (method, parts):
            case ("POST", ["audit", "conversations"]):
                return self._chats(decode(body, Report), workspace, rated=False)
            case ("POST", ["audit", "prompt-runs"]):
                return self._runs(decode(body, Report), workspace, rated=False)
            case ("GET", ["audit", "prompt-run", run_id]):
                return run_json(self._prompts.find(run_id, workspace))
            case ("GET", ["audit", "conversation-run", run_id]):
                wanted = read_uuid(run_id)
                found = self._items(workspace, lambda one, said: said.run_id == wanted)
                if not found:
                    raise ApiError(404, "not_found", "The conversation run was not found.")
                return found[0]
            case ("POST", ["feedback-report", "conversations"]):
                return self._chats(decode(body, FeedbackReport), workspace, rated=True)
            case ("POST", ["feedback-report", "prompt-runs"]):
                return self._runs(decode(body, Report), workspace, rated=True)
            case _:
                return None

    def _chats(self, report: Report, workspace: int, *, rated: bool) -> Json:
        def chosen(conversation: Conversation, answer: Message) -> bool:
            wanted = (report.conversation_id, report.conversation_run_id)
            told = (conversation.conversation_id, answer.run_id)
            return all(want is None or str(want) == is_ for want, is_ in zip(wanted, told, strict=True)) and (
                not rated or bool(answer.feedbacks)
            )

        return _page(self._items(workspace, chosen), report)

    def _runs(self, report: Report, workspace: int, *, rated: bool) -> Json:
        def chosen(run: PromptRun) -> bool:
            wanted = (report.prompt_id, report.prompt_run_id)
            told = (run.prompt_id, run.record.run_id)
            return all(want is None or str(want) == is_ for want, is_ in zip(wanted, told, strict=True)) and (
                not rated or (run.answer is not None and bool(run.answer.feedbacks))
            )

        runs = [run for run in reversed(self._prompts.runs.values()) if run.workspace == workspace]
        return _page([run_json(run) for run in runs if chosen(run)], report)

    def _items(self, workspace: int, chosen: Callable[[Conversation, Message], bool]) -> list[Json]:
        return [
            {
                "conversationRunId": answer.run_id,
                "conversationId": conversation.conversation_id,
                "externalUserId": conversation.external_user_id,
                "personaId": conversation.persona_id,
                **answer.as_json(),
            }
            for conversation in self._conversations.newest()
            if conversation.workspace == workspace
            for answer in reversed(conversation.messages)
            if answer.role == "assistant" and chosen(conversation, answer)
        ]


def _page(items: list[Json], report: Report) -> Json:
    token = report.continuation_token or "0"
    if not (token.isascii() and token.isdigit()):
        raise BadRequestError("The continuationToken is not valid.")
    begins = int(token)
    ends = begins + report.page_size
    return {"data": items[begins:ends], "continuationToken": str(ends) if ends < len(items) else None}
