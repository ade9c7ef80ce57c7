"""The native dialect: what clients are sent byte for byte, and what they are told about what they send."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from gateway.core.conversation import Conversation, ConversationId, Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    EVENT_TYPES,
    Entry,
    Event,
    MessageCitations,
    MessageExtra,
    MessageModerated,
    MessageStarted,
    TextDelta,
    TurnCompleted,
    TurnError,
    TurnFailed,
    TurnQueued,
    TurnStarted,
    TurnStopped,
)
from gateway.core.identity import UserHash
from gateway.core.turn import StopReason, Usage
from gateway.protocol.native import (
    CreateConversation,
    GiveFeedback,
    OpenSession,
    PingCommand,
    StartCommand,
    StartTurn,
    SubscribeCommand,
    conversation_body,
    decode_body,
    decode_command,
    decode_event,
    encode_data,
    encode_frame,
    encode_json,
    encode_sse,
    problem,
    text_frame,
)

TURN = "7a1f0c1e-0b0a-4b53-9d0e-1f2a3b4c5d6e"
CONVERSATION = "11111111-2222-4333-8444-555555555555"
MESSAGE = "99999999-8888-4777-8666-555555555555"
RUN = "00000000-1111-4222-8333-444444444444"
USAGE = Usage(12, 34, 46, "reported")
SECRET = "s3cr3t-value-of-a-client"

TEXT = st.text(max_size=30)
MAYBE = st.none() | TEXT
USAGES = st.builds(
    Usage, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["reported", "estimated"])
)
TABLES = st.lists(
    st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT, max_size=3), max_size=3
)
ERRORS = st.builds(TurnError, st.sampled_from(Code), TEXT, st.booleans(), st.none() | st.integers(100, 599), st.none())
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(TurnStarted, TEXT, TEXT, st.integers(1, 9999)),
    st.builds(TurnQueued, st.integers(0, 99), st.floats(0, 100)),
    st.builds(MessageStarted, MAYBE, MAYBE, TEXT),
    st.builds(TextDelta, TEXT),
    st.builds(MessageExtra, st.integers(0, 9), MAYBE, MAYBE, MAYBE, MAYBE),
    st.builds(MessageCitations, TABLES),
    st.builds(MessageModerated, TABLES),
    st.builds(TurnCompleted, MAYBE, MAYBE, TEXT, TEXT, USAGES),
    st.builds(TurnStopped, MAYBE, MAYBE, st.sampled_from(StopReason), TEXT, USAGES),
    st.builds(TurnFailed, MAYBE, MAYBE, ERRORS, TEXT, USAGES),
)


# --- events -------------------------------------------------------------------------------------------------------


@given(EVENTS)
def test_event_stored_and_read_is_the_same(event: Event) -> None:
    """An event that went to the log comes back as it was, whatever its text holds."""
    assert decode_event(event.name, encode_data(event)) == event


@given(EVENTS, st.integers(1, 10**12))
def test_sse_of_any_event_is_one_block_of_three_lines(event: Event, position: int) -> None:
    """No text, line breaks and all, can end an event early or forge another one."""
    block = encode_sse(TURN, Entry(position, event)).decode()
    assert block.endswith("\n\n")
    assert "\r" not in block
    lines = block[:-2].split("\n")
    assert lines[:2] == [f"id: {TURN}.{position}", f"event: {event.name}"]
    assert lines[2].startswith("data: ")
    assert len(lines) == 3
    assert decode_event(event.name, lines[2].removeprefix("data: ").encode()) == event


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_event_of_every_type_has_its_documented_members(name: str) -> None:
    """The data of each event holds the members that the design names, in its order, and no others."""
    ending = ["message_id", "run_id"], ["text", "usage"]
    members = {
        "turn.started": ["turn_id", "conversation_id", "ordinal"],
        "turn.queued": ["position", "wait_s"],
        "message.started": ["message_id", "run_id", "role"],
        "message.delta": ["text"],
        "message.extra": ["index", "role", "name", "tool_call_id", "content"],
        "message.citations": ["citations"],
        "message.moderated": ["categories"],
        "turn.completed": [*ending[0], "finish_reason", *ending[1]],
        "turn.stopped": [*ending[0], "reason", *ending[1]],
        "turn.failed": [*ending[0], "error", *ending[1]],
    }
    assert list(EVENT_TYPES[name].__struct_encode_fields__) == members[name]


def test_sse_bytes_are_those_of_the_documented_example() -> None:
    """The stream of the design's example comes out to the byte."""
    text = "Hello …"
    entries: list[tuple[int, Event]] = [
        (1, TurnStarted(TURN, CONVERSATION, 1)),
        (2, MessageStarted(MESSAGE, RUN, "assistant")),
        (5, TextDelta("Hel")),
        (141, TurnCompleted(MESSAGE, RUN, "stop", text, USAGE)),
    ]
    expected = (
        f"id: {TURN}.1\nevent: turn.started\n"
        f'data: {{"turn_id":"{TURN}","conversation_id":"{CONVERSATION}","ordinal":1}}\n\n'
        f"id: {TURN}.2\nevent: message.started\n"
        f'data: {{"message_id":"{MESSAGE}","run_id":"{RUN}","role":"assistant"}}\n\n'
        f'id: {TURN}.5\nevent: message.delta\ndata: {{"text":"Hel"}}\n\n'
        f"id: {TURN}.141\nevent: turn.completed\n"
        f'data: {{"message_id":"{MESSAGE}","run_id":"{RUN}","finish_reason":"stop","text":"Hello …",'
        '"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"source":"reported"}}\n\n'
    )
    assert b"".join(encode_sse(TURN, Entry(*entry)) for entry in entries).decode() == expected


def test_turn_failed_tells_code_detail_and_retryable() -> None:
    """The error member says what happened; the vendor's status appears only where there was one."""
    plain = TurnFailed(None, None, TurnError(Code.UPSTREAM_TRUNCATED, "Cut.", True), "so far", USAGE)
    assert json.loads(encode_data(plain))["error"] == {
        "code": "upstream_truncated",
        "detail": "Cut.",
        "retryable": True,
    }
    noted = TurnFailed(None, None, TurnError(Code.UPSTREAM_ERROR, "No.", True, 500, 2.0), "", USAGE)
    assert json.loads(encode_data(noted))["error"]["vendor_status"] == 500


@given(EVENTS, st.integers(1, 10**12))
def test_frame_of_any_event_is_the_documented_object(event: Event, position: int) -> None:
    """A WebSocket frame is one JSON object with id, event, both ids and the same data as SSE."""
    frame = json.loads(encode_frame(TURN, CONVERSATION, Entry(position, event)))
    assert frame == {
        "id": f"{TURN}.{position}",
        "event": event.name,
        "turn_id": TURN,
        "conversation_id": CONVERSATION,
        "data": json.loads(encode_data(event)),
    }


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_text_frame_of_any_size_is_read_by_another_implementation(size: int) -> None:
    """The three length forms of RFC 6455 come out final, unmasked, whole, with nothing behind them."""
    payload = b"x" * size
    reader = StreamReader()
    reader.feed_data(text_frame(payload))
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    frame = done.value.value
    assert (frame.opcode, frame.fin, frame.rsv1, bytes(frame.data)) == (Opcode.TEXT, True, False, payload)
    assert bytes(reader.buffer) == b""


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (125, "817d"),
        (126, "817e007e"),
        (65_535, "817effff"),
        (65_536, "817f0000000000010000"),
    ],
)
def test_text_frame_uses_the_shortest_length_form(size: int, head: str) -> None:
    """RFC 6455 section 5.2 asks for the minimal number of bytes of a length."""
    assert text_frame(b"x" * size)[: len(head) // 2].hex() == head


# --- bodies -------------------------------------------------------------------------------------------------------

BAD_BODIES: list[tuple[bytes, type, Code, str | None]] = [
    (b"", StartTurn, Code.MALFORMED_JSON, None),
    (b"{", StartTurn, Code.MALFORMED_JSON, None),
    (b'{"message":"a"} x', StartTurn, Code.MALFORMED_JSON, None),
    (b'{"message":"\xff"}', StartTurn, Code.MALFORMED_JSON, None),
    (b'{"message":"\\ud800"}', StartTurn, Code.MALFORMED_JSON, None),
    (b"[" * 100_000, StartTurn, Code.WRONG_TYPE, None),
    (b'{"message":"a","metadata":' + b"[" * 100_000, StartTurn, Code.UNKNOWN_FIELD, "metadata"),
    (b'{"metadata":{"a":' + b"[" * 100_000 + b"}}", CreateConversation, Code.MALFORMED_JSON, None),
    (b"null", StartTurn, Code.WRONG_TYPE, None),
    (b"[]", StartTurn, Code.WRONG_TYPE, None),
    (b'"s3cr3t-value-of-a-client"', StartTurn, Code.WRONG_TYPE, None),
    (b"{}", StartTurn, Code.MISSING_FIELD, "message"),
    (b'{"message":null}', StartTurn, Code.WRONG_TYPE, "message"),
    (b'{"message":["s3cr3t-value-of-a-client"]}', StartTurn, Code.WRONG_TYPE, "message"),
    (b'{"message":"a","stream":"s3cr3t-value-of-a-client"}', StartTurn, Code.UNKNOWN_FIELD, "stream"),
    (b'{"score":"s3cr3t-value-of-a-client"}', GiveFeedback, Code.WRONG_TYPE, "score"),
    (b'{"score":5.5}', GiveFeedback, Code.WRONG_TYPE, "score"),
    (b'{"score":true}', GiveFeedback, Code.WRONG_TYPE, "score"),
    (b'{"score":1,"tags":"s3cr3t-value-of-a-client"}', GiveFeedback, Code.WRONG_TYPE, "tags"),
    (b'{"score":1,"tags":["ok",5]}', GiveFeedback, Code.WRONG_TYPE, "tags[1]"),
    (b'{"score":1,"confidence":"high"}', GiveFeedback, Code.WRONG_TYPE, "confidence"),
    (b'{"replacements":{"s3cr3t-value-of-a-client":{}}}', CreateConversation, Code.WRONG_TYPE, "replacements[...]"),
    (b'{"metadata":5}', CreateConversation, Code.WRONG_TYPE, "metadata"),
    (b'{"user_id":7}', OpenSession, Code.WRONG_TYPE, "user_id"),
    (b'{"personas":["a",{}]}', OpenSession, Code.WRONG_TYPE, "personas[1]"),
]


@pytest.mark.parametrize(("body", "kind", "code", "field"), BAD_BODIES)
def test_body_that_is_wrong_is_told_by_code_and_field(
    body: bytes, kind: type[Any], code: Code, field: str | None
) -> None:
    """Each way to be wrong has its own code and names the field, and no value is repeated back."""
    with pytest.raises(GatewayError) as refused:
        decode_body(body, kind)
    assert (refused.value.code, refused.value.field) == (code, field)
    assert SECRET not in f"{refused.value.detail} {refused.value.field} {refused.value!r}"
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_body_of_random_bytes_is_read_or_refused(body: bytes) -> None:
    """No bytes make the reader fail in any other way."""
    status = None
    try:
        decode_body(body, CreateConversation)
    except GatewayError as refused:
        status = refused.wire.http
    assert status in (None, 400, 422)


def test_body_with_a_long_unknown_field_does_not_fill_the_answer() -> None:
    """The name of an unknown field is cut before it is repeated."""
    with pytest.raises(GatewayError) as refused:
        decode_body(b'{"%b":1}' % (b"x" * 10_000), StartTurn)
    assert refused.value.code is Code.UNKNOWN_FIELD
    assert len(refused.value.field or "") <= 64


# --- commands -----------------------------------------------------------------------------------------------------


def test_command_of_each_documented_shape_is_read() -> None:
    """The commands of the design's example come out as values."""
    start = '{"type":"turn.start","request_id":"r1","conversation_id":"c","message":"Hi","client_message_id":"k1"}'
    assert decode_command(start) == StartCommand("c", "Hi", "r1", "k1")
    subscribe = f'{{"type":"subscribe","request_id":"r2","turn_id":"{TURN}","after":"{TURN}.17"}}'
    assert decode_command(subscribe) == SubscribeCommand(turn_id=TURN, after=f"{TURN}.17", request_id="r2")
    assert decode_command('{"type":"subscribe","conversation_id":"c"}') == SubscribeCommand(conversation_id="c")
    assert decode_command('{"type":"ping"}') == PingCommand()
    for kind in ("auth", "refresh"):
        command = decode_command(f'{{"type":"{kind}","token":"hgt_x"}}')
        assert command.__struct_config__.tag == kind


@pytest.mark.parametrize(
    ("frame", "code", "field", "request_id"),
    [
        ("", Code.MALFORMED_JSON, None, None),
        ("nonsense", Code.MALFORMED_JSON, None, None),
        ("[]", Code.WRONG_TYPE, None, None),
        ("null", Code.WRONG_TYPE, None, None),
        ("{}", Code.MISSING_FIELD, "type", None),
        ('{"request_id":"r"}', Code.MISSING_FIELD, "type", "r"),
        ('{"type":"turn.sing","request_id":"r"}', Code.COMMAND_UNKNOWN, "type", "r"),
        ('{"type":5}', Code.COMMAND_UNKNOWN, "type", None),
        ('{"type":[],"request_id":"r"}', Code.COMMAND_UNKNOWN, "type", "r"),
        ('{"type":{"a":1}}', Code.COMMAND_UNKNOWN, "type", None),
        ('{"type":"ping","extra":1,"request_id":"r"}', Code.UNKNOWN_FIELD, "extra", "r"),
        ('{"type":"turn.stop","request_id":"r"}', Code.MISSING_FIELD, "turn_id", "r"),
        ('{"type":"turn.start","conversation_id":"c","message":7}', Code.WRONG_TYPE, "message", None),
        ('{"type":"ping","request_id":7}', Code.WRONG_TYPE, "request_id", None),
        ("[" * 100_000, Code.WRONG_TYPE, None, None),
        ('{"type":"ping","request_id":"\ud800"}', Code.MALFORMED_JSON, None, None),
    ],
)
def test_command_that_is_wrong_is_told_with_its_request_id(
    frame: str, code: Code, field: str | None, request_id: str | None
) -> None:
    """A bad frame names its fault, and the command that it answers where that could be read."""
    with pytest.raises(GatewayError) as refused:
        decode_command(frame)
    assert (refused.value.code, refused.value.field) == (code, field)
    assert refused.value.extra["command_request_id"] == request_id


@given(
    st.text(max_size=40)
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["ping", "turn.start", "x"]) | st.none() | st.lists(st.integers())},
        optional={"request_id": TEXT | st.integers(), "message": TEXT, "conversation_id": TEXT},
    ).map(json.dumps)
)
def test_command_of_random_text_is_read_or_refused(frame: str) -> None:
    """No frame makes the reader fail in any other way."""
    told = {"command_request_id"}
    try:
        decode_command(frame)
    except GatewayError as refused:
        told = set(refused.extra)
    assert told == {"command_request_id"}


# --- answers ------------------------------------------------------------------------------------------------------


def test_problem_has_the_members_of_rfc_9457_and_ours() -> None:
    """type, title, status, code and detail are always there; the others only where there is something to say."""
    bare = problem(GatewayError(Code.NOT_FOUND), None)
    assert set(bare) == {"type", "title", "status", "code", "detail"}
    assert bare["type"].endswith("/errors#not_found")
    assert bare["status"] == 404
    error = GatewayError(
        Code.RATE_LIMITED, "Slow.", field="message", retry_after_s=1.23456, vendor_status=429, extra={"limit": "user"}
    )
    told = problem(error, "req-1")
    assert (told["field"], told["retry_after_s"], told["vendor_status"]) == ("message", 1.235, 429)
    assert (told["limit"], told["request_id"]) == ("user", "req-1")
    assert json.loads(encode_json(told))["code"] == "rate_limited"


def test_conversation_body_shows_chat_alone_and_no_hash() -> None:
    """An owner sees users' and assistants' messages with usage and the last feedback; hash and prompts stay inside."""
    feedback = [Feedback("f1", 3), Feedback("f2", 5)]
    conversation = Conversation(
        id=ConversationId(CONVERSATION),
        owner=UserHash("0wnerhash"),
        persona="default",
        messages=[
            Message("system", "secret prompt"),
            Message("user", "Hi"),
            Message("tool", "lookup"),
            Message(
                "assistant",
                "Hello",
                message_id=MESSAGE,
                turn_id=TURN,
                prompt_tokens=0,
                completion_tokens=0,
                total_tokens=0,
                feedback=feedback,
            ),
        ],
        messages_unavailable=True,
    )
    raw = encode_json(conversation_body(conversation))
    assert b"0wnerhash" not in raw
    assert b"secret prompt" not in raw
    assert b"lookup" not in raw
    body = msgspec.json.decode(raw)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    assert body["messages"][1]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["messages"][1]["feedback"]["score"] == 5
    assert body["messages_unavailable"] is True
    assert {"id", "persona", "status", "name", "created_at", "metadata", "messages"} <= set(body)
