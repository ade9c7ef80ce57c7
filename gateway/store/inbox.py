"""What workers tell each other: one channel a worker, one subscriber connection, and a probe that it still hears.

Nothing here is the only way a fact travels: a stop is also a flag, a deleted lease also runs out, events are also in
the log. A message that is lost costs time, never an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from gateway.core.conversation import ConversationId
from gateway.core.errors import GatewayError
from gateway.core.events import Entry, Hearer, Shown
from gateway.core.gate import GateHearer, State
from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.live_turns import ReadersHearer
from gateway.core.revocation import Revocation, RevocationHearer, Revoked
from gateway.core.tenancy import TenantHearer
from gateway.core.turn import StopReason, TurnId
from gateway.core.vendor_keys import KeyLabel
from gateway.protocol.native import decode_event, encode_data
from gateway.store.redis import ALL, INBOX, Redis
from gateway.telemetry.families import Families
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.telemetry.store import StoreMetrics

logger = logging.getLogger(__name__)

RETRY_MAX_S: Final = 1.0
LAST_LOOK_S: Final = 0.005  # for what is there already; a loop that was blocked needs a turn or two to hand it over
SHOWN: Final = b'["shown",'

_message: Final = msgspec.json.Decoder(list[Any])
_entries: Final = msgspec.json.Decoder(list[tuple[str, int, list[tuple[int, str, msgspec.Raw]]]])


def encode_shown(shown: Sequence[Shown]) -> bytes:
    """Encode events of some turns as one message: ``["shown",[[turn id, after, [[position, name, data], …]], …]]``."""
    turns = [
        (
            turn_id,
            after,
            [(entry.position, entry.event.name, msgspec.Raw(encode_data(entry.event))) for entry in entries],
        )
        for turn_id, after, entries in shown
    ]
    return SHOWN + msgspec.json.encode(turns) + b"]"


def decode_shown(message: bytes) -> list[Shown]:
    """Read what ``encode_shown`` wrote; raises KeyError or msgspec.DecodeError on what this version never wrote."""
    return [
        Shown(
            TurnId(turn_id),
            after,
            [Entry(position, decode_event(name, bytes(data))) for position, name, data in entries],
        )
        for turn_id, after, entries in _entries.decode(memoryview(message)[len(SHOWN) : -1])
    ]


class Inbox:
    """This worker's channel, and that of all workers. ``open`` it once, ``aclose`` it at the end; it mends itself.

    Every ``probe_s`` it sends itself a message through the connection of commands. One that does not come back means
    a server that is up but deaf (a subscription lost in a failover): the inbox subscribes anew, and says ``deaf``
    until it hears again. The time until a deaf server is noticed is two probes at most.
    """

    def __init__(self, redis: Redis, worker: WorkerId, *, probe_s: float, metrics: StoreMetrics | None = None) -> None:
        self._redis = redis
        self._metrics = metrics or StoreMetrics(Families())
        self._channel = INBOX + worker
        self._probe_s = probe_s
        self._hearer: Hearer
        self._revocations: RevocationHearer | None = None
        self._gates: GateHearer | None = None
        self._tenants: TenantHearer | None = None
        self._readers: ReadersHearer | None = None
        self._task: asyncio.Task[None] | None = None
        self._probe = b""
        self._probed_at_s = 0.0
        self.hears = False
        self._cut = self._closing = False

    def open(
        self,
        hearer: Hearer,
        revocations: RevocationHearer | None = None,
        gates: GateHearer | None = None,
        tenants: TenantHearer | None = None,
        readers: ReadersHearer | None = None,
    ) -> None:
        """Begin to listen, in a task."""
        self._hearer = hearer
        self._gates = gates
        self._revocations = revocations
        self._tenants = tenants
        self._readers = readers
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Safe to repeat."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        retry_s = 0.05
        while not self._closing:
            pubsub = self._redis.pubsub()
            try:
                await pubsub.subscribe(self._channel, ALL)
                await self._listen(pubsub)
            except (RedisError, OSError, TimeoutError) as error:
                self._redis.note_failure()
                throttled(logger, "inbox.lost", error=error)
            except Exception:  # a mistake of ours must not leave the worker deaf
                logger.exception("inbox.crashed")
            finally:
                if self._probe and not self._closing:
                    self._metrics.probe_missed("lost")
                self._probe = b""
                if self.hears:
                    self.hears = False
                    self._metrics.hearing_changed(hears=False)
                    self._cut = True
                    retry_s = 0.05
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()
            await asyncio.sleep(random.uniform(retry_s / 2, retry_s))  # noqa: S311 - spreads load
            retry_s = min(retry_s * 2, RETRY_MAX_S)

    async def _listen(self, pubsub: Any) -> None:
        """Hear messages; returns when a probe did not come back."""
        loop = asyncio.get_running_loop()
        await self._send_probe()
        while True:
            due_s = self._probed_at_s + self._probe_s
            begun_s = loop.time()
            message = await pubsub.get_message(
                ignore_subscribe_messages=True, timeout=max(LAST_LOOK_S, due_s - begun_s)
            )
            if message is not None:
                self._take(message["data"])
            if message is not None or begun_s < due_s:
                continue  # a busy worker reads all that has come before it takes itself for deaf
            if self._probe:
                throttled(logger, "inbox.deaf")
                return
            await self._send_probe()

    async def _send_probe(self) -> None:
        self._probe = uuid.uuid4().hex.encode()
        self._probed_at_s = asyncio.get_running_loop().time()
        # A store that does not take the probe shows elsewhere; the subscription is judged once it does.
        with contextlib.suppress(GatewayError):
            await self._redis.call("PUBLISH", self._channel, b'["probe","%b"]' % self._probe)
            return
        self._probe = b""
        self._metrics.probe_missed("unsent")

    def _take(self, data: bytes) -> None:
        try:
            if data.startswith(SHOWN):
                for shown in decode_shown(data):
                    self._hearer.shown(shown)
                return
            kind, *words = _message.decode(data)
            match kind, words:
                case "probe", [str(word)]:
                    if word.encode() == self._probe:
                        self._probe = b""
                        self._metrics.probe_delivered(asyncio.get_running_loop().time() - self._probed_at_s)
                        if not self.hears:
                            self.hears = True
                            self._metrics.hearing_changed(hears=True)
                            log_event(logger, logging.INFO, "inbox.hears")
                            if self._cut:
                                self._hearer.heard_again()
                            if self._revocations is not None:
                                self._revocations.heard()
                            if self._tenants is not None:
                                self._tenants.heard()
                case "stop", [str(turn_id), str(reason)]:
                    self._hearer.stop_asked(TurnId(turn_id), StopReason(reason))
                case "followers", [str(turn_id), str(workers)]:
                    self._hearer.followers_changed(TurnId(turn_id), [WorkerId(name) for name in workers.split()])
                case "began", [str(tenant), str(conversation_id), str(turn_id), str(owner)]:
                    self._hearer.turn_began(
                        TenantId(tenant), ConversationId(conversation_id), TurnId(turn_id), UserHash(owner)
                    )
                case "revoked", [str(what), str(tenant), str(id_), str(at_s), str(until_s)]:
                    if self._revocations is not None:
                        revocation = Revocation(Revoked(what), TenantId(tenant), id_, float(at_s), float(until_s))
                        self._revocations.revoked(revocation)
                case "lifted", [str(tenant)]:
                    if self._revocations is not None:
                        self._revocations.lifted(TenantId(tenant))
                case "passed", [str(label), str(ids), str(probe)]:
                    if self._gates is not None:
                        self._gates.passed(KeyLabel(label), ids.split(), probe)
                case "gate", [str(label), str(state)]:
                    if self._gates is not None:
                        self._gates.changed(KeyLabel(label), State(state))
                case "tenants", [str()]:
                    if self._tenants is not None:
                        self._tenants.tenants_changed()
                case "readers?", [str(asker), str(ids)]:
                    if self._readers is not None:
                        self._readers.readers_asked(WorkerId(asker), [TurnId(turn_id) for turn_id in ids.split()])
                case "readers", [dict(counts)]:
                    if self._readers is not None:
                        self._readers.readers_told({TurnId(turn_id): int(count) for turn_id, count in counts.items()})
                case _:
                    throttled(logger, "inbox.misunderstood", kind=str(kind)[:32])
        except (msgspec.DecodeError, KeyError, ValueError, RecursionError) as error:
            # Another version's word, in the middle of a roll. What it says arrives on its other way.
            throttled(logger, "inbox.misunderstood", error=error)
