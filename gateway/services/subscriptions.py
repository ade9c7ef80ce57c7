"""Readers of turns: each a cursor that replays what it missed and then follows live.

A reader at the head of a turn is *pushed* to: from the upstream's data callback where the turn runs here, from what
its owner shows where it runs on another worker. One whose connection cannot keep up is *pulled*: it reads from the
log at its own pace until it has caught up. A cursor holds no events, so a slow reader costs no copy and slows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventId, EventLog, TurnRecord, after, merged
from gateway.core.identity import Principal, TenantId
from gateway.core.turn import TurnId
from gateway.services.conversations import Conversations
from gateway.services.following import Following
from gateway.services.owned_turn import OwnedTurn
from gateway.services.roster import Roster
from gateway.services.window import Batch, Window

PAGE: Final = 256
LAG_S: Final = 0.05  # between looks for entries that were shown elsewhere but are not in the log yet
RESTORE_S: Final = 2.5  # within this an owner notices that the store has lost its turn's record, and writes it again
MISSING_MAX: Final = 100  # looks without a result after the ending was shown


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

    __slots__ = (
        "_behind",
        "_ended",
        "_finished",
        "_sink",
        "_subscriptions",
        "_tenant",
        "_wake",
        "_window",
        "conversation_id",
        "left",
        "position",
        "replayed",
        "resumed",
        "turn_id",
    )

    def __init__(
        self,
        subscriptions: Subscriptions,
        tenant: TenantId,
        turn_id: TurnId,
        conversation_id: ConversationId,
        position: int,
        *,
        finished: bool,
    ) -> None:
        """``finished``: the whole log is in the store."""
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.position = position
        self.resumed = position > 0
        self.replayed = 0  # events that were pulled, deltas merged
        self.left = False  # ended before its turn, by ``leave``
        self._subscriptions = subscriptions
        self._tenant = tenant
        self._finished = finished
        self._ended = False
        self._sink: Sink  # from ``deliver`` on
        self._wake: asyncio.Future[None] | None = None
        self._window: Window  # that pushes, while there is a ``_wake``
        self._behind = False

    async def deliver(self, sink: Sink) -> None:
        """Write every event after the cursor to ``sink``, in order and once, until the ending or ``leave``.

        The turn may move meanwhile: its owner may lose it to another worker, or this one may take it over.
        Raises what ``sink`` raises, and GatewayError: history_lost, store_unavailable.
        """
        self._sink = sink
        while not self._ended and not self.left:
            turn = self._subscriptions.roster.find(self.turn_id)
            if turn is not None and not turn.live.abandoned:
                turn.presence.joined()
                try:
                    goes_on = await self._read(turn.live)
                finally:
                    turn.presence.left()
            elif self._finished:
                goes_on = await self._read_stored()
            else:
                goes_on = await self._read_remote()
            if not goes_on:
                return

    def leave(self) -> None:
        """Let ``deliver`` return between two events; what follows ``position`` is for another reader."""
        self.left = not self._ended
        self.released()

    async def _read_remote(self) -> bool:
        """Read a turn of another worker until its ending, or until this worker takes it over (True)."""
        following = self._subscriptions.following
        remote = following.join(self._tenant, self.turn_id, self.conversation_id)
        try:
            return await self._read(remote)
        finally:
            following.leave(remote)

    async def _read(self, window: Window) -> bool:
        """Read from a window, and from the log what lies before it; True when the log goes on elsewhere."""
        missing = 0
        while not self._ended and not self.left and not window.closed:
            if window.error is not None:
                raise window.error
            if self.position < window.base:
                try:
                    pulled = await self._pull()
                except GatewayError:
                    pulled = False  # the store is away: the window knows for how long that is borne
                if pulled:
                    missing = 0
                    continue
                missing += 1
                if window.ended and missing > MISSING_MAX:
                    raise GatewayError(Code.HISTORY_LOST, extra={"turn_id": self.turn_id})
                await asyncio.sleep(LAG_S)
                continue
            batch = window.read(self.position)
            if batch is not None:
                await self._write(batch)
            elif window.ended:
                if self.position > window.head:
                    raise _beyond()
                return False  # a cursor at the ending
            else:
                wake = self._attach(window)
                try:
                    await wake
                finally:
                    window.detach(self)
                if self._behind:
                    await self._sink.drain()
        return window.closed

    async def _read_stored(self) -> bool:
        """Read a page of a finished turn from the log; True until the ending."""
        if not await self._pull():
            # The log's life ended while it was read, or the store has lost it.
            raise GatewayError(Code.HISTORY_LOST, extra={"turn_id": self.turn_id})
        return not self._ended

    async def _pull(self) -> bool:
        """Write a page from the log; False when it has nothing after the cursor (yet)."""
        page = await self._subscriptions.log.read(self._tenant, self.turn_id, self.position, PAGE)
        if page:
            await self._write(Batch(self.turn_id, self.conversation_id, merged(page)))
        return bool(page)

    async def _write(self, batch: Batch) -> None:
        await self._sink.write(batch)
        self._advance(batch)
        self.replayed += len(batch.entries)

    def _attach(self, window: Window) -> asyncio.Future[None]:
        """Be pushed to until the returned future is done: the turn ends or moves, or the connection falls behind.

        No coroutine, nor is what calls it split further: each would take 0.2 KB of every reader that waits.
        """
        self._wake = asyncio.get_running_loop().create_future()
        self._window = window
        self._behind = False
        window.attach(self)
        return self._wake

    def pushed(self, batch: Batch, /) -> None:
        if batch.begins < self.position:  # shown elsewhere before it was in the log, and now here
            entries = after(batch.entries, self.position)
            if not entries:
                if batch.ends:  # a cursor that no event ever had: there is nothing more for it
                    self.released()
                return
            batch = Batch(self.turn_id, self.conversation_id, entries)
        keeps_up = self._sink.push(batch)
        self.position = batch.head
        if batch.ends or not keeps_up:
            self._ended = batch.ends
            assert self._wake is not None
            if not self._wake.done():
                self._behind = not keeps_up
                self.released()

    def released(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
            self._window.detach(self)  # at once: what is shown next may not follow this cursor

    def _advance(self, batch: Batch) -> None:
        self.position = batch.head
        self._ended = batch.ends


class Subscriptions:
    """Opens readers, after checking that the turn belongs to the principal."""

    def __init__(
        self,
        *,
        roster: Roster,
        log: EventLog,
        following: Following,
        conversations: Conversations,
        settling: Callable[[], bool],
    ) -> None:
        """``settling`` tells whether the store was away a moment ago, and may yet get back what it has lost."""
        self.roster = roster
        self.log = log
        self.following = following
        self._conversations = conversations
        self._settling = settling

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
        turn = self.roster.find(turn_id)
        if turn is not None and turn.is_of(principal):  # another's is looked for in the store, as one unknown here
            heading = turn.heading
            _check_conversation(heading.conversation_id, conversation_id)
            if position > turn.live.position and not turn.rescued and not await self._gone_on(turn):
                raise _beyond()
            return Subscription(self, tenant, turn_id, heading.conversation_id, position, finished=False)
        record = await self._record(tenant, turn_id)
        if record is None or not principal.owns(record.owner, record.persona):
            raise GatewayError(Code.NOT_FOUND)
        _check_conversation(record.conversation_id, conversation_id)
        ended = record.state.ended
        if ended and not await self.log.read(tenant, turn_id, position, 1):
            if position and await self.log.read(tenant, turn_id, position - 1, 1):
                return None
            if await self.log.read(tenant, turn_id, 0, 1):
                raise _beyond()
            raise await self._history_lost(principal, record)
        return Subscription(self, tenant, turn_id, record.conversation_id, position, finished=ended)

    def join(self, principal: Principal, turn: OwnedTurn) -> Subscription:
        """Open a reader of a turn that has just begun on this worker, from its beginning."""
        heading = turn.heading
        return Subscription(self, principal.tenant.id, turn.turn_id, heading.conversation_id, 0, finished=False)

    async def active_turn(self, principal: Principal, conversation_id: ConversationId) -> TurnId | None:
        """Return the turn that is running in a conversation of the principal; raises GatewayError(not_found)."""
        conversation = await self._conversations.owned(principal, conversation_id)
        if conversation.active_turn_id is None:
            return None
        turn_id = TurnId(conversation.active_turn_id)
        if self.roster.find(turn_id) is None:
            record = await self.log.record(principal.tenant.id, turn_id)
            if record is None or record.state.ended:
                return None
        return turn_id

    async def _record(self, tenant: TenantId, turn_id: TurnId) -> TurnRecord | None:
        """Read a record; just after an outage, wait for its owner to write it again: a reader gives up on a 404."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + RESTORE_S
        while (record := await self.log.record(tenant, turn_id)) is None:
            if not self._settling() or loop.time() >= until_s:
                break
            await asyncio.sleep(LAG_S)
        return record

    async def _gone_on(self, turn: OwnedTurn) -> bool:
        """Whether another worker has taken the turn over, and this one has not noticed yet."""
        record = await self.log.record(turn.tenant.id, turn.turn_id)
        return record is not None and record.epoch > turn.epoch

    async def _history_lost(self, principal: Principal, record: TurnRecord) -> GatewayError:
        conversation = await self._conversations.get(principal, record.conversation_id)
        # By the turn where the transcript was kept here, by the message where it was read back from the vendor.
        answers = [m for m in conversation.messages if m.role == "assistant"]
        answer = next((m for m in answers if m.turn_id == record.turn_id), None) or next(
            (m for m in answers if record.message_id and m.message_id == record.message_id), None
        )
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
