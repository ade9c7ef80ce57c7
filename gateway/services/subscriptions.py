"""Readers of turns: each a cursor that replays what it missed and then follows live.

A reader at the head of a live log is *pushed* to from the upstream's data callback. One whose connection
cannot keep up is *pulled*: it reads from the log at its own pace until it has caught up. A cursor holds no
events, so a slow reader costs no copy and slows nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Final, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventId, EventLog, TurnRecord, merged
from gateway.core.identity import Principal, TenantId
from gateway.core.turn import TurnId
from gateway.services.conversations import Conversations
from gateway.services.live_log import Batch, LiveLog
from gateway.services.recovery import Recovery
from gateway.services.turns import Turn, Turns
from gateway.telemetry.metrics import Metrics

PAGE: Final = 256
FOLLOW_LIFE_S: Final = 4.5  # three of the owner's heartbeats
POLL_S: Final = 0.25  # between looks at a log that another process writes


class Sink(Protocol):
    """A connection that takes one turn's events."""

    def push(self, batch: Batch, /) -> bool:
        """Write without waiting; False when the connection's buffer is over its high-water mark."""
        ...

    async def write(self, batch: Batch, /) -> None:
        """Write, waiting for the connection; raises when it is lost or lags longer than allowed."""
        ...

    async def drain(self) -> None:
        """Wait until the connection has taken what it was pushed; raises as ``write`` does."""
        ...


class Subscription:
    """One reader of one turn. ``deliver`` runs it to the turn's ending; cancelling that detaches it."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        tenant: TenantId,
        turn_id: TurnId,
        conversation_id: ConversationId,
        position: int,
        turn: Turn | None,
    ) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.position = position
        self.resumed = position > 0
        self.replayed = 0  # events that were pulled, deltas merged
        self._subscriptions = subscriptions
        self._tenant = tenant
        self._live = turn.live if turn is not None else None
        self._presence = turn.presence if turn is not None else None
        self._following: str | None = None  # as whom this reader is known to the turn's owner on another worker
        self._follow_again_s = 0.0
        self.left = False  # ended before its turn, by ``leave``
        self._ended = False
        self._sink: Sink | None = None
        self._wake: asyncio.Future[None] | None = None

    async def deliver(self, sink: Sink) -> None:
        """Write every event after the cursor to ``sink``, in order and once, until the ending or ``leave``."""
        if self._presence is not None:
            self._presence.joined()
        try:
            await self._deliver(sink)
        finally:
            if self._presence is not None:
                self._presence.left()
            if self._following is not None and not self._ended:
                self._subscriptions.unfollow(self._tenant, self.turn_id, self._following)

    async def _deliver(self, sink: Sink) -> None:
        while not self._ended and not self.left:
            batch = self._live.read(self.position) if self._live is not None else await self._stored()
            if batch is not None:
                await sink.write(batch)
                self._advance(batch)
                self.replayed += len(batch.entries)
            elif self._live is None:
                await asyncio.sleep(POLL_S)
            elif self._live.abandoned:
                self._live = None
            elif self._live.ended:
                return
            elif not await self._follow(self._live, sink):
                await sink.drain()

    def leave(self) -> None:
        """Let ``deliver`` return between two events; what follows ``position`` is for another reader."""
        self.left = not self._ended
        self.released()

    async def _follow(self, live: LiveLog, sink: Sink) -> bool:
        """Be pushed to until the turn ends or moves (True) or the connection falls behind (False)."""
        self._sink = sink
        self._wake = asyncio.get_running_loop().create_future()
        live.attach(self)
        try:
            await self._wake
            return self._ended or self.left or live.abandoned
        finally:
            live.detach(self)

    def pushed(self, batch: Batch, /) -> None:
        assert self._sink is not None
        assert self._wake is not None
        keeps_up = self._sink.push(batch)
        self._advance(batch)
        if not (keeps_up and not self._ended) and not self._wake.done():
            self._wake.set_result(None)
            if self._live is not None:
                self._live.detach(self)

    def released(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _advance(self, batch: Batch) -> None:
        self.position = batch.entries[-1].position
        self._ended = batch.ends

    async def _stored(self) -> Batch | None:
        """Read a page from the store; None when there is nothing yet of a turn that runs elsewhere."""
        page = await self._subscriptions.log.read(self._tenant, self.turn_id, self.position, PAGE)
        if page:
            return Batch(self.turn_id, self.conversation_id, merged(page))
        record = await self._subscriptions.log.record(self._tenant, self.turn_id)
        if record is None or record.state.ended:
            page = await self._subscriptions.log.read(self._tenant, self.turn_id, self.position, PAGE)
            if page:
                return Batch(self.turn_id, self.conversation_id, merged(page))
            # The log's life ended while it was read, or the store has lost it.
            raise GatewayError(Code.HISTORY_LOST, extra={"turn_id": self.turn_id})
        if not record.leased:
            await self._subscriptions.recovery.recover(self._tenant, self.turn_id)
        else:
            await self._keep_following()
        return None

    async def _keep_following(self) -> None:
        """Let the turn's owner on another worker know that somebody reads it here."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._follow_again_s:
            self._following = self._following or uuid.uuid4().hex
            self._follow_again_s = now_s + FOLLOW_LIFE_S / 3
            await self._subscriptions.log.follow(self._tenant, self.turn_id, self._following, FOLLOW_LIFE_S)


class Subscriptions:
    """Opens readers, after checking that the turn belongs to the principal."""

    def __init__(
        self,
        *,
        turns: Turns,
        log: EventLog,
        conversations: Conversations,
        recovery: Recovery,
        metrics: Metrics,
    ) -> None:
        self.log = log
        self.recovery = recovery
        self._turns = turns
        self._conversations = conversations
        self._metrics = metrics
        self._leaving: set[asyncio.Task[None]] = set()

    async def open(
        self,
        principal: Principal,
        turn_id: TurnId,
        after: EventId | None,
        conversation_id: ConversationId | None = None,
    ) -> Subscription | None:
        """Open a reader of a turn from a cursor, or from the beginning; None when the cursor is at the ending.

        ``conversation_id`` is given where the turn must be one of that conversation.
        Raises GatewayError: not_found; invalid_cursor for a cursor of another turn, of another conversation
        or beyond the log; history_lost, with the text so far, when the log is gone.
        """
        if after is not None and after.turn_id != turn_id:
            raise GatewayError(Code.INVALID_CURSOR, "The cursor is of another turn.", field="after")
        position = after.position if after is not None else 0
        tenant = principal.tenant.id
        turn = self._turns.find(turn_id)
        if turn is not None:
            if turn.tenant.id != tenant or turn.conversation.owner != principal.user_hash:
                raise GatewayError(Code.NOT_FOUND)
            self._check_persona(principal, turn.conversation.persona)
            _check_conversation(turn.conversation.id, conversation_id)
            if position > turn.live.position:
                raise _beyond()
            return Subscription(self, tenant, turn_id, turn.conversation.id, position, turn)
        record = await self.log.record(tenant, turn_id)
        if record is None or record.owner != principal.user_hash:
            raise GatewayError(Code.NOT_FOUND)
        if principal.personas is not None:
            await self._conversations.owned(principal, record.conversation_id)
        _check_conversation(record.conversation_id, conversation_id)
        subscription = Subscription(self, tenant, turn_id, record.conversation_id, position, None)
        if record.state.ended and not await self.log.read(tenant, turn_id, position, 1):
            if position and await self.log.read(tenant, turn_id, position - 1, 1):
                return None
            if await self.log.read(tenant, turn_id, 0, 1):
                raise _beyond()
            raise await self._history_lost(principal, record)
        return subscription

    def unfollow(self, tenant: TenantId, turn_id: TurnId, reader: str) -> None:
        """Let a turn's owner elsewhere know that a reader has left; without it the owner would learn it later."""
        task = asyncio.get_running_loop().create_task(self._unfollow(tenant, turn_id, reader))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _unfollow(self, tenant: TenantId, turn_id: TurnId, reader: str) -> None:
        with contextlib.suppress(GatewayError):
            await self.log.follow(tenant, turn_id, reader, 0)

    def join(self, principal: Principal, turn: Turn) -> Subscription:
        """Open a reader of a turn that has just begun on this worker, from its beginning."""
        return Subscription(self, principal.tenant.id, turn.turn_id, turn.conversation.id, 0, turn)

    async def active_turn(self, principal: Principal, conversation_id: ConversationId) -> TurnId | None:
        """Return the turn that is running in a conversation of the principal; raises GatewayError(not_found)."""
        conversation = await self._conversations.owned(principal, conversation_id)
        if conversation.active_turn_id is None:
            return None
        turn_id = TurnId(conversation.active_turn_id)
        if self._turns.find(turn_id) is None:
            record = await self.log.record(principal.tenant.id, turn_id)
            if record is None or record.state.ended:
                return None
        return turn_id

    def _check_persona(self, principal: Principal, alias: str) -> None:
        if principal.personas is not None and alias not in principal.personas:
            raise GatewayError(Code.NOT_FOUND)

    async def _history_lost(self, principal: Principal, record: TurnRecord) -> GatewayError:
        conversation = await self._conversations.get(principal, record.conversation_id)
        answer = next((m for m in conversation.messages if m.turn_id == record.turn_id and m.role == "assistant"), None)
        extra: dict[str, object] = {"turn_id": record.turn_id, "state": record.state}
        if answer is not None:
            extra |= {"text": answer.content, "message_id": answer.message_id}
        return GatewayError(
            Code.HISTORY_LOST, "The turn ended too long ago to be replayed; `text` is its answer.", extra=extra
        )


def _check_conversation(found: ConversationId, wanted: ConversationId | None) -> None:
    if wanted is not None and found != wanted:
        raise GatewayError(Code.INVALID_CURSOR, "The cursor is of another conversation.", field="after")


def _beyond() -> GatewayError:
    return GatewayError(Code.INVALID_CURSOR, "The cursor lies beyond the turn's log.", field="after")
