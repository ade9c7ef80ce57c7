"""The WebSocket door: many turns and conversations over one socket, the same events and cursors as over SSE.

Event frames are built once for all readers and written straight to the connection; answers to commands go
through aiohttp. Refusals come after the upgrade, with a close code that page script can read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, assert_never

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from gateway.core.conversation import ConversationId
from gateway.core.errors import Code, GatewayError
from gateway.core.events import EventId
from gateway.core.identity import Door, Principal
from gateway.core.limits import gcra
from gateway.core.turn import StopReason, TurnId
from gateway.protocol.native import (
    AuthCommand,
    Command,
    PingCommand,
    RefreshCommand,
    StartCommand,
    StopCommand,
    SubscribeCommand,
    UnsubscribeCommand,
    decode_command,
    encode_json,
    problem,
)
from gateway.services.admission import TOLD, Told
from gateway.telemetry import audit
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import started as log_started
from gateway.telemetry.spans import CURRENT, Span
from gateway.transports.deliveries import Deliveries
from gateway.transports.edge import (
    EDGE,
    PRINCIPAL,
    REQUEST_ID,
    REVOKED_S,
    SPAN,
    address_of,
    bearer,
    check_door,
    checked_uuid,
    origin_of,
    ticket_of,
)
from gateway.transports.limit_headers import limit_members
from gateway.transports.middleware import audit_refusal, trace_of
from gateway.transports.sse import HIGH_WATER_BYTES

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()

SUBPROTOCOL: Final = "hyperleap.chat.v1"
OVERSIZE: Final = 4  # frames up to so many times the limit are told why they are refused; aiohttp cuts larger ones off
TOKEN_ENTRY: Final = "hgt."  # a second subprotocol entry that carries the token, never echoed


@routes.get("/v1/ws", allow_head=False)
async def connect(request: web.Request) -> web.StreamResponse:
    """Upgrade, then serve commands until the socket closes; raises GatewayError(upgrade_required)."""
    headers = request.headers
    if (
        headers.get(hdrs.UPGRADE, "").strip().lower() != "websocket"
        or "upgrade" not in headers.get(hdrs.CONNECTION, "").lower()
    ):
        raise GatewayError(
            Code.UPGRADE_REQUIRED,
            "Send `Connection: Upgrade` and `Upgrade: websocket`; a proxy on the way may not pass them on.",
        )
    return await Socket(request).serve()


class Socket:
    """One WebSocket connection."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._edge = request.app[EDGE]
        rules = self._edge.rules
        self._ws = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            compress=False,  # frames are shared by readers; deflate would be a copy and a CPU share for each
            max_msg_size=rules.frame_max_bytes * OVERSIZE,
            heartbeat=rules.keepalive_s,
            autoping=True,
        )
        self._principal: Principal | None = None
        self._deliveries = Deliveries(self, self._edge)
        self._expiry: asyncio.TimerHandle | None = None
        self._arrival_s = 0.0
        self._told = Told(address_of(request))  # of the command under way
        self._revoked = False
        self._commands = self._turns = 0
        self._span = request[SPAN]
        self._named_trace, _ = trace_of(request)
        self.origin = origin_of(request)
        self.door: Door = "websocket"

    async def serve(self) -> web.WebSocketResponse:
        await self._ws.prepare(self._request)
        self._ws.headers.clear()  # sent
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("client left during the upgrade")
        self.transport: asyncio.WriteTransport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._edge.metrics.stream_opened("websocket")
        self._edge.open.add(self)
        opened_s = time.monotonic()
        try:
            await self._authenticate()
            if (known := self._principal) is not None:
                log_started(logger, "socket.opened", tenant=known.tenant.id, user=known.user_hash)
            async for message in self._ws:
                if message.type is WSMsgType.TEXT:
                    self._check_size(message.data)
                    await self._take(message.data)
                elif message.type is WSMsgType.BINARY:
                    raise GatewayError(Code.FRAME_BINARY)
        except GatewayError as error:
            await self._refuse(error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            logger.exception("socket.crashed")
            await self._refuse(GatewayError(Code.INTERNAL))
        finally:
            self._edge.open.discard(self)
            self._edge.metrics.stream_closed("websocket")
            if self._expiry is not None:
                self._expiry.cancel()
            self._deliveries.close()
            known = self._principal
            log_event(
                logger,
                logging.INFO,
                "socket.closed",
                tenant=known.tenant.id if known is not None else None,
                user=known.user_hash if known is not None else None,
                close_code=self._ws.close_code,
                commands=self._commands,
                turns=self._turns,
                duration_s=round(time.monotonic() - opened_s, 3),
            )
        return self._ws

    # --- who it is -----------------------------------------------------------------------------------------------

    async def _authenticate(self) -> None:
        """Take a ticket from the URL, or the token from a subprotocol entry (browsers), a header or the first frame."""
        headers = self._request.headers
        offered = ",".join(headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []))
        entries = [entry.strip() for entry in offered.split(",")]
        shown = [entry[len(TOKEN_ENTRY) :] for entry in entries if entry.startswith(TOKEN_ENTRY)]
        ticket = ticket_of(self._request)
        if hdrs.AUTHORIZATION in headers:
            shown.append(bearer(self._request))
        if len(shown) + (ticket is not None) > 1:
            raise GatewayError(Code.CREDENTIAL_INVALID, "Send one credential: a ticket, or one token.")
        token = next(iter(shown), None)
        if ticket is not None:
            self._admitted(await self._edge.auth.ticket_holder(ticket, self._request.path, self.origin))
            return
        if token is not None:
            await self._admit(token)
            return
        rules = self._edge.rules
        try:
            async with asyncio.timeout(rules.auth_timeout_s):
                message = await self._ws.receive()
        except TimeoutError:
            raise GatewayError(Code.AUTH_TIMEOUT) from None
        if message.type is WSMsgType.BINARY:
            raise GatewayError(Code.FRAME_BINARY)
        if message.type is not WSMsgType.TEXT:
            return  # closed; serve's loop ends at once
        command = decode_command(message.data)
        if not isinstance(command, AuthCommand):
            raise GatewayError(Code.CREDENTIAL_MISSING, "The first frame must be `auth`.")
        await self._admit(command.token)
        await self._ack(command.request_id, {})

    async def _admit(self, token: str) -> None:
        self._admitted(await self._edge.auth.principal(token, self.origin))

    def _admitted(self, principal: Principal) -> None:
        known = self._principal
        if known is not None and (known.tenant.id, known.user_hash) != (principal.tenant.id, principal.user_hash):
            raise GatewayError(Code.FORBIDDEN, "A socket keeps its user; open another for another.")
        check_door(principal, self.door)
        self._principal = self._request[PRINCIPAL] = principal
        if self._expiry is not None:
            self._expiry.cancel()
        life_s = max(0.0, principal.expires_at_s - time.time())
        self._expiry = asyncio.get_running_loop().call_later(life_s, self._expire)

    def _expire(self) -> None:
        self._revoked = True  # by time
        self._spawn_close(GatewayError(Code.TOKEN_EXPIRED))

    def _spawn_close(self, error: GatewayError) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._refuse(error))

    # --- commands ------------------------------------------------------------------------------------------------

    async def _take(self, frame: str) -> None:
        """Carry out one command; its failure is told in an ``error`` frame and leaves the socket open."""
        request_id: str | None = None
        self._told = told = Told(self._told.address)
        TOLD.set(told)
        span = self._span
        try:
            self._pace()
            command = decode_command(frame)
            request_id = command.request_id
            self._commands += 1
            span = self._begin_span(command)
            await self._carry_out(command)
        except GatewayError as error:
            if span is not self._span:
                span.end(error.code if error.wire.http >= 500 else None, code=error.code)
            if error.code is Code.COMMANDS_TOO_FAST or error.code is Code.INTERNAL:
                raise
            of = error.extra.pop("command_request_id", None)
            await self._send_error(error, request_id or (of if isinstance(of, str) else None))
        except Exception:
            if span is not self._span:
                span.end(Code.INTERNAL)
            raise
        finally:
            if span is not self._span:
                span.end()
                CURRENT.set(self._span)

    def _begin_span(self, command: Command) -> Span:
        """Begin the span of a command; the socket's own, where there is none."""
        if isinstance(command, PingCommand):
            return self._span
        name = type(command).__struct_config__.tag
        span = self._edge.tracing.command(
            self._span,
            self._named_trace,
            command=str(name),
            tenant=self.user.tenant.id,
            user=self.user.user_hash,
            request_id=self._request[REQUEST_ID],
        )
        if span is not self._span:
            CURRENT.set(span)
        return span

    def _check_size(self, frame: str) -> None:
        most = self._edge.rules.frame_max_bytes
        if len(frame) * 4 > most and len(frame.encode()) > most:
            raise GatewayError(Code.FRAME_TOO_LARGE, f"A frame may have {most} bytes.")

    def _pace(self) -> None:
        now_s = asyncio.get_running_loop().time()
        rate = self._edge.rules.commands_per_s
        arrival_s, wait_s = gcra(self._arrival_s, now_s, rate, 1.0)
        if wait_s > 0:
            raise GatewayError(
                Code.COMMANDS_TOO_FAST, f"A socket may send {rate:g} commands a second.", retry_after_s=1
            )
        self._arrival_s = arrival_s

    async def _carry_out(self, command: Command) -> None:
        match command:
            case StartCommand():
                await self._start(command)
            case SubscribeCommand():
                await self._subscribe(command)
            case UnsubscribeCommand():
                self._unsubscribe(command)
                await self._ack(command.request_id, {})
            case StopCommand():
                turn_id = TurnId(checked_uuid(command.turn_id, "turn_id"))
                state = await self._edge.turns.stop(self.user, turn_id, StopReason.USER)
                await self._ack(command.request_id, {"turn_id": turn_id, "state": state})
            case PingCommand():
                await self._send({"event": "pong", "request_id": command.request_id})
            case RefreshCommand() | AuthCommand():
                await self._admit(command.token)
                await self._ack(command.request_id, {})
            case _ as unreachable:
                assert_never(unreachable)

    async def _start(self, command: StartCommand) -> None:
        self._deliveries.check_room()
        self._deliveries.hold()  # on a watched conversation the ack goes before the turn's first event, too
        try:
            started = await self._edge.turns.start(
                self.user,
                _conversation(command.conversation_id),
                command.message,
                idempotency_key=command.client_message_id,
                address=self._told.address or "",
            )
            self._turns += not started.repeated
            self._deliveries.tell_limits(started.turn_id, limit_members(self._told.quotas))
            await self._ack(command.request_id, {"turn_id": started.turn_id})
        finally:
            self._deliveries.release()
        await self._deliveries.open(started.turn_id, None)

    async def _subscribe(self, command: SubscribeCommand) -> None:
        if (command.turn_id is None) is (command.conversation_id is None):
            raise GatewayError(Code.INVALID_VALUE, "Name either a turn_id or a conversation_id.", field="turn_id")
        after = EventId.parse(command.after, field="after") if command.after else None
        if command.turn_id is None:
            await self._subscribe_conversation(command.request_id, _conversation(command.conversation_id or ""), after)
            return
        turn_id = TurnId(checked_uuid(command.turn_id, "turn_id"))
        if turn_id not in self._deliveries:
            self._deliveries.check_room()
        subscription = await self._edge.subscriptions.open(self.user, turn_id, after)
        self._deliveries.leave(turn_id)  # a new cursor replaces the old one; one that is refused leaves it
        await self._ack(command.request_id, {"turn_id": turn_id, "ended": subscription is None})
        if subscription is not None:
            self._deliveries.begin(subscription)

    async def _subscribe_conversation(
        self, request_id: str | None, conversation_id: ConversationId, after: EventId | None
    ) -> None:
        """Follow a conversation's active and future turns, and first the rest of the turn that the cursor is of."""
        await self._edge.conversations.owned(self.user, conversation_id)  # nobody watches another's, even for a moment
        fresh = await self._deliveries.watch(
            conversation_id
        )  # before the look at what is active: no turn begins unseen
        resumed = None
        try:
            active = await self._edge.subscriptions.active_turn(self.user, conversation_id)
            if after is not None:
                resumed = await self._edge.subscriptions.open(self.user, after.turn_id, after, conversation_id)
        except GatewayError:
            if fresh:
                self._deliveries.unwatch(conversation_id)
            raise
        await self._ack(request_id, {"conversation_id": conversation_id, "turn_id": active})
        if resumed is not None:
            self._deliveries.begin(resumed)
        if active is not None and (after is None or after.turn_id != active):
            await self._deliveries.open(active, None)

    def _unsubscribe(self, command: UnsubscribeCommand) -> None:
        if (command.turn_id is None) is (command.conversation_id is None):
            raise GatewayError(Code.INVALID_VALUE, "Name either a turn_id or a conversation_id.", field="turn_id")
        if command.turn_id is not None:
            self._deliveries.leave(TurnId(checked_uuid(command.turn_id, "turn_id")))
        else:
            self._deliveries.leave_conversation(_conversation(command.conversation_id or ""))

    # --- Line: what deliveries need of the connection ------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._ws.closed

    @property
    def user(self) -> Principal:
        if self._principal is None:
            raise AssertionError("commands are taken after authentication only")
        self._principal = self._edge.auth.current(self._principal)  # its tenant may be another since the last command
        return self._principal

    async def drain(self) -> None:
        """Wait until the connection has room; abort it when it lags longer than allowed."""
        if self.transport.get_write_buffer_size() > 0:  # with nothing unsent there is nothing to wait for
            try:
                async with asyncio.timeout(self._edge.rules.reader_lag_s):
                    await self._request.writer.drain()
            except TimeoutError:
                self.let_go()
                raise ConnectionResetError("reader lagged") from None
        if self.transport.is_closing():
            raise ConnectionResetError("client left")

    def let_go(self) -> None:
        """Cut off a connection that lags more than allowed; its client can come back with its cursors."""
        self._edge.metrics.reader_lagged("websocket")
        log_event(logger, logging.INFO, "reader.lagged", transport="websocket")
        self.transport.abort()

    async def tell(self, error: GatewayError, turn_id: TurnId, conversation_id: ConversationId) -> None:
        await self._send_error(error, None, turn_id=turn_id, conversation_id=conversation_id)

    def crash(self) -> None:
        self._spawn_close(GatewayError(Code.INTERNAL))

    # --- answers -------------------------------------------------------------------------------------------------

    async def _ack(self, request_id: str | None, data: dict[str, Any]) -> None:
        await self._send({"event": "ack", "request_id": request_id, "data": data})

    async def _send_error(self, error: GatewayError, request_id: str | None, **about: str) -> None:
        self._edge.metrics.error_sent(error.code)
        if error.code in audit.REFUSALS and not about and not self._revoked:
            audit_refusal(self._request, error)
        body = problem(error, self._request.get(REQUEST_ID))
        if self._told.quotas and not about:
            body["limits"] = limit_members(self._told.quotas)
        await self._send({"event": "error", "request_id": request_id, **about, "data": body})

    async def _send(self, frame: dict[str, Any]) -> None:
        if not self._ws.closed:
            await self._ws.send_frame(encode_json(frame), WSMsgType.TEXT)

    async def _refuse(self, error: GatewayError) -> None:
        """Say why in a frame, then close with the code that the error table gives."""
        if self._ws.closed:
            return
        error.extra.pop("command_request_id", None)
        try:
            await self._send_error(error, None)
            await self._ws.close(code=error.wire.ws_close, message=error.code.encode())
        except ConnectionError:
            pass

    async def leave(self) -> None:
        await self.shut()

    @property
    def principal(self) -> Principal | None:
        return self._principal

    def revoke(self, error: GatewayError) -> None:
        """Close the socket for good (4503, 4504); a client that does not take it in is cut off."""
        if not self._revoked:
            self._revoked = True
            self._deliveries.close()
            self._spawn_close(error)
            asyncio.get_running_loop().call_later(REVOKED_S, self.transport.abort)

    async def shut(self) -> None:
        """Ask the client to reconnect: this gateway is going away (1012)."""
        await self._ws.close(code=WSCloseCode.SERVICE_RESTART, message=b"draining")


def _conversation(value: str) -> ConversationId:
    return ConversationId(checked_uuid(value, "conversation_id"))
