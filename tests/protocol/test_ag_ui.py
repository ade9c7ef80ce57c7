"""The dialect of AG-UI: however a log is cut its events are the same run, in an order that its client lets pass."""

from __future__ import annotations

import json
import timeit
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.chats import LINES_MAX, Line
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, MessageStarted, TextDelta, TurnCompleted, TurnFailed, TurnStopped
from gateway.protocol.ag_ui import (
    Run,
    RunInput,
    encode_ending,
    encode_error,
    encode_run,
    encode_run_started,
    lines_of,
    run_of,
)
from gateway.protocol.native import decode_body
from gateway.protocol.sse import SseDecoder
from tests.protocol.turn_logs import CONVERSATION, TURN, batches, logs

UNHURRIED = settings(deadline=None)  # the machine has others to serve


def events_of(entries: list[Entry], cuts: list[int] | None = None, *, join: bool = False, run: Run) -> list[Any]:
    """Encode a log as a run's stream does, and read it."""
    data = encode_run_started(run)
    data += b"".join([encode_run(TURN, CONVERSATION, batch) for batch in batches(entries, cuts or [], join)])
    begun = any(isinstance(entry.event, MessageStarted) for entry in entries)
    data += encode_ending(entries[-1].event, turn_id=TURN, run=run, message_open=begun)
    events = SseDecoder().feed(data)
    assert all(event.event == "message" and event.id is None for event in events)
    return [json.loads(event.data) for event in events]


def verified(events: list[Any]) -> str:
    """Hold events to the rules of ``verifyEvents``, and return the text of their one message."""
    assert events[0]["type"] == "RUN_STARTED"
    assert events[-1]["type"] in ("RUN_FINISHED", "RUN_ERROR")
    text, open_ = "", False
    for event in events[1:-1]:
        match event["type"]:
            case "TEXT_MESSAGE_START":
                assert not open_
                open_ = True
            case "TEXT_MESSAGE_CONTENT":
                assert open_
                assert event["delta"]
                text += event["delta"]
            case "TEXT_MESSAGE_END":
                assert open_
                open_ = False
            case other:
                assert other == "CUSTOM"
                assert event["name"]
                assert "value" in event
        assert event.get("messageId", TURN) == TURN
    assert not open_
    return text


@UNHURRIED
@given(logs(), st.lists(st.integers(0, 50), max_size=6), st.booleans(), st.booleans())
def test_run_is_the_answer_however_its_log_is_cut(
    entries: list[Entry], cuts: list[int], join: bool, has_outcomes: bool
) -> None:
    """Every run is one that the client's checks let pass; what is no text is the same to the member."""
    run = Run("thread", "run", has_outcomes)
    events, live = events_of(entries, cuts, join=join, run=run), events_of(entries, run=run)
    ending = entries[-1].event
    assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
    assert verified(events) == verified(live) == ending.text
    assert [e for e in events if e["type"] != "TEXT_MESSAGE_CONTENT"] == [
        e for e in live if e["type"] != "TEXT_MESSAGE_CONTENT"
    ]
    last = events[-1]
    assert last["usage"] == [{"provider": "hyperleap", "inputTokens": 12, "outputTokens": 34, "totalTokens": 46}]
    if isinstance(ending, TurnFailed):
        assert (last["type"], last["message"], last["code"]) == ("RUN_ERROR", "Cut off.", "upstream_truncated")
        return
    assert (last["type"], last["threadId"], last["runId"]) == ("RUN_FINISHED", "thread", "run")
    assert last["result"]["turn_id"] == TURN
    kind = "success" if isinstance(ending, TurnCompleted) else "cancelled"
    assert last.get("outcome") == ({"type": kind} if has_outcomes else None)
    assert last["result"].get("reason") == (ending.reason if isinstance(ending, TurnStopped) else None)


def test_error_of_a_stream_is_an_error_of_its_run() -> None:
    """What ends a connection before its turn has the gateway's code."""
    (event,) = SseDecoder().feed(encode_error(GatewayError(Code.REVOKED)))
    assert json.loads(event.data) == {"type": "RUN_ERROR", "message": "The credential was revoked.", "code": "revoked"}


def test_encoding_an_event_takes_five_microseconds_at_most() -> None:
    """The best of many rounds, since the machine has others to serve; it is less than one."""
    entries = [Entry(17, TextDelta(" word"))]
    best_s = min(timeit.repeat(lambda: encode_run(TURN, CONVERSATION, entries), number=1000, repeat=50)) / 1000
    assert best_s < 5e-6


# --- what is sent -----------------------------------------------------------------------------------------------------

HI = {"id": "u", "role": "user", "content": "Hi"}


def asked(**body: Any) -> RunInput:
    return decode_body(msgspec.json.encode({"threadId": "t", "runId": "r", "messages": [HI], **body}), RunInput)


def test_input_of_the_client_is_read_whole() -> None:
    """As ``HttpAgent`` sends it, empty members and members of later versions included."""
    body = asked(
        messages=[
            {"id": "a", "role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"id": "b", "role": "activity", "activityType": "PLAN", "content": {}},
            {"id": "c", "role": "reasoning", "content": "Hm."},
            {"id": "d", "role": "assistant", "content": "three", "toolCalls": []},
            {"id": "e", "role": "assistant"},
            HI,
        ],
        **{"tools": [], "context": [], "state": {"any": 1}, "forwardedProps": {}, "protocolVersion": "1.0", "new": 1},
    )
    assert lines_of(body) == [
        Line("user", "one\ntwo", "a"),
        Line("assistant", "three", "d"),
        Line("assistant", "", "e"),
        Line("user", "Hi", "u"),
    ]
    assert run_of(body) == Run("t", "r", True)
    assert run_of(asked()) == Run("t", "r", False)


BAD: list[tuple[dict[str, Any], Code, str]] = [
    ({"tools": [{"name": "f", "description": "d"}]}, Code.UNSUPPORTED_PARAMETER, "tools"),
    ({"context": [{"description": "d", "value": "v"}]}, Code.UNSUPPORTED_PARAMETER, "context"),
    ({"resume": [{"interruptId": "i", "status": "resolved"}]}, Code.UNSUPPORTED_PARAMETER, "resume"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        Code.UNSUPPORTED_PARAMETER,
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "system", "content": "Be brief."}, HI]}, Code.UNSUPPORTED_PARAMETER, "messages[0].role"),
    ({"messages": [{"role": "developer", "content": "x"}, HI]}, Code.UNSUPPORTED_PARAMETER, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "3"}, HI]}, Code.UNSUPPORTED_PARAMETER, "messages[0].role"),
    (
        {"messages": [{"role": "assistant", "toolCalls": [{"id": "c"}]}, HI]},
        Code.UNSUPPORTED_PARAMETER,
        "messages[0].toolCalls",
    ),
    ({"messages": [HI, {"role": "assistant", "content": "Half"}]}, Code.INVALID_VALUE, "messages"),
    ({"messages": []}, Code.INVALID_VALUE, "messages"),
    ({"messages": [HI] * (LINES_MAX + 1)}, Code.INVALID_VALUE, "messages"),
    ({"messages": [{"role": "user", "content": 7}]}, Code.WRONG_TYPE, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [7]}]}, Code.WRONG_TYPE, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, Code.WRONG_TYPE, "messages[0].content[0].text"),
    ({"threadId": 7}, Code.WRONG_TYPE, "threadId"),
    ({"forwardedProps": {"enchant": 1}}, Code.UNKNOWN_FIELD, "forwardedProps.enchant"),
    ({"forwardedProps": {"persona": 1}}, Code.WRONG_TYPE, "forwardedProps.persona"),
]


@pytest.mark.parametrize(("body", "code", "field"), BAD, ids=[f"{code}-{field}" for _, code, field in BAD])
def test_what_cannot_be_taken_is_refused_by_name(body: dict[str, Any], code: Code, field: str) -> None:
    """With the field, and never passed over where it would change the answer."""
    with pytest.raises(GatewayError) as refused:
        lines_of(asked(**body))
    assert (refused.value.code, refused.value.field) == (code, field)
