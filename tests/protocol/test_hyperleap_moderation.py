"""Moderation's answers are read in the shapes that are known, and nothing else passes for a judgement."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Code, GatewayError
from gateway.protocol.hyperleap_moderation import CATEGORIES_MAX, Judgement, read_judgement


@pytest.mark.parametrize(
    ("answer", "judgement"),
    [
        ({"results": [{"flagged": False, "categories": {"hate": False}}]}, Judgement(False)),
        ({"results": [{"flagged": True, "categories": {"hate": True, "a": False}}]}, Judgement(True, ("hate",))),
        (
            {"results": [{"flagged": False}, {"flagged": True, "categories": {"hate": True}}]},
            Judgement(True, ("hate",)),
        ),
        ({"results": [{"flagged": False, "categories": {"hate": True}}]}, Judgement(False)),
        ({"flagged": True, "categories": None}, Judgement(True)),
        (
            {"categoryResults": [{"category": "violence", "filtered": True}, {"category": "hate", "filtered": False}]},
            Judgement(True, ("violence",)),
        ),
        ({"results": [{"categoryResults": []}]}, Judgement(False)),
        (
            {"flagged": True, "categories": {"x" * 65: True, "<b>": True, "self-harm/intent": True}},
            Judgement(True, ("self-harm/intent",)),
        ),
    ],
)
def test_judgement_is_read_in_each_shape(answer: Any, judgement: Judgement) -> None:
    """One flagged result flags the text; categories are told only where they look like names."""
    assert read_judgement(answer) == judgement


@pytest.mark.parametrize(
    "answer",
    [
        None,
        True,
        "flagged",
        [],
        [{"flagged": True}],
        {},
        {"results": []},
        {"results": None},
        {"results": {"a": 1}},
        {"results": [None]},
        {"results": [{"flagged": "no"}]},
        {"results": [{"flagged": False}, {}]},
        {"flagged": None},
        {"categoryResults": None},
        {"error": {"code": "forbidden"}},
    ],
)
def test_answer_without_a_judgement_is_malformed(answer: Any) -> None:
    """What says neither yes nor no is neither."""
    with pytest.raises(GatewayError) as error:
        read_judgement(answer)
    assert error.value.code is Code.UPSTREAM_MALFORMED


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(st.sampled_from(["results", "flagged", "categories", "categoryResults", "filtered"]), some)
    ),
    max_leaves=12,
)


@given(_plain)
def test_any_answer_is_judged_or_refused(answer: Any) -> None:
    """No answer raises anything else, and what is told of one is bounded."""
    judgement = None
    with contextlib.suppress(GatewayError):
        judgement = read_judgement(answer)
    assert judgement is None or len(judgement.categories) <= CATEGORIES_MAX
