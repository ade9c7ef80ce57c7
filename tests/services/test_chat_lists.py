"""A client's list beside its chat's transcript: what Hyperleap has not heard, and whether the list is the chat."""

from __future__ import annotations

import pytest

from gateway.core.chats import Line
from gateway.core.conversation import Message
from gateway.core.threads import ANSWER, QUESTION, Said, stated
from gateway.services.chat_lists import goes_on, unheard

ROLES = {"u": QUESTION, "a": ANSWER}


def lines(*words: str) -> list[Line]:
    """``u…`` is the user's, ``a…`` an answer, whose id is its words in capitals."""
    return [Line(ROLES[one[0]], one, one.upper()) for one in words]


def went(*words: str) -> list[Message]:
    """``a!`` is an answer that failed before its first word, ``a.`` one that was stopped there."""
    endings = {"a!": ("", "failed"), "a.": ("", "stopped")}
    told = [("a" if one[0] == "a" else "u", *endings.get(one, (one, None))) for one in words]
    return [Message(ROLES[role], text, state=state) for role, text, state in told]


def both(*words: str) -> str:
    return stated([Said(QUESTION, one) for one in words])


NEW = [
    (["u1", "a1", "u2"], ["u1", "a1"], ["u2"]),
    (["u1", "a1", "u2", "u3"], ["u1", "a1"], ["u2", "u3"]),
    (["u1", "u2"], ["u1", "a!"], ["u1", "u2"]),
    (["u1", "u2"], ["u1", "a."], ["u2"]),
    (["u1", "u2", "u3"], ["u1", "a.", "u2", "a!"], ["u2", "u3"]),
    (["u1", "u2", "u3", "u4"], ["u1", "a!", both("u1", "u2"), "a."], ["u3", "u4"]),
    (["u1", "u2", "u3", "u4"], [both("u2", "u3"), "a."], ["u1", "u4"]),
    (["u1", "u2"], ["u1", "a1"], ["u2"]),
    (["u1", "a1", "u1", "u2"], ["u1", "a1"], ["u1", "u2"]),
    (["u1"], ["u1", "a."], ["u1"]),
]


@pytest.mark.parametrize(("listed", "messages", "new"), NEW)
def test_what_is_new_is_what_was_never_heard_and_the_last(
    listed: list[str], messages: list[str], new: list[str]
) -> None:
    """What failed is told again, what was only stopped is not; words that were said before an answer may come again."""
    assert [one.text for one in unheard(lines(*listed), went(*messages))] == new


ON = [
    (["u1", "a1", "u2"], ["u1", "a1"], True),
    (["ux", "a1", "u2"], ["u1", "a1"], False),
    (["u1", "ax", "u2"], ["u1", "a1"], False),
    (["u1", "a1", "u2", "a2", "u3"], ["u1", "a1", "u2", "a2"], True),
    (["u1", "ax", "u2", "a2", "u3"], ["u1", "a1", "u2", "a2"], False),
    (["u1", "a1", "u2"], ["u1", "a1", "u2", "a2"], False),
    (["u1", "a1", "a2", "u3"], ["u1", "a1", "u2", "a2"], False),
    (["u1", "a1", "u2", "u3", "a3", "u4"], ["u1", "a1", both("u2", "u3"), "a3"], True),
    (["u1", "a1", "u2", "ux", "a3", "u4"], ["u1", "a1", both("u2", "u3"), "a3"], False),
    (["u1", "u2", "a2", "u3"], ["u1", "a!", both("u1", "u2"), "a2"], True),
    (["u2", "a2", "u3"], ["u1", "a!", "u2", "a2"], True),
    (["u1", "a1", "u2", "ux", "u3", "a3", "u4"], ["u1", "a1", "u3", "a3"], False),
    (["a2", "u3"], ["u1", "a1", "u2", "a2"], True),
    (["u0", "a0", "u1", "a1", "u2"], ["u1", "a1"], False),
]


@pytest.mark.parametrize(("listed", "messages", "on"), ON)
def test_list_goes_on_where_it_is_how_the_chat_went(listed: list[str], messages: list[str], on: bool) -> None:
    """Any message of the user's and any answer that differs makes it another chat; one cut at its beginning is not."""
    assert goes_on(lines(*listed), went(*messages), []) is on


def test_past_that_was_stated_is_compared_as_it_was_said() -> None:
    """Message by message, not as the one that stated it."""
    past = [Said(QUESTION, "u1"), Said(ANSWER, "a1"), Said(QUESTION, "u2")]
    messages = went(stated(past), "a2")
    assert goes_on(lines("u1", "a1", "u2", "a2", "u3"), messages, past)
    assert not goes_on(lines("ux", "a1", "u2", "a2", "u3"), messages, past)
