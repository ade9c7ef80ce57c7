"""The dialect of AI SDK UI: however a log is cut, a page puts together the same message; what is sent is read."""

from __future__ import annotations

import json
import timeit
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.chats import LINES_MAX, Line
from gateway.core.conversation import Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Entry,
    MessageCitations,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    TurnStopped,
)
from gateway.protocol.ai_sdk import UiChatRequest, encode_error, encode_parts, error_text, lines_of, ui_messages
from gateway.protocol.native import decode_body
from gateway.protocol.sse import SseDecoder
from tests.protocol.turn_logs import CITATION, CONVERSATION, PLACE, TURN, batches, ending_of, logs

UNHURRIED = settings(deadline=None)  # the machine has others to serve


def parts_of(data: bytes) -> list[dict[str, Any]]:
    """Read a stream's parts up to ``[DONE]``, after which there is nothing."""
    events = SseDecoder().feed(data)
    assert all(event.event == "message" and event.id is None for event in events)
    assert events[-1].data == "[DONE]"
    return [json.loads(event.data) for event in events[:-1]]


def put_together(data: bytes) -> dict[str, Any]:
    """Do what ``processUIMessageStream`` does with the parts, and refuse what it refuses."""
    message: dict[str, Any] = {"parts": [], "metadata": {}, "id": None, "error": None, "ended": []}
    texts: dict[str, dict[str, Any]] = {}
    for part in parts_of(data):
        assert message["error"] is None, "nothing follows an error"
        message["metadata"] |= part.get("messageMetadata", {})
        match part["type"]:
            case "start":
                message["id"] = part["messageId"]
            case "text-start":
                texts[part["id"]] = {"type": "text", "text": "", "state": "streaming"}
                message["parts"].append(texts[part["id"]])
            case "text-delta":
                texts[part["id"]]["text"] += part["delta"]
            case "text-end":
                texts.pop(part["id"])["state"] = "done"
            case "source-url" | "source-document" | "data-extra" | "data-moderation":
                message["parts"].append(part)
            case "data-queue":
                assert part["transient"] is True
            case "finish" | "abort":
                message["ended"].append(part)
            case "error":
                message["error"] = part["errorText"]
            case other:
                assert other == "message-metadata"
    return message


def encoded(entries: list[Entry], cuts: list[int] | None = None, *, join: bool = False) -> bytes:
    return b"".join([encode_parts(TURN, CONVERSATION, batch) for batch in batches(entries, cuts or [], join)])


@UNHURRIED
@given(logs(), st.lists(st.integers(0, 50), max_size=6), st.booleans())
def test_page_puts_together_the_answer_however_its_log_is_cut(
    entries: list[Entry], cuts: list[int], join: bool
) -> None:
    """Live or replayed: one message of the turn's id, its text, its sources, its tokens, and one end."""
    message = put_together(encoded(entries, cuts, join=join))
    ending = entries[-1].event
    assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
    assert message == put_together(encoded(entries))
    assert message["id"] == message["metadata"]["turnId"] == TURN
    assert message["metadata"]["conversationId"] == CONVERSATION
    texts = [part for part in message["parts"] if part["type"] == "text"]
    assert "".join(part["text"] for part in texts) == ending.text
    assert all(part["state"] == "done" for part in texts if part["text"])
    cited = [one for entry in entries if isinstance(entry.event, MessageCitations) for one in entry.event.citations]
    sources = [part for part in message["parts"] if part["type"].startswith("source-")]
    assert [source["providerMetadata"]["hyperleap"] for source in sources] == cited
    assert len({source["sourceId"] for source in sources}) == len(sources)
    assert message["metadata"]["usage"] == {
        **{"inputTokens": 12, "outputTokens": 34, "totalTokens": 46},
        "source": "reported",
    }
    assert message["error"] == ("Cut off." if isinstance(ending, TurnFailed) else None)
    assert [part["type"] for part in message["ended"]] == {
        TurnCompleted: ["finish"],
        TurnStopped: ["abort"],
        TurnFailed: [],
    }[type(ending)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content-filter"), ("unknown", "other")],
)
def test_end_of_an_answer_has_a_reason_that_pages_know(kind: str, reason: str) -> None:
    """One of the protocol's words; Hyperleap's own goes along in the metadata."""
    started = [Entry(1, TurnStarted(TURN, CONVERSATION, 1)), Entry(2, MessageStarted("m", "r", "assistant"))]
    (finish,) = put_together(encoded([*started, Entry(3, ending_of(kind, ""))]))["ended"]
    assert (finish["finishReason"], finish["messageMetadata"]["finishReason"]) == (reason, kind)


def test_citation_without_an_address_is_a_document() -> None:
    """What has a URL is one, and what has none has at least a name and a type."""
    url, document = (
        json.loads(event.data)
        for event in SseDecoder().feed(
            encode_parts(TURN, CONVERSATION, [Entry(9, MessageCitations([CITATION, PLACE]))])
        )
    )
    assert (url["type"], url["url"], url["title"]) == ("source-url", CITATION["sourceUrl"], CITATION["sourceName"])
    assert (document["type"], document["mediaType"], document["title"]) == (
        *("source-document", "application/pdf", "no address"),
    )


def test_error_of_a_stream_ends_it() -> None:
    """What ends a connection before its turn is told in the protocol's own part."""
    (part,) = parts_of(encode_error(GatewayError(Code.REVOKED)))
    assert part == {"type": "error", "errorText": "The credential was revoked."}


def test_error_before_a_stream_is_its_text() -> None:
    """``useChat`` shows the body as it stands: a sentence, and the field that it is about."""
    assert error_text(GatewayError(Code.RATE_LIMITED, "Wait.")) == "Wait."
    assert error_text(GatewayError(Code.UNSUPPORTED_PARAMETER, "No files.", field="messages[0]")) == (
        "messages[0]: No files."
    )


def test_encoding_an_event_takes_five_microseconds_at_most() -> None:
    """The best of many rounds, since the machine has others to serve; it is about a half."""
    entries = [Entry(17, TextDelta(" word"))]
    best_s = min(timeit.repeat(lambda: encode_parts(TURN, CONVERSATION, entries), number=1000, repeat=50)) / 1000
    assert best_s < 5e-6


# --- what is sent -----------------------------------------------------------------------------------------------------


def asked(**body: Any) -> UiChatRequest:
    return decode_body(msgspec.json.encode({"id": "c", **body}), UiChatRequest)


def said(role: str, *parts: Any, id: str = "x") -> dict[str, Any]:
    return {"id": id, "role": role, "parts": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def test_messages_are_read_as_they_were_said() -> None:
    """Texts are joined; what a page was shown beside them says nothing that Hyperleap does not know."""
    shown = [{"type": "step-start"}, {"type": "reasoning", "text": "?"}, {"type": "source-url", "url": "u"}]
    whole = asked(messages=[said("user", "a", "b"), said("assistant", *shown, "c", id="t"), said("user", "d")])
    assert lines_of(whole) == [Line("user", "a\nb", "x"), Line("assistant", "c", "t"), Line("user", "d", "x")]
    assert lines_of(asked(message=said("user", "d"))) == [Line("user", "d", "x")]


BAD: list[tuple[dict[str, Any], Code, str]] = [
    (
        {"messages": [said("user", {"type": "file", "url": "data:,"})]},
        Code.UNSUPPORTED_PARAMETER,
        "messages[0].parts[0]",
    ),
    (
        {"messages": [said("assistant", "a", {"type": "tool-f", "toolCallId": "1"}), said("user", "b")]},
        Code.UNSUPPORTED_PARAMETER,
        "messages[0].parts[1]",
    ),
    ({"message": said("user", {"type": "dynamic-tool"})}, Code.UNSUPPORTED_PARAMETER, "message.parts[0]"),
    ({"messages": [said("system", "Be brief."), said("user", "b")]}, Code.UNSUPPORTED_PARAMETER, "messages[0].role"),
    ({"messages": [said("user", "b")], "tools": [{"name": "f"}]}, Code.UNSUPPORTED_PARAMETER, "tools"),
    ({"messages": [said("user", "b")], "model": "gpt"}, Code.UNSUPPORTED_PARAMETER, "model"),
    ({"messages": [said("user", "b")], "system": "Be brief."}, Code.UNSUPPORTED_PARAMETER, "system"),
    ({"messages": [said("user", {"type": "text"})]}, Code.WRONG_TYPE, "messages[0].parts[0].text"),
    ({"messages": [said("user", {})]}, Code.WRONG_TYPE, "messages[0].parts[0].type"),
    ({"messages": [said("wizard", "b")]}, Code.INVALID_VALUE, "messages[0].role"),
    ({"messages": [said("user", "a"), said("assistant", "b")]}, Code.INVALID_VALUE, "messages[1].role"),
    ({"messages": []}, Code.MISSING_FIELD, "messages"),
    ({}, Code.MISSING_FIELD, "messages"),
    ({"messages": [said("user", "b")], "message": said("user", "b")}, Code.MISSING_FIELD, "messages"),
    ({"messages": [said("user", "b")] * (LINES_MAX + 1)}, Code.INVALID_VALUE, "messages"),
    ({"message": said("user", *["b"] * (LINES_MAX + 1))}, Code.INVALID_VALUE, "message.parts"),
    ({"messages": [{"role": "user", "content": "b"}]}, Code.MISSING_FIELD, "messages[0].parts"),
    ({"messages": [said("user", "b")], "trigger": "enchant"}, Code.INVALID_VALUE, "trigger"),
    ({"messages": [said("user", "b")], "enchant": True}, Code.UNKNOWN_FIELD, "enchant"),
]


@pytest.mark.parametrize(("body", "code", "field"), BAD, ids=[f"{code}-{field}" for _, code, field in BAD])
def test_what_cannot_be_taken_is_refused_by_name(body: dict[str, Any], code: Code, field: str) -> None:
    """With the field, and never passed over where it would change the answer."""
    with pytest.raises(GatewayError) as refused:
        lines_of(asked(**body))
    assert (refused.value.code, refused.value.field) == (code, field)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "file"]) | JSON, "text": st.text() | JSON})
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant"]) | JSON, "parts": st.lists(PARTS, max_size=3) | JSON}
)


@UNHURRIED
@given(st.lists(MESSAGES, max_size=3) | JSON, st.dictionaries(st.sampled_from(UiChatRequest.__struct_fields__), JSON))
def test_any_body_is_read_or_refused_by_a_code(messages: Any, more: dict[str, Any]) -> None:
    """Nothing that can be sent is an error of the gateway's own, and what is read ends with the user's words."""
    refused: GatewayError | None = None
    lines: list[Line] = []
    try:
        lines = lines_of(decode_body(msgspec.json.encode({"id": "c", "messages": messages, **more}), UiChatRequest))
    except GatewayError as error:
        refused = error
    assert 400 <= refused.wire.http < 500 if refused is not None else lines[-1].role == "user"


def test_transcript_is_what_a_page_can_begin_with() -> None:
    """An answer has the id that its stream had, so that a replay of it is of the same message."""
    told = ui_messages(
        [
            Message("user", "Hi", turn_id=TURN),
            Message("assistant", "Ho", message_id="m", run_id="r", citations=[CITATION], turn_id=TURN),
            Message("system", "secret"),
            Message("user", "And?"),
            Message("assistant", "", state="failed", error={"code": "upstream_error"}),
        ]
    )
    assert [(one["role"], [part.get("text") for part in one["parts"]]) for one in told] == [
        ("user", ["Hi"]),
        ("assistant", ["Ho", None]),
        ("user", ["And?"]),
        ("assistant", []),
    ]
    assert told[3]["metadata"]["error"] == {"code": "upstream_error"}
    assert told[1]["id"] == TURN
    assert told[1]["parts"][1]["type"] == "source-url"
    assert len({one["id"] for one in told}) == 4
