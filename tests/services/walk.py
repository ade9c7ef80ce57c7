"""A walk over turns, workers and readers, and the model of what every reader, the log and the ledger must hold then.

    async with Walk.open(store_url) as walk:
        for step in steps:
            await walk.take(step)
        await walk.arrive()

A step names what happens and carries numbers that choose to whom, modulo how many there are, so any list of steps is
a walk and every part of one is, too. ``arrive`` ends what still runs and checks everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.events import Entry, EventId, TextDelta, is_ending
from gateway.core.turn import AnswerItem, StopReason, TurnId
from tests.services.stage import PlayedChat, PlayedVendor, Reading, Stage, until

NAMES: Final = (
    *("start", "say", "extra", "cite", "finish", "error", "stop"),
    *("open", "open_at", "move", "slow", "recover", "leave", "wait"),
    *("lose", "trim", "deafen", "hear", "cut", "fence_whole", "fence_lost"),
)
WORKERS, TURNS_MAX = 3, 3
CAP: Final = 5_000
PATIENCE_S: Final = 5.0
WORDS: Final = ("Hello ", "Zoë 👩‍👩‍👧 ", "你好", "a", "\n\n", "and so on, and so on, ")
PACE_S: Final = (0, 0, 0.004)  # between steps: at once, or after what was said has gone round
TAIL: Final = "and the end."
Token = tuple[int, str]  # a position, and the character or the event's name there


class Step(NamedTuple):
    """What happens, to which of the turns or readers, on which of the workers, and how."""

    name: str
    whom: int
    where: int
    how: int


class Deaf:
    """Hears nothing of what arrives."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@dataclass(eq=False)
class ModelTurn:
    """One turn as it must be: ``tokens`` is the log of an owner that is never fenced, without its ending."""

    turn_id: TurnId
    conversation_id: ConversationId
    message: str
    owner: Stage
    chat: PlayedChat
    tokens: list[Token] = field(default_factory=lambda: [(1, "turn.started")])
    announced: bool = False
    ending: str | None = None  # the name of the ending that must come
    fenced: bool = False
    copy: str | None = None  # what the vendor has of a fenced turn's answer

    @property
    def text(self) -> str:
        return "".join(token for _, token in self.tokens if len(token) == 1)

    def add(self, *tokens: str) -> None:
        for token in tokens:
            self.tokens.append((self.tokens[-1][0] + 1, token))


@dataclass(eq=False)
class ModelReader:
    """One person who reads a turn, over as many connections as it takes. ``start`` is the cursor at the beginning."""

    turn: ModelTurn
    start: int
    reading: Reading | None
    tokens: list[Token] = field(default_factory=list)
    gone: bool = False

    @property
    def position(self) -> int:
        reached = self.reading.positions if self.reading is not None else []
        return reached[-1] if reached else self.tokens[-1][0] if self.tokens else self.start

    def bank(self) -> None:
        """Take over what the connection has brought."""
        if self.reading is not None:
            self.tokens += spread(
                [Entry(*one) for one in zip(self.reading.positions, self.reading.events, strict=True)]
            )
            self.reading = None


def spread(entries: list[Entry]) -> list[Token]:
    """Tell a log by single positions, so that it does not matter how deltas were merged or cut."""
    tokens: list[Token] = []
    for entry in entries:
        position, event = entry.position, entry.event
        if isinstance(event, TextDelta):
            begin = position - len(event.text) + 1
            tokens += [(begin + at, character) for at, character in enumerate(event.text)]
        else:
            tokens.append((position, event.name))
    return tokens


class Walk:
    """Three workers over one store and one vendor, and the model beside them."""

    def __init__(self, workers: list[Stage]) -> None:
        self.workers = workers
        self.vendor = workers[0].vendor
        self.user = workers[0].user()
        self.turns: list[ModelTurn] = []
        self.readers: list[ModelReader] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Walk]:
        vendor = PlayedVendor()
        workers: list[Stage] = []
        for _ in range(WORKERS):
            tenant = workers[0].tenant.id if workers else None
            workers.append(
                Stage(
                    url,
                    tenant=tenant,
                    vendor=vendor,
                    heartbeat_s=0.1,
                    answer_max_chars=CAP,
                    after_disconnect="finishes",
                    lost_after_s=PATIENCE_S,
                )
            )
        try:
            for worker in workers:
                await worker.hears()
            yield cls(workers)
        finally:
            for worker in workers:
                await worker.aclose()

    async def take(self, step: Step) -> None:
        """Let a step happen; one that has nobody to happen to is passed over."""
        if step.name == "start" or not self.turns:
            await self._start(self._worker(step.where))
            return
        if step.name in ("deafen", "hear", "cut", "wait"):
            await self._take_worker(step)
        elif step.name in ("open", "open_at"):
            await self._open(self._turn(step.whom), self._worker(step.where), step.how if step.name != "open" else None)
        elif step.name in ("move", "slow", "recover", "leave"):
            present = [reader for reader in self.readers if reader.reading is not None]
            if present:
                await self._take_reader(step, present[step.whom % len(present)])
        else:
            await self._take_turn(step, self._turn(step.whom))
        await asyncio.sleep(PACE_S[step.how % len(PACE_S)])

    def _worker(self, number: int) -> Stage:
        return self.workers[number % WORKERS]

    def _turn(self, number: int) -> ModelTurn:
        return self.turns[number % len(self.turns)]

    # --- turns ---------------------------------------------------------------------------------------------------

    async def _start(self, worker: Stage) -> None:
        if len(self.turns) == TURNS_MAX:
            return
        conversation_id, message = await worker.conversation(), f"Question {len(self.turns)}"
        chats = len(self.vendor.chats)
        started = await worker.start(conversation_id, message)
        chat = await self.vendor.chat(chats)
        self.turns.append(ModelTurn(started.turn_id, conversation_id, message, worker, chat))

    async def _take_turn(self, step: Step, turn: ModelTurn) -> None:
        if turn.ending is not None:
            return
        match step.name:
            case "say":
                text = WORDS[step.how % len(WORDS)] * (1 + step.how % 3)
                self._announce(turn)
                turn.add(*text)
                turn.chat.say(text)
            case "extra":
                turn.add("message.extra")
                turn.chat.say(AnswerItem("{}", "m-1", "r-1", role="tool", name="search"))
            case "cite":
                self._announce(turn)
                turn.add("message.citations")
                turn.chat.say(AnswerItem(None, "m-1", "r-1", role="assistant", citations=[{"index": "1"}]))
            case "finish":
                self._announce(turn)
                turn.chat.complete()
                turn.ending = "turn.completed"
            case "error":
                turn.chat.end(GatewayError(Code.UPSTREAM_RESET))
                turn.ending = "turn.failed"
            case "stop":
                await self._stop(turn, self._worker(step.where))
            case "lose":
                await self._store("DEL", self._key("turn", turn), self._key("log", turn), self._key("followers", turn))
            case "trim":
                await self._trim(turn, 1 + step.how % 4)
            case "fence_whole" | "fence_lost":
                others = [worker for worker in self.workers if worker is not turn.owner]
                await self._fence(turn, others[step.where % len(others)], whole=step.name == "fence_whole")
            case _:
                raise AssertionError(step)

    def _announce(self, turn: ModelTurn) -> None:
        if not turn.announced:
            turn.announced = True
            turn.add("message.started")

    async def _stop(self, turn: ModelTurn, worker: Stage) -> None:
        turn.ending = "turn.stopped"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await worker.turns.stop(self.user, turn.turn_id, StopReason.USER)
                    break
                except GatewayError as error:  # the store has lost the turn, and its owner has not noticed yet
                    if error.code is not Code.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.01)
        await until(lambda: turn.chat.cancelled)

    async def _trim(self, turn: ModelTurn, count: int) -> None:
        """Take the newest entries out of the log, as a failover to a replica that lagged does."""
        key = self._key("log", turn)
        newest = await self._store("XREVRANGE", key, "+", "-", "COUNT", count + 1)
        if len(newest) > count:
            await asyncio.gather(
                self._store("XDEL", key, *(one[0] for one in newest[:count])), self._store("XSETID", key, newest[-1][0])
            )

    async def _fence(self, turn: ModelTurn, rescuer: Stage, *, whole: bool) -> None:
        """Have another worker take the turn from its owner, who stands still for longer than its lease."""
        owned = turn.owner.roster.find(turn.turn_id)
        assert owned is not None
        live = owned.live
        # What other workers were shown after the store had it, and the store then lost, only its owner can write again.
        async with asyncio.timeout(PATIENCE_S):
            while live.holding or await self._lacks(turn, live.saved_position):
                await asyncio.sleep(0.01)
        turn.fenced = True
        turn.ending = "turn.completed" if whole else "turn.failed"
        if whole:
            turn.copy = turn.text + TAIL
            self._keep(turn, turn.copy)
        rescuer.store.healthy_s = lambda key=None: math.inf  # type: ignore[method-assign]  # the outage is long over
        async with asyncio.timeout(PATIENCE_S):
            while not await rescuer.recovery.recover(rescuer.tenant.id, turn.turn_id):
                record = await rescuer.log.record(rescuer.tenant.id, turn.turn_id)
                if record is not None and (record.epoch > 1 or record.state.ended):
                    break  # a reader's worker was there first
                await rescuer.store.call("HSET", self._key("turn", turn), "lease", 0)

    async def _lacks(self, turn: ModelTurn, position: int) -> bool:
        newest = await self._store("XREVRANGE", self._key("log", turn), "+", "-", "COUNT", 1)
        return not newest or int(newest[0][0].split(b"-")[0]) < position

    def _keep(self, turn: ModelTurn, text: str) -> None:
        known = self.vendor.conversations[turn.conversation_id]
        answer = Message(
            *("assistant", text, "m-1", "r-1"), prompt_tokens=1, completion_tokens=len(text), total_tokens=len(text) + 1
        )
        messages = [Message("user", turn.message), answer]
        self.vendor.conversations[turn.conversation_id] = msgspec.structs.replace(known, messages=messages)

    # --- workers -------------------------------------------------------------------------------------------------

    async def _take_worker(self, step: Step) -> None:
        worker = self._worker(step.where)
        match step.name:
            case "deafen":
                worker.inbox._hearer = Deaf()
            case "hear":
                worker.inbox._hearer = worker.peers
            case "cut":
                await self._store("CLIENT", "KILL", "TYPE", "pubsub")
            case _:
                await asyncio.sleep(0.005 * (1 + step.how % 10))

    async def _store(self, *command: str | int | bytes) -> Any:
        return await self.workers[0].store.call(*command)

    def _key(self, kind: str, turn: ModelTurn) -> str:
        return f"hg:{{{self.workers[0].tenant.id}}}:{kind}:{turn.turn_id}"

    # --- readers -------------------------------------------------------------------------------------------------

    async def _open(self, turn: ModelTurn, worker: Stage, how: int | None) -> None:
        """Come with no cursor, or with one that somebody has reached."""
        reached = sorted({reader.position for reader in self.readers if reader.turn is turn} or {0})
        start = 0 if how is None else reached[how % len(reached)]
        reader = ModelReader(turn, start, None)
        self.readers.append(reader)
        await self._connect(reader, worker)

    async def _connect(self, reader: ModelReader, worker: Stage) -> None:
        position = reader.position
        cursor = EventId(reader.turn.turn_id, position) if position else None
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    subscription = await worker.subscriptions.open(self.user, reader.turn.turn_id, cursor)
                    break
                except GatewayError as error:  # as in _stop
                    if error.code is not Code.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.01)
        if subscription is not None:
            reader.reading = Reading(subscription)
            worker._readings.append(reader.reading)

    async def _take_reader(self, step: Step, reader: ModelReader) -> None:
        reading = reader.reading
        assert reading is not None
        match step.name:
            case "move" | "leave":
                if step.how % 2:
                    reading.subscription.leave()
                else:
                    reading.task.cancel()
                self._unblock(reading)
                await asyncio.wait([reading.task])
                reader.bank()
                if step.name == "move":
                    await self._connect(reader, self._worker(step.where))
                else:
                    reader.gone = True
            case "slow":
                reading.room = step.how % 3
                reading.blocked = reading.blocked or asyncio.Event()
            case _:
                self._unblock(reading)

    def _unblock(self, reading: Reading) -> None:
        reading.room = 10**9
        if reading.blocked is not None:
            reading.blocked.set()
            reading.blocked = None

    # --- the end -------------------------------------------------------------------------------------------------

    async def arrive(self) -> None:
        """End what still runs, wait for everybody, and check what each of them holds."""
        for worker in self.workers:
            worker.inbox._hearer = worker.peers
        for turn in self.turns:
            await self._take_turn(Step("finish", 0, 0, 0), turn)
        for reader in self.readers:
            if reader.reading is not None:
                self._unblock(reader.reading)
        for reader in self.readers:
            if reader.reading is not None:
                async with asyncio.timeout(PATIENCE_S):
                    await reader.reading.task
                reader.bank()
        async with asyncio.timeout(PATIENCE_S):
            while any(worker.turns.running for worker in self.workers):
                await asyncio.sleep(0.005)
        for turn in self.turns:
            await self._check(turn)
        await self._check_ledger()

    async def _check(self, turn: ModelTurn) -> None:
        entries = await self.workers[0].log.read(self.workers[0].tenant.id, turn.turn_id, 0, 100_000)
        log = spread(entries)
        positions = [position for position, _ in log]
        assert positions == sorted(set(positions))
        assert [entry.event.name for entry in entries if is_ending(entry.event)] == [turn.ending]
        assert entries[-1].event.name == turn.ending
        text = "".join(token for _, token in log if len(token) == 1)
        assert text == getattr(entries[-1].event, "text", None)
        ahead: list[Token] = []  # what readers may have been shown beyond a log whose owner was fenced
        if not turn.fenced:
            assert log == [*turn.tokens, (turn.tokens[-1][0] + 1, turn.ending)]
        elif turn.copy is not None:
            assert text == turn.copy
        else:
            assert turn.text.startswith(text)
            ahead = [token for token in turn.tokens if positions[-2] < token[0]]
        for reader in self.readers:
            if reader.turn is turn:
                self._check_reader(reader, log, ahead)
        messages = await self.workers[0].transcript(turn.conversation_id)
        assert [(message.role, message.content) for message in messages] == [
            ("user", turn.message),
            ("assistant", text),
        ]

    def _check_reader(self, reader: ModelReader, log: list[Token], ahead: list[Token]) -> None:
        shown = [token for token in reader.tokens if token in ahead]
        assert shown == [token for token in ahead if reader.start < token[0]][: len(shown)]
        due = [token for token in log if token[0] > reader.start]
        got = [token for token in reader.tokens if token not in ahead]
        assert got == (due[: len(got)] if reader.gone else due)

    async def _check_ledger(self) -> None:
        worker = self.workers[0]
        async with asyncio.timeout(PATIENCE_S):
            while await self._store("ZCARD", f"hg:{{{worker.tenant.id}}}:usage:unsettled"):
                await asyncio.gather(*(one.accounting.sweep(one.tenant) for one in self.workers))
                await asyncio.sleep(0.005)
        settled = [one.turn_id for _, one in await worker.ledger.settled(worker.tenant.id, None, 1000)]
        assert sorted(settled) == sorted(turn.turn_id for turn in self.turns)
