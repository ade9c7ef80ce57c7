"""Long-lived keys: shown once, kept as hashes, forgotten by every worker soon after they are taken away."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Tenant
from gateway.core.keys import KeyKind, KeyState
from gateway.services import keys as keys_module
from gateway.services.keys import OVERLAP_MAX_S
from tests.services.access import CountedKeys, auth_of, refusal, session


async def test_key_store_holds_no_secret(keys: CountedKeys, tenant: Tenant) -> None:
    """A key exists in clear once, when it is made; what is kept cannot open anything."""
    auth = auth_of(keys, tenant)
    key = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    (record,) = await keys.list(tenant.id)
    assert key.rsplit(".", 1)[1] not in repr(record)
    assert len(record.digest) == 64


async def test_key_replaced_is_refused_at_once_and_others_stay(keys: CountedKeys, tenant: Tenant) -> None:
    """Replacing takes away the older keys of that kind and label, from the cache as well, and no others."""
    auth = auth_of(keys, tenant)
    old = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "env-file", replace=True)).key
    kept = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "default")).key
    await session(auth, old, user_id="u1")
    new = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "env-file", replace=True)).key
    assert (await refusal(session(auth, old, user_id="u1"))).code is Code.CREDENTIAL_INVALID
    for key in (new, kept):
        assert await session(auth, key, user_id="u1")


async def test_key_removed_elsewhere_is_refused_once_the_cache_is_old(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proved key is remembered for a few seconds and not longer, so that removal takes effect everywhere."""
    auth = auth_of(keys, tenant)
    key = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    for _ in range(5):
        await session(auth, key, user_id="u1")
    assert keys.finds == 1
    await keys.remove(tenant.id, key.split(".")[1])
    await session(auth, key, user_id="u1")
    monkeypatch.setattr(keys_module, "KEY_CACHE_S", 0.0)
    assert (await refusal(session(auth, key, user_id="u1"))).code is Code.CREDENTIAL_INVALID


async def test_key_cache_of_guessed_ids_is_bounded(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guessing key ids does not fill the memory."""
    monkeypatch.setattr(keys_module, "KEY_CACHE_ENTRIES", 10)
    auth = auth_of(keys, tenant)
    for number in range(50):
        await refusal(session(auth, f"hgs_{tenant.id}.{number:012d}.{'A' * 43}", user_id="u1"))
    assert len(auth.keys._known) == 10


class Clock:
    """A clock that the test sets, in Unix time."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


async def test_key_past_its_time_opens_nothing(keys: CountedKeys, tenant: Tenant) -> None:
    """A key with an end stops at it, also where it is remembered; whoever has the whole key is told why."""
    clock = Clock()
    auth = auth_of(keys, tenant, clock=clock)
    minted = await auth.keys.mint(tenant.id, KeyKind.SECRET, "short", ttl_s=60)
    assert await session(auth, minted.key, user_id="u1")
    clock.now_s += 59
    assert await session(auth, minted.key, user_id="u1")
    clock.now_s += 1.001
    error = await refusal(session(auth, minted.key, user_id="u1"))
    assert (error.code, error.detail) == (Code.CREDENTIAL_INVALID, "The key has expired.")
    wrong = await refusal(session(auth, minted.key[:-1] + ("A" if minted.key[-1] != "A" else "B"), user_id="u1"))
    assert (wrong.code, wrong.detail) == (Code.CREDENTIAL_INVALID, refusal_words())


def refusal_words() -> str:
    """What is told of a credential that is none."""
    return GatewayError(Code.CREDENTIAL_INVALID).detail


async def test_key_revoked_opens_nothing_and_stays_listed(keys: CountedKeys, tenant: Tenant) -> None:
    """A revoked key is refused by name where it was revoked, at once; the list says since when."""
    auth = auth_of(keys, tenant)
    minted = await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")
    assert await session(auth, minted.key, user_id="u1")
    await auth.keys.revoke(tenant.id, minted.record.id)
    error = await refusal(session(auth, minted.key, user_id="u1"))
    assert (error.code, error.wire.ws_close) == (Code.REVOKED, 4503)
    (listed,) = await auth.keys.list(tenant.id)
    assert listed.state(time.time()) is KeyState.REVOKED
    first_s = listed.revoked_at_s
    await auth.keys.revoke(tenant.id, minted.record.id)
    assert (await auth.keys.list(tenant.id))[0].revoked_at_s == first_s
    assert (await refusal(auth.keys.revoke(tenant.id, "000000000000"))).code is Code.NOT_FOUND


async def test_key_revoked_elsewhere_is_refused_within_two_seconds(keys: CountedKeys, tenant: Tenant) -> None:
    """A worker that hears nothing of a revocation still refuses the key in time."""
    here, there = auth_of(keys, tenant), auth_of(keys, tenant)
    minted = await here.keys.mint(tenant.id, KeyKind.SECRET, "tests")
    assert await session(there, minted.key, user_id="u1")
    await here.keys.revoke(tenant.id, minted.record.id)
    async with asyncio.timeout(2.0):
        while True:
            try:
                await session(there, minted.key, user_id="u1")
            except GatewayError:
                break
            await asyncio.sleep(0.05)
    assert (await refusal(session(there, minted.key, user_id="u1"))).code is Code.REVOKED


async def test_key_rotated_hands_over_within_the_overlap(keys: CountedKeys, tenant: Tenant) -> None:
    """A rotation gives a new key of the same kind, label and life at once; the old one ends after the overlap."""
    clock = Clock()
    auth = auth_of(keys, tenant, clock=clock)
    old = await auth.keys.mint(tenant.id, KeyKind.SECRET, "backend", ttl_s=1000)
    new = await auth.keys.rotate(tenant.id, old.record.id, overlap_s=100)
    assert (new.record.kind, new.record.label) == (KeyKind.SECRET, "backend")
    assert new.record.expires_at_s == pytest.approx(clock.now_s + 1000, abs=1)
    for key in (old.key, new.key):
        assert await session(auth, key, user_id="u1")
    clock.now_s += 100.001
    assert (await refusal(session(auth, old.key, user_id="u1"))).code is Code.CREDENTIAL_INVALID
    assert await session(auth, new.key, user_id="u1")
    for key_id, overlap_s, code in (
        (old.record.id, 100.0, Code.INVALID_VALUE),  # has ended
        (new.record.id, -1.0, Code.INVALID_VALUE),
        (new.record.id, OVERLAP_MAX_S + 1, Code.INVALID_VALUE),
        ("000000000000", 100.0, Code.NOT_FOUND),
    ):
        assert (await refusal(auth.keys.rotate(tenant.id, key_id, overlap_s=overlap_s))).code is code


async def test_key_rotated_does_not_live_longer_by_it(keys: CountedKeys, tenant: Tenant) -> None:
    """An overlap that is longer than what the old key had left does not lengthen it."""
    clock = Clock()
    auth = auth_of(keys, tenant, clock=clock)
    old = await auth.keys.mint(tenant.id, KeyKind.SECRET, "backend", ttl_s=50)
    await auth.keys.rotate(tenant.id, old.record.id, overlap_s=1000)
    clock.now_s += 51
    assert (await refusal(session(auth, old.key, user_id="u1"))).code is Code.CREDENTIAL_INVALID


@pytest.mark.parametrize(
    ("label", "ttl_s", "field"),
    [("", None, "label"), ("x" * 65, None, "label"), ("a\nb", None, "label"), ("a", 0, "ttl_s")],
)
async def test_key_with_bad_fields_is_refused_by_field(
    keys: CountedKeys, tenant: Tenant, label: str, ttl_s: float | None, field: str
) -> None:
    """A label is printable and short, and a key lives for some time."""
    error = await refusal(auth_of(keys, tenant).keys.mint(tenant.id, KeyKind.SECRET, label, ttl_s=ttl_s))
    assert (error.code, error.field) == (Code.INVALID_VALUE, field)


async def test_key_record_names_the_key_without_giving_it_away(keys: CountedKeys, tenant: Tenant) -> None:
    """A list shows how each key begins and its last characters, enough to tell keys apart and no more."""
    auth = auth_of(keys, tenant)
    minted = [await auth.keys.mint(tenant.id, kind, "tests") for kind in KeyKind]
    listed = {record.kind: record for record in await auth.keys.list(tenant.id)}
    for key, record in minted:
        assert listed[record.kind] == record
        assert key.startswith(f"{record.prefix}.")
        assert key.endswith(record.ending)
        assert len(record.ending) == 4


async def test_key_that_is_unknown_is_remembered_as_unknown(keys: CountedKeys, tenant: Tenant) -> None:
    """A miss is remembered too: guessing the same id again costs the store nothing."""
    auth = auth_of(keys, tenant)
    for _ in range(5):
        await refusal(session(auth, f"hgs_{tenant.id}.{0:012d}.{'A' * 43}", user_id="u1"))
    assert keys.finds == 1
