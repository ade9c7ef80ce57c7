"""Watching a conversation: every turn that begins in it is told once, also one that nobody could be told of."""

from __future__ import annotations

from gateway.core.turn import TurnId
from tests.services.conftest import SetStage
from tests.services.stage import until


async def test_watch_tells_of_a_turn_that_began_unheard_once(set_stage: SetStage) -> None:
    """A turn whose message was lost is found by the next look, and by no look after that."""
    owner = set_stage()
    other = set_stage(tenant=owner.tenant.id, vendor=owner.vendor, listens=False)
    conversation = await owner.conversation()
    told: list[TurnId] = []
    await other.watches.watch(other.tenant.id, conversation, lambda turn, _: told.append(turn))
    started = await owner.start(conversation)
    for _ in range(3):
        other.watches.look_again()
        await until(lambda: not other.watches._tasks)
    assert told == [started.turn_id]
    (await owner.vendor.chat()).complete("Hello")
    await until(lambda: owner.turns.running == 0)
    other.watches.look_again()
    await until(lambda: not other.watches._tasks)
    again = await owner.start(conversation)
    other.peers.heard_again()
    await until(lambda: not other.watches._tasks)
    assert told == [started.turn_id, again.turn_id]


async def test_watch_leaves_a_turn_that_is_active_already_to_its_caller(set_stage: SetStage) -> None:
    """Whoever begins to watch looks for the active turn himself; a look does not tell of it a second time."""
    stage = set_stage()
    conversation = await stage.conversation()
    await stage.start(conversation)
    told: list[TurnId] = []
    await stage.watches.watch(stage.tenant.id, conversation, lambda turn, _: told.append(turn))
    stage.watches.look_again()
    await until(lambda: not stage.watches._tasks)
    assert told == []


async def test_unwatch_leaves_nothing_behind(set_stage: SetStage) -> None:
    """After the last watcher of a conversation has left, neither this worker nor the store remembers it."""
    stage = set_stage()
    conversation = await stage.conversation()
    told: list[TurnId] = []

    def watcher(turn: TurnId, owner: str) -> None:
        told.append(turn)

    await stage.watches.watch(stage.tenant.id, conversation, watcher)
    stage.watches.began(stage.tenant.id, conversation, TurnId("t"), stage.user().user_hash)
    assert told == ["t"]
    stage.watches.unwatch(stage.tenant.id, conversation, watcher)
    await until(lambda: not stage.watches._tasks)
    assert (stage.watches._watchers, stage.watches._latest) == ({}, {})
    assert await stage.store.call("EXISTS", f"hg:{{{stage.tenant.id}}}:watchers:{conversation}") == 0
