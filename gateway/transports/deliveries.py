"""The turns on their way to one socket: each a subscription with a task, all writing to the same connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, EventId, TurnStarted
from gateway.core.identity import Principal, UserHash
from gateway.core.turn import TurnId
from gateway.protocol.native import encode_frame, encode_json, text_frame
from gateway.services.subscriptions import Subscription
from gateway.services.window import Batch
from gateway.transports.edge import Edge
from gateway.transports.sse import HIGH_WATER_BYTES

logger = logging.getLogger(__name__)


def encode_frames(turn_id: str, conversation_id: str, entries: Sequence[Entry]) -> bytes:
    """Encode entries as WebSocket frames, one an entry."""
    if len(entries) == 1:  # the rule, and a join of one costs 0.15 µs
        return text_frame(encode_frame(turn_id, conversation_id, entries[0]))
    return b"".join([text_frame(encode_frame(turn_id, conversation_id, entry)) for entry in entries])


class Line(Protocol):
    """The connection under a socket."""

    @property
    def closed(self) -> bool: ...

    @property
    def transport(self) -> asyncio.WriteTransport: ...

    @property
    def user(self) -> Principal: ...

    async def drain(self) -> None:
        """Wait until there is room; raises ConnectionResetError when the connection is lost or let go."""

    def let_go(self) -> None:
        """Cut off a connection that lags more than allowed."""

    async def tell(self, error: GatewayError, turn_id: TurnId, conversation_id: ConversationId) -> None:
        """Send an ``error`` frame that answers no command but is about one turn's delivery."""

    def crash(self) -> None:
        """Close the socket for an internal error."""


class _Sink:
    """A Sink that writes one turn's frames to a socket shared with others."""

    def __init__(self, line: Line, lag_max_bytes: int, limits: Sequence[Any]) -> None:
        """``limits`` are told in the turn's first frame, to the socket that started it alone."""
        self._line = line
        self._lag_max_bytes = lag_max_bytes
        self._limits = limits
        self.left = False  # set in the step that acknowledges it, so that nothing of the turn follows the ack

    def push(self, batch: Batch, /) -> bool:
        transport = self._line.transport
        if self.left or self._line.closed or transport.is_closing():
            return True
        if transport.get_write_buffer_size() > self._lag_max_bytes:
            self._line.let_go()
            return True
        if self._limits and type(batch.entries[0].event) is TurnStarted:
            transport.write(self._with_limits(batch))
        else:
            transport.write(batch.encoded(encode_frames))
        return transport.get_write_buffer_size() <= HIGH_WATER_BYTES

    def _with_limits(self, batch: Batch) -> bytes:
        """Encode a batch for this socket: ``turn.started`` gets a member that the shared frames do not have."""
        turn_id, conversation_id = batch.turn_id, batch.conversation_id
        first, limits = encode_frame(turn_id, conversation_id, batch.entries[0]), encode_json(self._limits)
        self._limits = ()
        told = text_frame(b'%b,"limits":%b}' % (first[:-1], limits))
        return told + encode_frames(turn_id, conversation_id, batch.entries[1:])

    async def write(self, batch: Batch, /) -> None:
        if self._line.closed:
            raise ConnectionResetError("socket closed")
        self.push(batch)
        await self.drain()

    async def drain(self) -> None:
        await self._line.drain()


class _Delivery(NamedTuple):
    """One turn's events on their way to a socket."""

    conversation_id: ConversationId
    sink: _Sink
    task: asyncio.Task[None]


class Deliveries:
    """Which turns and conversations a socket follows. ``close`` it when the socket ends."""

    def __init__(self, line: Line, edge: Edge) -> None:
        self._line = line
        self._edge = edge
        self._turns: dict[TurnId, _Delivery] = {}
        self._watched: set[ConversationId] = set()
        self._held: list[tuple[TurnId, UserHash]] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._begun: tuple[TurnId, Sequence[Any]] = (TurnId(""), ())

    def __contains__(self, turn_id: TurnId) -> bool:
        return turn_id in self._turns

    def check_room(self) -> None:
        """Raises GatewayError(subscriptions_exceeded) when the socket follows as much as it may."""
        most = self._edge.rules.subscriptions_max
        if len(self._turns) + len(self._watched) >= most:
            raise GatewayError(Code.SUBSCRIPTIONS_EXCEEDED, f"A socket may hold {most} subscriptions.")

    def begin(self, subscription: Subscription) -> None:
        """Deliver a turn; one that is delivered already is replaced, for its new cursor."""
        self.leave(subscription.turn_id)
        begun, limits = self._begun
        if begun != subscription.turn_id:
            limits = ()
        sink = _Sink(self._line, self._edge.rules.reader_lag_bytes, limits)
        task = asyncio.get_running_loop().create_task(self._run(subscription, sink))
        self._turns[subscription.turn_id] = _Delivery(subscription.conversation_id, sink, task)

    async def open(self, turn_id: TurnId, after: EventId | None) -> None:
        """Deliver a turn from a cursor, unless it is delivered already or the cursor is at its ending."""
        if turn_id in self._turns:
            return
        subscription = await self._edge.subscriptions.open(self._line.user, turn_id, after)
        if subscription is not None and turn_id not in self._turns:
            self.begin(subscription)

    def tell_limits(self, turn_id: TurnId, limits: Sequence[Any]) -> None:
        """Have a turn that this socket just started begin with where its limits stand."""
        self._begun = turn_id, limits

    def leave(self, turn_id: TurnId) -> None:
        delivery = self._turns.pop(turn_id, None)
        if delivery is not None:
            delivery.sink.left = True
            delivery.task.cancel()

    async def watch(self, conversation_id: ConversationId) -> bool:
        """Follow every turn that begins in a conversation; False when it was watched already."""
        if conversation_id in self._watched:
            return False
        self.check_room()
        self._watched.add(conversation_id)
        try:
            await self._edge.watches.watch(self._line.user.tenant.id, conversation_id, self._on_turn)
        except BaseException:
            self._watched.discard(conversation_id)
            raise
        if conversation_id not in self._watched:  # the socket was closed meanwhile
            self.unwatch(conversation_id)
        return True

    def unwatch(self, conversation_id: ConversationId) -> None:
        self._watched.discard(conversation_id)
        self._edge.watches.unwatch(self._line.user.tenant.id, conversation_id, self._on_turn)

    def leave_conversation(self, conversation_id: ConversationId) -> None:
        self.unwatch(conversation_id)
        for turn_id, delivery in tuple(self._turns.items()):
            if delivery.conversation_id == conversation_id:
                self.leave(turn_id)

    def hold(self) -> None:
        """Keep turns that begin in watched conversations back until ``release``: an ack goes first."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for turn_id, owner in held:
            self._on_turn(turn_id, owner)

    def close(self) -> None:
        for conversation_id in tuple(self._watched):
            self.unwatch(conversation_id)
        for delivery in self._turns.values():
            delivery.task.cancel()
        for opening in self._opening:
            opening.cancel()

    def _on_turn(self, turn_id: TurnId, owner: UserHash) -> None:
        """A turn began in a watched conversation, here or on another worker."""
        if owner != self._line.user.user_hash or turn_id in self._turns:
            return
        if self._held is not None:
            self._held.append((turn_id, owner))
            return
        turn = self._edge.turns.find(turn_id)
        if turn is not None:
            self.begin(self._edge.subscriptions.join(self._line.user, turn))
            return
        opening = asyncio.get_running_loop().create_task(self._open_remote(turn_id))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open_remote(self, turn_id: TurnId) -> None:
        try:
            await self.open(turn_id, None)
        except GatewayError as error:
            logger.debug("turn %s was announced but cannot be opened: %s", turn_id, error.code)
        except Exception:
            logger.exception("delivery.crashed")
            self._line.crash()

    async def _run(self, subscription: Subscription, sink: _Sink) -> None:
        turn_id = subscription.turn_id
        try:
            await subscription.deliver(sink)
        except ConnectionError:
            pass  # the socket's read loop sees the same and ends
        except GatewayError as error:
            await self._line.tell(error, turn_id, subscription.conversation_id)
        except Exception:
            logger.exception("delivery.crashed")
            self._line.crash()
        finally:
            if subscription.resumed:
                self._edge.metrics.resumed("websocket", subscription.replayed)
            delivery = self._turns.get(turn_id)
            if delivery is not None and delivery.task is asyncio.current_task():
                del self._turns[turn_id]
