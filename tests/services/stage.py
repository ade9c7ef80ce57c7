"""One worker's services on a real store, with the vendor's side played by the test."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.core.conversation import Conversation, ConversationId, Feedback, Message, VendorConversation
from gateway.core.errors import GatewayError
from gateway.core.events import Append, Entry, EventId, Heading, MessageStarted, TextDelta
from gateway.core.gate import MINUTE_US
from gateway.core.identity import (
    Disconnect,
    Model,
    Persona,
    Principal,
    Prompt,
    Tenant,
    TenantId,
    UserHash,
    UserId,
    WorkerId,
)
from gateway.core.limits import SLOT_LEASE_US
from gateway.core.plan import Plan, ScopeLimits
from gateway.core.prices import PriceTable
from gateway.core.turn import AnswerItem, ChatReceiver, TurnId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.options import UpstreamSettings
from gateway.services.accounting import Accounting
from gateway.services.admission import Admission
from gateway.services.conversations import Conversations
from gateway.services.creations import Creations
from gateway.services.feedback import FeedbackService
from gateway.services.following import Following
from gateway.services.holdings import Holdings
from gateway.services.journal import Journal
from gateway.services.key_gate import GateRules
from gateway.services.owned_turn import TurnPorts, TurnRules
from gateway.services.peers import Peers
from gateway.services.recovery import Recovery
from gateway.services.rescue import RescueRules
from gateway.services.roster import Roster
from gateway.services.showing import Showing
from gateway.services.starts import Started
from gateway.services.subscriptions import Subscription, Subscriptions
from gateway.services.turns import Turns
from gateway.services.vendor import Vendor
from gateway.services.vendor_copy import AfterDisconnect, AfterLoss, VendorCopies
from gateway.services.vendor_gate import VendorGate
from gateway.services.watches import Watches
from gateway.services.window import Batch
from gateway.store.conversations import RedisConversations
from gateway.store.creations import RedisCreationKeys
from gateway.store.event_log import RedisEventLog
from gateway.store.gate import RedisGate
from gateway.store.inbox import Inbox
from gateway.store.ledger import RedisLedger
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Redis
from gateway.telemetry.metrics import Metrics
from gateway.upstream.key_files import KeyFiles
from gateway.upstream.keyring import KeyRing

PATIENCE_S = 5.0  # for what must happen; reached only by a failing test
ADDRESS = "192.0.2.1"
PERSONA_ID, OTHER_PERSONA_ID = "p-default", "p-other"
PLENTY = ScopeLimits(requests_per_min=10**6)
GENEROUS = Plan(tenant=PLENTY, user=PLENTY)
FINISH = AnswerItem(finish_reason="stop", usage=(1, 2, 3), role="assistant")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition of this process is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


class PlayedChat:
    """One chat as the vendor sees it; the test plays its answer."""

    def __init__(self, conversation_id: str, message: str, receiver: ChatReceiver) -> None:
        self.conversation_id = conversation_id
        self.message = message
        self.cancelled = False
        self._receiver = receiver

    def cancel(self) -> None:
        self.cancelled = True

    def say(self, *items: AnswerItem | str) -> None:
        """Send items; a text stands for a delta of the assistant's."""
        if not self.cancelled:
            plain = [
                AnswerItem(item, "m-1", "r-1", role="assistant") if isinstance(item, str) else item for item in items
            ]
            self._receiver.chat_items(plain)

    def end(self, error: GatewayError | None = None) -> None:
        if not self.cancelled:
            self._receiver.chat_ended(error)

    def complete(self, *texts: str) -> None:
        self.say(*texts, FINISH)
        self.end()


class PlayedVendor:
    """The other side of the Upstream port. ``gate`` holds chats back, ``refusal`` refuses whatever comes next."""

    def __init__(self) -> None:
        self.conversations: dict[str, VendorConversation] = {}
        self.chats: list[PlayedChat] = []
        self.created: list[dict[str, Any]] = []
        self.scores: list[tuple[str, str, Feedback]] = []
        self.reads = 0
        self.keys: list[KeyLabel] = []  # that were asked with, in order
        self.gate: asyncio.Event | None = None
        self.refusal: Exception | None = None
        self.left_waiting = 0

    def add(self, external_user_id: str | None, **fields: Any) -> ConversationId:
        """Put a conversation into the vendor's memory."""
        conversation_id = ConversationId(str(uuid.uuid4()))
        wanted: dict[str, Any] = {
            "persona_id": PERSONA_ID,
            "status": "Active",
            "name": None,
            "metadata": {},
            "messages": [],
            **fields,
        }
        self.conversations[conversation_id] = VendorConversation(conversation_id, external_user_id, **wanted)
        return conversation_id

    async def _pass(self, key: KeyLabel) -> None:
        self.keys.append(key)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.left_waiting += 1
                raise
        if self.refusal is not None:
            raise self.refusal

    async def create_conversation(
        self,
        *,
        persona_id: str,
        persona_version_id: str | None,
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation:
        await self._pass(key)
        self.created.append({"persona_id": persona_id, "replacements": dict(replacements)})
        return self.conversations[self.add(external_user_id, persona_id=persona_id, metadata=dict(metadata))]

    async def create_with_model(
        self,
        *,
        model: Model,
        configuration: Mapping[str, Any] | None,
        dataspaces: Sequence[str],
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation:
        await self._pass(key)
        self.created.append({"model": model.name, "replacements": dict(replacements)})
        entry = self.add(external_user_id, persona_id=None, metadata=dict(metadata), model=model.name)
        return self.conversations[entry]

    async def open_chat(
        self, conversation_id: ConversationId, message: str, receiver: ChatReceiver, *, key: KeyLabel
    ) -> PlayedChat:
        await self._pass(key)
        chat = PlayedChat(conversation_id, message, receiver)
        self.chats.append(chat)
        return chat

    async def read_conversation(self, conversation_id: ConversationId, *, key: KeyLabel) -> VendorConversation | None:
        self.reads += 1
        await self._pass(key)
        return self.conversations.get(conversation_id)

    async def score_message(
        self, conversation_id: ConversationId, message_id: str, feedback: Feedback, *, key: KeyLabel
    ) -> VendorConversation:
        await self._pass(key)
        self.scores.append((conversation_id, message_id, feedback))
        return self.conversations[conversation_id]

    async def chat(self, number: int = 0) -> PlayedChat:
        """Wait for a chat to arrive."""
        await until(lambda: len(self.chats) > number)
        return self.chats[number]


class Reading:
    """A connection that writes down what it is given."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.names: list[str] = []
        self.positions: list[int] = []
        self.text = ""
        self.events: list[Any] = []
        self.begun = subscription.position
        self.room = 10**9  # pushes before the connection is over its high-water mark
        self.drains = 0
        self.blocked: asyncio.Event | None = None
        self.task = asyncio.get_running_loop().create_task(subscription.deliver(self))

    def _take(self, batch: Batch) -> None:
        for entry in batch.entries:
            position, event = entry.position, entry.event
            assert position > (self.positions[-1] if self.positions else self.begun)
            self.positions.append(position)
            self.names.append(event.name)
            self.events.append(event)
            if isinstance(event, TextDelta):
                self.text += event.text

    def push(self, batch: Batch, /) -> bool:
        self._take(batch)
        self.room -= 1
        return self.room > 0

    async def write(self, batch: Batch, /) -> None:
        if self.blocked is not None:
            await self.blocked.wait()
        self._take(batch)

    async def drain(self) -> None:
        self.drains += 1
        if self.blocked is not None:
            await self.blocked.wait()

    async def ended(self, within_s: float = PATIENCE_S) -> Any:
        """Wait for the end of the delivery and return the last event."""
        async with asyncio.timeout(within_s):
            await self.task
        return self.events[-1]


class OwnHabits:
    """Habits that one stage has to itself: what one test teaches, no other knows."""

    def __init__(self) -> None:
        self.known = False

    async def finishes(self) -> bool:
        return self.known

    async def saw_finish(self) -> None:
        self.known = True


class Stage:
    """A worker: every service of it, over one store and one played vendor."""

    def __init__(
        self,
        url: str,
        *,
        tenant: str | None = None,
        vendor: PlayedVendor | None = None,
        lease_s: float = 30.0,
        heartbeat_s: float = 1.0,
        interval_s: float = 0.02,
        answer_max_chars: int = 1_000_000,
        message_max_chars: int = 32_000,
        log_ttl_s: float = 100.0,
        plan: Plan | None = None,
        slot_lease_us: int = SLOT_LEASE_US,
        store_timeout_s: float = 2.0,
        call_timeout_s: float = 10.0,
        disconnect: Disconnect | None = None,
        rescue: RescueRules | None = None,
        after_disconnect: AfterDisconnect = "auto",
        settle_after_s: float = 0.01,
        settle_retries_s: Sequence[float] = (0.05,),
        probe_s: float = 0.5,
        listens: bool = True,
        lost_after_s: float = 0.5,
        weight: int = 1,
        plan_limit: PlanLimit = PlanLimit(),  # noqa: B008 - frozen
        vendor_key: KeyLabel | None = None,
        gate_rules: GateRules | None = None,
        minute_us: int = MINUTE_US,
        queue_max: int = 1000,
        prompts: Mapping[str, Prompt] | None = None,
        prices: PriceTable = PriceTable(),  # noqa: B008 - frozen
    ) -> None:
        self.vendor = vendor or PlayedVendor()
        self.store = Redis(url, timeout_s=store_timeout_s, connections=4)
        self.worker = WorkerId(uuid.uuid4().hex)
        self.log = RedisEventLog(
            self.store,
            self.worker,
            lease_s=lease_s,
            turn_timeout_s=60,
            log_ttl_s=log_ttl_s,
            idempotency_ttl_s=100,
            conversation_ttl_s=100,
            ledger_ttl_s=1000,
            settle_after_s=settle_after_s,
            slot_lease_us=slot_lease_us,
        )
        self.cache = RedisConversations(self.store, ttl_s=100)
        self.tenant = Tenant(
            id=TenantId(tenant or f"t-{uuid.uuid4().hex[:12]}"),
            personas={
                "default": Persona(alias="default", persona_id=PERSONA_ID, replacements=frozenset({"name"})),
                "other": Persona(alias="other", persona_id=OTHER_PERSONA_ID),
            },
            plan=plan or GENEROUS,
            disconnect=disconnect or Disconnect(),
            prompts=prompts or {},
            prices=prices,
        )
        self.metrics = Metrics({self.tenant.id: list(self.tenant.personas)})
        # A vendor key is shared by all tenants: a stage has one to itself, unless its tests share it.
        self.key = vendor_key or KeyLabel(f"k-{uuid.uuid4().hex[:12]}")
        self._secrets = tempfile.TemporaryDirectory(prefix="stage-")
        self.give_key(self.key)
        self.keys = KeyRing(KeyFiles(UpstreamSettings(keys_dir=Path(self._secrets.name))))
        self.tenant = dataclasses.replace(self.tenant, vendor_keys=(self.key,), weight=weight)
        self.plan_limit = plan_limit
        self.gate = VendorGate(
            RedisGate(self.store, self.worker, lambda _: self.plan_limit, queue_max=queue_max, minute_us=minute_us),
            self.metrics.vendor_gate,
            gate_rules or GateRules(),
            keys=self.keys,
            limit_of=lambda _: self.plan_limit,
        )
        asked = Vendor(self.vendor, self.keys, self.gate)
        self.limiter = RedisLimiter(self.store, slot_lease_us=slot_lease_us)
        self.admission = admission = Admission(self.limiter, b"pepper", self.metrics)
        self.holdings = Holdings(self.limiter, lease_us=slot_lease_us)
        tenants = {self.tenant.id: self.tenant}
        self.creation_keys = RedisCreationKeys(self.store, ttl_s=100)
        self.creations = Creations(self.cache, self.creation_keys, call_timeout_s=call_timeout_s)
        self.conversations = Conversations(self.cache, asked, admission, self.creations)
        self.roster = Roster(self.store.healthy_s)
        self.showing, self.watches = Showing(self.log), Watches(self.log)
        self.journal = Journal(self.log, interval_s=interval_s, heartbeat_s=heartbeat_s)
        ports = TurnPorts(
            vendor=asked,
            log=self.log,
            journal=self.journal,
            showing=self.showing,
            metrics=self.metrics,
            rules=TurnRules(answer_max_chars=answer_max_chars, message_max_chars=message_max_chars),
        )
        copies = VendorCopies(asked)
        self.habits = OwnHabits()
        after_loss = AfterLoss(after_disconnect, self.habits)
        self.recovery = Recovery(
            ports,
            self.roster,
            self.cache,
            copies,
            after_loss,
            tenants=tenants,
            rules=rescue or RescueRules(timeout_s=0, reads_max=1),
        )
        self.ledger = RedisLedger(self.store, ttl_s=1000, retries_s=settle_retries_s)
        self.accounting = Accounting(self.ledger, self.log, self.cache, copies, after_loss, self.metrics)
        self.inbox = Inbox(self.store, self.worker, probe_s=probe_s)
        self.following = Following(self.log, self.recovery, hears=lambda: self.inbox.hears, lost_after_s=lost_after_s)
        self.roster.on_add = self.following.moved
        self.peers = Peers(self.roster, self.following, self.watches)
        if listens:
            self.inbox.open(self.peers, None, self.gate)
        self.turns = Turns(
            ports,
            self.roster,
            admission=admission,
            conversations=self.conversations,
            recovery=self.recovery,
            watches=self.watches,
            holdings=self.holdings,
        )
        self.subscriptions = Subscriptions(
            roster=self.roster,
            log=self.log,
            following=self.following,
            conversations=self.conversations,
            settling=lambda: self.store.healthy_s() < 2,
        )
        self.feedback = FeedbackService(self.conversations, self.cache, asked, admission, self.metrics)
        self._readings: list[Reading] = []

    async def aclose(self) -> None:
        for reading in self._readings:
            reading.task.cancel()
        await asyncio.gather(*(reading.task for reading in self._readings), return_exceptions=True)
        await self.creations.aclose()
        await self.turns.aclose(grace_s=0)
        await self.gate.aclose()
        await self.holdings.aclose()
        await self.inbox.aclose()
        await self.following.aclose()
        await self.watches.aclose()
        await self.showing.aclose()
        await self.store.aclose()
        self._secrets.cleanup()

    def give_key(self, label: KeyLabel) -> None:
        """Put a vendor key where the ring looks for it."""
        Path(self._secrets.name, label).write_text("key-of-the-stage", "utf-8")

    async def hears(self) -> None:
        """Wait until what other workers say arrives here."""
        await until(lambda: self.inbox.hears)

    def readers(self, turn_id: TurnId) -> int:
        """Return how many read a turn of this worker, as far as it knows: a whole worker elsewhere counts as one."""
        turn = self.roster.find(turn_id)
        return turn.presence.readers if turn is not None else 0

    def user(self, name: str = "u1", *, personas: Sequence[str] | None = None) -> Principal:
        return Principal(
            tenant=self.tenant,
            user_id=UserId(name),
            user_hash=UserHash(f"hash-of-{name}"),
            expires_at_s=time.time() + 900,
            personas=frozenset(personas) if personas is not None else None,
        )

    async def conversation(self, principal: Principal | None = None) -> ConversationId:
        created = await self.conversations.create(
            principal or self.user(), alias="default", replacements={}, metadata={}, address=ADDRESS
        )
        return created.id

    async def start(
        self,
        conversation_id: ConversationId,
        message: str = "Hi",
        *,
        principal: Principal | None = None,
        key: str | None = None,
    ) -> Started:
        return await self.turns.start(
            principal or self.user(), conversation_id, message, idempotency_key=key, address=ADDRESS
        )

    async def read(self, turn_id: TurnId, after: int | None = None, principal: Principal | None = None) -> Reading:
        """Attach a reader that must not be at the ending already."""
        cursor = EventId(turn_id, after) if after is not None else None
        subscription = await self.subscriptions.open(principal or self.user(), turn_id, cursor)
        assert subscription is not None
        reading = Reading(subscription)
        self._readings.append(reading)
        return reading

    async def orphan(self, *texts: str) -> tuple[ConversationId, TurnId]:
        """Leave a turn behind as a lost worker does: claimed, partly saved, its lease run out."""
        conversation_id = await self.conversation()
        turn_id = TurnId(str(uuid.uuid4()))
        owner = self.user().user_hash
        heading = Heading(
            turn_id=turn_id,
            conversation_id=conversation_id,
            owner=owner,
            persona="default",
            message=Message("user", "Hi", turn_id=turn_id),
            body_hash="b",
            idempotency_key=None,
        )
        claim = await self.log.claim(self.tenant.id, heading)
        assert claim.outcome == "started"
        position, entries = 2, [Entry(2, MessageStarted("m-9", "r-9", "assistant"))]
        for text in texts:
            position += len(text)
            entries.append(Entry(position, TextDelta(text)))
        await self.log.append(self.tenant.id, [Append(turn_id, 1, 1, entries)])
        await self.until_unleased(turn_id)
        return conversation_id, turn_id

    async def until_unleased(self, turn_id: TurnId) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (record := await self.log.record(self.tenant.id, turn_id)) is not None and record.leased:
                await asyncio.sleep(0.01)

    async def transcript(self, conversation_id: ConversationId) -> list[Message]:
        found: Conversation | None = await self.cache.get(self.tenant.id, conversation_id)
        assert found is not None
        return found.messages
