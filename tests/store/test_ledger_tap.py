"""The ledger as an exporter sees it: one post, streams that tell what they have lost, tenants kept in mind."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.core.identity import TenantId
from gateway.core.warehouse import Line, Mark, Reading
from gateway.store.ledger import RedisLedger
from gateway.store.ledger_tap import POST, TENANTS, RedisLedgerTap
from gateway.store.redis import Keys, Redis
from tests.store.log_bench import new_worker
from tests.warehouse.conftest import settlement

POST_S = 30.0


@pytest.fixture
async def fresh(store: Redis) -> Redis:
    """The store without what an exporter keeps there."""
    await store.call("DEL", POST)
    await store.call("DEL", TENANTS)
    return store


def tap_of(store: Redis, *, post_s: float = POST_S, keep_s: float = 600.0) -> RedisLedgerTap:
    return RedisLedgerTap(store, new_worker(), post_s=post_s, keep_s=keep_s)


# --- the post -----------------------------------------------------------------------------------------------------


async def test_post_is_held_by_one_of_many(fresh: Redis) -> None:
    """However many ask at once, one has it, and keeps it for as long as it comes back."""
    taps = [tap_of(fresh) for _ in range(20)]
    for _ in range(3):
        posts = await asyncio.gather(*(tap.take_post() for tap in taps))
        assert [post.held for post in posts].count(True) == 1
    holder = next(tap for tap, post in zip(taps, posts, strict=True) if post.held)
    assert (await holder.take_post()).held


async def test_post_that_is_left_is_free_at_once(fresh: Redis) -> None:
    """One who leaves keeps nobody waiting; one who never had it frees nothing."""
    first, second = tap_of(fresh), tap_of(fresh)
    assert (await first.take_post()).held
    await second.leave_post()
    assert not (await second.take_post()).held
    await first.leave_post()
    assert (await second.take_post()).held
    assert not (await first.take_post()).held


async def test_post_of_one_who_died_is_free_after_its_time(fresh: Redis) -> None:
    """An exporter that is killed is succeeded without anybody's doing."""
    first, second = tap_of(fresh, post_s=0.05), tap_of(fresh)
    assert (await first.take_post()).held
    async with asyncio.timeout(10):
        while not (await second.take_post()).held:
            await asyncio.sleep(0.01)
    assert not (await first.take_post()).held


async def test_post_says_to_all_how_far_the_export_is(fresh: Redis) -> None:
    """The holder notes it, everybody reads it; nobody else can, and it survives the holder."""
    first, second = tap_of(fresh), tap_of(fresh)
    begun = await first.take_post()
    assert begun.complete_s == begun.now_s  # nothing was ever settled before
    assert (await second.take_post(complete_s=begun.now_s + 99)).complete_s == begun.complete_s
    assert (await first.take_post(complete_s=begun.now_s + 1)).complete_s == pytest.approx(begun.now_s + 1, abs=0.002)
    await first.leave_post()
    taken = await second.take_post()
    assert taken.complete_s == pytest.approx(begun.now_s + 1, abs=0.002)
    assert 0 < await fresh.call("PTTL", POST) <= (600 + POST_S) * 2000


# --- streams ------------------------------------------------------------------------------------------------------


async def fill(store: Redis, tenant: TenantId, count: int) -> list[Line]:
    """Settle some turns, and return them as a tap should read them."""
    ledger = RedisLedger(store, ttl_s=600, retries_s=())
    for _ in range(count):
        assert await ledger.add(tenant, settlement())
    entries = await ledger.settled(tenant, None, 1000)
    return [Line(entry, msgspec.json.encode(one)) for entry, one in entries]


def mark_of(line: Line) -> Mark:
    return Mark(line.entry, str(msgspec.json.decode(line.body)["turn_id"]))


async def test_read_pages_are_all_settlements_in_order(fresh: Redis, tenant: TenantId) -> None:
    """From no mark and from each page's last, every settlement comes once, byte for byte as it was written."""
    lines = await fill(fresh, tenant, 7)
    tap = tap_of(fresh)
    for size in (1, 3, 7, 100):
        found: list[Line] = []
        while (reading := await tap.read(tenant, mark_of(found[-1]) if found else None, size)).lines:
            assert reading.intact
            assert len(reading.lines) <= size
            found += reading.lines
        assert found == lines
    assert await tap.read(tenant, mark_of(lines[-1]), 10) == Reading(True, [])


async def test_read_tells_that_a_mark_is_gone(fresh: Redis, tenant: TenantId) -> None:
    """A mark that was lost or trimmed, or whose id another turn has by now, is not gone on from."""
    lines = await fill(fresh, tenant, 5)
    tap, key = tap_of(fresh), Keys(tenant).settlements()
    gone = Reading(False, ())
    assert await tap.read(tenant, Mark("99999999999999-0", "x"), 10) == gone
    assert await tap.read(tenant, Mark(lines[2].entry, "another"), 10) == gone
    await fresh.call("XDEL", key, lines[2].entry)
    assert await tap.read(tenant, mark_of(lines[2]), 10) == gone
    assert await tap.read(tenant, mark_of(lines[1]), 10) == Reading(True, lines[3:])
    await fresh.call("XTRIM", key, "MINID", lines[3].entry)
    assert await tap.read(tenant, mark_of(lines[1]), 10) == gone
    await fresh.call("DEL", key)
    assert await tap.read(tenant, mark_of(lines[4]), 10) == gone
    assert await tap.read(tenant, None, 10) == Reading(True, [])


async def test_read_gives_entries_that_are_no_settlement_too(fresh: Redis, tenant: TenantId) -> None:
    """What is no settlement is for the warehouse to set aside; it does not end the reading."""
    key = Keys(tenant).settlements()
    for pair in (("s", "{"), ("other", "x"), ("s", b"\xff")):
        await fresh.call("XADD", key, "*", *pair)
    reading = await tap_of(fresh).read(tenant, None, 10)
    assert [line.body for line in reading.lines] == [b"{", b"", b"\xff"]
    assert await tap_of(fresh).read(tenant, Mark(reading.lines[0].entry, ""), 10) == Reading(True, reading.lines[1:])


# --- tenants ------------------------------------------------------------------------------------------------------


async def test_tenants_that_were_known_are_followed_while_they_may_have_settlements(fresh: Redis) -> None:
    """A tenant that is gone, and a gateway that has never heard of it: what it settled is exported all the same."""
    a, b, c = (TenantId(name) for name in ("t-a", "t-b", "t-c"))
    assert await tap_of(fresh).tenants([b, a]) == [a, b]
    tap = tap_of(fresh)
    assert await tap.tenants([c]) == [a, b, c]
    assert await tap.tenants([c]) == [a, b, c]
    assert 0 < await fresh.call("PTTL", TENANTS) <= (600 + POST_S) * 2000
    await fresh.call("ZADD", TENANTS, 1, a)
    assert await tap_of(fresh).tenants([]) == [a, b, c]  # as it was read; cleared for the next time
    assert await tap_of(fresh).tenants([]) == [b, c]
