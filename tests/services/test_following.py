"""Readers of a turn that another worker owns: what they are shown joins the log without a gap or a repeat."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any

import pytest

from gateway.core.conversation import ConversationId
from gateway.core.errors import GatewayError
from gateway.core.events import Entry, Followed, Shown, TextDelta
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId
from gateway.services.following import RemoteLog
from gateway.services.window import Batch
from tests.services.conftest import SetStage
from tests.services.stage import PATIENCE_S, Reading, until


class Head:
    """A reader at the head that notes where what it is pushed begins and ends."""

    def __init__(self) -> None:
        self.pushes: list[tuple[int, int]] = []
        self.releases = 0

    def pushed(self, batch: Batch, /) -> None:
        self.pushes.append((batch.begins, batch.entries[-1].position))

    def released(self) -> None:
        self.releases += 1


def _all_have(text: str, *readings: Reading) -> bool:
    return all(reading.text == text for reading in readings)


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


@pytest.mark.parametrize("beyond", [0, 1, 50])
async def test_cursor_at_or_beyond_the_ending_is_let_go_though_the_turn_ended_meanwhile(
    beyond: int, set_stage: SetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that nothing is left for does not wait for ever; a cursor that no event had is told so."""
    owner = set_stage()
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    started = await owner.start(await owner.conversation())
    ended, follow = asyncio.Event(), other.log.follow

    async def follow_late(*asked: Any) -> Followed | None:
        await ended.wait()
        return await follow(*asked)

    monkeypatch.setattr(other.log, "follow", follow_late)
    reading = await other.read(started.turn_id, after=6 + beyond)
    (await owner.vendor.chat()).complete("abc")
    await until(lambda: owner.turns.running == 0)
    ended.set()
    if beyond:
        with pytest.raises(GatewayError, match="invalid_cursor"):
            await reading.ended()
    else:
        async with asyncio.timeout(PATIENCE_S):
            await reading.task
    assert reading.names == []
    assert other.following._remotes == {}


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_cursor_from_the_future_disturbs_no_other_reader(elsewhere: bool, set_stage: SetStage) -> None:
    """A reader with a cursor that no event has is told so, at the end at the latest, and costs the others nothing."""
    owner = set_stage()
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor)
    await owner.hears()
    await other.hears()
    started = await owner.start(await owner.conversation())
    before = await other.read(started.turn_id)
    if elsewhere:
        future = await other.read(started.turn_id, after=10**14)
    else:
        with pytest.raises(GatewayError, match="invalid_cursor"):
            await owner.read(started.turn_id, after=10**14)
    after = await other.read(started.turn_id, after=1)
    chat = await owner.vendor.chat()
    for said in ("one ", "one two ", "one two three"):
        chat.say(said.removeprefix(before.text))
        await until(partial(_all_have, said, before, after))
    chat.complete()
    assert (await before.ended()).text == before.text == after.text == "one two three"
    await after.ended()
    if elsewhere:
        with pytest.raises(GatewayError, match="invalid_cursor"):
            await future.ended()
        assert future.names == []


async def test_cursor_that_the_owner_has_not_reached_is_good_once_another_worker_has_the_turn(
    set_stage: SetStage,
) -> None:
    """A reader that comes to a worker that has lost its turn and does not know yet goes on where it stopped."""
    owner = set_stage(lease_s=0.05, heartbeat_s=30.0, interval_s=30.0, answer_max_chars=1000)
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor, answer_max_chars=1000)
    started = await owner.start(await owner.conversation())
    await owner.until_unleased(started.turn_id)
    assert await other.recovery.end(owner.tenant.id, started.turn_id)
    reading = await owner.read(started.turn_id, after=500)
    turn = owner.roster.find(started.turn_id)
    assert turn is not None
    (await owner.vendor.chat()).say("too late")
    owner.journal._save(turn._journal_entry)
    assert (await reading.ended()).name == "turn.failed"
    assert reading.names == ["turn.failed"]
