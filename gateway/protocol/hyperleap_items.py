"""Hyperleap's dialect towards clients: a turn's events as the items that ``chat-http2`` and ``chat-sse`` stream.

The vendor writes one item a DATA frame, and pages that are deployed cut what they read at its leading ``[`` or ``,``
and its trailing ``]``. So what is written together becomes one item wherever the dialect has room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, assert_never

import msgspec

from gateway.core.events import (
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.turn import Usage
from gateway.protocol.piece import Piece

Form = Literal["array", "sse"]

NO_ID: Final = "00000000-0000-0000-0000-000000000000"  # what .NET writes for an id that is not set
STOPPED: Final = "stopped"  # the finish reason of an answer that was stopped; the vendor has no such thing

_encode: Final = msgspec.json.Encoder().encode
_HEAD: Final = b'{"choice":{"finish_reason":null,"index":0,"message":{"role":"assistant","content":'
_ASIDE: Final = frozenset({MessageCitations, MessageModerated})  # the vendor puts them on an item that is sent anyway
_LEADS: Final[dict[Form, bytes]] = {"array": b"," + _HEAD, "sse": b"data: " + _HEAD}


class ItemEncoder:
    """Encodes one answer's entries, in order: the items of an array, or the data of events.

    What says nothing of the text is kept for the item that comes next: as an item of its own, which the ending's would
    be read in one piece with, it is what deployed pages cannot take apart.
    """

    __slots__ = ("_begun", "_ids", "_kept", "_piece", "form")

    def __init__(self, form: Form) -> None:
        self.form = form
        self._begun = False
        self._kept: list[Event] = []
        self._name(None, None)

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        if len(entries) == 1 and type(entries[0].event) is TextDelta and (piece := self.piece(entries[0])) is not None:
            return piece("", "", entries)  # the rule
        events = [*self._kept, *(entry.event for entry in entries)]
        started = next((event for event in events if type(event) is MessageStarted), None)
        if started is not None:
            self._name(started.message_id, started.run_id)
        if all(type(event) in _ASIDE for event in events):
            self._kept = events
            return b""
        self._kept = []
        items = _items(events, *self._ids)
        begun, self._begun = self._begun, self._begun or bool(items)
        if self.form == "sse":
            return b"".join([b"data: %b\n\n" % _encode(item) for item in items])
        # Each item but the first begins with the comma that parts it from the one before.
        body = b"".join([b"," + _encode(item) for item in items])
        if body and not begun:
            body = b"[" + body[1:]
        return body + b"]" if isinstance(events[-1], TurnCompleted | TurnStopped) else body

    def piece(self, delta: Entry) -> Piece | None:
        """Return what encodes a delta that comes alone; None where more than the delta is to be told."""
        return self._piece if self._begun and not self._kept else None

    def _name(self, message_id: str | None, run_id: str | None) -> None:
        """Go on with the ids of the message, as far as the vendor has told them."""
        message, run = self._ids = message_id or NO_ID, run_id or NO_ID
        tail = (
            b',"toolCallId":null,"name":null},"moderation_results":null},"usage":null,"messageId":%b,"runId":%b,'
            b'"citations":null}%b' % (_encode(message), _encode(run), b"" if self.form == "array" else b"\n\n")
        )
        self._piece = Piece(_LEADS[self.form], tail)


class _Item:
    """The item that is being put together."""

    def __init__(self) -> None:
        self.role: str | None = "assistant"
        self.content: str | None = None
        self.finish_reason: str | None = None
        self.moderation: list[dict[str, Any]] | None = None
        self.usage: dict[str, int] | None = None
        self.citations: list[dict[str, Any]] | None = None
        self.filled = False

    def body(self, message_id: str, run_id: str) -> dict[str, Any]:
        return _body(
            {"role": self.role, "content": self.content, "toolCallId": None, "name": None},
            (message_id, run_id),
            finish_reason=self.finish_reason,
            moderation=self.moderation,
            usage=self.usage,
            citations=self.citations,
        )


def _items(events: Sequence[Event], message_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return as few items as say what the events say."""
    items: list[dict[str, Any]] = []
    item = _Item()
    for event in events:
        match event:
            case TurnStarted() | TurnQueued() | TurnFailed():
                continue
            case MessageStarted():
                item.role, item.content = event.role, item.content or ""
            case TextDelta():
                item.content = (item.content or "") + event.text
            case MessageCitations():
                item.citations = [*(item.citations or ()), *event.citations]
            case MessageModerated():
                item.moderation = [*(item.moderation or ()), *event.categories]
            case MessageExtra():
                if item.filled:
                    items.append(item.body(message_id, run_id))
                    item = _Item()
                items.append(_extra(event, message_id, run_id))
                continue
            case TurnCompleted() | TurnStopped():
                item.finish_reason, item.usage = finish_reason(event), reported(event.usage)
                message_id, run_id = event.message_id or message_id, event.run_id or run_id
            case _:
                assert_never(event)
        item.filled = True
    return [*items, item.body(message_id, run_id)] if item.filled else items


def _extra(event: MessageExtra, message_id: str, run_id: str) -> dict[str, Any]:
    return _body(extra_message(event), (message_id, run_id), index=event.index)


def extra_message(event: MessageExtra) -> dict[str, Any]:
    """Return the message of an item that is not the assistant's text."""
    return {
        "role": event.role,
        "content": event.content,
        "toolCallId": event.tool_call_id,
        "name": event.tool_name,
    }


def _body(
    message: dict[str, Any],
    ids: tuple[str, str],
    *,
    index: int = 0,
    finish_reason: str | None = None,
    moderation: list[dict[str, Any]] | None = None,
    usage: dict[str, int] | None = None,
    citations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """GenAiStreamingChatChoice."""
    return {
        "choice": choice(message, index=index, finish_reason=finish_reason, moderation=moderation),
        "usage": usage,
        "messageId": ids[0],
        "runId": ids[1],
        "citations": citations,
    }


def choice(
    message: dict[str, Any],
    *,
    index: int = 0,
    finish_reason: str | None = None,
    moderation: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """GenAiChatChoice."""
    return {
        "finish_reason": finish_reason,
        "index": index,
        "message": message,
        "moderation_results": {"categoryResults": moderation} if moderation else None,
    }


def finish_reason(ending: TurnCompleted | TurnStopped) -> str | None:
    """Return why an answer ended; None where the vendor did not say, though it ended well."""
    if isinstance(ending, TurnStopped):
        return STOPPED
    return None if ending.finish_reason == "unknown" else ending.finish_reason


def reported(usage: Usage) -> dict[str, int] | None:
    """Return the tokens as the vendor told them; an estimate is not passed off as that."""
    if usage.source != "reported":
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def whole_answer(
    events: Sequence[Event], ending: TurnCompleted | TurnStopped, turn_id: str, created_s: int
) -> dict[str, Any]:
    """GenAiChatResponse, of a turn's ending and of the events before it; its text need not be among these."""
    categories = [one for event in events if isinstance(event, MessageModerated) for one in event.categories]
    citations = [one for event in events if isinstance(event, MessageCitations) for one in event.citations]
    message = {"role": "assistant", "content": ending.text, "toolCallId": None, "name": None}
    return {
        "id": turn_id,
        "object": "chat.completion",
        "usage": reported(ending.usage),
        "created": created_s,
        "choices": [
            choice(message, finish_reason=finish_reason(ending), moderation=categories or None),
            *(choice(extra_message(extra), index=extra.index) for extra in events if isinstance(extra, MessageExtra)),
        ],
        "messageId": ending.message_id or NO_ID,
        "runId": ending.run_id or NO_ID,
        "httpRequestId": turn_id,
        "citations": citations or None,
        "prompt_moderations": None,
    }
