"""Conversations that are being created, each in a task of this service: a client that leaves cuts none in half.

With an idempotency key the creation and its repeats, on whatever workers, are one: the first to reserve the key in
the store asks the vendor; on its worker the others share its task, elsewhere they look again every POLL_S.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.core.conversation import Conversation, ConversationStore
from gateway.core.errors import Code, GatewayError
from gateway.core.idempotency import CreationKeys, Reservation
from gateway.core.identity import Principal, TenantId
from gateway.telemetry.logging import event as log_event

logger = logging.getLogger(__name__)

Create = Callable[[], Awaitable[Conversation]]  # asks limits and vendor; raises GatewayError

POLL_S: Final = 0.1
SAVE_S: Final = 8.0  # a store that is away when the vendor has answered is tried again for this long
SAVE_PAUSE_S: Final = 0.25
CLOSE_S: Final = 5.0  # for creations under way when the gateway ends
RESERVED_EXTRA_S: Final = 15.0  # a reservation outlives the vendor's call by the limits' answer and the saving


class Creations:
    """Creates and saves conversations, once for an idempotency key.

    How often the vendor may be asked for one key, at most: once, and once more for each attempt before whose result
    was never known. That is an attempt that failed (what Hyperleap may have made of a call that timed out or broke
    off is known to nobody), and one whose worker died, or lost the store for SAVE_S, before it had written what it
    got: its reservation runs out ``call_timeout_s`` + RESERVED_EXTRA_S after it was made.
    """

    def __init__(self, store: ConversationStore, keys: CreationKeys, *, call_timeout_s: float) -> None:
        self._store = store
        self._keys = keys
        self._call_timeout_s = call_timeout_s
        self._keyed: dict[tuple[TenantId, str, str, str], asyncio.Task[Conversation]] = {}
        self._tasks: set[asyncio.Task[Conversation]] = set()

    async def aclose(self) -> None:
        """Let creations end for CLOSE_S; what is cut off then keeps its key until the reservation runs out."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for task in self._tasks:
            task.cancel()

    async def run(self, principal: Principal, create: Create) -> Conversation:
        """Create a conversation and save it. Safe to cancel: the creation goes on, and the list has it."""
        return await asyncio.shield(self._spawn(principal, create, None))

    async def once(self, principal: Principal, key: str, body_hash: str, create: Create) -> Conversation:
        """Create a conversation, or return the one, as it was created, that this user's key has led to before.

        Waits for a creation under way for ``call_timeout_s`` at most. A creation that fails frees its key before it
        is told. Safe to cancel as ``run``. Raises what ``create`` raises, and GatewayError: idempotency_mismatch,
        idempotency_pending, store_unavailable (nothing was asked of the vendor).
        """
        identity = (principal.tenant.id, principal.user_hash, key, body_hash)
        task = self._keyed.get(identity)
        if task is None:
            reservation = Reservation(principal.user_hash, key, body_hash, uuid.uuid4().hex)
            task = self._keyed[identity] = self._spawn(principal, create, reservation)
            task.add_done_callback(lambda _: self._keyed.pop(identity, None))
        return await asyncio.shield(task)

    def _spawn(
        self, principal: Principal, create: Create, reservation: Reservation | None
    ) -> asyncio.Task[Conversation]:
        task = asyncio.get_running_loop().create_task(self._create(principal.tenant.id, create, reservation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _create(self, tenant: TenantId, create: Create, reservation: Reservation | None) -> Conversation:
        if reservation is not None:
            earlier = await self._reserve(tenant, reservation)
            if earlier is not None:
                return earlier
        try:
            conversation = await create()
        except Exception:
            if reservation is not None:
                await self._free(tenant, reservation)
            raise
        await self._save(tenant, conversation, reservation)
        return conversation

    async def _reserve(self, tenant: TenantId, reservation: Reservation) -> Conversation | None:
        """Return None once the key is ours, or what an earlier request with it has created."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._call_timeout_s
        while True:
            try:
                known = await self._keys.reserve(tenant, reservation, self._call_timeout_s + RESERVED_EXTRA_S)
            except GatewayError:
                await self._free(tenant, reservation)  # it may be reserved, and only the answer be lost
                raise
            if known is None:
                return None
            if known.body_hash != reservation.body_hash:
                raise GatewayError(Code.IDEMPOTENCY_MISMATCH, field="Idempotency-Key")
            if known.conversation is not None:
                return known.conversation
            if loop.time() >= deadline_s:
                raise GatewayError(
                    Code.IDEMPOTENCY_PENDING,
                    "An earlier request with this key is not answered yet; send this one again in a moment.",
                    field="Idempotency-Key",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(POLL_S)

    async def _free(self, tenant: TenantId, reservation: Reservation) -> None:
        try:
            await self._keys.free(tenant, reservation)
        except GatewayError as error:
            log_event(logger, logging.WARNING, "creation.unfreed", tenant=tenant, error=error)  # it runs out by itself

    async def _save(self, tenant: TenantId, conversation: Conversation, reservation: Reservation | None) -> None:
        """Write the conversation and what its key led to, again while the store is away; both writes may be repeated.

        When it stays away the client is answered all the same: the conversation is read back from the vendor later.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SAVE_S
        while True:
            try:
                await self._store.put(tenant, conversation)
                if reservation is not None:
                    await self._keys.keep(tenant, reservation, conversation)
            except GatewayError as error:
                if loop.time() >= deadline_s:
                    log_event(
                        logger,
                        logging.ERROR,
                        "creation.unsaved",
                        tenant=tenant,
                        conversation_id=conversation.id,
                        error=error,
                    )
                    return
                await asyncio.sleep(SAVE_PAUSE_S)
            else:
                return
