"""Creating under an idempotency key: all repeats get the one conversation, and a failure frees the key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.core.conversation import Conversation
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.plan import Plan, ScopeLimits
from gateway.services import creations as creations_module
from gateway.services.creations import RESERVED_EXTRA_S
from gateway.store.embedded import EmbeddedValkey
from gateway.store.redis import Keys
from tests.services.conftest import SetStage
from tests.services.stage import ADDRESS, PATIENCE_S, Stage, until


async def create(stage: Stage, principal: Principal | None = None, key: str | None = "k", **body: Any) -> Conversation:
    wanted: dict[str, Any] = {"alias": "default", "replacements": {}, "metadata": {}, **body}
    async with asyncio.timeout(PATIENCE_S):
        return await stage.conversations.create(
            principal or stage.user(), **wanted, address=ADDRESS, idempotency_key=key
        )


async def refused(code: Code, work: Any) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work
    assert error.value.code is code
    return error.value


@pytest.fixture
async def two(set_stage: SetStage) -> tuple[Stage, Stage]:
    """Two workers of one tenant, on one store, before one vendor."""
    first = set_stage()
    return first, set_stage(tenant=first.tenant.id, vendor=first.vendor)


async def reserved(stage: Stage) -> None:
    """Wait until the key is reserved."""
    async with asyncio.timeout(PATIENCE_S):
        while not await stage.store.call("EXISTS", record_key(stage)):
            await asyncio.sleep(0.002)


async def lose_worker(stage: Stage, life_s: float) -> None:
    """Leave a key as a worker does that ends between its reservation and the vendor's answer; it runs out soon."""
    gate, stage.vendor.gate = stage.vendor.gate, asyncio.Event()
    creating = asyncio.ensure_future(create(stage))
    await reserved(stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creations_module, "CLOSE_S", 0.0)
        await stage.creations.aclose()
    await asyncio.gather(creating, return_exceptions=True)
    assert creating.cancelled()
    stage.vendor.gate = gate
    assert await stage.store.call("PEXPIRE", record_key(stage), int(life_s * 1000)) == 1


def record_key(stage: Stage) -> str:
    return Keys(stage.tenant.id).creation(stage.user().user_hash, "k")


# --- the one conversation -----------------------------------------------------------------------------------------


async def test_create_again_with_the_key_returns_the_same_on_any_worker(two: tuple[Stage, Stage]) -> None:
    """The repeat gets what the first got, member by member, and the vendor is asked once."""
    first, second = two
    created = await create(first, metadata={"a": [1, None]}, replacements={"name": "Zoë"})
    for stage in two:
        assert await create(stage, metadata={"a": [1, None]}, replacements={"name": "Zoë"}) == created
    await first.store.call("DEL", Keys(first.tenant.id).conversation(created.id))
    assert await create(second, metadata={"a": [1, None]}, replacements={"name": "Zoë"}) == created
    assert (len(first.vendor.created), first.vendor.reads) == (1, 0)


async def test_create_at_once_on_two_workers_asks_the_vendor_once(two: tuple[Stage, Stage]) -> None:
    """While the first waits for the vendor the others wait for it, here and elsewhere, and get its conversation."""
    first, second = two
    gate = first.vendor.gate = asyncio.Event()
    asking = [asyncio.ensure_future(create(stage)) for stage in two for _ in range(10)]
    await asyncio.sleep(2.5 * creations_module.POLL_S)  # the others have looked, and looked again
    assert not any(task.done() for task in asking)
    gate.set()
    assert len({conversation.id for conversation in await asyncio.gather(*asking)}) == 1
    assert len(first.vendor.created) == 1
    assert len((await second.conversations.list(second.user(), None, 10))[0]) == 1


@pytest.mark.parametrize("body", [{"alias": "other"}, {"replacements": {"name": "x"}}, {"metadata": {"a": 1}}])
async def test_create_with_the_key_of_another_body_is_refused(two: tuple[Stage, Stage], body: dict[str, Any]) -> None:
    """Another persona, replacement or metadata under the same key is a mismatch, during the creation and after it."""
    first, second = two
    gate = first.vendor.gate = asyncio.Event()
    creating = asyncio.ensure_future(create(first))
    await reserved(first)
    for stage in two:
        assert (await refused(Code.IDEMPOTENCY_MISMATCH, create(stage, **body))).field == "Idempotency-Key"
    gate.set()
    created = await creating
    for stage in two:
        await refused(Code.IDEMPOTENCY_MISMATCH, create(stage, **body))
    assert await create(second) == created
    assert len(first.vendor.created) == 1


async def test_create_with_the_same_body_in_other_words_is_a_repeat(stage: Stage) -> None:
    """The order of members and the way a number is written are no difference; a number and its text are."""
    metadata = {"a": 1, "b": {"c": [1.0, 2.5, 1e300], "d": "é"}}
    created = await create(stage, metadata=metadata)
    assert await create(stage, metadata={"b": {"d": "é", "c": [1, 2.5, 1e300]}, "a": 1.0}) == created
    await refused(Code.IDEMPOTENCY_MISMATCH, create(stage, metadata=metadata | {"a": "1"}))
    await refused(Code.IDEMPOTENCY_MISMATCH, create(stage, metadata=metadata | {"a": True}))


async def test_create_with_the_key_of_another_user_or_tenant_is_another(set_stage: SetStage) -> None:
    """A key belongs to one user of one tenant."""
    stage = set_stage()
    elsewhere = set_stage(vendor=stage.vendor)
    made = [
        await create(stage),
        await create(stage, stage.user("u2")),
        await create(elsewhere),
        await create(stage, key="K"),
    ]
    assert len({conversation.id for conversation in made}) == 4


async def test_create_without_a_key_always_creates(stage: Stage) -> None:
    """Nothing is remembered of a creation without a key."""
    assert (await create(stage, key=None)).id != (await create(stage, key=None)).id


@pytest.mark.parametrize("key", ["", "k" * 256, "a\nb", "k\udce9"])
async def test_create_with_an_unusable_key_is_refused(stage: Stage, key: str) -> None:
    """A key has 1 to 255 printable characters, as a turn's has, in the same words."""
    conversation = await stage.conversation()
    error = await refused(Code.INVALID_VALUE, create(stage, key=key))
    of_turn = await refused(Code.INVALID_VALUE, stage.start(conversation, key=key))
    assert (error.field, error.detail) == (of_turn.field, of_turn.detail) == ("Idempotency-Key", of_turn.detail)
    assert len(stage.vendor.created) == 1


async def test_create_keeps_the_key_for_its_time(stage: Stage) -> None:
    """A result is remembered for the setting's time; a reservation only a little longer than the vendor may take."""
    gate = stage.vendor.gate = asyncio.Event()
    creating = asyncio.ensure_future(create(stage))
    while not (life_ms := await stage.store.call("PTTL", record_key(stage))) > 0:
        await asyncio.sleep(0.002)
    assert 10 < life_ms / 1000 <= 10 + RESERVED_EXTRA_S
    gate.set()
    await creating
    assert 90 < await stage.store.call("TTL", record_key(stage)) <= 100


# --- limits and failures ------------------------------------------------------------------------------------------


async def test_create_again_is_answered_when_the_cap_is_used_up(set_stage: SetStage) -> None:
    """A repeat asks nothing of the vendor, so no cap stands in its way, and it takes nothing from one."""
    stage = set_stage(plan=Plan(user=ScopeLimits(requests_per_min=2)))
    created = await create(stage)
    assert [await create(stage) for _ in range(5)] == [created] * 5
    await create(stage, key="second")
    await refused(Code.RATE_LIMITED, create(stage, key="third"))
    assert await create(stage) == created


async def test_create_refused_by_a_cap_leaves_the_key_free(set_stage: SetStage) -> None:
    """What a limit refused may be sent again under its key, at once, also with another body."""
    stage = set_stage(plan=Plan(user=ScopeLimits(requests_per_min=1)))
    await create(stage, key="used")
    await refused(Code.RATE_LIMITED, create(stage))
    assert not await stage.store.call("EXISTS", record_key(stage))
    later = set_stage(tenant=stage.tenant.id, vendor=stage.vendor)
    created = await create(later, metadata={"a": 1})
    assert await create(stage, metadata={"a": 1}) == created


async def test_create_refused_by_the_vendor_leaves_the_key_free(two: tuple[Stage, Stage]) -> None:
    """Each repeat of a failure tries anew, on any worker, until one gets through."""
    first, second = two
    first.vendor.refusal = GatewayError(Code.UPSTREAM_UNAVAILABLE)
    for stage in (first, second, first):
        await refused(Code.UPSTREAM_UNAVAILABLE, create(stage))
    first.vendor.refusal = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError):
        await create(first)
    first.vendor.refusal = None
    assert await create(second) == await create(first)
    assert len(first.vendor.created) == 1


async def test_create_that_fails_lets_who_waits_elsewhere_try(two: tuple[Stage, Stage]) -> None:
    """A worker that waits for another's creation takes over when that one fails."""
    first, second = two
    gate = first.vendor.gate = asyncio.Event()
    first.vendor.refusal = GatewayError(Code.UPSTREAM_ERROR)
    failing = asyncio.ensure_future(create(first))
    await reserved(first)
    waiting = asyncio.ensure_future(create(second))
    await asyncio.sleep(creations_module.POLL_S)
    gate.set()
    await refused(Code.UPSTREAM_ERROR, failing)
    first.vendor.refusal = None
    assert (await waiting).id in first.vendor.conversations
    assert len(first.vendor.created) == 1


# --- workers and clients that are lost ----------------------------------------------------------------------------


async def test_create_after_its_worker_died_goes_on_once_the_reservation_has_run_out(two: tuple[Stage, Stage]) -> None:
    """A key that a lost worker has reserved is free after a while, and a repeat that waits gets it then."""
    first, second = two
    await lose_worker(first, life_s=0.4)
    created = await create(second)
    assert await create(first) == created
    assert len(first.vendor.created) == 1


async def test_create_waits_no_longer_than_the_vendor_may_take(set_stage: SetStage) -> None:
    """A repeat of a creation that does not end is told to come back, in bounded time."""
    stage = set_stage(call_timeout_s=0.3)
    await lose_worker(stage, life_s=60)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    error = await refused(Code.IDEMPOTENCY_PENDING, create(stage))
    assert 0.3 <= loop.time() - began_s < 2
    assert error.retry_after_s is not None
    assert stage.vendor.created == []


async def test_create_goes_on_when_its_client_leaves(two: tuple[Stage, Stage]) -> None:
    """A client that leaves takes nothing from who waits with it; its conversation is listed, its key leads there."""
    first, second = two
    gate = first.vendor.gate = asyncio.Event()
    left, waits = (asyncio.ensure_future(create(first)) for _ in range(2))
    keyless = asyncio.ensure_future(create(first, key=None))
    await reserved(first)
    left.cancel()
    keyless.cancel()
    await asyncio.gather(left, keyless, return_exceptions=True)
    gate.set()
    created = await waits
    assert await create(second) == created
    await until(lambda: len(first.vendor.created) == 2)
    await first.creations.aclose()
    listed, _ = await second.conversations.list(second.user(), None, 10)
    assert {conversation.id for conversation in listed} == first.vendor.conversations.keys()


async def test_create_under_way_when_the_worker_ends_is_saved(two: tuple[Stage, Stage]) -> None:
    """A worker that is told to end waits for its creations, so that their repeats find them elsewhere."""
    first, second = two
    gate = first.vendor.gate = asyncio.Event()
    creating = asyncio.ensure_future(create(first))
    await reserved(first)
    closing = asyncio.ensure_future(first.creations.aclose())
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert await create(second) == await creating


# --- a store that is away -----------------------------------------------------------------------------------------


async def test_create_without_the_store_asks_nothing_of_the_vendor(set_stage: SetStage, tmp_path: Path) -> None:
    """Nobody can tell whether this is a repeat: it is refused, and nothing is sent."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    stage = set_stage(server.url, store_timeout_s=0.2)
    await server.aclose()
    await refused(Code.STORE_UNAVAILABLE, create(stage))
    assert stage.vendor.created == []


@pytest.mark.parametrize("key", ["k", None])
async def test_create_while_the_store_is_away_for_a_moment_is_saved_when_it_is_back(
    set_stage: SetStage, tmp_path: Path, key: str | None
) -> None:
    """A store that goes while the vendor creates, and comes back, learns of the conversation and of its key."""
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    try:
        stage = set_stage(server.url, store_timeout_s=0.2)
        gate = stage.vendor.gate = asyncio.Event()
        creating = asyncio.ensure_future(create(stage, key=key))
        while not await stage.store.call("DBSIZE"):
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)  # without a key the vendor is asked right after the caps
        await server.aclose()
        gate.set()
        await until(lambda: len(stage.vendor.created) == 1)
        await asyncio.sleep(0.1)
        assert not creating.done()
        await server.open()
        created = await creating
        listed, _ = await stage.conversations.list(stage.user(), None, 10)
        assert [conversation.id for conversation in listed] == [created.id]
        if key is not None:
            assert await create(stage) == created
    finally:
        await server.aclose()


async def test_create_that_cannot_be_saved_is_answered_all_the_same(
    set_stage: SetStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store stays away the client still learns of the conversation that the vendor has for it."""
    monkeypatch.setattr(creations_module, "SAVE_S", 0.2)
    monkeypatch.setattr(creations_module, "SAVE_PAUSE_S", 0.05)
    server = EmbeddedValkey(tmp_path / "own")
    await server.open()
    stage = set_stage(server.url, store_timeout_s=0.2)
    gate = stage.vendor.gate = asyncio.Event()
    creating = asyncio.ensure_future(create(stage))
    await reserved(stage)
    await asyncio.sleep(0.05)
    await server.aclose()
    gate.set()
    assert (await creating).id in stage.vendor.conversations
