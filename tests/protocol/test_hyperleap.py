"""Hyperleap's dialect: absent and null mean the same, a reported 0 is 0, and an error is known by its status alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.conversation import Feedback
from gateway.core.errors import Code, GatewayError
from gateway.core.turn import AnswerItem
from gateway.protocol.hyperleap import (
    StreamItem,
    decode_entry,
    encode_create,
    encode_message,
    encode_score,
    read_entry,
    read_item,
    refusal,
)

ID = "99999999-8888-4777-8666-555555555555"


def item_of(value: Any) -> AnswerItem:
    """Read one element of the vendor's array."""
    return read_item(msgspec.json.decode(json.dumps(value), type=StreamItem))


def without_nulls(value: Any) -> Any:
    """Leave out every member that is null, at any depth."""
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return value


FULL = {
    "choice": {
        "finish_reason": None,
        "index": 0,
        "message": {"role": "assistant", "content": "Hel", "toolCallId": None, "name": None},
        "moderation_results": None,
    },
    "usage": None,
    "messageId": ID,
    "runId": "r-1",
    "citations": None,
}


def test_item_of_the_documented_example_is_a_delta() -> None:
    """The element of which a stream is made becomes text with its ids."""
    assert item_of(FULL) == AnswerItem("Hel", ID, "r-1", role="assistant")


MEMBERS = st.fixed_dictionaries(
    {
        "choice": st.none()
        | st.fixed_dictionaries(
            {
                "finish_reason": st.none() | st.just("stop"),
                "index": st.none() | st.just(0),
                "message": st.none()
                | st.fixed_dictionaries(
                    {
                        "role": st.none() | st.just("assistant"),
                        "content": st.none() | st.text(max_size=5),
                        "toolCallId": st.none() | st.just("call_1"),
                        "name": st.none() | st.just("search"),
                    }
                ),
                "moderation_results": st.none()
                | st.just({"categoryResults": None})
                | st.just({"categoryResults": [{"category": "hate", "filtered": True, "severity": "high"}]}),
            }
        ),
        "usage": st.none()
        | st.fixed_dictionaries(
            {name: st.none() | st.integers(0, 9) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        ),
        "messageId": st.none() | st.just(ID),
        "runId": st.none() | st.just("r-1"),
        "citations": st.none() | st.just([{"link": "x"}]),
    }
)


@given(MEMBERS)
def test_item_with_nulls_and_without_them_is_the_same(value: dict[str, Any]) -> None:
    """Null and absent mean the same in every member, at every depth."""
    assert item_of(value) == item_of(without_nulls(value))


@given(MEMBERS)
def test_item_with_unknown_members_is_the_same(value: dict[str, Any]) -> None:
    """What the vendor adds one day disturbs nothing."""
    assert item_of(value | {"new": {"deep": [1, None]}}) == item_of(value)


@given(MEMBERS)
def test_item_loses_nothing_that_it_reports(value: dict[str, Any]) -> None:
    """The short way for plain deltas never drops a member that the long way would carry."""
    item = item_of(value)
    choice = value["choice"] or {}
    message = choice.get("message") or {}
    assert item.text == message.get("content")
    assert item.role == message.get("role")
    assert item.name == message.get("name")
    assert item.tool_call_id == message.get("toolCallId")
    assert item.finish_reason == choice.get("finish_reason")
    assert item.index == (choice.get("index") or 0)
    assert item.citations == value["citations"]
    assert item.moderation == (choice.get("moderation_results") or {}).get("categoryResults")
    assert (item.usage is None) == (not any(number is not None for number in (value["usage"] or {}).values()))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, 0)),
        ({"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}, (12, 34, 46)),
        ({"prompt_tokens": 12, "completion_tokens": 34}, (12, 34, 46)),
        ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 0}, (0, 5, 0)),
        ({"completion_tokens": 0}, (0, 0, 0)),
    ],
)
def test_usage_zero_is_reported_and_missing_is_not(
    usage: dict[str, int | None] | None, expected: tuple[int, int, int] | None
) -> None:
    """A reported 0 is 0; only a usage that tells nothing is no usage."""
    assert item_of(FULL | {"usage": usage}).usage == expected


def test_item_of_another_choice_keeps_its_index() -> None:
    """A second choice is not mistaken for the answer."""
    choice = FULL["choice"]
    assert isinstance(choice, dict)
    assert item_of(FULL | {"choice": choice | {"index": 1}}).index == 1


# --- conversations ------------------------------------------------------------------------------------------------

ENTRY: dict[str, Any] = {
    "conversationId": ID,
    "personaId": "p-1",
    "conversationStatus": "Active",
    "conversationName": None,
    "chatMessages": [
        {"role": "user", "content": "Hi", "messageId": "m-1", "timestamp": "2026-01-01T00:00:00Z"},
        {
            "role": "assistant",
            "content": None,
            "messageId": "m-2",
            "conversationRunId": "r-2",
            "promptTokens": 0,
            "completionTokens": 7,
            "totalTokens": 7,
            "feedbacks": [
                {"feedbackId": None, "score": 1},
                {"feedbackId": "f-1", "score": 0, "comments": "ok", "tags": ["a"], "scoreConfidence": 0.5},
            ],
        },
    ],
    "metadata": None,
    "externalUserId": "acme:hash",
}


def test_entry_is_read_with_its_messages_and_feedback() -> None:
    """Ids, tokens and feedback of a read-back transcript are kept; a null content is empty text."""
    conversation = read_entry(decode_entry(json.dumps(ENTRY).encode()))
    assert (conversation.id, conversation.persona_id, conversation.external_user_id) == (ID, "p-1", "acme:hash")
    assert conversation.metadata == {}
    assert not conversation.messages_unavailable
    assert not conversation.is_deleted
    answer = conversation.messages[1]
    assert (answer.content, answer.message_id, answer.run_id) == ("", "m-2", "r-2")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens) == (0, 7, 7)
    assert answer.feedback == [Feedback("f-1", 0, "ok", ["a"], 0.5)]


def test_entry_with_nulls_and_without_them_is_the_same() -> None:
    """A record with every optional member null reads as one that lacks them."""
    nulls = dict.fromkeys(
        ("personaId", "conversationStatus", "chatMessages", "areChatMessagesInBlob", "metadata", "externalUserId")
    )
    whole = read_entry(decode_entry(json.dumps({"conversationId": ID, **nulls}).encode()))
    assert whole == read_entry(decode_entry(json.dumps({"conversationId": ID}).encode()))


def test_entry_with_messages_in_a_blob_says_so_until_the_blob_is_given() -> None:
    """Messages kept apart are said to be unavailable, never shown as an empty transcript."""
    raw = ENTRY | {"chatMessages": None, "areChatMessagesInBlob": True, "chatMessagesBlobUri": "https://blob/x"}
    entry = decode_entry(json.dumps(raw).encode())
    assert read_entry(entry).messages_unavailable
    fetched = read_entry(entry, json.dumps(ENTRY["chatMessages"]).encode())
    assert not fetched.messages_unavailable
    assert [message.message_id for message in fetched.messages] == ["m-1", "m-2"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"conversationId":5}', b"\xff", b"[" * 100_000])
def test_entry_that_cannot_be_read_is_malformed_without_its_words(body: bytes) -> None:
    """A record that is not one becomes the gateway's own code, with nothing of what came."""
    with pytest.raises(GatewayError) as refused:
        decode_entry(body)
    assert refused.value.code is Code.UPSTREAM_MALFORMED
    assert refused.value.__cause__ is None


# --- requests -----------------------------------------------------------------------------------------------------


def test_create_asks_for_a_record_and_names_the_user_by_hash() -> None:
    """Creating says ``stream: false`` and carries what the alias allows; a version only where one is pinned."""
    fields: dict[str, Any] = {"replacements": {"n": 1}, "metadata": {"a": "b"}, "external_user_id": "acme:h"}
    body = json.loads(encode_create(persona_id="p", persona_version_id=None, **fields))
    assert body == {
        "personaId": "p",
        "replacements": {"n": 1},
        "metadata": {"a": "b"},
        "stream": False,
        "externalUserId": "acme:h",
    }
    assert json.loads(encode_create(persona_id="p", persona_version_id="v", **fields))["personaVersionId"] == "v"


def test_message_keeps_every_character() -> None:
    """What the user wrote reaches the vendor unchanged."""
    text = 'é😀\n"\\\u2028'
    assert json.loads(encode_message(text)) == {"message": text}


def test_score_leaves_out_what_was_not_given_and_keeps_zero() -> None:
    """A score of 0 and a confidence of 0 are told; comments that were not written are not."""
    assert json.loads(encode_score("m", Feedback("f", 0))) == {"messageId": "m", "feedbackId": "f", "score": 0}
    full = json.loads(encode_score("m", Feedback("f", -10, "", [], 0.0)))
    assert full == {
        "messageId": "m",
        "feedbackId": "f",
        "score": -10,
        "comments": "",
        "tags": [],
        "scoreConfidence": 0.0,
    }


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.UPSTREAM_REJECTED),
        (401, Code.UPSTREAM_UNAUTHORIZED),
        (403, Code.UPSTREAM_UNAUTHORIZED),
        (404, Code.UPSTREAM_REJECTED),
        (408, Code.UPSTREAM_TIMEOUT),
        (409, Code.UPSTREAM_REJECTED),
        (422, Code.UPSTREAM_REJECTED),
        (429, Code.UPSTREAM_RATE_LIMITED),
        (500, Code.UPSTREAM_ERROR),
        (502, Code.UPSTREAM_ERROR),
        (503, Code.UPSTREAM_ERROR),
        (504, Code.UPSTREAM_TIMEOUT),
        (204, Code.UPSTREAM_ERROR),
        (302, Code.UPSTREAM_ERROR),
    ],
)
def test_refusal_of_each_status_has_its_code_and_notes_the_status(status: int, code: Code) -> None:
    """A vendor's status becomes the gateway's own code, and is noted."""
    error = refusal(status, None)
    assert (error.code, error.vendor_status, error.retry_after_s) == (code, status, None)
    assert str(status) in error.detail


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", 2.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("99999", 3600.0),
        ("9" * 6000, 3600.0),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("٣", None),
        ("", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        (None, None),
    ],
)
def test_refusal_reads_retry_after_in_seconds_and_bounds_it(value: str | None, expected: float | None) -> None:
    """Any Retry-After that the vendor may send is read as bounded seconds or not at all, and never raises."""
    assert refusal(429, value).retry_after_s == expected


def test_refusal_tells_retry_after_only_where_it_means_waiting() -> None:
    """A Retry-After on an error that waiting does not mend is not passed on."""
    assert refusal(503, "3").retry_after_s == 3.0
    assert refusal(400, "3").retry_after_s is None
