"""A worker's knowledge of revocations: taken in however it arrives, and never lost by an outage."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from gateway.core.identity import TenantId, UserHash, WorkerId
from gateway.core.revocation import Holder, Revocation, Revoked
from gateway.services import revocations as revocations_module
from gateway.services.revocations import Revocations
from gateway.store.inbox import Inbox
from gateway.store.redis import Redis
from gateway.store.revocations import REVOKED, RedisRevocations
from tests.services.stage import Stage, until

ADA = UserHash("hash-of-ada")


@pytest.fixture
def acme() -> TenantId:
    return TenantId(f"t-{uuid.uuid4().hex[:12]}")


Make = Callable[..., Revocations]


@pytest.fixture
async def redis(store_url: str) -> AsyncIterator[Redis]:
    client = Redis(store_url, timeout_s=2.0, connections=2)
    yield client
    await client.aclose()


@pytest.fixture
async def make(redis: Redis) -> AsyncIterator[Make]:
    """Make workers' knowledge of one store's revocations; nobody tells them anything."""
    async with AsyncExitStack() as stack:

        def make_one(*, hears: bool = True) -> Revocations:
            revocations = Revocations(RedisRevocations(redis, life_s=100), hears=lambda: hears)
            stack.push_async_callback(revocations.aclose)
            return revocations

        yield make_one


async def test_revocation_is_known_to_a_worker_that_starts_later(make: Make, acme: TenantId) -> None:
    """What was revoked before a worker began is refused by it from its first request."""
    await make().revoke(Revoked.USER, acme, ADA)
    late = make()
    assert not late.cover(Holder(acme, ADA))
    await late.load()
    assert late.cover(Holder(acme, ADA))


async def test_revocation_reaches_a_worker_that_hears_nothing(make: Make, acme: TenantId) -> None:
    """A deaf worker looks once a second, so it refuses within 2 s all the same, and ends what is running."""
    deaf = make(hears=False)
    ended: list[bool] = []
    deaf.on_change.append(lambda: ended.append(deaf.cover(Holder(acme, ADA))))
    deaf.open()
    await deaf.load()
    await make().revoke(Revoked.USER, acme, ADA)
    async with asyncio.timeout(2.0):
        while not any(ended):
            await asyncio.sleep(0.01)


async def test_revocations_missed_are_looked_up_once_word_arrives_again(make: Make, acme: TenantId) -> None:
    """A worker that begins to hear asks for what it missed at once, not at its next look."""
    worker = make()
    ended: list[bool] = []
    worker.on_change.append(lambda: ended.append(True))
    worker.open()
    await make().revoke(Revoked.KEY, acme, "key-1")
    await asyncio.sleep(0)  # its first look may or may not have seen it
    await make().revoke(Revoked.TOKEN, acme, "token-1")
    worker.heard()
    await until(lambda: worker.cover(Holder(acme, ADA, token_id="token-1")))
    await until(lambda: bool(ended))
    assert worker.cover(Holder(acme, ADA, key_id="key-1"))


async def test_revocation_that_the_store_lost_is_kept_again(make: Make, redis: Redis, acme: TenantId) -> None:
    """After a failover the workers that heard of it write it again, so that one that starts later knows it too."""
    worker = make()
    await worker.revoke(Revoked.TOKEN, acme, "token-1")
    await redis.call("DEL", REVOKED)
    await worker.load()
    late = make()
    await late.load()
    assert late.cover(Holder(acme, ADA, token_id="token-1"))


async def test_tenant_let_in_again_while_a_worker_was_deaf_is_let_in_by_it(make: Make, acme: TenantId) -> None:
    """Of a tenant the store alone decides: what it no longer holds is lifted, and not written again."""
    worker, operator = make(), make()
    await worker.revoke(Revoked.TENANT, acme)
    await operator.load()
    assert operator.cover(Holder(acme, ADA))
    assert await operator.lift(acme)
    assert not operator.cover(Holder(acme, ADA))
    assert worker.cover(Holder(acme, ADA))
    await worker.load()
    assert not worker.cover(Holder(acme, ADA))
    assert not await operator.lift(acme)


async def test_revocations_that_come_together_are_carried_out_together(
    make: Make, acme: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at every connection is done once for many revocations; a repeat does nothing."""
    monkeypatch.setattr(revocations_module, "GATHER_S", 0.01)
    worker = make()
    ended: list[int] = []
    worker.on_change.append(lambda: ended.append(1))
    made = await asyncio.gather(*(worker.revoke(Revoked.TOKEN, acme, str(number)) for number in range(200)))
    await until(lambda: bool(ended))
    assert len(ended) <= 5
    count = len(ended)
    for revocation in made:
        worker.revoked(revocation)
    await asyncio.sleep(0.05)
    assert len(ended) == count


async def test_turn_of_one_who_was_revoked_while_it_began_is_stopped(stage: Stage) -> None:
    """Word that arrives between a request's proof and its turn's beginning is not missed."""
    ada, bob = stage.user("ada"), stage.user("bob")
    stage.turns.revoked = lambda holder: holder.user == ada.user_hash
    hers = await stage.start(await stage.conversation(ada), principal=ada)
    ending = await (await stage.read(hers.turn_id, principal=ada)).ended()
    assert (ending.name, ending.reason) == ("turn.stopped", "revoked")
    his = await stage.start(await stage.conversation(bob), "Hi from Bob", principal=bob)
    await until(lambda: any(chat.message == "Hi from Bob" for chat in stage.vendor.chats))
    stage.vendor.chats[-1].complete("Hello")
    assert (await (await stage.read(his.turn_id, principal=bob)).ended()).name == "turn.completed"


async def test_turns_of_the_revoked_are_stopped_and_no_others(stage: Stage) -> None:
    """A turn goes with the token that started it; the same user's other turns go on."""
    first, second = (replace(stage.user(), token_id=name) for name in ("token-1", "token-2"))
    started = [
        await stage.start(await stage.conversation(principal), principal=principal) for principal in (first, second)
    ]
    chats = [await stage.vendor.chat(number) for number in range(2)]
    stage.turns.revoked = lambda holder: holder.token_id == "token-1"
    stage.turns.stop_revoked()
    ending = await (await stage.read(started[0].turn_id)).ended()
    assert (ending.name, ending.reason) == ("turn.stopped", "revoked")
    await until(lambda: chats[0].cancelled)
    assert not chats[1].cancelled
    chats[1].complete("Hello")
    assert (await (await stage.read(started[1].turn_id)).ended()).name == "turn.completed"


class Told:
    """A RevocationHearer that writes down what it is told."""

    def __init__(self) -> None:
        self.heard_times = 0
        self.words: list[str] = []

    def revoked(self, revocation: Revocation, /) -> None:
        self.words.append(f"{revocation.what} {revocation.tenant} {revocation.id}")

    def lifted(self, tenant: TenantId, /) -> None:
        self.words.append(f"lifted {tenant}")

    def heard(self) -> None:
        self.heard_times += 1


async def test_inbox_tells_when_it_begins_to_hear_and_what(stage: Stage, make: Make, acme: TenantId) -> None:
    """Whenever the channel is heard (again) that is told, so that what was missed is looked up; then every word."""
    told = Told()
    inbox = Inbox(stage.store, WorkerId(uuid.uuid4().hex), probe_s=0.2)
    inbox.open(stage.peers, told)
    await until(lambda: told.heard_times == 1)
    operator = make()
    await operator.revoke(Revoked.USER, acme, ADA)
    await operator.lift(acme)
    await until(lambda: len(told.words) == 2)
    assert told.words == [f"user {acme} {ADA}", f"lifted {acme}"]
    await stage.store.call("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: told.heard_times == 2)
    await inbox.aclose()


class Slow(RedisRevocations):
    """A store whose answer is read at once and arrives when the test lets it."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, life_s=100)
        self.answered, self.arrive = asyncio.Event(), asyncio.Event()

    async def load(self) -> list[Revocation]:
        kept = await super().load()
        self.answered.set()
        await self.arrive.wait()
        return kept


@pytest.mark.parametrize("out_at_first", [True, False])
async def test_word_that_overtakes_a_look_is_not_undone_by_it(
    make: Make, redis: Redis, acme: TenantId, out_at_first: bool
) -> None:
    """A tenant that is shut out, or let in, while an older answer is on its way stays so."""
    operator, store = make(), Slow(redis)
    if out_at_first:
        await operator.revoke(Revoked.TENANT, acme)
    worker = Revocations(store, hears=lambda: True)
    looking = asyncio.create_task(worker.load())
    await store.answered.wait()
    if out_at_first:
        await operator.lift(acme)
        worker.lifted(acme)
    else:
        worker.revoked(await operator.revoke(Revoked.TENANT, acme))
    store.arrive.set()
    await looking
    assert worker.cover(Holder(acme, ADA)) is not out_at_first
    await worker.aclose()
    await operator.lift(acme)


@pytest.mark.parametrize("ticks", range(8))
async def test_end_in_the_moment_of_word_ends_the_look(make: Make, ticks: int) -> None:
    """However word and the worker's end fall together, the task that looks ends with the worker."""
    worker = make()
    worker.open()
    await until(lambda: bool(worker._look._waiters))
    worker.heard()
    for _ in range(ticks):
        await asyncio.sleep(0)
    closing = asyncio.create_task(worker.aclose())
    done, _ = await asyncio.wait({closing}, timeout=5)
    assert done
