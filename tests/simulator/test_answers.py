"""What the simulator says: deterministic, steerable, and true to its own counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.answers import answer, tokens
from gateway.simulator.faults import Fault, FaultName

PLAIN = st.text(alphabet=st.characters(exclude_characters="#", codec="utf-8"), min_size=1)


@given(PLAIN)
def test_answer_same_message_same_answer(message: str) -> None:
    """The same words always get the same answer, whose deltas join to its text and whose counts match them."""
    first = answer(message)
    assert first == answer(message)
    assert "".join(delta or "" for delta in first.deltas) == first.text
    assert first.completion_tokens == sum(1 for delta in first.deltas if delta)
    assert first.total_tokens == first.prompt_tokens + first.completion_tokens


@given(st.text())
def test_tokens_any_text_join_to_it(text: str) -> None:
    """Every character of a text belongs to exactly one token."""
    assert "".join(tokens(text)) == text
    assert all(tokens(text))


@given(PLAIN)
def test_answer_echo_directive_returns_the_words(message: str) -> None:
    """With #echo the answer is the message itself."""
    assert answer(f"{message} #echo").text == message.strip()


@pytest.mark.parametrize("count", [1, 2, 50, 5000])
def test_answer_tokens_directive_gives_exactly_that_many(count: int) -> None:
    """#tokens sets the completion's length exactly, shorter or longer than the answer would be."""
    assert answer(f"hello #tokens={count}").completion_tokens == count


def test_answer_directives_are_not_part_of_the_topic() -> None:
    """Directives leave no trace in the answer's words."""
    said = answer("my topic #rate=5 #delay=0.25 #raw #citations=3 #fault=stall:5 #fault=split")
    assert "my topic" in said.text
    assert "#rate" not in said.text
    asked = said.directives
    assert (asked.rate_per_s, asked.first_token_s, asked.raw_utf8) == (5, 0.25, True)
    assert asked.faults == (Fault(FaultName.STALL, 5), Fault(FaultName.SPLIT))
    assert len(said.citations) == 3


@pytest.mark.parametrize(
    "text", ["#tokens=0", "#tokens=x", "#rate=-1", "#delay=nan", "#seed=-1", "#fault=nonsense", "#fault"]
)
def test_answer_bad_directive_is_refused(text: str) -> None:
    """A directive with a bad value is an error, so that a typing mistake in a test does not pass unseen."""
    with pytest.raises(ValueError, match=r"#|fault"):
        answer(f"hello {text}")


@pytest.mark.parametrize("text", ["#hello", "a#tokens=3", "#tokens=3x y#", "issue #5", "#raws"])
def test_answer_other_hash_words_are_text(text: str) -> None:
    """What only looks like a directive is left alone."""
    try:
        asked = answer(f"about {text}").directives
    except ValueError:
        assert text.startswith("#tokens=3x")
    else:
        assert asked.text == f"about {text}"


def test_answer_seed_directive_changes_the_answer() -> None:
    """#seed gives other answers to the same words."""
    assert len({answer(f"hello #seed={seed}").text for seed in range(20)}) > 10


def test_answer_about_documents_cites_them() -> None:
    """A question about documents or policies gets citations with partitions; small talk gets none."""
    cited = answer("What does the refund policy say?").citations
    assert cited
    assert all(citation["partitions"] for citation in cited)
    assert answer("good morning").citations == ()


def test_answers_cover_what_markdown_needs() -> None:
    """Over many messages there are lists, code, tables, accents, emoji, and empty and null contents."""
    said = [answer(f"question {number}") for number in range(60)]
    everything = "".join(one.text for one in said)
    assert all(sign in everything for sign in ("1. ", "- **", "```python", "| ---", "é", "🎉", "👩‍👩‍👧‍👦", "你好"))
    contents = {delta for one in said for delta in one.deltas}
    assert {None, ""} <= contents
