"""What other workers tell this one, on its way to whom it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.core.conversation import ConversationId
from gateway.core.events import Shown
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.turn import StopReason, TurnId
from gateway.services.following import Following
from gateway.services.roster import Roster
from gateway.services.watches import Watches


class Peers:
    """The Hearer of a worker."""

    def __init__(self, roster: Roster, following: Following, watches: Watches) -> None:
        self._roster = roster
        self._following = following
        self._watches = watches
        self._reasserting: asyncio.Task[None] | None = None

    def stop_asked(self, turn_id: TurnId, reason: StopReason, /) -> None:
        turn = self._roster.find(turn_id)
        if turn is not None:
            turn.stop(reason)

    def followers_changed(self, turn_id: TurnId, workers: Sequence[WorkerId], /) -> None:
        turn = self._roster.find(turn_id)
        if turn is not None:
            turn.followed(workers)

    def shown(self, shown: Shown, /) -> None:
        self._following.shown(shown)

    def turn_began(
        self, tenant: TenantId, conversation_id: ConversationId, turn_id: TurnId, owner: UserHash, /
    ) -> None:
        self._watches.began(tenant, conversation_id, turn_id, owner)

    def heard_again(self) -> None:
        self._watches.look_again()
        if self._reasserting is None or self._reasserting.done():
            self._reasserting = asyncio.get_running_loop().create_task(self._roster.reassert())
