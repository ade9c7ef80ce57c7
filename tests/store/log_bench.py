"""What tests of the event log work at: a tenant's conversation, some workers' logs over it, and what these hear."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.conversation import Conversation, ConversationId, Message
from gateway.core.events import ENDING_STATE, Append, Appended, Claim, Ending, Entry, Heading, TurnCompleted, advance
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.ledger import Settlement, Source
from gateway.core.turn import TurnId, Usage
from gateway.store.conversations import RedisConversations
from gateway.store.event_log import RedisEventLog
from gateway.store.redis import INBOX, Keys, Redis

OWNER = UserHash("0f" * 16)
QUESTION = Message("user", "Hi")
USAGE = Usage(1, 2, 3, "reported")
COMPLETED = TurnCompleted("m", "r", "stop", "Hello", USAGE)
NO_ONE = TurnId("00000000-0000-4000-8000-000000000000")
PATIENCE_S = 5.0  # for what must happen; reached only by a failing test


def new_turn() -> TurnId:
    return TurnId(str(uuid.uuid4()))


def new_worker() -> WorkerId:
    return WorkerId(f"w-{uuid.uuid4().hex}")


class Bench:
    """A log, as one worker sees it, with a conversation of one tenant to claim."""

    def __init__(
        self, store: Redis, tenant: TenantId, *, lease_s: float = 30.0, settle_after_s: float = 1000.0
    ) -> None:
        self.store = store
        self.tenant = tenant
        self.keys = Keys(tenant)
        self.conversation = ConversationId(str(uuid.uuid4()))
        self.conversations = RedisConversations(store, ttl_s=500)
        self.worker = new_worker()
        self.log = self.log_of(self.worker, lease_s=lease_s, settle_after_s=settle_after_s)

    def log_of(self, worker: WorkerId, *, lease_s: float = 30.0, settle_after_s: float = 1000.0) -> RedisEventLog:
        """Return the log as a worker sees it."""
        return RedisEventLog(
            self.store,
            worker,
            lease_s=lease_s,
            turn_timeout_s=100,
            log_ttl_s=200,
            idempotency_ttl_s=300,
            conversation_ttl_s=500,
            ledger_ttl_s=600,
            settle_after_s=settle_after_s,
        )

    async def cache(self, **fields: Any) -> None:
        await self.conversations.put(
            self.tenant, Conversation(**{"id": self.conversation, "owner": OWNER, "persona": "default"} | fields)
        )

    async def another_conversation(self) -> None:
        self.conversation = ConversationId(str(uuid.uuid4()))
        await self.cache()

    async def cached(self) -> Conversation:
        """Return the conversation with its transcript, which must be cached."""
        found = await self.conversations.get(self.tenant, self.conversation)
        assert found is not None
        return found

    def heading(
        self, turn: TurnId | None = None, *, key: str | None = None, body: str = "b1", owner: UserHash = OWNER
    ) -> Heading:
        return Heading(
            turn_id=turn or new_turn(),
            conversation_id=self.conversation,
            owner=owner,
            persona="default",
            message=QUESTION,
            body_hash=body,
            idempotency_key=key,
        )

    async def claim(self, key: str | None = None, body: str = "b1", owner: UserHash = OWNER) -> Claim:
        return await self.log.claim(self.tenant, self.heading(key=key, body=body, owner=owner))

    async def begin(self, key: str | None = None) -> Heading:
        """Start a turn and return its heading as its owner keeps it."""
        heading = self.heading(key=key)
        claim = await self.log.claim(self.tenant, heading)
        assert claim.outcome == "started"
        return msgspec.structs.replace(
            heading,
            ordinal=claim.ordinal,
            messages_before=claim.messages_before,
            last_message_id=claim.last_message_id,
        )

    async def turn(self) -> TurnId:
        """Start a turn and return its id."""
        return (await self.begin()).turn_id

    async def append(self, turn: TurnId, *entries: Entry, epoch: int = 1, follows: int | None = None) -> Appended:
        """Append entries that follow each other; ``follows`` is where they do, unless the first tells."""
        append = Append(turn, epoch, _begin(entries) if follows is None else follows, entries)
        (answer,) = await self.log.append(self.tenant, [append])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def finish(
        self,
        turn: TurnId,
        *entries: Entry,
        epoch: int = 1,
        follows: int | None = None,
        messages: Sequence[Message] = (),
        look_up: bool = False,
        log: RedisEventLog | None = None,
    ) -> None:
        ending = entries[-1].event
        assert isinstance(ending, Ending)
        await (log or self.log).finish(
            self.tenant,
            self.conversation,
            turn,
            epoch,
            _begin(entries) if follows is None else follows,
            entries,
            messages,
            self.settlement(turn, ending),
            look_up=look_up,
        )

    def settlement(self, turn: TurnId, ending: Ending = COMPLETED, *, source: Source = "reported") -> Settlement:
        usage = ending.usage
        return Settlement(
            turn_id=turn,
            conversation_id=self.conversation,
            owner=OWNER,
            persona="default",
            state=ENDING_STATE[type(ending)],
            reason="x",
            message_id=ending.message_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            source=source,
            duration_s=1.5,
            ended_at="2026-11-21T20:15:00Z",
        )

    async def all(self, turn: TurnId) -> list[Entry]:
        return await self.log.read(self.tenant, turn, 0, 1000)

    async def lose(self, turn: TurnId) -> None:
        """Have the store lose a turn's record and log, and what stands with them, as in a failover."""
        keys = self.keys
        await self.store.call("DEL", keys.turn(turn), keys.log(turn), keys.followers(turn), keys.running())

    async def until_orphaned(self, turn: TurnId) -> None:
        """Wait until the lease of a turn has run out on the server's clock."""
        async with asyncio.timeout(PATIENCE_S):
            while (record := await self.log.record(self.tenant, turn)) is not None and record.leased:
                await asyncio.sleep(0.01)

    async def now_ms(self) -> int:
        """Return the time on the server's clock."""
        seconds, micros = await self.store.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def ttl_s(self, key: str) -> float:
        """Return how long a key lives yet; negative for one without an end or none at all."""
        return int(await self.store.call("PTTL", key)) / 1000


def _begin(entries: Sequence[Entry]) -> int:
    return entries[0].position - advance(entries[0].event) if entries else 0


class Ear:
    """Hears a worker's channel. ``heard`` returns what was said there up to now, whatever the machine's pace."""

    def __init__(self, store: Redis, worker: WorkerId) -> None:
        self._store = store
        self._channel = INBOX + worker
        self._pubsub = store.pubsub()

    async def __aenter__(self) -> Ear:
        await self._pubsub.subscribe(self._channel)
        assert (await self._next())["type"] == "subscribe"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pubsub.aclose()

    async def heard(self) -> list[Any]:
        await self._store.call("PUBLISH", self._channel, b"END")
        found: list[Any] = []
        while (data := (await self._next())["data"]) != b"END":
            found.append(msgspec.json.decode(data))
        return found

    async def _next(self) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self._pubsub.get_message(timeout=PATIENCE_S)) is None:
                pass
        return message
