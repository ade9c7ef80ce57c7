"""The OpenAI dialect: however a log is cut into batches a reader gets the same answer, and every error has a shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gateway.core.errors import Code, GatewayError
from gateway.core.events import (
    Entry,
    MessageCitations,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    TurnStopped,
)
from gateway.core.threads import ANSWER, INSTRUCTION, QUESTION, Said, split, stated
from gateway.core.turn import StopReason
from gateway.protocol.native import decode_body
from gateway.protocol.openai.chat import DONE, ChatRequest, ChunkEncoder, Completion
from gateway.protocol.openai.errors import KNOWN, STOPPED, error_body, failure, form
from gateway.protocol.openai.messages import said
from gateway.protocol.openai.parameters import HARMLESS, check_parameters
from gateway.protocol.openai.response_events import ResponseEncoder, encode_error
from gateway.protocol.openai.responses import Response, ResponseRequest
from gateway.protocol.sse import SseDecoder
from tests.protocol.turn_logs import CONVERSATION, TURN, USAGE, batches, ending_of, logs

WHOLE = Completion(TURN, "default", 1_790_000_000, include_usage=True)
RESPONSE = Response(TURN, CONVERSATION, "default", 1_790_000_000.5)

EVENTS: dict[str, Any] = {  # by their names; the union itself tries them all
    get_args(variant.model_fields["type"].annotation)[0]: variant
    for variant in get_args(get_args(ResponseStreamEvent)[0])
}
UNHURRIED = settings(deadline=None)  # the machine has others to serve


def citations_of(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [one for entry in entries if isinstance(entry.event, MessageCitations) for one in entry.event.citations]


def decoded(data: bytes) -> list[tuple[str, Any]]:
    return [(event.event, json.loads(event.data)) for event in SseDecoder().feed(data) if event.data != "[DONE]"]


def chunks_of(entries: Sequence[Entry], cuts: Sequence[int] = (), *, join: bool = False) -> bytes:
    encode = ChunkEncoder(WHOLE)
    data = b"".join([encode(batch) for batch in batches(entries[:-1], cuts, join)])
    ending = entries[-1].event
    assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
    return data if failure(ending) is not None else data + WHOLE.last(ending, citations_of(entries))


def events_of(entries: Sequence[Entry], cuts: Sequence[int] = (), *, join: bool = False, after: int = -1) -> bytes:
    encode = ResponseEncoder(RESPONSE, after)
    data = b"".join([encode(batch) for batch in batches(entries[:-1], cuts, join)])
    return data + encode.last(entries[-1], citations_of(entries))


def text_of(events: list[tuple[str, Any]]) -> str:
    return "".join(data["delta"] for name, data in events if name == "response.output_text.delta")


# --- chat completions -------------------------------------------------------------------------------------------------


@UNHURRIED
@given(logs(), st.lists(st.integers(0, 50), max_size=6), st.booleans())
def test_chunks_are_the_answer_however_its_log_is_cut(entries: list[Entry], cuts: list[int], join: bool) -> None:
    """Every chunk is one that OpenAI's types know; the deltas are the text; only an answer's end has a reason."""
    data = chunks_of(entries, cuts, join=join)
    ending = entries[-1].event
    assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
    chunks = [ChatCompletionChunk.model_validate(chunk) for _, chunk in decoded(data)]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == ending.text
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    if failure(ending) is not None:
        assert not reasons
        assert DONE not in data
        return
    assert len(reasons) == 1
    assert data.endswith(DONE)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == USAGE.total_tokens
    whole = ChatCompletion.model_validate(WHOLE.whole(ending, citations_of(entries)))
    assert whole.choices[0].message.content == ending.text
    assert whole.choices[0].finish_reason == reasons[0]
    assert len(whole.choices[0].message.annotations or ()) == sum("sourceUrl" in one for one in citations_of(entries))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *[("stop", "stop"), ("unknown", "stop"), ("length", "length"), ("content_filter", "content_filter")],
        *[("budget", "length"), ("user", "length"), ("disconnect", "length")],
    ],
)
def test_end_of_an_answer_has_a_reason_that_clients_know(kind: str, reason: str) -> None:
    """What was cut short on purpose is ``length``, never ``stop``."""
    whole = WHOLE.whole(ending_of(kind, "Hi"), ())
    assert whole["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("reason", StopReason)
def test_stop_is_a_failure_where_no_client_can_have_wanted_it(reason: StopReason) -> None:
    """Revoked, shut down or crashed is an error of its own; the rest is an answer that is not whole."""
    error = failure(ending_of(reason, "Hi"))
    assert (error is not None) is (reason in STOPPED)


# --- responses --------------------------------------------------------------------------------------------------------


@UNHURRIED
@given(logs(), st.lists(st.integers(0, 50), max_size=6), st.booleans())
def test_events_are_the_answer_however_its_log_is_cut(entries: list[Entry], cuts: list[int], join: bool) -> None:
    """Every event is one that OpenAI's types know; numbers grow; what is no delta is the same to the byte."""
    events = decoded(events_of(entries, cuts, join=join))
    ending = entries[-1].event
    assert isinstance(ending, TurnCompleted | TurnStopped | TurnFailed)
    for name, data in events:
        EVENTS[name].model_validate(data)
    numbers = [data["sequence_number"] for _, data in events]
    assert numbers == sorted(set(numbers))
    assert text_of(events) == ending.text
    assert events[-1][1]["response"] == RESPONSE.body(ending, citations_of(entries))
    OpenAIResponse.model_validate(events[-1][1]["response"])
    others = [event for event in events if event[0] != "response.output_text.delta"]
    assert others == [event for event in decoded(events_of(entries)) if event[0] != "response.output_text.delta"]


@UNHURRIED
@given(logs(), st.data())
def test_events_go_on_after_any_number(entries: list[Entry], data: st.DataObject) -> None:
    """A reader that has seen up to an event gets the rest, each once, whatever was merged since."""
    live = decoded(events_of(entries))
    seen = data.draw(st.integers(0, len(live)))
    after = live[seen - 1][1]["sequence_number"] if seen else -1
    cuts, join = data.draw(st.lists(st.integers(0, 50), max_size=6)), data.draw(st.booleans())
    rest = decoded(events_of(entries, cuts, join=join, after=after))
    assert text_of(live[:seen]) + text_of(rest) == text_of(live)
    others = [event for event in live[:seen] + rest if event[0] != "response.output_text.delta"]
    assert others == [event for event in live if event[0] != "response.output_text.delta"]


@pytest.mark.parametrize(
    ("kind", "event", "status", "reason"),
    [
        ("stop", "response.completed", "completed", None),
        ("unknown", "response.completed", "completed", None),
        ("length", "response.incomplete", "incomplete", "max_output_tokens"),
        ("content_filter", "response.incomplete", "incomplete", "content_filter"),
        ("budget", "response.incomplete", "incomplete", "max_output_tokens"),
        ("user", "response.incomplete", "cancelled", None),
        ("shutdown", "response.failed", "failed", None),
        ("failed", "response.failed", "failed", None),
    ],
)
def test_end_of_a_response_has_its_event_and_status(kind: str, event: str, status: str, reason: str | None) -> None:
    """Each ending of a turn is one of the ends that a response can have."""
    entries = [Entry(1, TurnStarted(TURN, CONVERSATION, 1)), Entry(2, ending_of(kind, ""))]
    name, data = decoded(events_of(entries))[-1]
    assert (name, data["response"]["status"]) == (event, status)
    assert data["response"]["incomplete_details"] == ({"reason": reason} if reason else None)
    assert (data["response"]["error"] is not None) is (status == "failed")


def test_error_of_a_stream_is_an_event() -> None:
    """What ends a connection before its turn is told as OpenAI tells it."""
    ((name, data),) = decoded(encode_error(GatewayError(Code.STORE_UNAVAILABLE), 9))
    assert EVENTS[name].model_validate(data).type == "error"
    assert data["code"] == "store_unavailable"


# --- errors and parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", Code)
def test_every_error_has_openais_shape(code: Code) -> None:
    """Four members, a status of an error, and a code of the gateway's or one that OpenAI's clients look for."""
    error = GatewayError(code, field="field")
    body = error_body(error, "messages")["error"]
    told = form(error)
    assert set(body) == {"message", "type", "param", "code"}
    assert 400 <= told.status < 600
    assert told.status != 422
    assert body["code"] == (KNOWN[code].code if code in KNOWN else told.code)
    assert body["type"] == ("server_error" if told.status >= 500 else body["type"])


def test_flagged_message_is_told_with_its_categories() -> None:
    """They are a member more of the error; no other error's extra facts are."""
    extra: dict[str, object] = {"categories": ["violence"], "cause": "upstream_error"}
    body = error_body(GatewayError(Code.MESSAGE_FLAGGED, field="message", extra=extra), "messages")["error"]
    assert set(body) == {"message", "type", "param", "code", "categories"}
    assert (body["code"], body["param"], body["categories"]) == ("message_flagged", "messages", ["violence"])
    assert "categories" not in error_body(GatewayError(Code.INTERNAL, extra=extra), "messages")["error"]


@pytest.mark.parametrize(
    ("limit", "type_", "code"),
    [
        ("user_requests_per_min", "requests", "rate_limit_exceeded"),
        ("user_concurrent_turns", "requests", "rate_limit_exceeded"),
        ("tenant_tokens_per_min", "tokens", "rate_limit_exceeded"),
        ("tenant_tokens_per_day", "insufficient_quota", "insufficient_quota"),
        ("user_tokens_per_month", "insufficient_quota", "insufficient_quota"),
    ],
)
def test_limit_that_is_used_up_is_told_by_its_kind(limit: str, type_: str, code: str) -> None:
    """Clients wait for the one and give up at the other."""
    told = form(GatewayError(Code.RATE_LIMITED, extra={"limit": limit}))
    assert told == (429, type_, code)


@pytest.mark.parametrize(
    ("request_type", "params"),
    [(ChatRequest, CompletionCreateParamsBase), (ResponseRequest, ResponseCreateParamsBase)],
    ids=["chat", "responses"],
)
def test_every_parameter_of_openais_client_is_decided_upon(request_type: type[msgspec.Struct], params: Any) -> None:
    """One that a later client has fails here, until it is read, refused or ignored."""
    assert set(params.__annotations__) - set(request_type.__struct_fields__) == set()
    fields = set(ChatRequest.__struct_fields__) | set(ResponseRequest.__struct_fields__)
    assert set(HARMLESS) <= fields


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "input_text", "image_url"]) | JSON, "text": st.text() | JSON}
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON,
        "content": st.text() | st.lists(PARTS, max_size=3) | JSON,
        "type": st.sampled_from(["message", "function_call"]) | JSON,
        "tool_calls": JSON,
    },
)


def bodies(request_type: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """Requests that are nearly right: what each field should be, or anything."""
    optional: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(request_type.__struct_fields__, JSON)
    needed: dict[str, st.SearchStrategy[Any]] = {"model": st.just("default") | JSON}
    needed |= {name: st.lists(ITEMS, max_size=3) | JSON for name in ("messages", "input") if name in optional}
    return st.fixed_dictionaries(needed, optional={name: optional[name] for name in optional if name not in needed})


@pytest.mark.parametrize(("request_type", "field"), [(ChatRequest, "messages"), (ResponseRequest, "input")])
@UNHURRIED
@given(st.data())
def test_whatever_is_asked_is_read_or_refused(request_type: type[Any], field: str, data: st.DataObject) -> None:
    """No body but ends in a list that can be answered or in an error that can be told."""
    body = json.dumps(data.draw(bodies(request_type))).encode()
    refused: GatewayError | None = None
    try:
        read = decode_body(body, request_type)
        check_parameters(read)
        items = getattr(read, field)
        told = [Said(QUESTION, items)] if isinstance(items, str) else said(items, field)
    except GatewayError as error:
        refused = error
    if refused is not None:
        assert form(refused).status == 400
        assert error_body(refused, field)["error"]["message"]
    else:
        assert told[-1].role != ANSWER


# --- lists ------------------------------------------------------------------------------------------------------------

LISTS = st.lists(
    st.builds(Said, st.sampled_from([QUESTION, ANSWER, INSTRUCTION]), st.text(min_size=1, max_size=9)),
    min_size=1,
    max_size=9,
)


@given(LISTS)
def test_list_is_split_after_its_last_answer(told: list[Said]) -> None:
    """The two parts are the whole, and no answer is new."""
    known, new = split(told)
    assert [*known, *new] == told
    assert all(one.role != ANSWER for one in new)
    assert not known or known[-1].role == ANSWER


@given(LISTS)
def test_list_that_is_stated_says_everything_in_order(told: list[Said]) -> None:
    """Nothing that a client sent is lost on the way into one message; a single message stays as it is."""
    words = stated(told)
    position = 0
    for one in told:
        position = words.index(one.text, position) + len(one.text)
    if len(told) == 1 and told[0].role == QUESTION:
        assert words == told[0].text
