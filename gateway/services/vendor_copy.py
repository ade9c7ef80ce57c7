"""What Hyperleap keeps of a conversation, read for an answer whose stream was lost or whose tokens it did not tell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import GatewayError
from gateway.core.events import TurnRecord
from gateway.core.identity import Tenant
from gateway.core.turn import Usage
from gateway.services.vendor import Vendor
from gateway.telemetry.logging import event as log_event

READS_MAX: Final = 8  # at once, so that a lost worker's turns do not spend the vendor's plan limit in one burst

AfterDisconnect = Literal["auto", "finishes", "drops"]
logger = logging.getLogger(__name__)


class Habits(Protocol):
    """Where workers share what they have learned of the vendor. Raises GatewayError(store_unavailable)."""

    async def finishes(self) -> bool:
        """Whether it has been seen that the vendor finishes an answer that nobody reads any more."""
        ...

    async def saw_finish(self) -> None: ...


class AfterLoss:
    """What the vendor does with an answer when the connection that reads it is lost: nobody has said.

    Its copy of an answer has no mark that says whether it is whole. If it drops what it was generating, the copy ends
    in the middle. So a copy counts as whole only once it has been seen, here or on another worker, that an answer
    which was not there well after its connection had ended was there later: then the vendor goes on to the end.
    The operator who knows better says so by setting.
    """

    def __init__(self, rule: AfterDisconnect, habits: Habits) -> None:
        self._rule = rule
        self._habits = habits
        self._finishes = rule == "finishes"

    @property
    def drops(self) -> bool:
        """Whether a copy that is there is all there will ever be: the operator has said so."""
        return self._rule == "drops"

    async def finishes(self) -> bool:
        """Whether a copy that is there is whole."""
        if self._rule == "auto" and not self._finishes:
            with contextlib.suppress(GatewayError):
                self._finishes = await self._habits.finishes()
        return self._finishes

    async def saw_finish(self) -> None:
        """Note that the vendor finished an answer that nobody read."""
        if self._rule == "auto" and not self._finishes:
            self._finishes = True
            log_event(logger, logging.INFO, "vendor.finishes")
            with contextlib.suppress(GatewayError):
                await self._habits.saw_finish()


class Asked(NamedTuple):
    """What is known of a turn whose answer is looked for.

    ``message_id`` is the answer's where the stream told it, ``question`` the message that was sent where the transcript
    still has it, ``again`` how often the same text was sent after it, and ``others`` the ids of other turns' messages.
    """

    message_id: str | None
    question: str | None
    last_message_id: str | None
    messages_before: int
    again: int = 0
    others: frozenset[str] = frozenset()

    @classmethod
    def of(cls, record: TurnRecord, message_id: str | None, transcript: Sequence[Message]) -> Asked:
        """Bring together what the record and the cached transcript know of a turn."""
        before = (record.last_message_id, record.messages_before)
        place = next((at for at, m in enumerate(transcript) if m.role == "user" and m.turn_id == record.turn_id), None)
        if place is None:  # not cached, or read back from the vendor since, where no turn has a name
            return cls(message_id, None, *before)
        question = transcript[place].content
        again = sum(m.role == "user" and m.content == question for m in transcript[place + 1 :])
        others = frozenset(m.message_id for m in transcript if m.message_id and m.turn_id != record.turn_id)
        return cls(message_id, question, *before, again, others)


class VendorCopies:
    """Reads conversations at the vendor, a few at once."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor
        self._room = asyncio.Semaphore(READS_MAX)

    async def answer(self, tenant: Tenant, conversation_id: ConversationId, asked: Asked) -> Message | None:
        """Return the vendor's copy of one turn's answer, or None when there is none (yet).

        Raises GatewayError, upstream_overloaded too: nobody waits for this, so it takes no turn's room.
        """
        async with self._room:
            found = await self._vendor.ask(
                tenant, lambda key: self._vendor.upstream.read_conversation(conversation_id, key=key), waits=False
            )
        return find_answer(found.messages, asked) if found is not None else None


def find_answer(messages: Sequence[Message], asked: Asked) -> Message | None:
    """Find one turn's answer in the vendor's copy of its conversation; None rather than another turn's.

    By its id where the stream told it. Else by its question: the answer of the question's run where the vendor tells
    runs, or what follows the question before the next one. Answers that are known to be other turns' do not count,
    wherever they stand: the vendor may finish one long after it was stopped. Where the question is not known, it is
    the last one after ``last_message_id``, or after the first ``messages_before`` where the vendor has no such message.
    """
    if asked.message_id is not None:
        return next((m for m in messages if m.message_id == asked.message_id and m.role == "assistant"), None)
    if asked.question is None:
        last = asked.last_message_id
        known = next((at for at, m in enumerate(messages) if last is not None and m.message_id == last), None)
        messages = messages[asked.messages_before if known is None else known + 1 :]
    questions = [
        at
        for at, m in enumerate(messages)
        if m.role == "user" and (asked.question is None or m.content == asked.question)
    ]
    if len(questions) <= asked.again:
        return None
    at = questions[-1 - asked.again]
    run = messages[at].run_id
    answers = [m for m in messages[at + 1 :] if m.role == "user" or m.message_id not in asked.others]
    for message in answers:
        if run is not None and message.run_id == run and message.role == "assistant":
            return message
    runs = {m.run_id for m in messages if m.role == "user" and m.run_id is not None}
    for message in answers:
        if message.role == "user":
            break
        if message.role == "assistant" and message.run_id not in runs:
            return message
    return None


def copied_usage(copy: Message) -> Usage | None:
    """Return the tokens that the vendor's copy of an answer tells, or None. A 0 is told; absent is not."""
    if copy.completion_tokens is None and copy.total_tokens is None:
        return None
    prompt, completion = copy.prompt_tokens or 0, copy.completion_tokens or 0
    return Usage(
        prompt, completion, prompt + completion if copy.total_tokens is None else copy.total_tokens, "reported"
    )
