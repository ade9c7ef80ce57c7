"""Readers of a turn that another worker owns: what they are shown joins the log without a gap or a repeat."""

from __future__ import annotations

import math

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.events import Entry, Shown, TextDelta
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId
from gateway.services.following import RemoteLog
from gateway.services.window import Batch
from tests.services.conftest import SetStage
from tests.services.stage import until


class Head:
    """A reader at the head that notes where what it is pushed begins and ends."""

    def __init__(self) -> None:
        self.pushes: list[tuple[int, int]] = []
        self.releases = 0

    def pushed(self, batch: Batch, /) -> None:
        self.pushes.append((batch.begins, batch.entries[-1].position))

    def released(self) -> None:
        self.releases += 1


def remote_log() -> RemoteLog:
    return RemoteLog(TenantId("t"), TurnId("turn"), ConversationId("conversation"))


def delta(position: int, text: str) -> Entry:
    return Entry(position, TextDelta(text))


async def test_gap_in_what_is_shown_is_read_from_the_log(set_stage: SetStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message to a follower that is lost costs its reader nothing: what it held comes from the log, in order."""
    owner = set_stage(interval_s=30.0)
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    await owner.hears()
    await other.hears()
    started = await owner.start(await owner.conversation())
    reading = await other.read(started.turn_id)
    chat = await owner.vendor.chat()
    await until(lambda: owner.readers(started.turn_id) == 1)
    chat.say("one ")
    await until(lambda: reading.text == "one ")
    lost: list[Shown] = []
    monkeypatch.setattr(other.following, "shown", lost.append)
    chat.say("two ")
    await until(lambda: bool(lost))
    monkeypatch.undo()
    chat.say("three ")
    chat.complete("four")
    ending = await reading.ended()
    assert reading.text == ending.text == "one two three four"


async def test_feed_after_a_gap_pushes_to_nobody_who_waits_before_it() -> None:
    """Whoever waits at the old head is sent to the log, and is not pushed to past what it misses."""
    remote, head = remote_log(), Head()
    assert remote.base == math.inf
    remote.feed(0, [delta(3, "abc")])
    remote.attach(head)
    remote.feed(5, [delta(7, "fg")])
    assert (head.pushes, head.releases) == ([], 1)
    assert (remote.base, remote.head) == (5, 7)
