"""Compares a client's list of messages with the transcript of the conversation that its chat is held in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.chats import Line
from gateway.core.conversation import Message
from gateway.core.threads import ANSWER, QUESTION, Said, stated
from gateway.core.turn import TurnId, TurnState

Group = tuple[list[str], Line | None]

EACH_MORE: Final = len(stated([Said(QUESTION, "")] * 3)) - len(stated([Said(QUESTION, "")] * 2))


def is_answer(message: Message) -> bool:
    return message.role == ANSWER and bool(message.content.strip())


def before_turn(messages: Sequence[Message], turn_id: TurnId, last: str) -> Sequence[Message]:
    """Return the messages before a turn, also where they were read back from Hyperleap, which knows no turns."""
    mine = [index for index, one in enumerate(messages) if one.turn_id == turn_id]
    alike = [i for i, one in enumerate(messages) if one.role == QUESTION and one.content.endswith(last)]
    return messages[: mine[0] if mine else alike[-1] if alike else 0]


def unheard(lines: Sequence[Line], messages: Sequence[Message]) -> list[Said]:
    """Return the lines after the last answer that Hyperleap has not heard; always the last one, which is asked now.

    Whether it has kept what it failed to answer is not known, so that is told once more.
    """
    *_, (new, _) = _groups(lines)
    known = next((one for one in reversed(lines) if one.role == ANSWER and one.text.strip()), None)
    since = next(
        (
            i
            for i in range(len(messages), 0, -1)
            if known and is_answer(messages[i - 1]) and _same(known, messages[i - 1])
        ),
        0,
    )
    heard: list[str] = []
    for message in messages[since:]:
        if message.role == QUESTION:
            heard.append(message.content)
        elif message.state == TurnState.FAILED and heard and not is_answer(message):
            heard.pop()
    return [Said(QUESTION, text) for text in (*_left(new[:-1], heard), new[-1])]


def goes_on(lines: Sequence[Line], messages: Sequence[Message], past: Sequence[Said]) -> bool:
    """Whether the lines up to their last answer are how the chat went, up to its last answer.

    ``past`` is what the first message states, where it does. A list may begin later than the chat. What was never
    answered may be missing: nobody knows whether Hyperleap has it.
    """
    said = [Message(one.role, one.text) for one in past] if messages else []
    went: list[tuple[list[str], Message]] = []
    questions: list[str] = []
    for message in (*said, *(messages[1:] if said else messages)):
        if message.role == QUESTION:
            questions.append(message.content)
        elif is_answer(message):
            went.append((questions, message))
            questions = []
    *mine, _ = _groups(lines)
    if len(mine) > len(went):
        return False
    for index, ((texts, answer), (asked, answered)) in enumerate(zip(reversed(mine), reversed(went), strict=False), 1):
        assert answer is not None, "only the last group has none"
        if not _same(answer, answered):
            return False
        if not texts and (index == len(mine) or not asked):
            continue
        if not texts or not asked or not _run(texts, len(texts), asked[-1]) or _left(texts, asked):
            return False
    return True


def _groups(lines: Sequence[Line]) -> list[Group]:
    """Return the user's texts before each answer, and after the last one."""
    groups: list[Group] = []
    texts: list[str] = []
    for line in lines:
        if not line.text.strip():
            continue
        if line.role == ANSWER:
            groups.append((texts, line))
            texts = []
        else:
            texts.append(line.text)
    return [*groups, (texts, None)]


def _same(line: Line, message: Message) -> bool:
    """White space around an answer is not part of it: clients are free with it."""
    return line.id in (message.turn_id, message.message_id) or line.text.strip() == message.content.strip()


def _left(texts: Sequence[str], heard: Sequence[str]) -> list[str]:
    """Return the texts that were not said, in this order, alone or as several stated in one message."""
    left: list[str] = []
    end = len(texts)
    for one in reversed(heard):
        for at in range(end, 0, -1):
            if count := _run(texts, at, one):
                left[:0] = texts[at:end]
                end = at - count
                break
    return [*texts[:end], *left]


def _run(texts: Sequence[str], end: int, message: str) -> int:
    """Return how many of the texts before ``end`` a message says; 0 where it does not."""
    last = texts[end - 1]
    if last.strip() == message.strip():
        return 1
    if end < 2 or not message.endswith(last):
        return 0
    # The more there are, the longer it is: there is one number of them to try.
    size = len(stated([Said(QUESTION, "")] * 2)) + len(last) + len(texts[end - 2])
    count = 2
    while size < len(message) and count < end:
        count += 1
        size += EACH_MORE + len(texts[end - count])
    run = [Said(QUESTION, text) for text in texts[end - count : end]]
    return count if size == len(message) and stated(run) == message else 0
