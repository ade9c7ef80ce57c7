"""Api: the vendor's paths; and, under ``/_simulator/``, what is *not* the vendor's: bill, state and blobs."""

from __future__ import annotations

import re
import secrets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote
from uuid import uuid4

from gateway.simulator.allowance import Allowance
from gateway.simulator.bill import Bill, State
from gateway.simulator.chats import Chats
from gateway.simulator.conversations import Conversation, Conversations, Message, now_iso
from gateway.simulator.exchange import Exchange
from gateway.simulator.moderations import judged
from gateway.simulator.prompts import Prompts
from gateway.simulator.replies import (
    ApiError,
    HeaderList,
    reply_bad_request,
    reply_empty,
    reply_error,
    reply_json,
    reply_too_many,
    reply_unsupported,
)
from gateway.simulator.reports import Reports
from gateway.simulator.requests import (
    BadRequestError,
    CreateGeneral,
    CreatePersona,
    SetActive,
    SetConversationScore,
    SetMessageScore,
    SetMetadata,
    SetName,
    SetStatus,
    decode,
    read_uuid,
)
from gateway.simulator.script import Form

_PREFIX = re.compile(r"^/(?:api|app)(?=/)")
_AI_SYSTEMS = ("openai", "azure-openai", "anthropic", "google", "mistral", "meta", "cohere")  # the names are made up
STAND_IN = ("x-simulator", "hyperleap-gateway")  # not the vendor's: told to whoever comes without a key
_FORMS: dict[str, Form] = {
    "chat-http2": "array",
    "continue": "array",
    "chat-sse": "sse",
    "continue-sse": "sse",
    "chat": "sync",
    "continue-sync": "sync",
}


_TRACED_MAX = 1000


class Traced(NamedTuple):
    """Names the trace that a request belongs to (W3C Trace Context)."""

    method: str
    path: str
    traceparent: str
    tracestate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Holds what the API needs of the settings; see `gateway.simulator.server.SimulatorSettings`."""

    workspaces: tuple[tuple[str, ...], ...]  # the keys of each
    blob: bool
    personas: frozenset[str]
    prompts: frozenset[str]
    persona_prompt: str | None
    limit_per_minute: int
    limit_period_s: float
    raw_utf8: bool


class Api:
    """Answers every request of every connection."""

    def __init__(self, settings: ApiSettings, chats: Chats, bill: Bill, state: State) -> None:
        self.chats = chats
        self.conversations = Conversations()
        self.base_url = ""  # of the blobs; known once the server listens
        self._settings = settings
        self.prompts = Prompts(chats, settings.prompts, raw_utf8=settings.raw_utf8)
        self._reports = Reports(self.conversations, self.prompts)
        self._bill = bill
        self._state = state
        self.refused: set[str] = set()  # keys that are not valid just now
        self.served: Counter[str] = Counter()  # requests by valid key
        self.traced: deque[Traced] = deque(maxlen=_TRACED_MAX)  # requests that named a trace, the latest last
        self._workspaces = {key: number for number, keys in enumerate(settings.workspaces) for key in keys}
        self._allowances = {
            key: Allowance(settings.limit_per_minute, settings.limit_period_s) for key in self._workspaces
        }
        self._blob_secret = secrets.token_urlsafe(12)

    def handle(self, exchange: Exchange) -> None:
        """Answers one complete request."""
        path, _, query_text = exchange.path.partition("?")
        parts = [unquote(part) for part in _PREFIX.sub("", path).strip("/").split("/")]
        query = parse_qs(query_text)
        if parts[0] == "_simulator":
            self._answer_own(exchange, parts[1:], query)
            return
        key = self._key(exchange)
        if key is None:
            error = ApiError(401, "unauthorized", "The API key is missing or not valid.")
            reply_error(exchange, error, [STAND_IN])
            return
        self.served[key] += 1
        if (trace := exchange.headers.get("traceparent")) is not None:
            state = exchange.headers.get("tracestate", "")
            self.traced.append(Traced(exchange.method, "/".join(parts), trace, state))
        allowance = self._allowances[key]
        if not allowance.take():
            reply_too_many(exchange, allowance.wait_s(), allowance)
        elif exchange.method in {"POST", "PATCH"} and not _is_json(exchange.headers.get("content-type", "")):
            reply_unsupported(exchange)
        else:
            try:
                self._answer(exchange, parts, query, allowance, self._workspaces[key])
            except BadRequestError as error:
                reply_bad_request(exchange, str(error))
            except RecursionError:
                reply_bad_request(exchange, "The JSON value is nested too deep.")
            except ApiError as error:
                reply_error(exchange, error, allowance.headers())

    def _key(self, exchange: Exchange) -> str | None:
        given = exchange.headers.get("x-hl-api-key")
        scheme, _, credential = exchange.headers.get("authorization", "").partition(" ")
        if given is None and scheme.lower() == "bearer":
            given = credential.strip()
        return given if given in self._workspaces and given not in self.refused else None

    def _answer(
        self, exchange: Exchange, parts: list[str], query: dict[str, list[str]], allowance: Allowance, workspace: int
    ) -> None:
        token = query.get("continuationToken", [""])[0]
        headers = allowance.headers()
        match (exchange.method, parts):
            case ("POST", ["conversations"]):
                self._show(exchange, self._create_general(exchange, workspace), headers)
            case ("POST", ["conversations", "persona"]):
                self._show(exchange, self._create_persona(exchange, workspace), headers)
            case ("GET", ["conversations"]):
                self._list(exchange, lambda one: one.workspace == workspace, token, headers)
            case ("GET", ["conversations", "persona", persona]):
                persona_id = read_uuid(persona)
                self._list(
                    exchange, lambda one: one.workspace == workspace and one.persona_id == persona_id, token, headers
                )
            case ("GET", ["conversations", "user", user]):
                self._list(
                    exchange, lambda one: one.workspace == workspace and one.external_user_id == user, token, headers
                )
            case ("GET", ["conversations", conversation_id]):
                self._show(exchange, self._find(conversation_id, workspace), headers)
            case ("PATCH", ["conversations", conversation_id, action]) if action in _FORMS:
                self.chats.start(exchange, self._find(conversation_id, workspace), _FORMS[action], allowance)
            case ("PATCH", ["conversations", conversation_id, action]) if action in _CHANGES:
                conversation = self._find(conversation_id, workspace)
                _CHANGES[action](conversation, bytes(exchange.body))
                self._show(exchange, conversation, headers)
            case ("PATCH", ["conversations", conversation_id, "set-score", message_id]):
                conversation = self._find(conversation_id, workspace)
                _score_message(conversation, read_uuid(message_id), bytes(exchange.body))
                self._show(exchange, conversation, headers)
            case ("POST", ["moderations"]):
                reply_json(exchange, 200, judged(bytes(exchange.body)), headers, raw=self._settings.raw_utf8)
            case (_, ["prompts" | "prompt-runs", *_]) if self.prompts.answer(exchange, parts, allowance, workspace):
                pass
            case (_, ["audit" | "feedback-report", *_]):
                report = self._reports.of(exchange.method, parts, bytes(exchange.body), workspace)
                if report is None:
                    reply_empty(exchange, 404)
                else:
                    reply_json(exchange, 200, report, headers, raw=self._settings.raw_utf8)
            case _:
                reply_empty(exchange, 404)  # as ASP.NET answers a path that it does not know

    def _find(self, text: str, workspace: int) -> Conversation:
        conversation = self.conversations.get(read_uuid(text))
        if conversation is None or conversation.workspace != workspace:
            raise ApiError(404, "not_found", "The conversation was not found.")
        return conversation

    def _create_general(self, exchange: Exchange, workspace: int) -> Conversation:
        body = decode(exchange.body, CreateGeneral)
        system = body.system_message
        return self.conversations.create(
            workspace=workspace,
            ai_system=_AI_SYSTEMS[body.ai_system],
            model=body.model,
            configuration=body.configuration,
            replacements=body.replacements,
            metadata=body.metadata,
            external_user_id=body.external_user_id,
            messages=[Message(role="system", content=system)] if system else [],
        )

    def _create_persona(self, exchange: Exchange, workspace: int) -> Conversation:
        body = decode(exchange.body, CreatePersona)
        persona_id, known = str(body.persona_id), self._settings.personas
        if known and persona_id not in known:
            raise ApiError(404, "not_found", "The persona was not found.")
        prompt = self._settings.persona_prompt
        return self.conversations.create(
            workspace=workspace,
            persona_id=persona_id,
            persona_version_id=str(body.persona_version_id) if body.persona_version_id else None,
            replacements=body.replacements,
            metadata=body.metadata,
            external_user_id=body.external_user_id,
            messages=[Message(role="system", content=prompt)] if prompt else [],
        )

    def _show(self, exchange: Exchange, conversation: Conversation, headers: HeaderList) -> None:
        reply_json(exchange, 200, self._entry(conversation), headers, raw=self._settings.raw_utf8)

    def _list(
        self, exchange: Exchange, chosen: Callable[[Conversation], bool], token: str, headers: HeaderList
    ) -> None:
        try:
            page, following = self.conversations.page(chosen, token)
        except ValueError as error:
            raise BadRequestError(str(error)) from None
        result = {"data": [self._entry(one) for one in page], "continuationToken": following}
        reply_json(exchange, 200, result, headers, raw=self._settings.raw_utf8)

    def _entry(self, conversation: Conversation) -> dict[str, Any]:
        uri = None
        if self._settings.blob and conversation.messages:
            uri = f"{self.base_url}/_simulator/blobs/{conversation.conversation_id}?sig={self._blob_secret}"
        return conversation.as_json(blob_uri=uri)

    def _answer_own(self, exchange: Exchange, parts: list[str], query: dict[str, list[str]]) -> None:
        """Answers what is the simulator's own, without a key; a blob's URI carries its own signature."""
        match (exchange.method, parts):
            case ("GET", ["bill"]):
                reply_json(exchange, 200, self._bill.as_json(), raw=False)
            case ("GET", ["state"]):
                reply_json(exchange, 200, self._state.as_json(), raw=False)
            case ("GET", ["blobs", conversation_id]) if query.get("sig") == [self._blob_secret]:
                conversation = self.conversations.get(conversation_id)
                if conversation is None:
                    reply_empty(exchange, 404)
                else:
                    reply_json(exchange, 200, conversation.messages_json(), raw=self._settings.raw_utf8)
            case _:
                reply_empty(exchange, 404)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind in {"application/json", "text/json"} or (kind.startswith("application/") and kind.endswith("+json"))


def _score_message(conversation: Conversation, message_id: str, data: bytes) -> None:
    body = decode(data, SetMessageScore)
    if body.message_id is not None and str(body.message_id) != message_id:
        raise BadRequestError("The messageId of the body is not that of the path.")
    message = conversation.message(message_id)
    if message is None:
        raise ApiError(404, "not_found", "The message was not found.")
    message.put_feedback(
        {
            "feedbackId": str(body.feedback_id or uuid4()),
            "score": body.score,
            "comments": body.comments,
            "tags": body.tags,
            "timestamp": now_iso(),
            "scoreConfidence": body.score_confidence,
        }
    )


def _set_active(conversation: Conversation, body: bytes) -> None:
    conversation.is_active = decode(body, SetActive).is_active


def _set_metadata(conversation: Conversation, body: bytes) -> None:
    conversation.metadata = decode(body, SetMetadata).metadata


def _set_name(conversation: Conversation, body: bytes) -> None:
    conversation.name = decode(body, SetName).conversation_name


def _set_status(conversation: Conversation, body: bytes) -> None:
    conversation.status = decode(body, SetStatus).conversation_status


def _set_score(conversation: Conversation, body: bytes) -> None:
    score = decode(body, SetConversationScore)
    conversation.score = {"score": score.score, "scoreText": score.score_text, "scoreTags": score.score_tags}


_CHANGES: dict[str, Callable[[Conversation, bytes], None]] = {
    "set-active": _set_active,
    "set-metadata": _set_metadata,
    "set-conversation-name": _set_name,
    "set-conversation-status": _set_status,
    "set-score": _set_score,
}
